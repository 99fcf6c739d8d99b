#!/bin/sh
# Whether the targets static, dist, vendor, man and install of the Makefile, cargo's packages and the
# recipes do what the README says. What takes long is kept in the build folder.
# shellcheck disable=SC2154
. "$(dirname "$0")/../e2e/lib.sh"

cd "$root"
cargo build --quiet --locked --bins --examples
sh tests/ship/static.sh x86_64-unknown-linux-musl >"$work/build" 2>&1 || {
    cat "$work/build"
    exit 1
}

E2E_TALLY=$work/tally
export E2E_TALLY
: >"$E2E_TALLY"
for script in ship/packages ship/offline recipes/run; do
    echo "== $script"
    before=$(wc -l <"$E2E_TALLY")
    sh "tests/$script.sh" || true
    # A script that broke off has no tally.
    [ "$(wc -l <"$E2E_TALLY")" -gt "$before" ] || {
        echo "FAILED: $script broke off"
        echo '0 1 0' >>"$E2E_TALLY"
    }
done
echo "== all"
while read -r one two three; do
    passed=$((passed + one)) failed=$((failed + two)) skipped=$((skipped + three))
done <"$E2E_TALLY"
E2E_TALLY=
close
