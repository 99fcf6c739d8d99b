# What the scripts share that run the certified OAuth2 server oidc-provider. Sourced after lib.sh.
# shellcheck shell=sh disable=SC2034,SC2154

# start_provider NAME: the server of provider.mjs on a free port; its token files are in $work. Sets
# $issuer. The script called NAME is skipped if the server cannot be had.
start_provider() {
    need node nodejs || skip_all "$1" 'the package nodejs cannot be had'
    need npm npm || skip_all "$1" 'the package npm cannot be had'
    # The newest version that this Node runs.
    provider=
    for major in latest 9 8 7; do
        npm_folder oidc-provider "oidc-provider@$major" || continue
        (cd "$npm" && node -e "import('oidc-provider')") >"$work/install" 2>&1 || continue
        provider=$(node -p 'JSON.parse(fs.readFileSync(process.argv[1])).version' \
            "$npm/node_modules/oidc-provider/package.json")
        break
    done
    [ -n "$provider" ] || skip_all "$1" \
        "no version of the npm package oidc-provider runs: $(tail -n 1 "$work/install")"
    echo "oidc-provider $provider on Node $(node --version)"
    cp "$here/provider.mjs" "$npm/provider.mjs"
    port=$(free_ports 1)
    issuer=https://localhost:$port
    background node "$npm/provider.mjs" "$port" "$certs/server.pem" "$work"
    wait_for_port "$port"
    wait_until test -s "$work/last.json" || {
        cat "$work/server.log"
        fail 'the server starts' 'no'
        close
    }
}
