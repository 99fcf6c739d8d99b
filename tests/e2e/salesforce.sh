#!/bin/sh
# The real Salesforce CLI and jsforce before a small Salesforce under its real names: from a login
# by sf to a token file, renewals with rotation, and the token back into sf and jsforce.
# In namespaces of its own, with an /etc/hosts and a CA of its own.
. "$(dirname "$0")/../lib.sh"
need node nodejs || skip_all salesforce 'the package nodejs cannot be had'
need npm npm || skip_all salesforce 'the package npm cannot be had'
need ip iproute2 || skip_all salesforce 'the package iproute2 cannot be had'

# sf needs Node 22; npm has one for machines with an older one.
npm=$target/npm/salesforce
node=node
set -- @salesforce/cli jsforce
if [ "$(node -p 'parseInt(process.versions.node)')" -lt 22 ]; then
    package=node-linux-$(node -p process.arch)
    set -- "$@" "$package@22"
    node=$npm/node_modules/$package/bin/node
fi
sf=$npm/node_modules/@salesforce/cli/bin/run.js
# Half a gigabyte and a minute: kept for the next run.
if [ ! -f "$sf" ] || ! has "$node"; then
    npm_folder salesforce --ignore-scripts "$@" ||
        skip_all salesforce "@salesforce/cli cannot be had: $(tail -n 1 "$work/install")"
fi
isolate salesforce
host=mydomain.my.salesforce.com
printf '127.0.0.1 localhost login.salesforce.com test.salesforce.com %s\n' $host |
    replace_file /etc/hosts
echo | replace_file /etc/resolv.conf

# certificate: server.pem for Salesforce's names, by a CA of this run, ca.pem.
certificate() {
    cd "$work"
    set -- -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes
    names='DNS:login.salesforce.com,DNS:test.salesforce.com,DNS:*.my.salesforce.com'
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names" >extensions
    openssl req -x509 "$@" -keyout ca.key -out ca.pem -days 2 -subj '/CN=CA of this run' &&
        openssl req "$@" -keyout server.key -out server.csr -subj '/CN=server of this run' &&
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
            -extfile extensions -out server.pem &&
        cat server.key >>server.pem
}
(certificate) >"$work/out" 2>&1 || { fail 'a certificate is made' 'it is not'; close; }
background python3 "$here/salesforce.py" 443 "$work/server.pem" "$work"
wait_for_port 443

# sf as a command, and a browser in which somebody logs in once its launcher has ended.
mkdir "$work/bin" "$work/home"
cat >"$work/bin/sf" <<SH
#!/bin/sh
export HOME='$work/home' NODE_EXTRA_CA_CERTS='$work/ca.pem'
export SF_DISABLE_TELEMETRY=true SF_DISABLE_AUTOUPDATE=true SF_DISABLE_LOG_FILE=true
export SF_USE_GENERIC_UNIX_KEYCHAIN=true
exec '$node' '$sf' "\$@"
SH
cat >"$work/bin/firefox" <<SH
#!/bin/sh
launcher=\$\$
{
    while kill -0 \$launcher; do sleep 0.1; done
    curl -sSL --max-time 30 --cacert '$work/ca.pem' "\$1"
} >'$work/browser' 2>&1 &
SH
chmod +x "$work/bin/sf" "$work/bin/firefox"
PATH=$work/bin:$PATH
export PATH
sf --version

# succeeds NAME [NAME=VALUE]... COMMAND...: one step, in which the command ends well.
succeeds() {
    name=$1
    shift
    run "$@"
    check "$name" "$([ "$status" = 0 ] || echo "exit status $status")"
}

# has_printed NAME TEXT: one step: the last command printed it.
has_printed() {
    check "$1" "$(grep -qF -- "$2" "$work/out" || echo "stdout lacks '$2'")"
}

# renew: renews the token file as the app of sf.
renew() {
    run "$dynamic" -i PlatformCLI --ca-cert "$work/ca.pem" -e "https://$host" "$token"
}

# renews NAME NUMBER: so many renewals with rotation, each with a new pair of tokens.
renews() {
    member "$token" refresh_token >"$work/seen"
    for time in $(seq "$2"); do
        renew
        expect "$1, time $time" 0 'OAuth2 authorization granted!'
        member "$token" refresh_token >>"$work/seen"
        cat "$work/out" >>"$work/seen"
    done
    wanted=$((1 + 2 * $2)) got=$(grep . "$work/seen" | sort -u | wc -l)
    check "$1: each time a new pair" "$([ "$got" = $wanted ] || echo "$got tokens, not $wanted")"
}

