#!/bin/sh
# Packs the source with every crate that it is built from, for a site without a network:
# target/sf-refresh-VERSION-vendored.tar.gz
set -eu
. tests/ship/common.sh

[ -e .git ] || {
    echo "vendor: this is no git checkout: it cannot be told what belongs in" >&2
    exit 69
}
build=$(build_folder)
name=sf-refresh-$(version)-vendored
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/$name"
# What git knows, as it is in the work tree.
git ls-files -z | tar --create --null --files-from=- | tar --extract --directory "$stage/$name"
${CARGO:-cargo} vendor --quiet --locked --respect-source-config --versioned-dirs \
    "$stage/$name/vendor" >/dev/null
mkdir -p "$stage/$name/.cargo"
cat >>"$stage/$name/.cargo/config.toml" <<'TOML'
[source.crates-io]
replace-with = "vendored-sources"

[source.vendored-sources]
directory = "vendor"
TOML
archive "$build/$name.tar.gz" "$stage" "$name"
echo "$build/$name.tar.gz: $(stat -c %s "$build/$name.tar.gz") bytes"
