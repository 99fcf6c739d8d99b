#!/bin/sh
# The main job, whole: renews a sample token file against a stand-in endpoint on this machine.
set -eu
bin=$(realpath "${CARGO_TARGET_DIR:-target}/debug")
work=$(mktemp -d)
trap 'kill "$endpoint" 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/token.json" <<'JSON'
{
  "access_token": "00Dxx!the-old-access-token",
  "refresh_token": "5Aep-RT-0-first",
  "instance_url": "https://old.my.salesforce.com",
  "issued_at": "1700000000000",
  "my_own_member": 1.10
}
JSON

"$bin/examples/stand-in" --strict --rotate --forever --port-file "$work/url" >/dev/null &
endpoint=$!
until [ -s "$work/url" ]; do sleep 0.1; done

echo "== token.json before"
cat "$work/token.json"
echo "== sf-refresh --client-id CONSUMER_KEY --endpoint $(cat "$work/url") token.json"
(cd "$work" && env -u SSL_CERT_FILE "$bin/sf-refresh" \
    --client-id 3MVG9.test_client-id --endpoint "$(cat url)" token.json)
echo "== token.json after"
cat "$work/token.json"
