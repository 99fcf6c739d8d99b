# What the scripts of the tests share: the programs under test, packages, steps and their tally,
# servers. Sourced, not run. Servers listen on loopback, on free ports, and end with the script.
# shellcheck shell=sh disable=SC2034
set -eu
umask 022

# The script's folder, and the project's.
here=$(cd "$(dirname "$0")" && pwd)
root=$here
until [ -e "$root/Cargo.toml" ]; do root=$(dirname "$root"); done
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$root/$target ;; esac
certs=$root/tests/certs
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1)
musl=$(uname -m)-unknown-linux-musl
# The release builds under test and the endpoint of the tests; each may be given in the environment.
dynamic=${SF_REFRESH:-$target/release/sf-refresh}
static=${SF_REFRESH_STATIC:-$target/$musl/release/sf-refresh}
stand_in=${STAND_IN:-$target/debug/examples/stand-in}
# Daemons live in sbin, which is not on every PATH.
PATH=$PATH:/usr/sbin:/sbin
export DEBIAN_FRONTEND=noninteractive

work=$(mktemp -d)
token=$work/token.json
passed=0
failed=0
skipped=0
children=

# Ends what the script started, its own children alone, and removes its folder.
finish() {
    for child in $children; do kill "$child" 2>/dev/null || true; done
    for child in $children; do wait "$child" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# build PROGRAM...: builds these of dynamic, static and stand_in; ends the script if that fails.
# What the environment names is not built. A static build that cannot be had is no failure.
build() {
    for program; do
        status=0
        case $program in
            dynamic) [ -n "${SF_REFRESH:-}" ] || quietly cargo build --release --locked ;;
            static) [ -n "${SF_REFRESH_STATIC:-}" ] || quietly sh .packaging/build.sh static "$musl" ;;
            stand_in) [ -n "${STAND_IN:-}" ] || quietly cargo build --locked --bins --examples ;;
        esac || status=$?
        case $program,$status in
            *,0) ;;
            static,69) rm -f "$static" && echo "no static build: $(tail -n 1 "$work/build")" ;;
            *) cat "$work/build" && exit 1 ;;
        esac
    done
}

# quietly COMMAND...: runs it in the top folder; what it says goes to $work/build.
quietly() {
    (cd "$root" && "$@") >"$work/build" 2>&1
}

# checkout FOLDER: another checkout of this source: what git knows or would add, as it is now, as
# one commit at the time of the last.
checkout() {
    rm -rf "$1"
    mkdir -p "$1"
    git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- |
        tar --extract --directory "$1"
    date="$(git log -1 --format=%ct) +0000"
    git -C "$1" init --quiet
    git -C "$1" add --all
    GIT_AUTHOR_DATE=$date GIT_COMMITTER_DATE=$date git -C "$1" -c user.name=ship \
        -c user.email=ship@example.com -c commit.gpgsign=false commit --quiet --message=ship
}

# ---- Packages ----

# has COMMAND...: whether all of them are there.
has() {
    for command; do command -v "$command" >/dev/null 2>&1 || return 1; done
}

# install PACKAGE...: installs Debian packages without starting the services that they bring.
install() {
    has apt-get && [ "$(id -u)" = 0 ] || return 1
    policy=/usr/sbin/policy-rc.d
    held=
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
        held=yes
    fi
    outcome=0
    get='apt-get -qq -o DPkg::Lock::Timeout=120'
    { $get install -y --no-install-recommends "$@" ||
        { $get update && $get install -y --no-install-recommends "$@"; }; } \
        >"$work/install" 2>&1 </dev/null || outcome=1
    [ -z "$held" ] || rm -f $policy
    return $outcome
}

# need COMMAND PACKAGE...: installs the packages where the command is missing.
need() {
    command=$1
    shift
    has "$command" || { install "$@" && has "$command"; }
}

# What every script needs.
for basic in python3 curl openssl; do
    need $basic $basic || { echo "cannot have: $basic" >&2 && exit 1; }
done

