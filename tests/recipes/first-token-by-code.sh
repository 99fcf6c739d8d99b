#!/bin/sh
# Makes the first token file from a login in a browser, with an app of your own and PKCE. Open the
# URL that it prints, log in, and paste the address at which the browser then finds nothing.
set -eu
umask 077
org=https://MyDomain.my.salesforce.com app=CONSUMER_KEY callback=http://localhost:1717/OauthRedirect
openssl rand -hex 64 | tr -d '\n' >verifier
challenge=$(openssl dgst -sha256 -binary verifier | openssl base64 -A | tr '+/' '-_' | tr -d '=')
echo "$org/services/oauth2/authorize?response_type=code&client_id=$app&redirect_uri=$callback&code_challenge=$challenge&code_challenge_method=S256"
sed 's/.*[?&]code=\([^&]*\).*/\1/; s/%3D/=/g; q' >code
sf-refresh --output none --client-id "$app" --endpoint "$org" --grant-type authorization_code \
    -d code@code -d redirect_uri="$callback" -d code_verifier@verifier token.json
rm code verifier
