#!/bin/sh
# The measuring half of run.sh, when all is installed and built: starts nginx, runs bench.py.
# Arguments: those of bench.py that name the packages of the contenders.
. "$(dirname "$0")/../e2e/lib.sh"
python=$(python3 -c 'import sys; print(sys.executable)')

# The token files are on the disk of the build folder: in memory fsync would cost nothing.
mkdir -p "$target/bench"
disk=$(mktemp -d "$target/bench/work.XXXXXX")
trap 'rm -rf "$disk"; finish' EXIT
[ "$(id -u)" != 0 ] || ip link set lo up
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
"$python" "$here/bench.py" --work "$disk" --url "https://127.0.0.1:$port/services/oauth2/token" \
    --ca "$certs/ca.pem" --static "$static" --dynamic "$dynamic" \
    --floor "$(dirname "$static")/examples/floor" --server "$(nginx -v 2>&1 | sed 's/.*: //')" \
    --rounds "${BENCH_ROUNDS:-40}" "$@"