# npm_folder NAME SPECIFICATION...: fills the cached folder $npm with npm packages.
npm_folder() {
    npm=$target/npm/$1
    shift
    mkdir -p "$npm"
    [ -f "$npm/package.json" ] || echo '{"private":true,"type":"module"}' >"$npm/package.json"
    (cd "$npm" && npm install --prefer-offline --no-audit --no-fund --loglevel=error "$@") \
        >"$work/install" 2>&1
}

# python_folder NAME SPECIFICATION...: the same for packages from PyPI, with a Python that finds
# them, $python/bin/python.
python_folder() {
    python=$target/python/$1
    shift
    [ -x "$python/bin/python" ] || python3 -m venv "$python" >"$work/install" 2>&1 || return 1
    "$python/bin/pip" install --quiet "$@" >"$work/install" 2>&1
}

# ---- Steps ----

pass() {
    passed=$((passed + 1))
    echo "ok: $1"
}

# fail NAME PROBLEM: with the end of what the last run said.
fail() {
    failed=$((failed + 1))
    echo "FAILED: $1: $2"
    for stream in out err; do
        [ ! -s "$work/$stream" ] || tail -n 5 "$work/$stream" | sed "s/^/    std$stream: /"
    done
}

skip() {
    skipped=$((skipped + 1))
    echo "skipped: $1 ($2)"
}

# check NAME PROBLEM: one step; it passes if there is no problem.
check() {
    if [ -z "$2" ]; then pass "$1"; else fail "$1" "$2"; fi
}

# step NAME COMMAND...: one step, which passes if the command does; so does the function.
# Leaves what the command said in $work/out.
step() {
    title=$1
    shift
    : >"$work/err"
    status=0
    "$@" >"$work/out" 2>&1 </dev/null || status=$?
    check "$title" "$([ $status = 0 ] || echo "exit status $status")"
    return $status
}

# The last line of a script, and its status.
close() {
    tally="$passed passed, $failed failed"
    [ "$skipped" = 0 ] || tally="$tally, $skipped skipped"
    echo "$tally"
    [ -z "${TALLY:-}" ] || echo "$passed $failed $skipped" >>"$TALLY"
    [ "$failed" = 0 ] || exit 1
    exit 0
}

# skip_all NAME REASON: a whole script that cannot run here.
skip_all() {
    skip "$1" "$2"
    close
}

# run [NAME=VALUE]... PROGRAM [ARGUMENT]...: runs it in an environment that has nothing else in it,
# and leaves $status, $work/out, $work/err and, as it was before, the token file in $work/before.
run() {
    [ ! -e "$token" ] || cp "$token" "$work/before"
    status=0
    timeout 60 env -i "PATH=$PATH" "$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
}

# ended STATUS [WORD]...: sets $problem, if the last run ended otherwise or stderr lacks a word.
ended() {
    problem=
    [ "$status" = "$1" ] || problem="exit status $status, not $1"
    shift
    for word; do
        grep -qF -- "$word" "$work/err" || problem="${problem:+$problem; }stderr lacks '$word'"
    done
}

# expect NAME STATUS [WORD]...: one step. stderr has to hold each word. After a success the token
# file holds the token that was printed, after a failure it is as it was; no journal is left.
expect() {
    step=$1 wanted=$2
    shift 2
    ended "$wanted" "$@"
    if [ "$wanted" = 0 ]; then
        [ -s "$work/out" ] && grep -qF -- "\"$(cat "$work/out")\"" "$token" ||
            problem="${problem:+$problem; }the token on stdout is not in the file"
    else
        cmp -s "$token" "$work/before" || problem="${problem:+$problem; }the token file changed"
        [ ! -s "$work/out" ] || problem="${problem:+$problem; }stdout is not empty"
    fi
    [ ! -e "$(dirname "$token")/.${token##*/}.sf-refresh" ] ||
        problem="${problem:+$problem; }a journal is left"
    check "$step" "$problem"
}

# new_token [FILE]: a token file before its first renewal.
new_token() {
    cat >"${1:-$token}" <<'JSON'
{
  "access_token": "00Dxx!the-old-access-token",
  "refresh_token": "5Aep-RT-0-first",
  "issued_at": "1700000000000"
}
JSON
}

