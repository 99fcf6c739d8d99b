#!/bin/sh
# The benchmark: the static release build beside what a user would pick instead, on one nginx over
# TLS 1.3 on loopback. Prints markdown tables. BENCH_ROUNDS is how often each takes its turn.
. "$(dirname "$0")/../e2e/lib.sh"

# must COMMAND PACKAGE...: a package without which there is nothing to compare.
must() {
    need "$@" || { shift && echo "bench: cannot have: $*" >&2 && exit 1; }
}
must nginx nginx-light
must ip iproute2
must curl curl
must jq jq
must valgrind valgrind
[ -x /usr/bin/time ] || install time || { echo 'bench: cannot have: time' >&2 && exit 1; }

cd "$root"
musl=x86_64-unknown-linux-musl
rustup target add $musl 2>"$work/build" || cat "$work/build" >&2
cargo build --quiet --release --locked
CC_x86_64_unknown_linux_musl=cc \
    cargo build --quiet --release --locked --target $musl --bins --example floor

set --
python=$(python3 -c 'import sys; print(sys.executable)')
packages=$target/bench/python
if [ -d "$packages/requests_oauthlib" ] ||
    "$python" -m pip install --quiet --target "$packages" requests-oauthlib >"$work/install" 2>&1; then
    set -- "$@" --python-packages "$packages"
else
    echo "skipped: Python, requests-oauthlib ($(tail -n 1 "$work/install"))"
fi
if need npm nodejs npm && npm_folder bench jsforce; then
    set -- "$@" --node-packages "$npm"
else
    echo "skipped: Node, jsforce ($(tail -n 1 "$work/install"))"
fi

# In a network namespace of its own nothing can leave this machine, whatever a contender tries.
if unshare -n ip link set lo up 2>/dev/null; then
    unshare -n sh "$here/measure.sh" "$@"
else
    sh "$here/measure.sh" "$@"
fi
