"""Runs one renewal for every system call that it makes: killed there, and failing there.

usage: torture.py [--quick] [SCENARIO...]

After each case: is the token file whole, is the live refresh token still ours, does the exit
status tell the truth, and does the next run go on? The closing line has the figures.
"""

import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

import common
from common import journal_of, parse, refresh, run

# What each call can meet. EINTR stands for a signal, which every blocking call can meet.
DISK = ["EIO", "ENOSPC", "EDQUOT"]
OPEN = ["EACCES", "EPERM", "EROFS", "EMFILE", "ENFILE", "ENOMEM", "EINTR", *DISK]
LOOK = ["EACCES", "EIO", "ENOMEM"]
NETWORK = ["ECONNRESET", "ETIMEDOUT", "EPIPE", "ENOBUFS", "EAGAIN", "EINTR"]
ERRORS = {
    "open": OPEN,
    "openat": OPEN,
    "read": ["EIO", "EINTR", "EISDIR"],
    "pread64": ["EIO", "EINTR"],
    "write": ["EPIPE", "EAGAIN", "EINTR", "EBADF", *DISK],
    "pwrite64": ["EINTR", "EFBIG", "EPERM", *DISK],
    "ftruncate": ["EINTR", "EPERM", "EFBIG", *DISK],
    "fsync": ["EINTR", "EROFS", *DISK],
    "close": ["EIO", "EINTR", "ENOSPC"],
    "rename": ["EACCES", "EPERM", "EBUSY", "EXDEV", "EROFS", "ENOENT", "ENOMEM", *DISK],
    "unlink": ["EACCES", "EPERM", "EBUSY", "EROFS", "EIO"],
    "fchmod": ["EPERM", "EROFS", "EIO"],
    "fchown": ["EPERM", "EROFS", "EIO", "EDQUOT"],
    "flock": ["ENOLCK", "EINTR", "EOPNOTSUPP", "EAGAIN", "EIO"],
    "stat": LOOK,
    "lstat": LOOK,
    "fstat": LOOK,
    "newfstatat": LOOK,
    "statx": LOOK,
    "readlink": LOOK,
    "utimensat": ["EPERM", "EROFS", "EIO"],
    "fcntl": ["EPERM"],
    "ioctl": ["EIO", "ENOMEM"],
    "socket": ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EACCES", "EAFNOSUPPORT"],
    "connect": ["ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL",
                "EACCES", "EPERM", "EINTR"],
    "poll": ["EINTR", "ENOMEM"],
    "setsockopt": ["ENOMEM", "EINVAL"],
    "getsockopt": ["ENOBUFS"],
    "sendto": NETWORK,
    "recvfrom": [*NETWORK, "ENOMEM"],
    "getrandom": ["EINTR", "ENOSYS", "EPERM"],
    "mmap": ["ENOMEM"],
    "mremap": ["ENOMEM"],
    "munmap": ["ENOMEM"],
    "mprotect": ["ENOMEM"],
    "brk": ["ENOMEM"],
    "clone": ["EAGAIN"],
    "clone3": ["EAGAIN", "ENOSYS"],
}
# These cannot fail as they are called, or end the process whatever they return.
CANNOT_FAIL = {
    "execve", "exit", "exit_group", "rt_sigaction", "rt_sigprocmask", "sigaltstack", "futex",
    "set_tid_address", "arch_prctl", "nanosleep", "clock_nanosleep", "sched_yield", "gettid",
}
# Failing from one call on, for good: a disk that died or filled up, a network that went away.
LASTING = {
    "pwrite64": ["EIO", "ENOSPC"],
    "ftruncate": ["EIO"],
    "fsync": ["EIO"],
    "rename": ["EACCES", "EIO"],
    "unlink": ["EACCES"],
    "open": ["EMFILE", "EIO"],
    "openat": ["EMFILE", "EIO"],
    "write": ["EPIPE", "ENOSPC"],
    "flock": ["EAGAIN"],
    "sendto": ["EPIPE"],
    "recvfrom": ["ECONNRESET", "EAGAIN"],
    "mmap": ["ENOMEM"],
}
# A disk that dies takes all of these along.
DEAD_DISK = ["pwrite64", "ftruncate", "fsync", "rename", "unlink"]
NOT_FILES = {
    "sendto", "recvfrom", "setsockopt", "getsockopt", "socket", "connect", "poll", "ioctl",
    "getrandom", "mmap", "mremap", "munmap", "mprotect", "brk",
}
MEMORY = {"mmap", "mremap", "munmap", "mprotect", "brk"}
# The most calls that may lie between the reply's arrival in memory and the journal's write.
WINDOW = 4
# Bytes that a reply of the endpoint has at least; its length differs from run to run by less.
REPLY = 300