# member FILE NAME: a string member of a token file.
member() {
    sed -n "s/^ *\"$2\": \"\(.*\)\",*\$/\1/p" "$1"
}

# ---- Servers ----

# endpoint OPTION...: a new endpoint of the tests over TLS in the place of the last, which knows the
# client CONSUMER_KEY; its URL in $url, a line for each request in $work/log.
endpoint() {
    [ -z "${endpoint:-}" ] || kill "$endpoint"
    rm -f "$work/url" "$work/log"
    background "$stand_in" --tls server --forever --client-id CONSUMER_KEY --log "$work/log" \
        --port-file "$work/url" "$@"
    endpoint=$server
    wait_until test -s "$work/url" || {
        fail 'the endpoint starts' "$(cat "$work/server.log")"
        close
    }
    url=$(cat "$work/url")
}

# free_ports NUMBER: that many ports of 127.0.0.1 that nobody listens on, one a line.
free_ports() {
    python3 -c '
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in held: one.bind(("127.0.0.1", 0))
for one in held: print(one.getsockname()[1])' "$1"
}

# background COMMAND...: a server of this script, its output in $work/server.log.
background() {
    "$@" >>"$work/server.log" 2>&1 </dev/null &
    children="$children $!"
    server=$!
}

# wait_for_port PORT: until the last server listens there; ends the script where it never does.
wait_for_port() {
    python3 - "$1" "$server" <<'PYTHON' && return
import os, socket, sys, time
port, server = map(int, sys.argv[1:])
for _ in range(300):
    try: sys.exit(socket.create_connection(("127.0.0.1", port), 1).close())
    except OSError: time.sleep(0.1)
    try: state = open(f"/proc/{server}/stat").read().rpartition(")")[2]
    except OSError: break
    if "Z" in state: break
sys.exit(1)
PYTHON
    echo "nothing listens on port $1:"
    cat "$work/server.log"
    failed=$((failed + 1))
    close
}

# wait_until COMMAND...: whether it succeeds within a generous time.
wait_until() {
    for _ in $(seq 100); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    return 1
}

# isolate NAME: runs the script again in a mount and a network namespace of its own, in which there
# is nothing but loopback, and in which /etc/hosts and /etc/resolv.conf can be replaced. Once there,
# ISOLATED is set. Without namespaces the script called NAME is skipped.
isolate() {
    [ -z "${ISOLATED:-}" ] || { ip link set lo up && return; }
    unshare -m -n true 2>/dev/null || skip_all "$1" 'no namespaces here'
    rm -rf "$work"
    trap - EXIT
    ISOLATED=yes exec unshare -m -n sh "$0"
}

# replace_file FILE: what stdin gives takes the place of a file of the system, in this namespace.
replace_file() {
    cat >"$work/$(basename "$1")"
    mount --bind "$work/$(basename "$1")" "$1"
}

# start_nginx PORT: nginx with the `http` block on stdin, listening on PORT; its log is
# $work/access.log, a line for each request: port, connection, request on it, method, versions, status.
start_nginx() {
    [ "$(id -u)" = 0 ] && user='user root;' || user=
    {
        cat <<CONF
$user
worker_processes 1;
pid $work/nginx.pid;
events { worker_connections 256; }
http {
    client_body_temp_path $work/body;
    proxy_temp_path $work/proxy;
    fastcgi_temp_path $work/fastcgi;
    uwsgi_temp_path $work/uwsgi;
    scgi_temp_path $work/scgi;
    log_format steps '\$server_port \$connection \$connection_requests \$request_method '
        '\$server_protocol \$ssl_protocol \$status';
    access_log $work/access.log steps;
    ssl_certificate $certs/server.pem;
    ssl_certificate_key $certs/server.pem;
    default_type application/json;
CONF
        cat
        echo '}'
    } >"$work/nginx.conf"
    background nginx -p "$work/" -c "$work/nginx.conf" -e "$work/nginx-error.log" -g 'daemon off;'
    wait_for_port "$1"
}
