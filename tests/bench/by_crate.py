"""Sums the sizes of symbols by crate: reads what `nm -S -C` prints, prints the largest sums."""

import collections
import re
import sys

# What std links for backtraces, whether they are printed or not.
BACKTRACE = {"gimli", "addr2line", "miniz_oxide", "rustc_demangle", "libunwind", "adler2"}


def crate_of(symbol):
    """The crate that a symbol is of; for a trait's method, that of the type."""
    if "backtrace" in symbol:
        return "std, backtraces"
    path = re.match(r"<*[&\[(]*(?:mut |dyn )*([a-z_0-9]+)::", symbol)
    path = path or re.match(r"<.* as ([a-z_0-9]+)::", symbol)
    if path:
        return "std, backtraces" if path[1] in BACKTRACE else path[1]
    return "ring, assembly" if re.search("ring_core|ecp_|p256|sha|aes|gf", symbol) else "C and musl"


def main():
    """Reads symbols, prints sums."""
    sums = collections.Counter()
    for line in sys.stdin:
        words = line.split(None, 3)
        if len(words) == 4 and words[2] not in "bB":
            sums[crate_of(words[3].strip())] += int(words[1], 16)
    for crate, size in sums.most_common(16):
        print(size, crate)


if __name__ == "__main__":
    main()
