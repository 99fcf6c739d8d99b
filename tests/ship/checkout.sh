# For the tests in this folder, after lib.sh: another checkout of the same source.
# shellcheck shell=sh disable=SC2154

# checkout FOLDER: what git knows or would add, as it is now, as one commit at the time of the last.
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

# step NAME COMMAND...: passes where the command does; leaves what it said in $work/out.
step() {
    title=$1
    shift
    status=0
    "$@" >"$work/out" 2>&1 </dev/null || status=$?
    check "$title" "$([ $status = 0 ] || echo "exit status $status")"
    return $status
}
