#!/bin/sh
# nginx as token endpoint: TLS versions, keep-alive, client certificates, redirects, rate limits.
. "$(dirname "$0")/../lib.sh"
need nginx nginx-light || skip_all nginx 'the package nginx-light cannot be had'

free_ports 7 >"$work/ports"
{ read -r tls13 && read -r tls12 && read -r recycled && read -r demanding && read -r plain &&
    read -r limited && read -r exhausted; } <"$work/ports"
reply='{"access_token":"00Dxx!from-nginx","signature":"c2ln","issued_at":"1700000001000"}'
echo '<html><body>Welcome</body></html>' >"$work/page.html"

start_nginx "$tls13" <<CONF
    types { text/html html; }
    limit_req_zone \$server_port zone=limited:1m rate=1r/s;
    limit_req_zone \$server_port zone=exhausted:1m rate=1r/m;

    server { listen unix:$work/answer; access_log off; return 200 '$reply'; }
    server {
        listen 127.0.0.1:$tls13 ssl;
        ssl_protocols TLSv1.3;
        location / { return 200 '$reply'; }
        location /page.html { root $work; }
        location /form { default_type text/plain; return 200 'access_token=00Dxx&token_type=Bearer'; }
        location /proxied { proxy_pass http://unix:$work/answer; }
    }
    server { listen 127.0.0.1:$tls12 ssl; ssl_protocols TLSv1.2; return 200 '$reply'; }
    server {
        listen 127.0.0.1:$recycled ssl;
        keepalive_requests 50;
        location / { proxy_pass http://unix:$work/answer; }
    }
    server {
        listen 127.0.0.1:$demanding ssl;
        ssl_client_certificate $certs/ca.pem;
        ssl_verify_client on;
        return 200 '$reply';
    }
    server { listen 127.0.0.1:$plain; return 301 https://localhost:$tls13\$request_uri; }
    server {
        listen 127.0.0.1:$limited ssl;
        location / { limit_req zone=limited; proxy_pass http://unix:$work/answer; }
    }
    server {
        listen 127.0.0.1:$exhausted ssl;
        location / { limit_req zone=exhausted; proxy_pass http://unix:$work/answer; }
    }
CONF

# renew URL [ARGUMENT]...: renews the token file, or those that are named.
renew() {
    url=$1
    shift
    [ $# -gt 0 ] || set -- "$token"
    run "$dynamic" -i CONSUMER_KEY --ca-cert "$certs/ca.pem" -e "$url" "$@"
}

# logged PORT PATTERN: how many requests nginx logged there whose rest matches.
logged() {
    grep -cE "^$1 [0-9]+ [0-9]+ $2\$" "$work/access.log" || true
}

# count_is WHAT NUMBER WANTED: nothing where they are the same.
count_is() {
    [ "$2" = "$3" ] || echo "$2 $1, not $3. "
}

has_logged() {
    [ "$(logged "$1" "$2")" -ge "$3" ]
}

# requests_are PORT PATTERN NUMBER: nothing where nginx, which logs after it answers, logged as many.
requests_are() {
    wait_until has_logged "$@" || true
    count_is "requests logged" "$(logged "$1" "$2")" "$3"
}

# connections: over how many different connections the logged requests came.
connections() {
    cut -d' ' -f2 "$work/access.log" | sort -u | wc -l
}

new_token
renew "https://localhost:$tls13/token"
expect 'renews over TLS 1.3' 0 'OAuth2 authorization granted!'
check 'nginx saw TLS 1.3' \
    "$(requests_are "$tls13" 'POST HTTP/1.1 TLSv1.3 200' 1)"

new_token
renew "https://127.0.0.1:$tls12/token"
expect 'renews over TLS 1.2, by address' 0 'OAuth2 authorization granted!'
check 'nginx saw TLS 1.2' \
    "$(requests_are "$tls12" 'POST HTTP/1.1 TLSv1.2 200' 1)"

# many FOLDER URL: renews 200 token files of a new folder in one call.
many() {
    mkdir "$work/$1"
    for number in $(seq 200); do new_token "$work/$1/$number.json"; done
    : >"$work/access.log"
    renew "$2" "$work/$1"/*.json
    problem=
    [ "$status" = 0 ] || problem="exit status $status, not 0; "
    problem=$problem$(count_is 'tokens printed' "$(grep -c '^00Dxx!from-nginx$' "$work/out")" 200)
    saved=$(grep -lF '"00Dxx!from-nginx"' "$work/$1"/*.json | wc -l)
    check "renews 200 files in one call ($1)" "$problem$(count_is 'files saved' "$saved" 200)"
}

many kept "https://localhost:$tls13/token"
check '200 files went over one connection' \
    "$(requests_are "$tls13" 'POST HTTP/1.1 TLSv1.3 200' 200)$(
        count_is connections "$(connections)" 1)"

many recycled "https://localhost:$recycled/token"
check 'a server that closes after every 50 requests gets each of the 200 once' \
    "$(requests_are "$recycled" 'POST HTTP/1.1 .* 200' 200)$(
        count_is connections "$(connections)" 4)"

new_token
renew "https://localhost:$demanding/token"
expect 'a demanded client certificate is named' 5 'client certificate' 'hint: '

new_token
renew "http://127.0.0.1:$plain/token"
expect 'a 301 to https is refused' 5 'redirect refused: HTTP 301 to localhost' 'hint: '

new_token
renew "https://localhost:$tls13/page.html"
expect 'a page that takes no POST is named' 5 'HTTP 405' 'web page' 'hint: '
renew "https://localhost:$tls13/form"
expect 'a form-encoded reply is named' 5 'form-encoded' 'hint: '
renew "https://localhost:$tls13/proxied"
expect 'renews through nginx as a reverse proxy' 0 'OAuth2 authorization granted!'

run "$dynamic" -i CONSUMER_KEY -e "https://localhost:$tls13/token" "$token"
expect 'without --ca-cert the private CA is refused' 5 '--ca-cert'

new_token
: >"$work/access.log"
renew "https://localhost:$exhausted/token"
expect 'the first request passes limit_req' 0
new_token
renew "https://localhost:$exhausted/token" --retry 0 "$token"
expect 'limit_req answers 503: run it again later' 4 'HTTP 503' 'hint: '
check 'a 503 without --retry is asked once' \
    "$(requests_are "$exhausted" 'POST HTTP/1.1 .* 503' 1)"

new_token
new_token "$work/second.json"
renew "https://localhost:$limited/token" --retry 5 "$token" "$work/second.json"
expect 'a 503 is asked again until limit_req lets it pass' 0
problem=$(requests_are "$limited" 'POST HTTP/1.1 .* 200' 2)
has_logged "$limited" 'POST HTTP/1.1 .* 503' 1 || problem="${problem}nginx refused nothing"
check 'nginx did refuse in between' "$problem"
close