CALL = re.compile(r"^(?:\d+\s+)?(\w+)\((.*)\)\s+= (\?|-?\d+|0x[0-9a-f]+)(.*)$")
Call = collections.namedtuple("Call", "name arguments value note")


class Case:
    """One renewal in a folder of its own: a token file with the grant that is live."""

    name = "https"
    tls = True
    arguments = ()
    injections = ()
    indent = 12
    # Only calls on files fail here: what the network and the memory do is the same elsewhere.
    only_files = False
    only_kills = False

    def __init__(self, endpoint, arguments=()):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sf-refresh-torture-"))
        self.place = self.folder / "place"
        self.place.mkdir()
        self.path = self.place / "token.json"
        self.endpoint = endpoint
        self.before_grant = endpoint.live()
        self.before = endpoint.state()
        self.names = {"token.json"}
        self.prepare()
        self.old = self.read()
        self.arguments = [*type(self).arguments, *self.more_arguments(), *arguments]

    def prepare(self):
        self.path.write_bytes(common.document(self.before_grant, self.indent))

    def more_arguments(self):
        return []

    def read(self):
        return self.path.read_bytes() if self.path.exists() else None

    def command(self):
        return refresh(self.endpoint.url, *self.arguments, self.path)

    def traced(self, *injections, stdout=subprocess.PIPE):
        """Runs it under strace; gives the result and the calls."""
        log = self.folder / "trace"
        strace = ["strace", "-f", "-q", "-s", "16", "-o", log]
        for injection in [*self.injections, *injections]:
            strace += ["-e", f"inject={injection}"]
        streams = {"capture_output": False, "stdout": stdout, "stderr": subprocess.PIPE}
        result = run([*strace, *self.command()], cwd=self.folder, **streams)
        return result, calls_of(log.read_text(errors="replace"))

    def again(self):
        """The next run, undisturbed."""
        return run(self.command(), cwd=self.folder)

    def whole(self):
        """Whether the token file is a token document from its first byte to its last."""
        data = self.read()
        return data is not None and parse(data) is not None

    def holders(self, result=None):
        """Where the live refresh token is, by what a user would look at."""
        live = self.endpoint.state()["refresh_token"]
        found = []
        places = {"file": self.read(), "stdout": result.stdout if result else None}
        journal = journal_of(self.path)
        if journal.exists():
            places["journal"] = journal.read_bytes()
        for rescued in self.folder.glob("sf-refresh-rescued-*"):
            places["rescue"] = rescued.read_bytes()
        for place, data in places.items():
            token = parse(data) if data else None
            if token and token["refresh_token"] == live:
                found.append(place)
        return found

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class Plain(Case):
    """To an endpoint on this machine: fewer calls, and none of TLS's."""

    name = "http"
    tls = False


class HardLink(Case):
    name = "hard link, saved in place"
    indent = 120

    def prepare(self):
        super().prepare()
        os.link(self.path, self.place / "other.json")
        self.names = {"token.json", "other.json"}


class HardLinkShort(HardLink):
    name = "hard link, the new document is longer"
    only_files = True
    indent = None


class HardLinkOther(HardLinkShort):
    """The next run takes the other name, and so finds no journal of this one."""

    name = "hard link, the next run by the other name"
    only_kills = True

    def again(self):
        command = [*self.command()[:-1], self.place / "other.json"]
        return run(command, cwd=self.folder)


class Busy(Case):
    name = "rename refused, saved in place"
    only_files = True
    injections = ("rename:error=EBUSY",)


class Interrupted(Case):
    name = "after an interrupted save"

    def prepare(self):
        super().prepare()
        journal_of(self.path).write_bytes(common.document(self.before_grant))
        self.path.write_bytes(common.document("5Aep-RT-used-before"))


