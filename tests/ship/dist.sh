#!/bin/sh
# Packs what is handed out, the same bytes in whatever folder: dist.sh [TARGET...]
# target/dist/ gets sf-refresh-VERSION-TARGET.tar.gz for each target, and SHA256SUMS.
set -eu
. tests/ship/common.sh

# Builds and packs one target; status 69 where this machine cannot build for it.
pack() {
    sh tests/ship/static.sh "$1" || return
    name=sf-refresh-$(version)-$1
    mkdir -p "$stage/$name"
    cp README.md LICENSE-APACHE LICENSE-MIT "$build/$1/release/sf-refresh" "$stage/$name"
    archive "$build/dist/$name.tar.gz" "$stage" "$name"
}

build=$(build_folder)
rm -rf "$build/dist"
mkdir -p "$build/dist"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
for target; do
    status=0
    pack "$target" || status=$?
    case $status in
        0) ;;
        69) echo "skipped: $target (no compiler or no standard library for it here)" ;;
        *) exit $status ;;
    esac
done
cd "$build/dist"
sha256sum -- *.tar.gz >SHA256SUMS
cat SHA256SUMS
