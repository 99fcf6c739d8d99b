#!/bin/sh
# Tortures sf-refresh: every system call killed and failed, unkind places, many runs at once.
#
# usage: run.sh [--quick]
#
# SF_REFRESH and STAND_IN may name programs that are built already, SUITES some of the suites; SEED and
# ROUNDS are those of disorder.py, CUTS that of power.py. Needs Python 3, and root to
# install strace by apt-get where it is missing.
. "$(dirname "$0")/../lib.sh"

need strace strace || true
need chattr e2fsprogs || true
need setfacl acl || true
need unshare util-linux || true

build stand_in
if [ -z "${SF_REFRESH:-}" ]; then
    # The static program is what ships; without its target, the one for this machine.
    build static
    [ -x "$static" ] || build dynamic
    [ ! -x "$static" ] || dynamic=$static
fi
SF_REFRESH=$(realpath "$dynamic")
STAND_IN=$(realpath "$stand_in")
export SF_REFRESH STAND_IN PYTHONDONTWRITEBYTECODE=1

# The suites, each a Python script beside this one with a closing line of its own.
suites='places crowd stops power'
if has strace && strace -o /dev/null true 2>/dev/null; then
    suites="$suites torture disorder"
else
    echo 'skipped: every system call killed and failed, disorder (no strace, or no right to use it)'
fi
status=0
for suite in ${SUITES:-$suites}; do
    python3 "$here/$suite.py" "$@" || status=1
done
exit $status
