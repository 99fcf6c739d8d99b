#!/bin/sh
# Runs scripts of the tests one after the other, before the release builds: run.sh SCRIPT...
# A script is named by its path from here, without its end: e2e/nginx. What a script needs it
# installs by package names; what cannot be had is named as skipped. The last line is the tally.
. "$(dirname "$0")/lib.sh"

cd "$root"
build dynamic static stand_in
TALLY=$work/tally
export TALLY
: >"$TALLY"
for script; do
    echo "== $script"
    before=$(wc -l <"$TALLY")
    sh "$here/$script.sh" || true
    # A script that broke off has no tally.
    [ "$(wc -l <"$TALLY")" -gt "$before" ] || {
        echo "FAILED: $script broke off"
        echo '0 1 0' >>"$TALLY"
    }
done
echo "== all"
while read -r one two three; do
    passed=$((passed + one)) failed=$((failed + two)) skipped=$((skipped + three))
done <"$TALLY"
TALLY=
close