# take NAME: a pipe makes the token file from what sf shows of the login called tests. Then sf has to
# forget it: it never keeps a refresh token that a renewal brings. Ends the script without a file.
take() {
    rm -f "$token"
    run NO_COLOR=1 sh -c 'sf org auth show-sfdx-auth-url --target-org tests --json |
        "$0" --ca-cert "$1" --sfdx-url-file - "$2"' "$dynamic" "$work/ca.pem" "$token"
    expect "$1" 0 'OAuth2 authorization granted!'
    [ -e "$token" ] || close
    succeeds "$1: sf forgets it" sf org logout --target-org tests --no-prompt
}

# ---- A login in the browser, with rotation from the start, and the way back ----

touch "$work/rotation"
succeeds 'sf logs in by a browser' \
    sf org login web --instance-url "https://$host" --browser firefox --alias tests
take 'a login by a browser becomes a token file'
renews 'with rotation' 5
cp "$token" "$work/replayed.json"

# A shell takes the new token into sf by the variables of --output env.
cat >"$work/give-back" <<'SH'
variables=$("$@") || exit
set -a; eval "$variables"; set +a
sf org login access-token --instance-url "$SF_ORG_INSTANCE_URL" --no-prompt --alias tests
SH
succeeds 'the token goes back into sf' sh "$work/give-back" "$dynamic" -o env \
    -i PlatformCLI --ca-cert "$work/ca.pem" -e "https://$host" "$token"
succeeds 'sf calls the API with it' sf org list limits --target-org tests --json
has_printed 'sf has got the answer' '"remaining": 14998'
succeeds 'sf runs a query with it' \
    sf data query --query 'SELECT Id, Name FROM Account' --target-org tests --json
has_printed 'sf has got the record' '"Name": "Acme"'

cat >"$npm/query.mjs" <<'JS'
// A query by jsforce with the token file that is its argument.
import { readFileSync } from 'node:fs';
import jsforce from 'jsforce';
const token = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const { instance_url: instanceUrl, access_token: accessToken } = token;
const found = await new jsforce.Connection({ instanceUrl, accessToken })
  .query('SELECT Id, Name FROM Account');
console.log(found.records[0].Name);
JS
succeeds 'jsforce runs a query with it' \
    NODE_EXTRA_CA_CERTS="$work/ca.pem" "$node" "$npm/query.mjs" "$token"
has_printed 'jsforce has got the record' Acme

good=$token
token=$work/replayed.json
renew
expect 'the refresh token from before the last renewal is refused' 3 \
    'invalid_grant' 'hint: log in again'
token=$good
renew
expect 'its use has revoked the grant' 3 'invalid_grant' 'hint: log in again'
run sf org list limits --target-org tests --json
check 'and its access tokens, for sf too' "$([ "$status" != 0 ] || echo 'sf still gets an answer')"

# ---- A login by an sfdx URL, rotation only later, and all that sf shows ----

rm "$work/rotation"
echo "force://PlatformCLI::5Aep861FirstRefreshToken.OfTheTests@$host" >"$work/first-url"
succeeds 'sf logs in by an sfdx URL' \
    sf org login sfdx-url --sfdx-url-file "$work/first-url" --alias tests
run "$dynamic" --ca-cert "$work/ca.pem" --sfdx-url-file "$work/first-url" "$token"
expect 'the grant of an sfdx URL takes the place of a dead one' 0 'OAuth2 authorization granted!'
show='sf org auth show-sfdx-auth-url --target-org tests'
display='sf org display --target-org tests'

# shown NAME [NAME=VALUE]... COMMAND...: what sf prints, in $work/NAME, whatever its status.
shown() {
    file=$work/$1
    shift
    run "$@"
    cp "$work/out" "$file"
}

# is_taken NAME FILE: one step: --sfdx-url-file takes it, and makes a token file.
is_taken() {
    rm -f "$token"
    run "$dynamic" --ca-cert "$work/ca.pem" --sfdx-url-file "$work/$2" "$token"
    expect "$1 is taken" 0 'OAuth2 authorization granted!'
}