class Seeded(Case):
    name = "a new file"
    only_files = True

    def prepare(self):
        pass

    def more_arguments(self):
        url = self.folder / "sfdx"
        url.write_text(f"force://{common.CLIENT_ID}::{self.before_grant}@login.salesforce.com\n")
        return ["--sfdx-url-file", url]

    def whole(self):
        # A file that was just made is empty, and the grant is in the sfdx URL.
        return not (self.read() or b"").strip() or super().whole()

    def holders(self, result=None):
        seed = self.endpoint.state()["refresh_token"] == self.before_grant
        return super().holders(result) + (["seed"] if seed else [])


SCENARIOS = [Case, Plain, HardLink, HardLinkShort, HardLinkOther, Busy, Interrupted, Seeded]
QUICK = [Plain, HardLink, Busy]


def calls_of(text):
    """The calls of a trace, in their order."""
    calls = []
    for line in text.splitlines():
        found = CALL.match(line)
        if found:
            calls.append(Call(*found.groups()))
    return calls


def numbered(calls):
    """Each call with its number among those of its name, from 1."""
    seen = collections.Counter()
    for index, call in enumerate(calls):
        seen[call.name] += 1
        yield index, call, seen[call.name]


def received(calls):
    """How many bytes came from the network."""
    return sum(max(int(c.value), 0) for c in calls if c.name == "recvfrom" and c.value != "?")


def start_of_main(calls):
    """Where the program itself begins: the runtime first looks at the three standard files."""
    for index, call in enumerate(calls):
        if call.name in ("poll", "ppoll"):
            return index
    raise SystemExit("no start of main in the trace")


class Figures:
    """What came out of all cases."""

    def __init__(self, tally):
        self.tally = tally
        self.lock = threading.Lock()
        self.killed = self.failed_calls = self.torn = self.lost = self.in_flight = 0
        self.not_reached = self.out_of_memory = self.lost_to_memory = 0
        self.window = {}
        self.statuses = collections.Counter()

    def check(self, name, wrong):
        with self.lock:
            self.tally.check(name, wrong)

    def add(self, **counts):
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


def killed_case(figures, scenario, endpoint, index, call, number, baseline):
    """One run that is killed when it makes this call."""
    case = scenario(endpoint)
    try:
        name = f"{case.name}: killed at call {index}, {call.name} {number}"
        result, calls = case.traced(f"{call.name}:signal=KILL:when={number}")
        figures.check(name, judge_killed(figures, case, result, calls, index, call, baseline))
    finally:
        case.close()


def judge_killed(figures, case, result, calls, index, call, baseline):
    wrong = []
    if result.returncode == 0:
        # The numbers of a call differ a little from run to run.
        figures.add(not_reached=1)
    elif result.returncode != -9:
        wrong.append(f"not killed: status {result.returncode}")
    figures.add(killed=1)
    if not case.whole():
        figures.add(torn=1)
        wrong.append(f"torn: {case.read()!r}")
    if case.holders():
        return wrong + judge_next(case)
    if received(calls) < received(baseline) - REPLY // 4:
        figures.add(in_flight=1)
    else:
        figures.add(lost=1)
        with figures.lock:
            figures.window.setdefault(case.name, {})[index] = call.name
        if is_written(calls):
            wrong.append("lost after the document was written")
    return wrong + judge_lost(case)


def after_reply(calls):
    """The calls after the last bytes came from the network."""
    arrived = [i for i, c in enumerate(calls) if c.name == "recvfrom" and c.value[0] in "123456789"]
    return calls[max(arrived, default=0) + 1:]


def is_written(calls):
    """Whether the document was written anywhere: then the window was over."""
    return any(call.name == "pwrite64" and call.value != "?" for call in after_reply(calls))


def judge_next(case):
    """The run after one that went wrong goes on with the live grant."""
    wrong = []
    next_run = case.again()
    state = case.endpoint.state()
    if next_run.returncode != 0:
        wrong.append(f"next run: status {next_run.returncode}: {next_run.stderr!r}")
    if state["replays"] != case.before["replays"] or state["revoked"]:
        wrong.append("next run: sent a used refresh token")
    token = parse(case.read() or b"")
    if not token or token["refresh_token"] != state["refresh_token"]:
        wrong.append("next run: the file has not the live refresh token")
    return wrong + judge_folder(case, case.names)


