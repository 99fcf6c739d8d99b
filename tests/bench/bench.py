"""Measures sf-refresh beside what a user would pick instead, and prints a markdown table.

The contenders take turns, so that what else the machine does falls on all of them alike (hyperfine
would do all runs of one before the next). Times are of a whole process, from its start to its end;
a ratio is the median of the ratios of the rounds.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

TOKEN = {
    "access_token": "00Dxx0000001gPL!" + "AR8AQ" * 19,
    "refresh_token": "5Aep-RT-0-first",
    "signature": "8pRvVNzPnLbTJBiUPKzSSA1ZgYkrGcs",
    "scope": "refresh_token api",
    "instance_url": "https://mydomain.my.salesforce.com",
    "id": "https://login.salesforce.com/id/00Dxx0000001gPLEAY/005xx000001SwiUAAS",
    "token_type": "Bearer",
    "issued_at": "1700000000000",
}
COUNTS = [1, 10, 100, 300, 1000]


class Contender:
    """A way to renew a token file: its name, its version, and its command."""

    def __init__(self, name, version, command, size="", environment=None):
        self.name = name
        self.version = version
        self.command = command
        self.size = size
        self.environment = {"PATH": os.environ["PATH"], **(environment or {})}
        self.seconds = []
        self.memory = None
        self.instructions = None

    def run(self, prefix=()):
        """One run; it ends the benchmark where it fails. Gives the seconds and what it said."""
        began = time.perf_counter()
        done = subprocess.run(
            [*prefix, *self.command],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            sys.exit(f"{self.name} failed: {self.command}\n{done.stderr.decode()}")
        return seconds, done.stderr.decode()


def said(*command):
    """The first line that a command prints, on whichever stream; nothing if it cannot be run."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().split("\n")[0]


def file_system(folder):
    """The type of file system that a folder is on."""
    done = subprocess.run(["df", "--output=fstype", folder], capture_output=True, check=True)
    return done.stdout.decode().split()[-1]


def version_of(*command):
    """The first number with a dot in what a command says of itself."""
    found = re.search(r"\d+(\.\d+)+", said(*command))
    return found[0] if found else "?"


def token_file(path):
    """A new token file."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(TOKEN, file, indent=2)
    return path


def sf_refresh(binary, options, *files):
    """The command line of sf-refresh."""
    return [binary, "-q", "-i", "CONSUMER_KEY", "-e", options.url, "--ca-cert", options.ca, *files]


def contenders(options):
    """All contenders that can be had here, sf-refresh first."""
    here = os.path.dirname(os.path.abspath(__file__))

    def file(name):
        return token_file(os.path.join(options.work, f"{name}.json"))

    def megabytes(path):
        return f"{os.path.getsize(path) / 1e6:.2f} MB"

    version = version_of(options.static, "--version")
    form = ["grant_type=refresh_token", "client_id=CONSUMER_KEY", "refresh_token=5Aep-RT-0-first"]
    curl = version_of("curl", "--version")
    yield Contender(
        "sf-refresh, static",
        version,
        sf_refresh(options.static, options, file("static")),
        megabytes(options.static),
    )
    yield Contender(
        "sf-refresh, dynamic",
        version,
        sf_refresh(options.dynamic, options, file("dynamic")),
        megabytes(options.dynamic),
    )
    yield Contender(
        "the floor",
        "",
        [options.floor, options.ca, options.url.split("/")[2], file("floor")],
        megabytes(options.floor),
    )
    data = [word for field in form for word in ("-d", field)]
    yield Contender(
        "curl, one POST, nothing saved",
        curl,
        ["curl", "-sS", "--fail", "--cacert", options.ca, *data, options.url],
    )
    yield Contender(
        "script with curl and jq",
        f"{curl}, {version_of('jq', '--version')}",
        ["sh", f"{here}/curl-jq.sh", options.url, options.ca, file("curl-jq")],
    )
    ask = "import importlib.metadata as m; print(m.version('requests-oauthlib'))"
    library = version_of(options.python, "-c", ask)
    if library != "?":
        script = f"{here}/with_requests_oauthlib.py"
        yield Contender(
            "Python, requests-oauthlib",
            f"{version_of(options.python, '--version')}, {library}",
            [options.python, script, options.url, options.ca, file("python")],
        )
    package = f"{options.node_packages}/node_modules/jsforce/package.json"
    if os.path.exists(package):
        with open(package, "rb") as text:
            jsforce = json.load(text)["version"]
        script = shutil.copy(f"{here}/with_jsforce.mjs", options.node_packages)
        yield Contender(
            "Node, jsforce",
            f"{version_of('node', '--version')}, {jsforce}",
            [shutil.which("node"), script, options.url, file("node")],
            environment={"NODE_EXTRA_CA_CERTS": options.ca},
        )


def peak_memory(contender):
    """The largest resident set of its processes, in bytes: the median of three runs."""
    runs = [contender.run(["/usr/bin/time", "-f", "%M"])[1] for _ in range(3)]
    return statistics.median(int(text.split()[-1]) for text in runs) * 1024


def instructions(contender, options):
    """What callgrind counts: the median of three runs, for the numbers in a handshake vary."""
    counts = []
    out = os.path.join(options.work, "callgrind.out")
    for _ in range(3):
        said_by = contender.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"])[1]
        counts.append(int(re.search(r"Collected : (\d+)", said_by)[1]))
    return statistics.median(counts)


def ratio(one, other):
    """The median over the rounds of how much longer one took than the other."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds))