# is_answered NAME FILE WORD...: one step: it is refused with a hint at what works, sends nothing
# and makes no file.
is_answered() {
    name=$1 file=$2
    shift 2
    rm -f "$token"
    requests=$(wc -l <"$work/log")
    run "$dynamic" --ca-cert "$work/ca.pem" --sfdx-url-file "$work/$file" "$token"
    problem=
    [ "$status" = 2 ] || problem="exit status $status, not 2"
    for word in 'hint: ' "$@"; do
        grep -qF -- "$word" "$work/err" || problem="${problem:+$problem; }stderr lacks '$word'"
    done
    ! grep -qF FirstRefreshToken "$work/err" || problem="${problem:+$problem; }it shows the secret"
    [ ! -e "$token" ] || problem="${problem:+$problem; }a token file is made"
    [ "$requests" = "$(wc -l <"$work/log")" ] || problem="${problem:+$problem; }something was sent"
    check "$name is answered" "$problem"
}

remedy='sf org auth show-sfdx-auth-url --json'
is_taken 'the sfdx URL alone' first-url
shown json $show --json
is_taken 'its JSON' json
shown coloured-json FORCE_COLOR=1 $show --json
is_taken 'its JSON in colours' coloured-json
shown table $show --no-prompt
is_taken 'its table' table
shown coloured-table FORCE_COLOR=1 $show --no-prompt
is_taken 'its table in colours' coloured-table
shown secrets SF_TEMP_SHOW_SECRETS=true $display --verbose --json
is_taken 'sf org display with SF_TEMP_SHOW_SECRETS' secrets

# A terminal cuts the URL into lines. What script leaves is what is copied from the screen.
if has script; then
    shown cut script -qec "stty cols 80; $show --no-prompt" /dev/null
    grep -q '^│  *│ .*salesforce.com' "$work/cut" && problem= || problem='sf did not cut it'
    check 'sf cuts the URL in a terminal' "$problem"
    is_answered 'its table in a terminal' cut "$remedy"
else
    skip 'a table in a terminal' 'there is no command script'
fi
shown question $show
is_answered 'its question' question "$remedy"
shown display $display --verbose --json
is_answered 'sf org display' display "$remedy"
shown coloured-display FORCE_COLOR=1 $display --verbose --json
is_answered 'sf org display in colours' coloured-display "$remedy"
shown display-table $display --verbose
is_answered 'the table of sf org display' display-table "$remedy"
shown brief $display --json
is_answered 'sf org display without --verbose' brief "$remedy"
shown login sf org login sfdx-url --sfdx-url-file "$work/first-url" --alias tests --json
is_answered 'the JSON of a login' login "$remedy"
shown unknown sf org auth show-sfdx-auth-url --target-org nobody --json
is_answered 'an error of sf' unknown "$remedy"
shown nothing sf org auth show-sfdx-auth-url --target-org nobody
is_answered 'the nothing that an error of sf leaves' nothing "$remedy"
find "$work/home" -name user@example.com.json -exec cp {} "$work/stored" \;
is_answered 'the encrypted file that sf keeps' stored "$remedy"

take 'a login by an sfdx URL becomes a token file'
touch "$work/rotation"
renews 'with rotation that came later' 2

# Under rotation a login by an sfdx URL uses up its refresh token, and sf keeps this one nonetheless.
echo "force://PlatformCLI::$(member "$token" refresh_token)@$host" >"$work/last-url"
succeeds 'sf logs in by an sfdx URL under rotation' \
    sh -c 'sf org login sfdx-url --sfdx-url-stdin - --alias tests <"$0"' "$work/last-url"
shown used $show --json
if grep -qF "$(cat "$work/last-url")" "$work/used"; then
    rm "$token"
    run "$dynamic" --ca-cert "$work/ca.pem" --sfdx-url-file "$work/used" "$token"
    check 'the dead token that sf keeps is refused for good' "$(
        [ "$status" = 3 ] && grep -q 'hint: log in again' "$work/err" && [ ! -e "$token" ] ||
            echo "exit status $status, or a file, or no hint")"
elif grep -qF force:// "$work/used"; then
    skip 'the dead token that sf keeps' 'this sf keeps the new one'
fi
close