def judge_folder(case, names):
    left = {entry.name for entry in case.place.iterdir()}
    wrong = [] if left == names else [f"left beside the file: {sorted(left ^ names)}"]
    rescued = [entry.name for entry in case.folder.glob("sf-refresh-rescued-*")]
    return wrong + [f"a copy that nobody needs: {name}" for name in rescued]


def judge_lost(case):
    """After a loss the next run says what to do, and leaves the file alone."""
    before = case.read()
    next_run = case.again()
    wrong = []
    if next_run.returncode != 3:
        wrong.append(f"after a loss: status {next_run.returncode}: {next_run.stderr!r}")
    data = case.read()
    if parse(data or b"") != parse(before or b""):
        wrong.append("after a loss: the file was changed")
    return wrong


def failing_case(figures, scenario, endpoint, name, injections, full, baseline):
    """One run in which calls fail as the injections say, with stdout on a full disk or not."""
    quick = ["--timeout", "1"] if any("EAGAIN" in i for i in injections) else []
    case = scenario(endpoint, quick)
    try:
        with open("/dev/full", "wb") as disk:
            result, calls = case.traced(*injections, stdout=disk if full else subprocess.PIPE)
        result.stdout = result.stdout or b""
        memory = any(i.split(":")[0] in MEMORY for i in injections)
        figures.add(failed_calls=1)
        wrong = judge_failed(figures, case, result, calls, baseline, memory)
        if wrong:
            wrong.append(f"status {result.returncode}, stderr {result.stderr!r}")
        figures.check(f"{case.name}: {name}", wrong)
    finally:
        case.close()


def judge_failed(figures, case, result, calls, baseline, memory):
    state = case.endpoint.state()
    status = result.returncode
    died = status in (-6, -11, -4, -5)
    with figures.lock:
        figures.statuses["out of memory" if died and memory else status] += 1
    wrong = []
    if not case.whole():
        figures.add(torn=1)
        wrong.append(f"torn: {case.read()!r}")
    if died and memory:
        figures.add(out_of_memory=1)
    elif status not in range(7):
        wrong.append(f"a status that is not documented: {status}")
    wrong += judge_status(case, result, state)
    holders = case.holders(result)
    if not holders:
        arrived = received(calls) >= received(baseline) - REPLY // 4
        if arrived and died and memory and not is_written(calls):
            figures.add(lost=1, lost_to_memory=1)
        elif arrived:
            figures.add(lost=1)
            wrong.append("lost although the reply had arrived")
        else:
            figures.add(in_flight=1)
            if b"may have used the refresh token" not in result.stderr and not died:
                wrong.append("lost on the way, and not said so")
        return wrong + judge_lost(case)
    rescued = rescued_by(case) if status == 6 else None
    if not {"file", "journal", "seed"} & set(holders):
        case.path.write_bytes(rescued or result.stdout)
    return wrong + judge_next(case)


def rescued_by(case):
    """The document in the rescue file, which is then put away as a user would; None without."""
    for rescued in case.folder.glob("sf-refresh-rescued-*"):
        data = rescued.read_bytes()
        rescued.unlink()
        return data
    return None


def judge_status(case, result, state):
    """Whether the exit status and stderr tell the truth."""
    wrong = []
    posts = state["posts"] - case.before["posts"]
    status, stderr = result.returncode, result.stderr
    unchanged = case.read() == case.old or isinstance(case, (Interrupted, Seeded))
    if status in (1, 2) and posts:
        wrong.append(f"status {status} after {posts} requests")
    if b"nothing was sent" in stderr and posts:
        wrong.append("says that nothing was sent")
    if status in (1, 2, 3, 4, 5) and not unchanged:
        wrong.append("the file was changed")
    if status == 0:
        token = parse(case.read() or b"")
        if not token or token["refresh_token"] != state["refresh_token"]:
            wrong.append("status 0, and the file has not the live refresh token")
    if status == 6:
        holders = case.holders(result)
        journal = str(journal_of(case.path)).encode()
        if b"it is in " + journal in stderr and "journal" not in holders:
            wrong.append("says that the journal has the document")
        if b"the token file is saved" in stderr and "file" not in holders:
            wrong.append("says that the file is saved")
        if b"on stdout" in stderr and "stdout" not in holders:
            wrong.append("says that stdout has the document")
        if b"rescued" in stderr and "rescue" not in holders:
            wrong.append("says that the document is elsewhere")
    return wrong


