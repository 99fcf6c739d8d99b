"""Whether an SBOM and the licences of an archive fit what is in the binary.

inventory.py SBOM ARCHIVE TARGET: prints what is wrong. Runs in the top folder. The truth is what
cargo links for the target, with the versions and checksums of Cargo.lock.
"""

import json
import subprocess
import sys
import tarfile
import tomllib


def linked(target):
    """The crates in the binary for this target but our own: (name, version)."""
    command = ["cargo", "tree", "--locked", "-e", "normal", "--target", target]
    command += ["--prefix", "none", "--format", "{p}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    crates = {(line.split()[0], line.split()[1].removeprefix("v")) for line in lines}
    return {crate for crate in crates if crate[0] != "sf-refresh"}


def locked():
    """The checksums in Cargo.lock by (name, version)."""
    with open("Cargo.lock", "rb") as file:
        packages = tomllib.load(file)["package"]
    return {(one["name"], one["version"]): one.get("checksum") for one in packages}


def listed(sbom):
    """The checksums in the SBOM by (name, version)."""
    with open(sbom, encoding="utf-8") as file:
        components = json.load(file)["components"]
    return {(one["name"], one["version"]): one["hashes"][0]["content"] for one in components}


def licensed(archive):
    """The crates that have a licence text in the archive, as NAME-VERSION."""
    with tarfile.open(archive) as tar:
        paths = [entry.name.split("/") for entry in tar if entry.isfile() and entry.size]
    return {path[2] for path in paths if len(path) == 4 and path[1] == "licences"}


def main():
    """Compares, and prints the differences."""
    sbom, archive, target = sys.argv[1:]
    crates, checksums, components = linked(target), locked(), listed(sbom)
    for crate in sorted(crates ^ components.keys()):
        print(f"the SBOM {'lacks' if crate in crates else 'has too much'}: {crate}")
    for crate, checksum in sorted(components.items()):
        if checksums.get(crate) != checksum:
            print(f"Cargo.lock has no such checksum: {crate}")
    names = {f"{name}-{version}" for name, version in crates}
    for name in sorted(names ^ (licensed(archive) - {"rust"})):
        print(f"the archive {'lacks' if name in names else 'has too many'} licences: {name}")


if __name__ == "__main__":
    main()
