#!/bin/sh
# Token files of other libraries. requests-oauthlib and google-auth-library write one and renew it
# in turns with sf-refresh; Go's x/oauth2 is checked by its format alone. The server is
# oidc-provider, with rotation but for google-auth-library, which never keeps a new refresh token.
. "$(dirname "$0")/../lib.sh"
. "$here/provider.sh"
start_provider libraries
printf 'form secret: +/=&%%~' >"$work/form-secret"

# library ACTION: what the library under test makes of the token file; see libraries.py.
library() {
    run REQUESTS_CA_BUNDLE="$certs/ca.pem" NODE_EXTRA_CA_CERTS="$certs/ca.pem" \
        $program "$1" "$issuer" "$token"
}

# says NAME ACTION WORDS: one step: the library does this and says that.
says() {
    library "$2"
    check "$1" "$([ "$(cat "$work/out")" = "$3" ] || echo "stdout is not '$3'")"
}

# renew: renews the token file by sf-refresh.
renew() {
    run "$dynamic" "$@" --ca-cert "$certs/ca.pem" -e "$issuer/token" "$token"
    expect "$name: sf-refresh renews its file" 0 'OAuth2 authorization granted!'
}

# in_turns NAME PROGRAM OPTION...: the library and sf-refresh renew the same file in turns.
in_turns() {
    name=$1 program=$2
    shift 2
    says "$name renews and writes its file" renew renewed
    for time in 1 2; do
        says "$name takes the file for fresh, time $time" use 'valid: user'
        says "$name takes the file for expired an hour later, time $time" age expired
        renew "$@"
        says "$name takes the renewed file for fresh, time $time" use 'valid: user'
        library age
        says "$name renews it in its turn, time $time" renew renewed
    done
}

if python_folder libraries requests-oauthlib; then
    token=$work/public.json
    in_turns requests-oauthlib "$python/bin/python $here/libraries.py" -i public
else
    skip requests-oauthlib "it cannot be had from PyPI: $(tail -n 1 "$work/install")"
fi
if npm_folder libraries google-auth-library; then
    cp "$here/libraries.mjs" "$npm/libraries.mjs"
    token=$work/without-rotation.json
    in_turns google-auth-library "node $npm/libraries.mjs" -i without-rotation \
        -s "$work/form-secret"
else
    skip google-auth-library "it cannot be had from npm: $(tail -n 1 "$work/install")"
fi

# go_expiry END NAME: NAME.json as Go writes an oauth2.Token, with an expiry that has this end. The
# renewal moves it on, in a form that Go reads.
go_expiry() {
    name="x/oauth2, an expiry with $2"
    token=$work/$2.json
    python3 - "$token" "$work/copied.json" "2026-01-02T03:04:05$1" <<'PYTHON'
import json, sys
path, login, expiry = sys.argv[1:]
refresh_token = json.load(open(login))["refresh_token"]
json.dump({"access_token": "old", "token_type": "Bearer", "refresh_token": refresh_token,
           "expiry": expiry}, open(path, "w"))
PYTHON
    renew -i public
    cp "$token" "$work/copied.json"
    check "$name: it follows" "$(python3 - "$token" <<'PYTHON'
import datetime, json, re, sys
expiry = json.load(open(sys.argv[1]))["expiry"]
if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", expiry):
    sys.exit(print(f"{expiry!r} is not as Go writes it"))
left = datetime.datetime.fromisoformat(re.sub(r"\.\d+", "", expiry)).timestamp()
left -= datetime.datetime.now().timestamp()
if not 3000 < left <= 3600: print(f"{left:.0f} s are left of 3600")
PYTHON
)"
}
go_expiry Z seconds
go_expiry .123456789Z nanoseconds
go_expiry .123456789+05:30 zone
close
