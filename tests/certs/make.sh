#!/bin/sh
# Makes every certificate of the tests anew, beside this script. Needs openssl 3.
# Each NAME.pem holds its certificates (leaf first) and its private key; the two
# CA files hold the certificate alone, and their keys are thrown away.
# The private keys guard nothing: no one but the tests trusts these CAs.
# shellcheck disable=SC2154
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'status=$?; [ $status -eq 0 ] || cat "$work/log" >&3; rm -rf "$work"; exit $status' EXIT
cd "$work"
exec 3>&2 2>log

START=20200101000000Z
END=20800101000000Z
LOCAL='DNS:localhost,DNS:login.example.test,IP:127.0.0.1,IP:::1'

cat >ca.cnf <<'CNF'
[ca]
default_ca = tests
[tests]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
CNF
: >index.txt

# issue NAME ISSUER START END EXTENSIONS [KEY OPTIONS]: NAME.crt and NAME.key;
# with NAME as its own ISSUER, self-signed.
issue() {
    name=$1 issuer=$2 start=$3 end=$4 extensions=$5
    shift 5
    [ $# -gt 0 ] || set -- -algorithm EC -pkeyopt ec_paramgen_curve:P-256
    openssl genpkey "$@" -out "$name.key"
    openssl req -new -key "$name.key" -subj "/CN=sf-refresh tests $name" -out "$name.csr"
    printf '%b' "$extensions" >"$name.ext"
    if [ "$issuer" = "$name" ]; then
        set -- -selfsign
    else
        set -- -cert "$issuer.crt"
    fi
    openssl ca -config ca.cnf -batch -notext "$@" -keyfile "$issuer.key" \
        -startdate "$start" -enddate "$end" \
        -extfile "$name.ext" -in "$name.csr" -out "$name.crt"
}

AUTHORITY='basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n'
LEAF='basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n'
SERVER="${LEAF}extendedKeyUsage=serverAuth\n"

issue ca ca $START $END "$AUTHORITY"
issue other-ca other-ca $START $END "$AUTHORITY"
issue intermediate ca $START $END "$AUTHORITY"

issue server ca $START $END "${SERVER}subjectAltName=$LOCAL\n"
issue server-rsa ca $START $END "${SERVER}subjectAltName=$LOCAL\n" \
    -algorithm RSA -pkeyopt rsa_keygen_bits:2048
issue server-chain intermediate $START $END "${SERVER}subjectAltName=$LOCAL\n"
issue wrong-host ca $START $END "${SERVER}subjectAltName=DNS:wrong.example.test\n"
issue expired ca 20190101000000Z 20200101000000Z "${SERVER}subjectAltName=$LOCAL\n"
issue not-yet-valid ca 20900101000000Z 20950101000000Z "${SERVER}subjectAltName=$LOCAL\n"
issue client-auth ca $START $END "${LEAF}extendedKeyUsage=clientAuth\nsubjectAltName=$LOCAL\n"
issue self-signed self-signed $START $END "${SERVER}subjectAltName=$LOCAL\n"

cp ca.crt "$here/ca.pem"
cp other-ca.crt "$here/other-ca.pem"
cat server-chain.crt intermediate.crt server-chain.key >"$here/server-chain.pem"
for name in server server-rsa wrong-host expired not-yet-valid client-auth self-signed; do
    cat "$name.crt" "$name.key" >"$here/$name.pem"
done
