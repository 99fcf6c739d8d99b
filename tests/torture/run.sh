#!/bin/sh
# Tortures sf-refresh: every system call killed and failed, unkind places, many runs at once.
#
# usage: run.sh [--quick]
#
# SF_REFRESH and STAND_IN may name programs that are built already. Needs Python 3, and root to
# install strace by apt-get where it is missing.
set -u
cd "$(dirname "$0")/../.." || exit 1
target=${CARGO_TARGET_DIR:-target}

fail() {
    echo "torture: $*" >&2
    exit 1
}

command -v python3 >/dev/null || fail "python3 is needed"

# strace, and what the places need where it can be had.
missing=
command -v strace >/dev/null || missing=strace
command -v chattr >/dev/null || missing="$missing e2fsprogs"
command -v unshare >/dev/null || missing="$missing util-linux"
if [ -n "$missing" ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    # shellcheck disable=SC2086 # one word each
    { apt-get update && apt-get install --yes --no-install-recommends $missing; } >/dev/null
fi

if [ -z "${SF_REFRESH:-}" ]; then
    # The static program is what ships; without its target, the one for this machine.
    static=$(uname -m)-unknown-linux-musl
    if sh tests/ship/static.sh "$static" >/dev/null 2>&1
    then
        SF_REFRESH=$target/$static/release/sf-refresh
    else
        echo "skipped: the static program (it cannot be built here); the other one is tried"
        cargo build --quiet --release --locked || fail "the program cannot be built"
        SF_REFRESH=$target/release/sf-refresh
    fi
fi
if [ -z "${STAND_IN:-}" ]; then
    cargo build --quiet --locked --example stand-in || fail "the endpoint cannot be built"
    STAND_IN=$target/debug/examples/stand-in
fi
SF_REFRESH=$(realpath "$SF_REFRESH")
STAND_IN=$(realpath "$STAND_IN")
export SF_REFRESH STAND_IN PYTHONDONTWRITEBYTECODE=1

status=0
for script in places crowd; do
    python3 tests/torture/$script.py "$@" || status=1
done
if command -v strace >/dev/null && strace -o /dev/null true 2>/dev/null; then
    python3 tests/torture/torture.py "$@" || status=1
else
    echo "skipped: every system call killed and failed (no strace, or no right to use it)"
fi
exit $status
