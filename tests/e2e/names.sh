#!/bin/sh
# Name servers with bad habits, before the dynamic build (glibc's resolver) and the static one
# (musl's). In namespaces of its own, with an /etc/resolv.conf and an /etc/hosts of its own.
. "$(dirname "$0")/../lib.sh"
need nginx nginx-light || skip_all names 'the package nginx-light cannot be had'
need ip iproute2 || skip_all names 'the package iproute2 cannot be had'
isolate names
echo '127.0.0.1 localhost' | replace_file /etc/hosts
echo 'hosts: files dns' | replace_file /etc/nsswitch.conf
echo >"$work/resolv.conf"
mount --bind "$work/resolv.conf" /etc/resolv.conf

tls=$(free_ports 1)
start_nginx "$tls" <<CONF
    server { listen 127.0.0.1:$tls ssl; return 200 '{"access_token":"00Dxx!from-nginx"}'; }
CONF
background python3 "$here/names.py"
wait_until grep -q listening "$work/server.log" || { fail 'the name server starts' 'no'; close; }

# resolve SERVER TIMEOUT: renews a new token file by a name that this server is asked about.
resolve() {
    echo "nameserver $1" >/etc/resolv.conf
    : >"$work/server.log"
    new_token
    began=$(date +%s)
    run "$program" -i CONSUMER_KEY --ca-cert "$certs/ca.pem" --timeout "$2" \
        -e "https://login.example.test:$tls/token" "$token"
    took=$(($(date +%s) - began))
}

# asked NAME SERVER: the server was asked for both addresses.
asked() {
    problem=
    for kind in A AAAA; do
        grep -q "^$2 $kind login.example.test\$" "$work/server.log" ||
            problem="${problem}no question for $kind. "
    done
    check "$1: the name server was asked" "$problem"
}

# in_time NAME TIMEOUT: the run ended with its time-out; a slow machine may add some seconds.
in_time() {
    [ "$took" -le "$(($2 + 5))" ] && problem= || problem="took $took s, with --timeout $2"
    check "$1: ends within the time-out" "$problem"
}

# succeeds NAME SERVER, fails NAME SERVER WORD...: what comes of this server's habit.
succeeds() {
    resolve "$2" 20
    expect "$1: renews" 0 'OAuth2 authorization granted!'
    asked "$1" "$2"
}
fails() {
    resolve "$2" 4
    name=$1 server_address=$2
    shift 2
    expect "$name: fails in words" 4 'login.example.test' 'nothing was sent' 'hint: ' "$@"
    in_time "$name" 4
    asked "$name" "$server_address"
}

program=$dynamic
succeeds 'dynamic build, A alone' 127.0.1.1
succeeds 'dynamic build, NXDOMAIN for AAAA' 127.0.1.2
succeeds 'dynamic build, SERVFAIL for AAAA' 127.0.1.3
fails 'dynamic build, no answer at all' 127.0.1.4 'no answer from DNS'
fails 'dynamic build, NXDOMAIN' 127.0.1.5 'cannot find'
fails 'dynamic build, SERVFAIL' 127.0.1.6 'cannot find'

[ -x "$static" ] || { skip 'static build' 'there is none'; close; }
program=$static
succeeds 'static build, A alone' 127.0.1.1
# musl takes either answer about AAAA for the whole name: here its resolver cannot work.
fails 'static build, NXDOMAIN for AAAA' 127.0.1.2 'cannot find'
fails 'static build, SERVFAIL for AAAA' 127.0.1.3 'no answer from DNS'
fails 'static build, no answer at all' 127.0.1.4 'no answer from DNS'
fails 'static build, NXDOMAIN' 127.0.1.5 'cannot find'
fails 'static build, SERVFAIL' 127.0.1.6 'no answer from DNS'
# What remains then: the address in /etc/hosts.
echo '127.0.0.1 localhost login.example.test' >"$work/hosts"
resolve 127.0.1.2 20
expect 'static build, NXDOMAIN for AAAA, with the host in /etc/hosts: renews' 0
close
