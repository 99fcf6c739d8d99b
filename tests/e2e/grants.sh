#!/bin/sh
# The grants that begin without a refresh token: authorization_code with PKCE and client_credentials
# against oidc-provider, an assertion against Authlib. Each makes the token file, or renews it.
. "$(dirname "$0")/../lib.sh"
. "$here/provider.sh"
start_provider grants

# gets CLIENT [ARGUMENT]...: a token for the token file as this client.
gets() {
    client=$1
    shift
    run "$dynamic" -i "$client" --ca-cert "$certs/ca.pem" -e "$issuer/token" "$@" "$token"
}

# is_private NAME: one step: nobody else may read the token file.
is_private() {
    mode=$(stat -c %a "$token" 2>&1) || true
    check "$1" "$([ "$mode" = 600 ] || echo "its mode is $mode")"
}

# has_no_refresh_token NAME: one step: the token file has none, and needs none.
has_no_refresh_token() {
    check "$1" "$(! grep -q refresh_token "$token" || echo 'it has one')"
}

# refused NAME STATUS WORD...: one step: no token, no file, and stderr holds each word.
refused() {
    name=$1 wanted=$2
    shift 2
    ended "$wanted" "$@"
    [ ! -s "$work/out" ] || problem="${problem:+$problem; }stdout is not empty"
    [ ! -e "$token" ] || problem="${problem:+$problem; }there is a token file"
    check "$name" "$problem"
}

# base64_url: stdin in base64, as it stands in a URL.
base64_url() {
    openssl base64 -A | tr '+/' '-_' | tr -d '='
}

# ---- authorization_code with PKCE ----

# browse ARGUMENT...: a request of the browser; gives the address that it is sent on to.
browse() {
    curl -sS -o /dev/null -w '%{redirect_url}' --cacert "$certs/ca.pem" --noproxy '*' \
        -b "$work/cookies" -c "$work/cookies" "$@"
}

# log_in: a login in the browser. Leaves the code and its verifier in $work/code and $work/verifier;
# nobody listens at the redirect URI, the code is read off the address.
log_in() {
    rm -f "$work/cookies"
    openssl rand -hex 32 | tr -d '\n' >"$work/verifier"
    challenge=$(openssl dgst -sha256 -binary <"$work/verifier" | base64_url)
    query="client_id=public&response_type=code&scope=openid%20offline_access&prompt=consent"
    query="$query&redirect_uri=http%3A%2F%2F127.0.0.1%2Fcallback"
    query="$query&code_challenge=$challenge&code_challenge_method=S256"
    page=$(browse "$issuer/auth?$query")
    page=$(browse "$(browse -d prompt=login -d login=user -d password=any "$page")")
    page=$(browse "$(browse -d prompt=consent "$page")")
    printf '%s\n' "$page" | sed -n 's/.*[?&]code=\([^&]*\).*/\1/p' >"$work/code"
    [ -s "$work/code" ] || { fail 'somebody logs in' "no code in '$page'"; close; }
}

token=$work/login.json
# exchange [ARGUMENT]...: the code for a token.
exchange() {
    gets public -g authorization_code -d code@"$work/code" \
        -d redirect_uri=http://127.0.0.1/callback "$@"
}
log_in
openssl rand -hex 32 >"$work/verifier"
exchange -d code_verifier@"$work/verifier"
refused 'a wrong verifier is refused' 3 'invalid_grant' 'hint: '
log_in
exchange
refused 'a missing verifier is refused' 3 'invalid_grant' 'hint: '
log_in
exchange -d code_verifier@"$work/verifier"
expect 'a code with its verifier makes a token file' 0
is_private 'nobody else may read it'
for time in 1 2; do
    gets public
    expect "its refresh token renews it, time $time" 0 'OAuth2 authorization granted!'
