#!/bin/sh
# The static binaries, the archives with them, the man page, and what cargo packs and installs.
# shellcheck disable=SC2154
. "$(dirname "$0")/../lib.sh"

arm=aarch64-unknown-linux-musl
dist=$target/dist
cd "$root"

# ---- The binaries ----

check_static() {
    size=$(stat -c %s "$static")
    echo "$musl: $size bytes"
    check 'the x86_64 binary has at most 1.9 MB' "$([ "$size" -le 1900000 ] || echo "$size bytes")"
    for binary in "$static" "$target/$arm/release/sf-refresh"; do
        [ -e "$binary" ] || continue
        kind=$(LC_ALL=C readelf --wide --program-headers --dynamic "$binary" 2>&1)
        problem=
        case $kind in *INTERP* | *NEEDED*) problem='it needs a loader or libraries' ;; esac
        case $kind in *LOAD*) ;; *) problem="readelf says: $kind" ;; esac
        check "static: ${binary#"$target/"}" "$problem"
        check_paths "$binary"
    done
}

# The folders of this machine, and what a registry's crates lie in anywhere.
check_paths() {
    found=
    for path in "$HOME/" "${CARGO_HOME:-$HOME/.cargo}" "$(rustc --print sysroot)" "$root" "$target" \
        .cargo registry/src crates.io /home/; do
        ! grep -qaF -- "$path" "$1" || found="$found $path"
    done
    check "no path of this machine: ${1#"$target/"}" "${found:+holds$found}"
}

check_arm() {
    if [ ! -e "$target/$arm/release/sf-refresh" ]; then
        skip "$arm, run" "$(grep "^skipped: $arm" "$work/dist" | sed 's/.*(\(.*\))/\1/')"
        return
    fi
    echo "$arm: $(stat -c %s "$target/$arm/release/sf-refresh") bytes"
    need qemu-aarch64 qemu-user || {
        skip "$arm, run" 'the package qemu-user cannot be had'
        return
    }
    endpoint --strict --rotate
    new_token
    run qemu-aarch64 "$target/$arm/release/sf-refresh" -e "$url" --ca-cert "$certs/ca.pem" \
        -i CONSUMER_KEY "$token"
    expect "$arm renews over TLS, under qemu" 0 'granted! saved'
    run qemu-aarch64 "$target/$arm/release/sf-refresh" -e "$url" -i CONSUMER_KEY "$token"
    expect "$arm refuses a certificate that it does not know" 5
}

# An empty root: no /etc, /dev, /proc, /tmp, no shell.
check_empty_root() {
    if [ "$(id -u)" != 0 ]; then
        skip 'an empty root' 'chroot needs root'
        return
    fi
    endpoint --strict --rotate
    empty=$work/empty
    mkdir -p "$empty/data"
    cp "$static" "$empty/sf-refresh"
    cp "$certs/ca.pem" "$empty/data/ca.pem"
    token=$empty/data/token.json
    new_token
    set -- chroot "$empty" /sf-refresh -e "$url" -i CONSUMER_KEY
    run "$@" /data/token.json
    expect 'an empty root: the bundled roots do not know a private CA' 5 --ca-cert
    run "$@" --ca-cert /data/ca.pem /data/token.json
    expect 'an empty root: renews with --ca-cert' 0 'granted! saved'
    cp "$token" "$work/stdin"
    status=0
    "$@" --ca-cert /data/ca.pem - <"$work/stdin" >"$work/out" 2>"$work/err" || status=$?
    problem=
    [ "$status" = 0 ] || problem="exit status $status"
    ! grep -qF "$(member "$token" access_token)" "$work/out" || problem="$problem; the old token"
    [ -n "$(member "$work/out" access_token)" ] || problem="$problem; no token on stdout"
    check 'an empty root: filters stdin to stdout' "${problem#; }"
    left=$(find "$empty" -type f | sort | tr '\n' ' ')
    check 'an empty root: leaves nothing else there' "$(
        [ "$left" = "$empty/data/ca.pem $empty/data/token.json $empty/sf-refresh " ] || echo "$left")"
}

# ---- The archives ----

check_dist() {
    need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross || true
    step 'make dist' make dist || true
    cp "$work/out" "$work/dist"
    archive=$dist/sf-refresh-$version-$musl.tar.gz
    step 'SHA256SUMS is right' sh -c "cd '$dist' && sha256sum --check --strict SHA256SUMS" || true
    problem=
    name=sf-refresh-$version-$musl
    wanted="$name/ $name/LICENSE-APACHE $name/LICENSE-MIT $name/README.md $name/sf-refresh "
    [ "$(tar -tzf "$archive" | LC_ALL=C sort | tr '\n' ' ')" = "$wanted" ] || problem='not these files'
    check 'an archive holds the binary, the README and the licences' "$problem"
    other="$target/ship/another checkout, with a longer name"
    checkout "$other"
    if step 'make dist in another folder' env CARGO_TARGET_DIR="$target/ship/other-build" \
        make -C "$other" dist TARGETS=$musl; then
        problem=$(cmp "$archive" "$target/ship/other-build/dist/${archive##*/}" 2>&1 || true)
        check 'both folders give the same bytes' "$problem"
    fi
}

# ---- Man page, installation, packages of cargo ----

check_man() {
    need help2man help2man || {
        skip 'make man' 'the package help2man cannot be had'
        return
    }
    step 'make man' make man || return 0
    if need mandoc mandoc; then
        step 'mandoc finds nothing to say about the page' mandoc -T lint "$target/sf-refresh.1" || true
    else
        skip 'mandoc on the man page' 'the package mandoc cannot be had'
    fi
    # Each option of the help has its own entry in the page.
    lacks=
    for option in $("$static" --help | sed -nE 's/^  (-.,|   ) (--[a-z-]+).*/\2/p'); do
        escaped=$(echo "$option" | sed 's/-/\\\\-/g')
        grep -A 1 '^\.TP' "$target/sf-refresh.1" | grep -q -- "$escaped" || lacks="$lacks $option"
    done
    check 'the man page has an entry for each option' "${lacks:+lacks$lacks}"
}

check_install() {
    rm -rf "$work/to"
    step 'make install' make install "DESTDIR=$work/to" PREFIX=/usr || return 0
    problem=
    [ -x "$work/to/usr/bin/sf-refresh" ] || problem='no binary'
    if [ -e "$target/sf-refresh.1" ]; then
        [ -e "$work/to/usr/share/man/man1/sf-refresh.1" ] || problem="$problem; no man page"
    fi
    check 'make install puts binary and man page in their places' "${problem#; }"
    make uninstall "DESTDIR=$work/to" PREFIX=/usr >"$work/out" 2>&1
    check 'make uninstall leaves no file' "$(find "$work/to" ! -type d)"
}

check_cargo() {
    cat >"$work/wanted" <<'LIST'
Cargo.lock
Cargo.toml
Cargo.toml.orig
LICENSE-APACHE
LICENSE-MIT
README.md
src/main.rs
LIST
    cargo package --list --allow-dirty --locked 2>"$work/err" | grep -v vcs_info >"$work/out"
    check 'cargo package lists what belongs, and nothing else' "$(diff "$work/wanted" "$work/out" || true)"
    step 'cargo package builds from what it packs' cargo package --allow-dirty --locked || true
    step 'cargo install --path .' cargo install --path . --root "$work/cargo" --locked || return 0
    check 'cargo install gives a program that runs' "$(
        [ "$("$work/cargo/bin/sf-refresh" --version)" = "sf-refresh $version" ] || echo 'it does not')"
}

check_dist
check_static
check_arm
check_empty_root
check_man
check_install
check_cargo
close
