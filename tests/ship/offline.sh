#!/bin/sh
# The archive of `make vendor`: unpacked elsewhere, in a network namespace with nothing but loopback
# and with an empty cargo home, it builds and passes its tests.
# shellcheck disable=SC2154
. "$(dirname "$0")/../lib.sh"

cd "$root"
name=sf-refresh-$version-vendored
folder=$target/ship/air-gapped
# As root without a user namespace: in one, files cannot change to most owners.
[ "$(id -u)" = 0 ] && alone='unshare -n' || alone='unshare -rn'
$alone true 2>/dev/null || skip_all 'the vendored archive' 'no network namespaces here'
need ip iproute2 || skip_all 'the vendored archive' 'the package iproute2 cannot be had'

# offline COMMAND...: in the unpacked archive, without a network.
offline() {
    (cd "$folder/$name" && CARGO_HOME=$work/cargo CARGO_TARGET_DIR=$folder/build \
        RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup} PATH=$PATH \
        $alone sh -c 'ip link set lo up && exec "$@"' sh "$@")
}

checkout "$target/ship/to-vendor"
if step 'make vendor' env CARGO_TARGET_DIR="$folder" make -C "$target/ship/to-vendor" vendor; then
    cat "$work/out"
    mkdir -p "$work/cargo"
    rm -rf "${folder:?}/$name"
    tar -xzf "$folder/$name.tar.gz" -C "$folder"
    # The archive's times are old: cargo would take a build of another source for this one's.
    offline cargo clean --quiet --package sf-refresh --offline >"$work/out" 2>&1 || true
    offline cargo clean --quiet --release --package sf-refresh --offline >"$work/out" 2>&1 || true
    step 'cargo build --release --locked --offline' \
        offline cargo build --release --locked --offline || true
    step 'make test' offline make test || true
    grep -E '^test .*FAILED$|^test result' "$work/out" || true
    problem=$(find "$work/cargo" -path '*registry*' -type f | sed -n 1p)
    check 'nothing came from elsewhere' "$problem"
fi
close
