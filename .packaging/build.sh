#!/bin/sh
# Builds what is handed out, the same bytes in whatever folder:
#   build.sh static TARGET [OPTION]...
#                               TARGET/release/sf-refresh, which needs no library; options of cargo
#   build.sh dist TARGET...     dist/sf-refresh-VERSION-TARGET.tar.gz for each target, with the licences
#                               of all crates in it, beside it its SBOM (.cdx.json), and SHA256SUMS
#   build.sh vendor             sf-refresh-VERSION-vendored.tar.gz: the source and every crate
#   build.sh man BINARY         sf-refresh.1, from what BINARY --help prints
# All of it goes to the build folder: target/, or what CARGO_TARGET_DIR names.
# Exit status 69: something is missing on this machine; stderr names it.
set -eu
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}

# missing TEXT: ends with status 69.
missing() {
    echo "build: $1" >&2
    exit 69
}

# The time that stands in archives: that of the last commit, or, where the source was unpacked from
# an archive of `make vendor`, the one in there.
source_date() {
    if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
        echo "$SOURCE_DATE_EPOCH"
    elif [ -e .git ]; then
        git log -1 --format=%ct
    else
        stat -c %Y Cargo.toml
    fi
}

# archive FILE NAME: packs $stage/NAME so that the same content gives the same bytes.
archive() {
    tar --create --directory "$stage" --sort=name --format=gnu --mtime="@$(source_date)" \
        --owner=0 --group=0 --numeric-owner --mode='u=rwX,go=rX' "$2" | gzip -n -9 >"$1.part"
    mv "$1.part" "$1"
    echo "$1: $(stat -c %s "$1") bytes"
}

# ---- static ----

# The C compiler that makes programs for a musl target; glibc's does, as Rust brings musl along.
compiler_for() {
    case $1 in
        "$(uname -m)"-*) echo cc ;;
        aarch64-*) echo aarch64-linux-gnu-gcc ;;
        arm*hf | thumb*hf) echo arm-linux-gnueabihf-gcc ;;
        arm*) echo arm-linux-gnueabi-gcc ;;
        i?86-*) echo i686-linux-gnu-gcc ;;
        riscv64*) echo riscv64-linux-gnu-gcc ;;
        *) echo "${1%%-*}-linux-gnu-gcc" ;;
    esac
}

# Tells cargo the compiler for the target, unless the environment does.
choose_compiler() {
    lower=$(echo "$1" | tr - _)
    upper=$(echo "$lower" | tr '[:lower:]' '[:upper:]')
    compiler=$(compiler_for "$1")
    eval "compiler=\${CC_$lower:-$compiler}"
    command -v "$compiler" >/dev/null || missing "no $compiler, the C compiler for $1"
    eval "CC_$lower=$compiler
        CARGO_TARGET_${upper}_LINKER=\${CARGO_TARGET_${upper}_LINKER:-$compiler}
        export CC_$lower CARGO_TARGET_${upper}_LINKER"
}

# Adds Rust's standard library for the target.
add_target() {
    [ ! -d "$(rustc --print target-libdir --target "$1" 2>/dev/null)" ] || return 0
    command -v rustup >/dev/null || missing "no standard library for $1, and no rustup to add it"
    rustup target add "$1" || missing "no standard library for $1"
}

# Whether Rust's musl can relocate itself from packed relocations, which are 60 kB smaller.
packs_relocations() {
    minor=$(rustc --version | cut -d ' ' -f 2 | cut -d . -f 2)
    [ "$minor" -ge 93 ]
}

# Sets what compilers have to be told to keep the paths of this machine out of the binary.
set_flags() {
    home=${CARGO_HOME:-$HOME/.cargo}
    # Of the mappings that fit a path the last one wins, so a folder stands before what is in it.
    set -- "$HOME=/home" "$home=/cargo" "$(rustc --print sysroot)=/rust" "$PWD=/source" \
        "$build=/build" "$PWD/vendor=/crates"
    for crates in "$home"/registry/src/*; do
        set -- "$@" "$crates=/crates"
    done
    separator=$(printf '\037')
    CARGO_ENCODED_RUSTFLAGS=-Clink-arg=-Wl,--build-id=none
    if packs_relocations; then
        CARGO_ENCODED_RUSTFLAGS=$CARGO_ENCODED_RUSTFLAGS$separator-Clink-arg=-Wl,-z,pack-relative-relocs
    fi
    # The quotes are for the cc crate, which takes them off: folders may have blanks in their names.
    for mapping; do
        CARGO_ENCODED_RUSTFLAGS="$CARGO_ENCODED_RUSTFLAGS$separator--remap-path-prefix=$mapping"
        # shellcheck disable=SC2089,SC2090
        CFLAGS="${CFLAGS:-} '-ffile-prefix-map=$mapping'"
    done
    # shellcheck disable=SC2090
    export CARGO_ENCODED_RUSTFLAGS CFLAGS CC_SHELL_ESCAPED_FLAGS=1
}

# static TARGET [OPTION]...
static() {
    triple=$1
    shift
    choose_compiler "$triple"
    add_target "$triple"
    # The crates have to be here before the names of their folders can be mapped.
    $cargo fetch --quiet --locked
    set_flags
    SOURCE_DATE_EPOCH=$(source_date)
    export SOURCE_DATE_EPOCH
    $cargo build --release --locked --target "$triple" "$@"
    binary=$build/$triple/release/sf-refresh
    echo "$binary: $(stat -c %s "$binary") bytes"
}

# ---- dist ----

# licences TARGET FOLDER: a folder for each crate in the binary, with the licences that it brings,
# and one for Rust's own library.
licences() {
    $cargo metadata --format-version 1 --locked --filter-platform "$1" >"$stage/metadata"
    # Each crate's folder, NAME-VERSION.
    sed 's/"manifest_path":"/\n&/g' "$stage/metadata" |
        sed -n 's/^"manifest_path":"\([^"]*\)\/Cargo.toml".*/\1/p' >"$stage/folders"
    $cargo tree --locked -e normal --target "$1" --prefix none --format '{p}' >"$stage/tree"
    sed -n 's/^\([^ ]*\) v\([^ ]*\).*/\1-\2/p' "$stage/tree" | sort -u |
        grep -vxF "sf-refresh-$version" >"$stage/crates"
    while read -r crate; do
        mkdir -p "$2/$crate"
        find "$(grep "/$crate\$" "$stage/folders")" -maxdepth 1 -type f \( -iname 'licen[cs]e*' \
            -o -iname 'copying*' -o -iname 'copyright*' -o -iname 'notice*' -o -iname 'unlicense*' \) \
            -exec cp {} "$2/$crate" \;
        [ -n "$(ls "$2/$crate")" ] || { echo "build: $crate brings no licence" >&2 && exit 1; }
    done <"$stage/crates"
    mkdir "$2/rust"
    cp "$(rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html" "$2/rust" 2>/dev/null ||
        echo "skipped: the licences of Rust's own library (this Rust comes without them)"
}

