#!/bin/sh
# tinyproxy and squid as CONNECT proxies before nginx: open, with a password, with a deny list, and
# what NO_PROXY names. In namespaces of its own, where login.example.test is this machine.
. "$(dirname "$0")/../lib.sh"
need nginx nginx-light || skip_all proxies 'the package nginx-light cannot be had'
need ip iproute2 || skip_all proxies 'the package iproute2 cannot be had'
for proxy in tinyproxy squid; do
    [ -n "${ISOLATED:-}" ] || need $proxy $proxy || true
done
isolate proxies
for proxy in tinyproxy squid; do
    has $proxy || skip "$proxy" "the package $proxy cannot be had"
done
echo '127.0.0.1 localhost login.example.test denied.example.test' | replace_file /etc/hosts
echo 'nameserver 127.0.0.1' | replace_file /etc/resolv.conf

free_ports 4 >"$work/ports"
{ read -r tls && read -r open && read -r locked && read -r deaf; } <"$work/ports"
start_nginx "$tls" <<CONF
    server { listen 127.0.0.1:$tls ssl; return 200 '{"access_token":"00Dxx!from-nginx"}'; }
CONF

# renew PROXY [NAME=VALUE]...: renews a new token file through a proxy.
renew() {
    proxy=$1
    shift
    new_token
    run "HTTPS_PROXY=$proxy" "$@" "$dynamic" -i CONSUMER_KEY --ca-cert "$certs/ca.pem" --retry 0 \
        -e "https://$host:$tls/token" "$token"
}

# tunnelled LOG PATTERN: nothing where the proxy's log, which it writes late, has such a line.
tunnelled() {
    wait_until grep -qE "$2" "$1" || echo 'the log of the proxy does not show it'
}

# steps NAME LOG PATTERN PASSWORD: what holds for both proxies; $open and $locked are their two
# ports, and the password of `user` is percent-encoded.
steps() {
    host=login.example.test
    renew "http://127.0.0.1:$open"
    expect "$1, open: renews" 0 'OAuth2 authorization granted!'
    check "$1, open: the proxy was used" "$(tunnelled "$2" "$3")"
    renew "127.0.0.1:$open"
    expect "$1, open: renews where the proxy is named without http://" 0
    renew "http://localhost:$open/"
    expect "$1, open: renews where the proxy is named by name and with a slash" 0

    renew "http://user:$4@127.0.0.1:$locked"
    expect "$1, password: the right one renews" 0
    renew "http://127.0.0.1:$locked"
    expect "$1, password: none is refused in words" 5 'proxy' 'HTTP 407' 'nothing was sent' \
        'hint: put USER:PASSWORD@'
    renew "http://user:wrong-word@127.0.0.1:$locked"
    expect "$1, password: a wrong one is refused in words" 5 'proxy' 'nothing was sent' \
        'hint: put USER:PASSWORD@'
    grep -q 'wrong-word' "$work/err" && problem='it is' || problem=
    check "$1, password: it is not shown" "$problem"

    host=denied.example.test
    renew "http://127.0.0.1:$open"
    expect "$1, deny list: refused in words" 5 'the proxy refused: HTTP 403' 'nothing was sent' \
        'NO_PROXY'
    host=login.example.test

    # A run that asks the locked proxy without a password fails: what succeeds has gone past it.
    bypass "$1, NO_PROXY with blanks" 0 ' other.test , login.example.test '
    bypass "$1, NO_PROXY with a leading dot" 0 '.example.test'
    bypass "$1, NO_PROXY with a bare domain" 0 'example.test'
    bypass "$1, NO_PROXY of a star" 0 '*'
    bypass "$1, NO_PROXY in capitals" 0 'LOGIN.EXAMPLE.TEST'
    bypass "$1, NO_PROXY with part of a name does not count" 5 'ample.test'
    bypass "$1, NO_PROXY with another host does not count" 5 'other.login.example.test,127.0.0.1'
    bypass "$1, NO_PROXY that is empty does not count" 5 ''
    host=127.0.0.1
    bypass "$1, NO_PROXY with an address" 0 'example.test, 127.0.0.1'
}

# bypass NAME STATUS VALUE: a run with this NO_PROXY, as it is spelt both ways.
bypass() {
    renew "http://127.0.0.1:$locked" "NO_PROXY=$3"
    expect "$1" "$2"
    renew "http://127.0.0.1:$locked" "no_proxy=$3" 'NO_PROXY='
    expect "$1, in lower case" "$2"
}

# A squid that root starts goes on as a user of its own, and has to reach what is in here.
chmod 755 "$work"

tinyproxy_conf() {
    cat <<CONF
Listen 127.0.0.1
Port $1
Allow 127.0.0.1
Timeout 20
LogFile "$work/tinyproxy.log"
LogLevel Connect
Filter "$work/denied"
$2
CONF
}
if has tinyproxy; then
    echo '^denied\.example\.test$' >"$work/denied"
    tinyproxy_conf "$open" '' >"$work/tinyproxy-open.conf"
    tinyproxy_conf "$locked" 'BasicAuth user pass-word_1' >"$work/tinyproxy-locked.conf"
    background tinyproxy -d -c "$work/tinyproxy-open.conf"
    wait_for_port "$open"
    background tinyproxy -d -c "$work/tinyproxy-locked.conf"
    wait_for_port "$locked"
    steps "$(tinyproxy -v)" "$work/tinyproxy.log" "CONNECT login.example.test:$tls" \
        pass-word_1
fi

if has squid; then
    { read -r open && read -r locked; } <<PORTS
$(free_ports 2)
PORTS
    printf 'user:%s\n' "$(openssl passwd -apr1 'p@ss:word')" >"$work/squid-users"
    cat >"$work/squid.conf" <<CONF
http_port 127.0.0.1:$open
http_port 127.0.0.1:$locked
auth_param basic program /usr/lib/squid/basic_ncsa_auth $work/squid-users
acl locked localport $locked
acl known proxy_auth REQUIRED
acl denied dstdomain denied.example.test
acl CONNECT method CONNECT
http_access deny denied
http_access deny locked !known
http_access allow CONNECT
http_access deny all
access_log stdio:$work/squid.log
cache_log $work/squid-cache.log
pid_filename $work/squid.pid
coredump_dir $work
cache_mem 8 MB
pinger_enable off
shutdown_lifetime 0 seconds
CONF
    touch "$work/squid.log" "$work/squid-cache.log"
    chmod 666 "$work/squid.log" "$work/squid-cache.log"
    background squid -N -f "$work/squid.conf"
    wait_for_port "$locked"
    steps "squid $(squid -v | sed -n 's/.*Version //p')" "$work/squid.log" \
        "CONNECT login.example.test:$tls" 'p%40ss%3Aword'
fi

new_token
host=login.example.test
renew "http://127.0.0.1:$deaf"
expect 'a proxy that is not there is no reason to go without one' 4 'proxy' 'nothing was sent'
renew "http://127.0.0.1:$tls"
expect 'a proxy that does not speak HTTP is named' 5 'proxy' 'nothing was sent' 'hint: '
close
