#!/bin/sh
# The benchmark: the static release build beside what a user would pick instead, on one nginx over
# TLS 1.3 on loopback. Prints markdown tables. BENCH_ROUNDS is how often each takes its turn.
. "$(dirname "$0")/../lib.sh"

# must COMMAND PACKAGE...: a package without which there is nothing to compare.
must() {
    need "$@" || { shift && echo "bench: cannot have: $*" >&2 && exit 1; }
}

# What needs the network, or takes long: packages and builds.
prepare() {
    must nginx nginx-light
    must ip iproute2
    must jq jq
    must valgrind valgrind
    [ -x /usr/bin/time ] || install time || { echo 'bench: cannot have: time' >&2 && exit 1; }
    build dynamic
    quietly sh .packaging/build.sh static "$musl" --bins --example floor ||
        { cat "$work/build" && exit 1; }
    python_folder oauth requests-oauthlib ||
        echo "skipped: Python, requests-oauthlib ($(tail -n 1 "$work/install"))"
    { need npm nodejs npm && npm_folder jsforce jsforce; } ||
        echo "skipped: Node, jsforce ($(tail -n 1 "$work/install"))"
}

# In a network of its own nothing can leave this machine, whatever a contender tries.
[ -n "${ISOLATED:-}" ] || prepare
isolate bench
# The token files are on the disk of the build folder: in memory fsync would cost nothing.
mkdir -p "$target/bench"
disk=$(mktemp -d "$target/bench/work.XXXXXX")
trap 'rm -rf "$disk"; finish' EXIT
secret=$(printf 'AR8AQ%.0s' $(seq 19))
port=$(free_ports 1)
start_nginx "$port" <<CONF
    access_log off;
    keepalive_requests 100000;
    server {
        listen 127.0.0.1:$port ssl;
        ssl_protocols TLSv1.3;
        return 200 '{"access_token":"00Dxx0000001gPL!$secret",
            "signature":"0CmxinZir53Yex7nE0TD+zMpvIWYGb/bdJh6XfOH6EQ=",
            "scope":"refresh_token api","instance_url":"https://mydomain.my.salesforce.com",
            "id":"https://login.salesforce.com/id/00Dxx0000001gPLEAY/005xx000001SwiUAAS",
            "token_type":"Bearer","issued_at":"1700000001000"}';
    }
CONF
python3 "$here/bench.py" --work "$disk" --url "https://127.0.0.1:$port/services/oauth2/token" \
    --ca "$certs/ca.pem" --static "$static" --dynamic "$dynamic" \
    --floor "$(dirname "$static")/examples/floor" --server "$(nginx -v 2>&1 | sed 's/.*: //')" \
    --python "$target/python/oauth/bin/python" --node-packages "$target/npm/jsforce" \
    --rounds "${BENCH_ROUNDS:-40}"
