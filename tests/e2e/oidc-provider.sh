#!/bin/sh
# oidc-provider, a certified OAuth2 server, with rotation of refresh tokens: three kinds of client,
# five renewals in a row, dead tokens, wrong clients, a copied token file.
. "$(dirname "$0")/../lib.sh"
. "$here/provider.sh"
start_provider oidc-provider
printf 'form secret: +/=&%%~\n' >"$work/form-secret"
printf 'basic secret: +/=&%%~\n' >"$work/basic-secret"

# renew CLIENT [ARGUMENT]...: renews the token file as this client.
renew() {
    client=$1
    shift
    run "$dynamic" -i "$client" --ca-cert "$certs/ca.pem" -e "$issuer/token" "$@" "$token"
}

# accepted: whether the server's userinfo endpoint takes the access token on stdout.
accepted() {
    printf 'header = "Authorization: Bearer %s"\n' "$(cat "$work/out")" |
        curl -fsS -K - --cacert "$certs/ca.pem" --noproxy '*' "$issuer/me" | grep -q '"sub":"user"'
}

# five WHAT CLIENT [ARGUMENT]...: five renewals in a row, each with a new pair of tokens.
five() {
    what=$1
    shift
    : >"$work/seen"
    member "$token" refresh_token >>"$work/seen"
    for time in 1 2 3 4 5; do
        renew "$@"
        expect "$what renews, time $time" 0 'OAuth2 authorization granted!'
        member "$token" refresh_token >>"$work/seen"
        cat "$work/out" >>"$work/seen"
    done
    [ "$(grep . "$work/seen" | sort -u | wc -l)" = 11 ] && problem= || problem='not 11 tokens'
    check "$what has got five new pairs of tokens" "$problem"
    accepted && problem= || problem='it does not'
    check "the server takes the last access token of $what" "$problem"
    [ "$(member "$token" note)" = kept ] && problem= || problem='it is not'
    check "the file's own member is kept for $what" "$problem"
}

token=$work/public.json
cp "$token" "$work/public-old.json"
five 'a public client' public
token=$work/form.json
five 'a client with a secret in the form' secret-in-form -s "$work/form-secret"
token=$work/basic.json
five 'a client with a secret in the header' 'secret in header:+' --basic -s "$work/basic-secret"

token=$work/form.json
renew nobody
expect 'an unknown client is refused' 5 'invalid_client' 'client authentication failed' 'hint: '
renew secret-in-form -s "$work/basic-secret"
expect 'a wrong secret is refused' 5 'invalid_client' 'client authentication failed' 'hint: '
renew secret-in-form
expect 'a missing secret is refused' 5 'invalid_client' 'hint: '
renew secret-in-form -s "$work/form-secret" -d scope=admin
expect 'a scope beyond the login is refused' 5 'invalid_scope' 'hint: '
renew public
expect 'the grant of another client is refused' 3 'invalid_grant' 'hint: log in again'
renew secret-in-form -s "$work/form-secret"
expect 'none of these refusals has cost the grant' 0

token=$work/dead.json
new_token
renew public
expect 'a refresh token that never was is refused' 3 \
    'invalid_grant (grant request is invalid)' 'hint: log in again'
token=$work/public-old.json
renew public
expect 'a refresh token that is used up is refused' 3 \
    'invalid_grant (grant request is invalid)' 'hint: log in again'
token=$work/public.json
renew public
expect 'its use has revoked the whole grant' 3 'invalid_grant' 'hint: log in again'

token=$work/copied.json
cp "$token" "$work/copy.json"
renew public
expect 'the original of a copied file renews' 0
token=$work/copy.json
renew public
expect 'the copy from before the rotation is refused' 3 \
    'invalid_grant (grant request is invalid)' 'hint: log in again'
close
