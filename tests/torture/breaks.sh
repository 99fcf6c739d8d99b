#!/bin/bash
# Breaks the save on purpose, one way at a time, in a copy of the source, and sees the torture fail
# each time. Not part of the default run: each break is a build.
#
# usage: breaks.sh [BREAK...]
# shellcheck disable=SC2034
. "$(dirname "$0")/../lib.sh"
set +e
cd "$root" || exit 1
copy=$work/copy
mkdir "$copy"
# Another user runs the program too.
chmod 755 "$work"
build stand_in
export STAND_IN=$stand_in

# Builds the program in the copy, without what takes long and changes nothing here.
build_copy() {
    (cd "$copy" && CARGO_TARGET_DIR=$copy/target CARGO_PROFILE_RELEASE_LTO=false \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 sh .packaging/build.sh static "$musl" 2>&1)
}

# Each break is the suites that have to see it, and a sed script for src/main.rs.
# The document is not synced before it takes the place of the old one.
no_fsync='torture power|/    fn write(/,/^    }/ s/self\.handle\.sync_all()/Ok(())/'
# The old text is cut off first, as an editor would do it.
truncate_first='torture|/    fn overwrite(/,/^    }/ s/file\.handle\.write_all_at(/file.handle.set_len(0)?; &/'
# The reply waits for the journal until it has been read and merged.
not_kept='torture|s/save\.keep_reply(&self\.reply);//'
# What could not be saved is cleaned up, and with it the only copy.
delete_journal='torture|/    fn commit(/,/^    }/ s/return Err((.*journal))/{ journal.iter().for_each(Journal::remove); & }/'
# Runs do not wait for each other.
no_lock='crowd|/^fn lock_within(/,/^}/ s/match handle\.try_lock()/match Ok::<(), TryLockError>(())/
/    fn lock(/,/^    }/ s/file\.handle\.try_lock()\.is_err()/false/'
# Stops are obeyed at once.
no_hold='stops|/pub fn hold_stops/,/^    }/ s/for number in STOPS/&.into_iter().take(0)/'
# Nobody looks whether another program has changed the file.
no_look='disorder|/fn is_unchanged_at(/,/^    }/ s/is_named(.*/path.exists()/'

# Builds the program with one break, and runs the torture: it has to fail.
try() {
    rm -rf "$copy/src" "$copy/tests" "$copy/.packaging"
    cp -r .packaging Cargo.toml Cargo.lock README.md src tests "$copy"
    sed -i "${2#*|}" "$copy/src/main.rs"
    if cmp -s src/main.rs "$copy/src/main.rs"; then
        echo "$1: the break no longer finds its place in src/main.rs"
        return 1
    fi
    if ! build_copy >"$copy/log"; then
        tail -n 5 "$copy/log"
        echo "$1: does not build"
        return 1
    fi
    ROUNDS=${ROUNDS:-200} SUITES=${2%%|*} SF_REFRESH=$copy/target/$musl/release/sf-refresh sh tests/torture/run.sh --quick \
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
[ $# -gt 0 ] || set -- no_fsync truncate_first not_kept delete_journal no_lock no_hold no_look
for name; do
    try "$name" "${!name}" || failed=1
done
exit $failed