done
first=$token
token=$work/again.json
exchange -d code_verifier@"$work/verifier"
refused 'a code that is used up is refused' 3 'invalid_grant' 'hint: '
token=$first
gets public
expect 'its use has revoked the grant' 3 'invalid_grant' 'hint: log in again'
log_in
exchange -d code_verifier@"$work/verifier"
expect 'a new login goes into the file that is there' 0
gets public
expect 'and renews' 0 'OAuth2 authorization granted!'

# ---- client_credentials ----

token=$work/job.json
printf 'job secret: +/=&%%~\n' >"$work/job-secret"
# job [ARGUMENT]...: a token of the client's own.
job() {
    gets job -g client_credentials --basic -s "$work/job-secret" "$@"
}
printf 'wrong\n' >"$work/wrong-secret"
gets job -g client_credentials --basic -s "$work/wrong-secret"
refused 'a wrong secret is refused' 5 'invalid_client' 'hint: '
gets public -g client_credentials
refused 'a client that may not is refused' 5 'hint: '
job
expect 'client_credentials make a token file' 0
is_private 'nobody else may read it either'
has_no_refresh_token 'it has no refresh token'
before=$(cat "$work/out")
job --if-older-than 30m
check 'a token that is young enough is printed again' \
    "$([ "$status" = 0 ] && [ "$(cat "$work/out")" = "$before" ] || echo 'another one came')"
printf '{\n  "access_token": "%s",\n  "note": "kept"\n}\n' "$before" >"$token"
job
expect 'the next one goes into the file' 0
check 'it is another one' "$([ "$(cat "$work/out")" != "$before" ] || echo 'it is the same')"
check "the file's own member is kept" "$([ "$(member "$token" note)" = kept ] || echo 'it is not')"
active=$(curl -sS --cacert "$certs/ca.pem" --noproxy '*' \
    -u 'job:job%20secret%3A%20%2B%2F%3D%26%25~' \
    --data-urlencode token="$(cat "$work/out")" "$issuer/token/introspection")
check 'the server knows it' "$(
    case $active in *'"active":true'*) ;; *) echo "it says $active" ;; esac)"

# ---- An assertion ----

python_folder grants authlib flask ||
    { skip 'an assertion' "Authlib cannot be had: $(tail -n 1 "$work/install")" && close; }
port=$(free_ports 1)
issuer=https://localhost:$port
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$work/key" 2>"$work/openssl"
openssl pkey -in "$work/key" -pubout -out "$work/public-key"
background "$python/bin/python" "$here/grants.py" "$port" "$certs/server.pem" "$work/public-key"
wait_for_port "$port"

# sign SUBJECT LIFETIME: $work/assertion, a JWT for this user that ends in so many seconds.
sign() {
    header=$(printf '{"alg":"RS256"}' | base64_url)
    claims=$(printf '{"iss":"job","sub":"%s","aud":"%s","exp":%d}' "$1" "$issuer/token" \
        $(($(date +%s) + $2)) | base64_url)
    signature=$(printf %s "$header.$claims" | openssl dgst -sha256 -sign "$work/key" | base64_url)
    printf '%s.%s.%s\n' "$header" "$claims" "$signature" >"$work/assertion"
}
# assert [ARGUMENT]...: a token for the assertion.
assert() {
    gets job -g urn:ietf:params:oauth:grant-type:jwt-bearer -d assertion@"$work/assertion" "$@"
}
token=$work/assertion.json
sign user -1000
assert
refused 'an assertion that has ended is refused' 3 'invalid_grant' 'hint: '
sign nobody 100
assert
refused 'an assertion for nobody is refused' 3 'invalid_grant' 'hint: '
sign user 100
assert
expect 'an assertion makes a token file' 0
has_no_refresh_token 'it has no refresh token'
before=$(cat "$work/out")
assert --if-older-than 10m
check 'a token that is young enough is printed again' \
    "$([ "$status" = 0 ] && [ "$(cat "$work/out")" = "$before" ] || echo 'another one came')"
assert
expect 'the next one goes into the file' 0
check 'it is another one' "$([ "$(cat "$work/out")" != "$before" ] || echo 'it is the same')"
close
