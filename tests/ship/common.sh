# For the scripts behind `make static`, `dist`, `vendor` and `man`; they run in the top folder.
# shellcheck shell=sh

# The folder of everything that is built, as an absolute path.
build_folder() {
    folder=${CARGO_TARGET_DIR:-target}
    mkdir -p "$folder"
    (cd "$folder" && pwd)
}

# The version in Cargo.toml.
version() {
    sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1
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

# archive FILE FOLDER NAME: packs FOLDER/NAME so that the same content gives the same bytes.
archive() {
    tar --create --directory "$2" --sort=name --format=gnu --mtime="@$(source_date)" \
        --owner=0 --group=0 --numeric-owner --mode='u=rwX,go=rX' "$3" | gzip -n -9 >"$1.part"
    mv "$1.part" "$1"
}

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