def check_order(figures, scenario, endpoint):
    """The order of a save, from a trace of a run that nothing disturbs."""
    case = scenario(endpoint)
    try:
        result, calls = case.traced()
        wrong = [] if result.returncode == 0 else [f"status {result.returncode}: {result.stderr!r}"]
        figures.check(f"{case.name}: order of the save", wrong + order(case, calls))
        return calls
    finally:
        case.close()


def order(case, calls):
    """What is out of order in these calls: each step of the save has to come after the last."""
    wrong = []
    sent = next(i for i, c in enumerate(calls) if c.name == "connect")
    reply = len(calls) - len(after_reply(calls))
    opened = open_files(calls)
    kinds = []
    for index, call in enumerate(calls):
        kind = step(case, call, opened.get((index, descriptor(call))))
        # A write may be made in two parts: room first, then the text.
        parts = kinds and kinds[-1][1] == kind == "write file" and kinds[-1][0] >= reply
        if kind and not parts:
            kinds.append((index, kind))
    after = [kind for index, kind in kinds if index >= reply]
    before = [kind for index, kind in kinds if index < sent]
    expected = expected_order(case)
    if after not in expected:
        wrong.append(f"after the reply: {after}, expected {expected}")
    prepared = "write file" if isinstance(case, HardLink) else "write journal"
    if prepared not in before:
        wrong.append(f"no room reserved before the connection: {before}")
    return wrong


def expected_order(case):
    """The reply as it came and the whole document, both into the journal first, then the save."""
    through_journal = ["write journal", "write journal", "cut journal", "sync journal"]
    in_place = ["write file", "sync file", "cut file", "sync file", "remove journal"]
    if isinstance(case, HardLink):
        # Without a journal where a file has several names, or with one that is removed last.
        return [*through_journal, *in_place, "stdout"], [*in_place[:-1], "stdout"]
    if isinstance(case, Busy):
        return [[*through_journal, "rename", *in_place, "sync folder", "stdout"]]
    return [[*through_journal, "rename", "sync folder", "stdout"]]


def descriptor(call):
    return call.arguments.split(",")[0]


def open_files(calls):
    """Which path each descriptor stands for at each call."""
    paths, at = {}, {}
    for index, call in enumerate(calls):
        at.update({(index, number): path for number, path in paths.items()})
        if call.name in ("open", "openat") and not call.value.startswith("-"):
            paths[call.value] = re.search(r'"([^"]*)"', call.arguments).group(1)
    return at


def step(case, call, path):
    """What a call does to the token file, its journal, its folder or stdout; None if nothing."""
    if call.name == "rename":
        return "rename"
    if call.name == "unlink":
        return "remove journal"
    if call.name == "write" and descriptor(call) == "1":
        return "stdout"
    verb = {"pwrite64": "write", "ftruncate": "cut", "fsync": "sync", "fdatasync": "sync"}
    if call.name not in verb or path is None:
        return None
    noun = {str(case.path): "file", str(journal_of(case.path)): "journal"}
    noun[str(case.place)] = "folder"
    return f"{verb[call.name]} {noun.get(path, path)}"


def kills(calls):
    """The calls to be killed at: all but the one that starts the program."""
    return [found for found in numbered(calls) if found[1].name != "execve"]


