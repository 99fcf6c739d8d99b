#!/bin/bash
# Breaks the save on purpose, one way at a time, in a copy of the source, and sees the torture fail
# each time. Not part of the default run: each break is a build.
#
# usage: breaks.sh [BREAK...]
set -u
cd "$(dirname "$0")/../.." || exit 1
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
machine=$(uname -m)
static=$machine-unknown-linux-musl
export "CC_${machine}_unknown_linux_musl=cc" PYTHONDONTWRITEBYTECODE=1
rustup target add "$static" >/dev/null 2>&1
cargo build --quiet --locked --example stand-in || exit 1
STAND_IN=$(realpath "${CARGO_TARGET_DIR:-target}/debug/examples/stand-in")
export STAND_IN

# Each break is a sed script for src/main.rs.
# The document is not synced before it takes the place of the old one.
no_fsync='/^fn rewrite(/,/^}/ s/file\.sync_all()/Ok(())/'
# The old text is cut off first, as an editor would do it.
truncate_first='/^fn overwrite(/,/^}/ s/^    if document/    file.set_len(0)?;\n&/'
# What could not be saved is cleaned up, and with it the only copy.
delete_journal='/fn commit(/,/^    }/ s/Err(cause) => Err(/Err(cause) => { let _ = fs::remove_file(\&path); Err(/
/fn commit(/,/^    }/ s/then_some(path) }),/then_some(path) }) }/'
# Runs do not wait for each other.
no_lock='/fn wait_for_lock(/,/^    }/ s/match self\.handle\.try_lock()/match Ok::<(), TryLockError>(())/'

# Builds the program with one break, and runs the torture: it has to fail.
try() {
    rm -rf "$copy/src"
    cp -r Cargo.toml Cargo.lock README.md src tests "$copy" 2>/dev/null
    sed -i "$2" "$copy/src/main.rs"
    if cmp -s src/main.rs "$copy/src/main.rs"; then
        echo "$1: the break no longer finds its place in src/main.rs"
        return 1
    fi
    if ! (cd "$copy" && CARGO_TARGET_DIR=$copy/target \
        cargo build --quiet --release --locked --target "$static" \
        --config profile.release.lto=false --config profile.release.codegen-units=16 2>&1); then
        echo "$1: does not build"
        return 1
    fi
    SF_REFRESH=$copy/target/$static/release/sf-refresh sh tests/torture/run.sh --quick \
        >"$copy/log" 2>&1
    status=$?
    # What a healthy program is told about as well is no sign of the break.
    grep '^FAILED' "$copy/log" | sort >"$copy/failed"
    new=$(comm -13 "$copy/healthy" "$copy/failed" | wc -l)
    if [ $status = 0 ] || [ "$new" = 0 ]; then
        echo "$1: NOT NOTICED"
        return 1
    fi
    echo "$1: noticed, $new tests failed, among them"
    comm -13 "$copy/healthy" "$copy/failed" | shuf -n 3 --random-source=/dev/zero | sed 's/^/    /'
    grep '^calls killed' "$copy/log" | cut -d'(' -f1 | sed 's/^/    /'
}

echo "the program as it is"
sh tests/torture/run.sh --quick >"$copy/log" 2>&1
grep '^FAILED' "$copy/log" | sort >"$copy/healthy"
grep '^calls killed' "$copy/log" | cut -d'(' -f1 | sed 's/^/    /'
failed=0
for name in ${*:-no_fsync truncate_first delete_journal no_lock}; do
    try "$name" "${!name}" || failed=1
done
exit $failed
