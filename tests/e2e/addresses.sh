#!/bin/sh
# Hosts and proxies with several addresses, of which some are dead: what is sent to them is lost
# without a word. In namespaces of its own; the endpoint and a proxy are in another one, at the far
# end of a cable. curl's time stands beside that of the dynamic build.
. "$(dirname "$0")/../lib.sh"
need ip iproute2 || skip_all addresses 'the package iproute2 cannot be had'
[ -e /proc/net/if_inet6 ] || skip_all addresses 'no IPv6 here'
isolate addresses
echo 'hosts: files' | replace_file /etc/nsswitch.conf
echo | replace_file /etc/hosts

tls=8443 proxy=3128
background unshare -n python3 "$here/addresses.py" "$certs/server.pem" $tls $proxy
wait_until grep -q listening "$work/server.log" || { fail 'the endpoint starts' 'no'; close; }
far() { nsenter -t "$server" -n "$@"; }
ip link add near type veth peer name far netns "$server" || skip_all addresses 'no veth here'

# Resolvers sort the addresses of a host: IPv6 first, then by how many bits are those of this
# machine's own address (RFC 6724 section 6). That is the same number for all of a family here, so
# that their order in /etc/hosts stays. The own address alone comes first: it refuses.
own4=192.0.2.254 live4=192.0.2.1 dead4=192.0.2.2 deaf4=192.0.2.3
own6=2001:db8::fffe live6=2001:db8::1 dead6=2001:db8::2 deaf6=2001:db8::3
ip address add $own4/24 dev near
ip address add $own6/64 dev near nodad
ip link set near up
far ip address add $live4/24 dev far
far ip address add $live6/64 dev far nodad
far ip link set lo up
far ip link set far up
# lose ADDRESS...: nobody at the far end takes what is sent there.
lose() {
    for address; do
        ip neighbour replace "$address" lladdr 02:00:00:00:00:01 nud permanent dev near
    done
}
lose $dead4 $deaf4 $dead6 $deaf6
ip route add 2001:db8:0:1::/64 via $dead6 dev near
# answers ADDRESS: it takes a connection.
answers() { python3 -c "import socket; socket.create_connection(('$1', $tls), 1)"; }
for address in $live4 $live6; do
    wait_until answers "$address" || { fail "$address is reached" 'no'; close; }
done

# name HOST ADDRESS...: these are the host's addresses, and nothing else has a name.
name() {
    host=$1
    shift
    for address; do echo "$address $host"; done >"$work/hosts"
}

# milliseconds COMMAND...: leaves in $took how long it ran; its status is the command's.
milliseconds() {
    began=$(date +%s%N) ended_with=0
    "$@" || ended_with=$?
    took=$((($(date +%s%N) - began) / 1000000))
    return $ended_with
}

# renew TIMEOUT [NAME=VALUE]...: renews a new token file.
renew() {
    limit=$1
    shift
    new_token
    : >"$work/server.log"
    milliseconds run "$@" "$program" -v -i CONSUMER_KEY --ca-cert "$certs/ca.pem" --retry 0 \
        --timeout "$limit" -e "https://login.example.test:$tls/token" "$token"
}

# curl_time [NAME=VALUE]...: what curl takes for the same; it is not waited for long.
curl_time() {
    [ "$program" = "$dynamic" ] || return 0
    milliseconds timeout 2 env -i "PATH=$PATH" "$@" curl -s -o /dev/null --cacert "$certs/ca.pem" \
        -d grant_type=refresh_token "https://login.example.test:$tls/token" || took='over 2000'
    echo ", curl in $took"
}

# reaches WHAT ADDRESS NAME [NAME=VALUE]...: the endpoint or the proxy is reached at this address,
# which -v tells, within a second and a half; there is a second try for a machine that is busy.
reaches() {
    what=$1 live=$2 title=$3
    shift 3
    renew 5 "$@"
    [ "$status" != 0 ] || [ "$took" -le 1500 ] || renew 5 "$@"
    expect "$title: renews" 0 "$live"
    problem=
    grep -qxF "$what $live" "$work/server.log" || problem="the $what was not reached at $live. "
    [ "$took" -le 1500 ] || problem="${problem}It took $took ms."
    check "$title: at the live address in $took ms$(curl_time "$@")" "$problem"
}

# each_order NAME HOST LIVE DEAD DEAD: the live address as the host's first, second and third; the
# host is the endpoint's or the proxy's.
each_order() {
    host=$2 live=$3
    what=endpoint through=
    [ "$host" != proxy.example.test ] || what=proxy through="HTTPS_PROXY=$host:$proxy"
    # shellcheck disable=SC2086
    for order in "$3 $4 $5" "$4 $3 $5" "$4 $5 $3"; do
        name "$host" $order
        reaches $what "$live" "$build, $1: $order" $through
    done
}

# fails_in_time NAME [NAME=VALUE]...: said in words, when the time is over; a slow machine may add
# some seconds.
fails_in_time() {
    title=$1
    shift
    renew 3 "$@"
    expect "$title: said in words" 4 login.example.test 'in time' 'nothing was sent' 'hint: '
    [ "$took" -le 8000 ] && problem= || problem="took $took ms, with --timeout 3"
    check "$title: ends within the time-out, in $took ms" "$problem"
}

for build in dynamic static; do
    eval "program=\$$build"
    [ -x "$program" ] || { skip "$build build" 'there is none'; continue; }
    login=login.example.test
    each_order IPv4 $login $live4 $dead4 $deaf4
    each_order IPv6 $login $live6 $dead6 $deaf6
    each_order 'IPv6 dead' $login $live4 $dead6 $deaf6
    each_order 'IPv6 and one IPv4' $login $live6 $dead6 $deaf4
    each_order 'IPv4 and one IPv6' $login $live4 $dead6 $deaf4
    each_order proxy proxy.example.test $live4 $dead4 $deaf4
    each_order 'proxy, IPv4 and one IPv6' proxy.example.test $live4 $dead6 $deaf4

    # shellcheck disable=SC2046
    name $login $(seq -f '2001:db8:0:1::%g' 20) $live4
    reaches endpoint $live4 "$build, IPv4 behind 20 dead IPv6"
    name $login $own4 $live4
    reaches endpoint $live4 "$build, one refuses"
    name $login $own4 $dead4 $live4
    reaches endpoint $live4 "$build, one refuses, one is dead"

    # One that is silent at first, as a host far away is, gets another turn.
    name $login $dead4 $live4
    lose $live4
    { sleep 1 && ip neighbour delete $live4 dev near; } &
    revival=$!
    renew 20
    wait $revival
    expect "$build, one lives late: renews" 0 $live4

    name $login $own4 $own6
    renew 20
    expect "$build, all refuse: said in words" 4 'refused' 'nothing was sent' 'hint: '
    name $login $dead4 $deaf4 $dead6
    fails_in_time "$build, all dead"
    name $login $dead4
    fails_in_time "$build, the only one dead"
    name proxy.example.test $dead4 $deaf4 $dead6
    fails_in_time "$build, all of the proxy dead" "HTTPS_PROXY=proxy.example.test:$proxy"
done
close