def failures(scenario, calls, quick):
    """The failing cases of these calls: a name and the injections, each."""
    first = start_of_main(calls)
    for index, call, number in numbered(calls):
        if index < first or call.name in CANNOT_FAIL:
            continue
        if scenario.only_kills:
            break
        elsewhere = scenario.only_files and call.name in NOT_FILES
        if elsewhere or (quick and call.name not in DEAD_DISK):
            continue
        for error in ERRORS.get(call.name, ["EPERM"]):
            name = f"call {index}, {call.name} {number} fails with {error}"
            yield name, [f"{call.name}:error={error}:when={number}"], False
            if call.name in DEAD_DISK and error == "EIO":
                yield f"{name}, and stdout is full", [f"{call.name}:error=EIO:when={number}"], True
        for error in LASTING.get(call.name, []):
            name = f"from call {index} on, {call.name} {number}, {error}"
            yield name, [f"{call.name}:error={error}:when={number}+"], False
    yield from [] if scenario.only_kills else dead_disks(calls)


def dead_disks(calls):
    """A disk that dies at one of its calls, for good: stdout is what is left."""
    seen = collections.Counter()
    for index, call in enumerate(calls):
        if call.name in DEAD_DISK:
            rest = [f"{name}:error=EIO:when={seen[name] + 1}+" for name in DEAD_DISK]
            yield f"the disk dies at call {index}, {call.name}", rest, False
        seen[call.name] += 1


class Worker(threading.local):
    """The endpoints of one thread."""

    def __init__(self):
        self.endpoints = {}

    def endpoint(self, tls):
        if tls not in self.endpoints:
            self.endpoints[tls] = common.Endpoint(*(["--tls", "server"] if tls else []))
            STARTED.append(self.endpoints[tls])
        return self.endpoints[tls]


STARTED = []


def all_cases(figures, scenarios, quick):
    """Runs everything on two threads."""
    worker = Worker()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = []
        for scenario in scenarios:
            calls = check_order(figures, scenario, worker.endpoint(scenario.tls))

            def start(task, *rest, scenario=scenario, calls=calls):
                endpoint = worker.endpoint(scenario.tls)
                task(figures, scenario, endpoint, *rest, calls)

            for index, call, number in kills(calls):
                waiting.append(pool.submit(start, killed_case, index, call, number))
            for name, injections, full in failures(scenario, calls, quick):
                waiting.append(pool.submit(start, failing_case, name, injections, full))
        for case in waiting:
            case.result()


def report(figures):
    """The figures, and whether the one window is as narrow as it has to be."""
    for name, calls in figures.window.items():
        names = [calls[index] for index in sorted(calls)]
        print(f"window of '{name}': {len(names)} calls: {', '.join(names)}")
        # Without a journal the reply has to be read and merged before it can be saved.
        if "hard link" in name:
            continue
        wide = [f"{len(names)} calls between the reply and its save, at most {WINDOW} are allowed"]
        figures.check(f"{name}: the window is narrow", wide if len(names) > WINDOW else [])
    if figures.not_reached * 50 > figures.killed:
        figures.check("kills reach their calls", [f"{figures.not_reached} did not"])
    statuses = sorted(figures.statuses.items(), key=lambda item: str(item[0]))
    shown = ", ".join(f"{status}: {count}" for status, count in statuses)
    print(f"exit statuses of the failing calls: {shown}")
    if figures.out_of_memory:
        print(f"out of memory: {figures.out_of_memory} runs were ended by the allocator, "
              f"{figures.lost_to_memory} of them in the window")
    print(f"lost on the way, where no client can help: {figures.in_flight}"
          " (sent, and the reply not yet here)")
    widest = max(figures.window.values(), key=len, default={})
    names = ", ".join(widest[index] for index in sorted(widest))
    print(f"calls killed {figures.killed}, calls failed {figures.failed_calls}, "
          f"torn {figures.torn}, lost {figures.lost} (named window: {names or 'none'})")


def main(arguments):
    quick = "--quick" in arguments
    wanted = [word for word in arguments if not word.startswith("-")]
    known = QUICK if quick else SCENARIOS
    scenarios = [s for s in known if not wanted or any(word in s.name for word in wanted)]
    version = subprocess.run(["strace", "--version"], capture_output=True, text=True).stdout
    print(f"{common.PROGRAM}, {version.splitlines()[0]}")
    tally = common.Tally()
    figures = Figures(tally)
    try:
        all_cases(figures, scenarios, quick)
    finally:
        for endpoint in STARTED:
            endpoint.close()
    report(figures)
    return tally.finish("system calls")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
