#!/bin/sh
# The end-to-end tests: the release builds before real servers, proxies and resolvers, on loopback.
# Installs the packages that it needs by their names, and names as skipped what it cannot have.
# Arguments: the groups to run; without any, all of them.
. "$(dirname "$0")/lib.sh"
[ $# -gt 0 ] || set -- oidc-provider nginx proxies names

cd "$root"
musl=x86_64-unknown-linux-musl
if [ -z "${SF_REFRESH:-}" ]; then
    cargo build --release --locked
fi
if [ -z "${SF_REFRESH_STATIC:-}" ]; then
    sh tests/ship/static.sh $musl >"$work/build" 2>&1 ||
        echo "no static build: $(tail -n 1 "$work/build")"
fi

E2E_TALLY=$work/tally
export E2E_TALLY
: >"$E2E_TALLY"
for group; do
    echo "== $group"
    before=$(wc -l <"$E2E_TALLY")
    sh "$here/$group.sh" || true
    # A script that broke off has no tally.
    [ "$(wc -l <"$E2E_TALLY")" -gt "$before" ] || {
        echo "FAILED: $group broke off"
        echo '0 1 0' >>"$E2E_TALLY"
    }
done
echo "== all"
while read -r one two three; do
    passed=$((passed + one)) failed=$((failed + two)) skipped=$((skipped + three))
done <"$E2E_TALLY"
E2E_TALLY=
close
