#!/bin/sh
# Makes the man page target/sf-refresh.1 out of what --help prints: man.sh BINARY
set -eu
. tests/ship/common.sh

if ! command -v help2man >/dev/null; then
    echo "man: no help2man here; Debian's package is help2man" >&2
    exit 69
fi
page=$(build_folder)/sf-refresh.1
binary=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The same words in the shape that help2man knows: a second usage after `or:`, and two blanks or a
# new line between an option and what it does.
cat >"$work/sf-refresh" <<SH
#!/bin/sh
"$binary" "\$1" | sed -E 's/^       sf-refresh /   or: sf-refresh /
    s/^(  (-.,|   ) --[a-z-]+ [A-Z]+) ([a-z])/\1\n                                \3/'
SH
chmod 755 "$work/sf-refresh"
help2man --no-info --section=1 --name='renew the OAuth2 access token in a JSON file' \
    "$work/sf-refresh" >"$work/page"
date=$(date -u -d "@$(source_date)" +%Y-%m-%d)
sed "s/^\(.TH SF-REFRESH \"1\"\) \"[^\"]*\"/\1 \"$date\"/
    s/^\.SS \"Exit status:\"/.SH \"EXIT STATUS\"/" "$work/page" >"$page"
echo "$page"