# sbom TARGET FILE: lists what is in the binary, in CycloneDX's form. The tool is installed once.
sbom() {
    tool=$build/sbom/bin/cargo-cyclonedx
    if ! [ -x "$tool" ] && ! CARGO_TARGET_DIR=$stage/sbom $cargo install --quiet --debug --locked \
        --root "$build/sbom" cargo-cyclonedx@0.5.9 >"$stage/install" 2>&1; then
        echo "skipped: the SBOM for $1 (cargo-cyclonedx cannot be had)"
        return
    fi
    # It writes beside the manifest: that is in a folder of links here.
    if ! [ -e "$stage/source" ]; then
        mkdir "$stage/source"
        for entry in "$PWD"/* "$PWD"/.cargo; do ln -s "$entry" "$stage/source"; done
    fi
    SOURCE_DATE_EPOCH=$(source_date) "$tool" cyclonedx --quiet --manifest-path \
        "$stage/source/Cargo.toml" --target "$1" --no-build-deps --spec-version 1.5 \
        --format json --override-filename sbom
    # The folder is no part of the name of a package.
    sed 's|"path+file://[^#"]*#|"|; s|?download_url=file://\.||' "$stage/source/sbom.json" >"$2"
}

# pack TARGET: the archive with the binary for it, and its SBOM.
pack() {
    name=sf-refresh-$version-$1
    mkdir "$stage/$name"
    cp README.md LICENSE-APACHE LICENSE-MIT "$build/$1/release/sf-refresh" "$stage/$name"
    licences "$1" "$stage/$name/licences"
    archive "$build/dist/$name.tar.gz" "$name"
    sbom "$1" "$build/dist/$name.cdx.json"
}

# dist TARGET...
dist() {
    rm -rf "$build/dist"
    mkdir "$build/dist"
    for target; do
        status=0
        sh .packaging/build.sh static "$target" || status=$?
        case $status in
            0) pack "$target" ;;
            69) echo "skipped: $target (it cannot be built here)" ;;
            *) exit $status ;;
        esac
    done
    cd "$build/dist"
    sha256sum -- * >"$stage/SHA256SUMS"
    mv "$stage/SHA256SUMS" .
    cat SHA256SUMS
}

# ---- vendor ----

vendor() {
    [ -e .git ] || missing 'this is no git checkout, so what belongs in the archive is not known'
    name=sf-refresh-$version-vendored
    mkdir "$stage/$name"
    # What git knows, as it is in the work tree.
    git ls-files -z | tar --create --null --files-from=- | tar --extract --directory "$stage/$name"
    $cargo vendor --quiet --locked --respect-source-config --versioned-dirs \
        "$stage/$name/vendor" >/dev/null
    mkdir -p "$stage/$name/.cargo"
    cat >>"$stage/$name/.cargo/config.toml" <<'TOML'
[source.crates-io]
replace-with = "vendored-sources"

[source.vendored-sources]
directory = "vendor"
TOML
    archive "$build/$name.tar.gz" "$name"
}

# ---- man ----

# man BINARY
man() {
    command -v help2man >/dev/null || missing "no help2man; it is Debian's package help2man"
    # The same words in the shape that help2man knows: a second usage after `or:`, and two blanks
    # or a new line between an option and what it does.
    cat >"$stage/sf-refresh" <<SH
#!/bin/sh
"$(realpath "$1")" "\$1" | sed -E 's/^       sf-refresh /   or: sf-refresh /
    s/^(  (-.,|   ) --[a-z-]+ [A-Z]+) ([a-z])/\1\n                                \3/'
SH
    chmod 755 "$stage/sf-refresh"
    help2man --no-info --section=1 --name='renew the OAuth2 access token in a JSON file' \
        --include=.packaging/man.h2m "$stage/sf-refresh" >"$stage/page"
    date=$(date -u -d "@$(source_date)" +%Y-%m-%d)
    sed "s/^\(.TH SF-REFRESH \"1\"\) \"[^\"]*\"/\1 \"$date\"/
        s/^\.SS \"Exit status:\"/.SH \"EXIT STATUS\"/" "$stage/page" >"$build/sf-refresh.1"
    echo "$build/sf-refresh.1"
}

mkdir -p "${CARGO_TARGET_DIR:-target}"
build=$(realpath "${CARGO_TARGET_DIR:-target}")
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
case ${1:-} in
    static | dist | vendor | man) "$@" ;;
    *) sed -n '2,/^set/s/^# //p' .packaging/build.sh >&2 && exit 2 ;;
esac
