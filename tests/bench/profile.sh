#!/bin/sh
# What the instructions and the bytes of the static build are spent on, by function and by crate.
# Builds it once more with its symbols, and renews one file before nginx under callgrind.
. "$(dirname "$0")/../lib.sh"
for command in valgrind nginx; do
    need $command $command || { echo "profile: cannot have: $command" >&2 && exit 1; }
done

cd "$root"
CARGO_TARGET_DIR=$target/profile CARGO_PROFILE_RELEASE_STRIP=false CARGO_PROFILE_RELEASE_DEBUG=1 \
    sh .packaging/build.sh static "$musl"
program=$target/profile/$musl/release/sf-refresh

port=$(free_ports 1)
start_nginx "$port" <<CONF
    server {
        listen 127.0.0.1:$port ssl;
        ssl_protocols TLSv1.3;
        return 200 '{"access_token":"00Dxx!from-nginx","issued_at":"1700000001000"}';
    }
CONF
new_token
run valgrind --tool=callgrind "--callgrind-out-file=$work/callgrind" "$program" -q -i CONSUMER_KEY \
    --ca-cert "$certs/ca.pem" -e "https://127.0.0.1:$port/services/oauth2/token" "$token"
[ "$status" = 0 ] || { cat "$work/err" && exit 1; }
echo '== instructions by function'
callgrind_annotate --show-percs=yes --threshold=90 "$work/callgrind" |
    sed -n '/file:function/,$p' | sed 's| \[/[^]]*\]$||; s|[^ ]*/||' | cut -c1-110 | head -n 40
echo '== bytes by section'
size -A -d "$program" | sed -nE '/debug/d; s/^(\.[^ ]+) +([0-9]{4,}) .*/\2 \1/p' | sort -rn
echo '== bytes by crate'
nm -S -C "$program" | python3 "$here/by_crate.py"
