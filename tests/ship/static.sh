#!/bin/sh
# Builds one static binary, the same bytes in whatever folder: static.sh TARGET
set -eu
. tests/ship/common.sh

# Whether Rust's musl can relocate itself from packed relocations, which are 60 kB smaller: from 1.2.4.
packs_relocations() {
    minor=$(rustc --version | cut -d ' ' -f 2 | cut -d . -f 2)
    [ "$minor" -ge 93 ]
}

# Sets what compilers have to be told to keep the paths of this machine out of the binary.
set_flags() {
    home=${CARGO_HOME:-$HOME/.cargo}
    # Of the mappings that fit a path the last one wins, so a folder stands before what is in it.
    set -- "$HOME=/home" "$home=/cargo" "$(rustc --print sysroot)=/rust" "$PWD=/source" \
        "$1=/build" "$PWD/vendor=/crates"
    for crates in "$home"/registry/src/*; do
        set -- "$@" "$crates=/crates"
    done
    separator=$(printf '\037')
    CARGO_ENCODED_RUSTFLAGS=-Clink-arg=-Wl,--build-id=none
    if packs_relocations; then
        CARGO_ENCODED_RUSTFLAGS=$CARGO_ENCODED_RUSTFLAGS$separator-Clink-arg=-Wl,-z,pack-relative-relocs
    fi
    for mapping; do
        CARGO_ENCODED_RUSTFLAGS="$CARGO_ENCODED_RUSTFLAGS$separator--remap-path-prefix=$mapping"
        CFLAGS="${CFLAGS:-} '-ffile-prefix-map=$mapping'"
    done
    # Folders may have blanks in their names.
    CC_SHELL_ESCAPED_FLAGS=1
    export CARGO_ENCODED_RUSTFLAGS CFLAGS CC_SHELL_ESCAPED_FLAGS
}

# Sees to it that Rust's standard library for the target is here.
add_target() {
    if [ -d "$(rustc --print target-libdir --target "$1" 2>/dev/null)" ]; then
        return
    fi
    if ! command -v rustup >/dev/null; then
        echo "static: no standard library for $1, and no rustup to add it" >&2
        return 69
    fi
    rustup target add "$1" || return 69
}

# Names the compiler for the target, where the environment does not.
choose_compiler() {
    compiler=$(compiler_for "$1")
    lower=$(echo "$1" | tr - _)
    upper=$(echo "$lower" | tr '[:lower:]' '[:upper:]')
    eval "compiler=\${CC_$lower:-$compiler}"
    if ! command -v "$compiler" >/dev/null; then
        echo "static: no $compiler here, the C compiler for $1" >&2
        return 69
    fi
    eval "CC_$lower=$compiler
        CARGO_TARGET_${upper}_LINKER=\${CARGO_TARGET_${upper}_LINKER:-$compiler}
        export CC_$lower CARGO_TARGET_${upper}_LINKER"
}

target=$1
build=$(build_folder)
choose_compiler "$target"
add_target "$target"
# The crates have to be here before the names of their folders can be mapped.
${CARGO:-cargo} fetch --quiet --locked
set_flags "$build"
SOURCE_DATE_EPOCH=$(source_date)
export SOURCE_DATE_EPOCH
${CARGO:-cargo} build --release --locked --target "$target"
binary=$build/$target/release/sf-refresh
echo "$binary: $(stat -c %s "$binary") bytes"