def take_turns(all_of_them, rounds):
    """Runs each once a round, beginning with another one each time, after a round to warm up."""
    for contender in all_of_them:
        contender.run()
    for number in range(rounds):
        at = number % len(all_of_them)
        for contender in all_of_them[at:] + all_of_them[:at]:
            contender.seconds.append(contender.run()[0])


def per_file(options):
    """The cost of a file for several numbers of files in one call: (count, seconds, ratio to 1)."""
    folder = os.path.join(options.work, "many")
    os.makedirs(folder)
    files = [token_file(f"{folder}/{number}.json") for number in range(max(COUNTS))]
    calls = [Contender(n, "", sf_refresh(options.static, options, *files[:n])) for n in COUNTS]
    take_turns(calls, max(5, options.rounds // 4))
    for call in calls:
        seconds = statistics.median(call.seconds) / call.name
        yield call.name, seconds, ratio(call, calls[0]) / call.name


def table(headings, rows):
    """Prints a markdown table; the first two columns are text."""
    print("| " + " | ".join(headings) + " |")
    print("|---|---" + "|--:" * (len(headings) - 2) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main():
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ["work", "url", "ca", "static", "dynamic", "floor"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--server", required=True, help="what answers, for the heading")
    parser.add_argument("--python", required=True, help="one with requests-oauthlib, if any")
    parser.add_argument("--node-packages", required=True, help="where jsforce is, if anywhere")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()

    measured = list(contenders(options))
    load = os.getloadavg()[0]
    if load > 1:
        print(f"The machine is busy (load {load:.1f}): wall times say little.\n", file=sys.stderr)
    take_turns(measured, options.rounds)
    for contender in measured:
        contender.memory = peak_memory(contender)
    ours, _, floor, curl, script = measured[:5]
    for contender in (*measured[:2], floor, curl):
        contender.instructions = instructions(contender, options)
    costs = list(per_file(options))

    print(
        f"{datetime.date.today()}, {os.uname().machine}, {os.cpu_count()} CPUs, "
        f"{options.rounds} rounds, {options.server} over TLS 1.3 on loopback, "
        f"{file_system(options.work)} with fsync, "
        f"load {load:.1f} before it began.\n"
    )
    rows = []
    for one in measured:
        counted = f"{one.instructions / 1e6:.2f} M" if one.instructions else ""
        rows.append(
            [
                one.name,
                one.version,
                f"{statistics.median(one.seconds) * 1000:.2f} ms",
                f"{ratio(one, ours):.2f}",
                f"{one.memory / 1e6:.1f} MB",
                f"{one.memory / ours.memory:.2f}",
                counted,
                one.size,
            ]
        )
    headings = ["one token file", "version", "wall", "ratio", "peak memory", "ratio"]
    table([*headings, "instructions", "binary"], rows)
    table(
        ["files in one call", "", *(str(count) for count in COUNTS)],
        [
            ["cost of a file", "", *(f"{seconds * 1000:.2f} ms" for _, seconds, _ in costs)],
            ["ratio", "", *(f"{to_one:.2f}" for _, _, to_one in costs)],
        ],
    )
    targets = [
        ("wall, to curl alone", ratio(ours, curl), 0.45),
        ("wall, to the script with curl and jq", ratio(ours, script), 0.09),
        ("wall, to the floor", ratio(ours, floor), 1.5),
        ("peak memory, to curl alone", ours.memory / curl.memory, 0.25),
        ("million instructions", ours.instructions / 1e6, 4.0),
        ("static binary, MB", os.path.getsize(options.static) / 1e6, 1.9),
        ("a file of 300, to a single run", costs[COUNTS.index(300)][2], 0.35),
    ]
    table(
        ["target of sf-refresh, static", "", "measured", "at most"],
        [
            [name, "reached" if value <= limit else "missed", f"{value:.2f}", f"{limit}"]
            for name, value, limit in targets
        ],
    )


if __name__ == "__main__":
    main()
