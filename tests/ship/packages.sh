#!/bin/sh
# The static binaries, the archives with them, the man page, what cargo packs and installs, and
# whether the source is one for macOS.
# shellcheck disable=SC2154
. "$(dirname "$0")/../lib.sh"

# The targets of `make dist`, and the first of them.
targets=$(sed -n 's/^TARGETS = //p' "$root/Makefile")
musl=${targets%% *}
dist=$target/dist
cd "$root"

# ---- The binaries ----

check_static() {
    size=$(stat -c %s "$static")
    echo "$musl: $size bytes"
    check 'the x86_64 binary has at most 1.9 MB' "$([ "$size" -le 1900000 ] || echo "$size bytes")"
    for one in $targets; do
        binary=$target/$one/release/sf-refresh
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

# check_foreign TARGET EMULATOR PACKAGE: what was built for another processor, run by an emulator.
check_foreign() {
    foreign=$target/$1/release/sf-refresh
    if ! [ -e "$dist/sf-refresh-$version-$1.tar.gz" ]; then
        skip "$1, run" "$(sed -n "s/^skipped: $1 (\(.*\))/\1/p" "$work/dist")"
        return
    fi
    echo "$1: $(stat -c %s "$foreign") bytes"
    need "$2" "$3" || {
        skip "$1, run" "the package $3 cannot be had"
        return
    }
    endpoint --strict --rotate
    new_token
    set -- "$1" "$2" "$foreign" -e "$url" -i CONSUMER_KEY "$token"
    name=$1
    shift
    run "$@" --ca-cert "$certs/ca.pem"
    expect "$name renews over TLS, under $1" 0 'granted! saved'
    run "$@"
    expect "$name refuses a certificate that it does not know" 5
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
    need i686-linux-gnu-gcc gcc-i686-linux-gnu libc6-dev-i386-cross || true
    step 'make dist' make dist || true
    cp "$work/out" "$work/dist"
    archive=$dist/sf-refresh-$version-$musl.tar.gz
    step 'SHA256SUMS is right' sh -c "cd '$dist' && sha256sum --check --strict SHA256SUMS" || true
    problem=
    name=sf-refresh-$version-$musl
    wanted="$name/ $name/LICENSE-APACHE $name/LICENSE-MIT $name/README.md $name/sf-refresh "
    [ "$(tar -tzf "$archive" | grep -v '/licences/' | LC_ALL=C sort | tr '\n' ' ')" = "$wanted" ] ||
        problem='not these files'
    check 'an archive holds the binary, the README and the licences' "$problem"
    for archive in "$dist"/*.tar.gz; do
        one=${archive#"$dist/sf-refresh-$version-"}
        one=${one%.tar.gz}
        [ -e "${archive%.tar.gz}.cdx.json" ] || {
            skip "$one: what the SBOM lists" "$(sed -n "s/^skipped: the SBOM for $one (\(.*\))/\1/p" "$work/dist")"
            continue
        }
        problem=$(python3 "$here/inventory.py" "${archive%.tar.gz}.cdx.json" "$archive" "$one" 2>&1) ||
            problem="it broke off: $problem"
        check "$one: SBOM and licences cover each crate in the binary" "$problem"
    done
    other="$target/ship/another checkout, with a longer name"
    checkout "$other"
    # The tool that makes the SBOM takes long to build.
    mkdir -p "$target/ship/other-build" "$target/sbom"
    ln -sfn "$target/sbom" "$target/ship/other-build/sbom"
    if step 'make dist in another folder' env CARGO_TARGET_DIR="$target/ship/other-build" \
        make -C "$other" dist "TARGETS=$musl"; then
        problem=
        for file in "$dist"/*"$musl"*; do
            problem=$problem$(cmp "$file" "$target/ship/other-build/dist/${file##*/}" 2>&1 || true)
        done
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
    "$static" --help | sed -n '/^Exit status:/,$s/^  \([0-9][^ ]*\)  .*/\1/p' >"$work/wanted"
    sed -n '/^\.SH "EXIT STATUS"/,/^\.SH EXAMPLES/p' "$target/sf-refresh.1" | grep '^[0-9]' >"$work/out"
    check 'the man page has each exit status, then examples' "$(diff "$work/wanted" "$work/out" 2>&1 || true)"
    check_examples
}

# Each example of the man page, up to a pipe, as a dry run.
check_examples() {
    mkdir -p "$work/examples/orgs"
    new_token "$work/examples/token.json"
    new_token "$work/examples/orgs/one.json"
    echo secret >"$work/examples/secret.txt"
    ln -s "$static" "$work/examples/sf-refresh"
    sed -n 's/\\//g; s/ |.*//; s/^\([*/0-9 ]* \)*sf-refresh /sf-refresh --dry-run /p' \
        .packaging/man.h2m >"$work/list"
    check 'the man page has examples' "$([ -s "$work/list" ] || echo none)"
    while read -r example; do
        step "man page: $example" env -C "$work/examples" "PATH=$work/examples:$PATH" \
            sh -c "$example" || true
    done <"$work/list"
}

check_install() {
    rm -rf "$work/to"
    # Under sudo there is no cargo: nothing may call it.
    set -- make install CARGO=false "DESTDIR=$work/to" PREFIX=/usr
    problem=
    ! "$@" "BUILD=$work/nothing" >"$work/out" 2>"$work/err" || problem='it succeeds'
    grep -q 'run make first' "$work/err" || problem="$problem; it does not say 'run make first'"
    [ ! -e "$work/to" ] || problem="$problem; it left something"
    check 'make install, with nothing built, says what to do' "${problem#; }"
    step 'make' make || return 0
    step 'make install' "$@" || return 0
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

# ---- macOS ----

# Only whether it compiles: ring's C code by zig's compiler, from PyPI.
check_macos() {
    apple=aarch64-apple-darwin
    rustup target add $apple >"$work/install" 2>&1 || {
        skip "cargo check for $apple" 'its standard library cannot be had'
        return
    }
    python_folder zig ziglang || {
        skip "cargo check for $apple" 'the PyPI package ziglang cannot be had'
        return
    }
    # zig has names of its own for targets, and does without the rest.
    cat >"$work/zig-cc" <<SH
#!/bin/bash
words=()
while [ \$# -gt 0 ]; do
    case \$1 in
        --target=* | -mmacosx-version-min=*) ;;
        -arch | -isysroot) shift ;;
        *) words+=("\$1") ;;
    esac
    shift
done
exec "$python/bin/python" -m ziglang cc -target aarch64-macos "\${words[@]}"
SH
    chmod 755 "$work/zig-cc"
    step "cargo check for $apple" env SDKROOT="$work" CC_aarch64_apple_darwin="$work/zig-cc" \
        AR_aarch64_apple_darwin=ar CARGO_TARGET_DIR="$target/ship/macos" \
        cargo check --locked --target $apple || true
}

check_dist
check_static
check_foreign aarch64-unknown-linux-musl qemu-aarch64 qemu-user
check_foreign i686-unknown-linux-musl qemu-i386 qemu-user
check_empty_root
check_man
check_install
check_cargo
check_macos
close
