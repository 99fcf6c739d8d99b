"""Runs one renewal for every system call that it makes: killed there, and failing there.

usage: torture.py [--quick] [SCENARIO...]

After each case: is the token file whole, is the live refresh token still ours, does the exit
status tell the truth, and does the next run go on? The endpoint thinks for a moment before it
answers. The window that no client can close is printed as what it is: from the request's last
byte until the reply is kept, by SIGKILL alone. The closing line has the figures.
"""

import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback

import common
from common import contents, journal_of, parse, refresh, rescued_files, run

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
    "lseek": ["EIO"],
    "write": ["EPIPE", "EAGAIN", "EINTR", "EBADF", *DISK],
    "pwrite64": ["EINTR", "EFBIG", "EPERM", *DISK],
    "ftruncate": ["EINTR", "EPERM", "EFBIG", *DISK],
    "fsync": ["EINTR", "EROFS", *DISK],
    "close": ["EIO", "EINTR", "ENOSPC"],
    "rename": ["EACCES", "EPERM", "EBUSY", "EXDEV", "EROFS", "ENOENT", "ENOMEM", *DISK],
    "renameat2": ["EINVAL", "ENOSYS", "EPERM", "EBUSY", "EXDEV", "EACCES", "EROFS", *DISK],
    "link": ["EPERM", "EEXIST", "EMLINK", "EACCES", *DISK],
    "linkat": ["EPERM", "EEXIST", "EMLINK", "EACCES", *DISK],
    "listxattr": ["EOPNOTSUPP", "ENOSYS", "ERANGE", "EPERM", "EIO", "ENOMEM"],
    "flistxattr": ["EOPNOTSUPP", "ENOSYS", "ERANGE", "EPERM", "EIO", "ENOMEM"],
    "rt_sigaction": ["EINVAL"],
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
    "fallocate": ["EOPNOTSUPP", "EINTR", *DISK],
    "fdatasync": ["EINTR", "EROFS", *DISK],
    "getcwd": ["ENOENT"],
    "access": ["EACCES"],
}
# These cannot fail as they are called, or end the process whatever they return.
CANNOT_FAIL = {
    "execve", "exit", "exit_group", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "futex",
    "set_tid_address", "arch_prctl", "nanosleep", "clock_nanosleep", "sched_yield", "gettid",
    "getpid", "kill", "tkill", "tgkill", "madvise", "restart_syscall", "gettimeofday", "prlimit64",
    "set_robust_list", "rseq", "sched_getaffinity",
}
# The signals whose handlers are this program's own; the runtime sets the others as it starts.
OWN_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
# Failing from one call on, for good: a disk that died or filled up, a network that went away.
LASTING = {
    "pwrite64": ["EIO", "ENOSPC"],
    "ftruncate": ["EIO"],
    "fsync": ["EIO"],
    "rename": ["EACCES", "EIO"],
    "renameat2": ["EACCES", "EIO"],
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
DEAD_DISK = ["pwrite64", "ftruncate", "fsync", "rename", "renameat2", "link", "unlink"]
MEMORY = {"mmap", "mremap", "munmap", "mprotect", "brk"}
ANSWER = {"sendto", "recvfrom"}
NETWORK_CALLS = {*ANSWER, "setsockopt", "getsockopt", "socket", "connect", "poll", "ioctl"}
NOT_FILES = {*NETWORK_CALLS, *MEMORY, "getrandom", "rt_sigaction"}
# Of these one is like the next: where several stand in a row, the first speaks for all.
ALIKE = {*MEMORY, "read", "readlink", "getrandom", "fcntl"}
# The most calls that may lie between the reply's arrival in memory and its first write to a
# journal, that write included: the part of the window that is this program's.
KEPT_WITHIN = 4
# How long the endpoint thinks, in milliseconds.
THINKS = 30
# Bytes that a reply of the endpoint has at least; its length differs from run to run by less.
REPLY = 300

# What may follow a document, and is no change of it.
BLANKS = b" \t\r\n\0"

# Room that is made in a file is blanks, as a trace shows them.
ROOM = f'"{" " * 16}"'

CALL = re.compile(r"^(\d+)\s+(\w+)\((.*)\)\s+= (\?|-?\d+|0x[0-9a-f]+)(.*)$")
NO_CALL = re.compile(r"^\d+\s+(\+\+\+|---) .* \1$")
Call = collections.namedtuple("Call", "name arguments value line")


class Case:
    """One renewal in a folder of its own: a token file with the grant that is live."""

    name = "https"
    tls = True
    file_name = "token.json"
    retry = 0
    injections = ()
    indent = 12
    # Up to the token file all scenarios do the same: one of them is disturbed there.
    from_start = False
    killed = failed = True
    # Which calls fail: what the network and the memory do is the same in all ways to save.
    failing = staticmethod(lambda call: call.name not in NOT_FILES)
    # Which write keeps the reply, so that the next run finds it.
    keeps = ("write journal", "write file")

    def __init__(self, endpoint, arguments=()):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sf-refresh-torture-"))
        self.place = self.folder / "place"
        self.place.mkdir()
        (self.folder / "tmp").mkdir()
        self.path = self.place / self.file_name
        self.endpoint = endpoint
        self.before_grant = endpoint.live()
        self.before = endpoint.state()
        self.names = {self.file_name}
        self.prepare()
        self.old = self.read()
        self.had_journal = contents(journal_of(self.path)) is not None
        self.arguments = [*self.more_arguments(), *arguments]

    def prepare(self):
        self.path.write_bytes(common.document(self.before_grant, self.indent))

    def more_arguments(self):
        return []

    def read(self):
        return contents(self.path)

    def command(self):
        return refresh(self.endpoint.url, *self.arguments, self.path, retry=self.retry)

    def options(self):
        """Where a run of this case lives: what it rescues stays in this folder."""
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(self.folder / "tmp")}
        return {"cwd": self.folder, "env": environment}

    def traced(self, *injections, stdout=subprocess.PIPE):
        """Runs it under strace; gives the result and the trace."""
        log = self.folder / "trace"
        strace = ["strace", "-f", "-q", "-s", "16", "-o", log]
        for injection in [*self.injections, *injections]:
            strace += ["-e", f"inject={injection}"]
        result = run([*strace, *self.command()], stdout=stdout, **self.options())
        return result, Trace(self, log.read_text(errors="replace"))

    def again(self):
        """The next run, undisturbed."""
        return run(self.command(), **self.options())

    def whole(self):
        """Whether the token file is a token document from its first byte to its last."""
        return parse(self.read()) is not None

    def unchanged(self):
        """Whether the token file has what it had before the run."""
        return self.read() == self.old

    def left_journal(self):
        """Whether there is a journal that was not there before."""
        return contents(journal_of(self.path)) is not None and not self.had_journal

    def rescued(self):
        """The files with a document that could not be saved."""
        return rescued_files(self.place, self.folder, self.folder / "tmp")

    def holders(self, result=None):
        """Where the live refresh token is, by what a user would look at."""
        live = self.endpoint.state()["refresh_token"]
        tokens = [("file", parse(self.read())), ("journal", kept_by(journal_of(self.path)))]
        tokens += [("stdout", parse(result.stdout))] if result else []
        tokens += [("rescue", parse(contents(path))) for path in self.rescued()]
        return [place for place, token in tokens if token and token["refresh_token"] == live]

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class Https(Case):
    from_start = True
    failing = staticmethod(lambda call: True)


class Plain(Case):
    """To an endpoint on this machine: fewer calls, and none of TLS's."""

    name = "http"
    tls = False
    failing = staticmethod(lambda call: True)


class AskedAgain(Plain):
    """An answer that was lost is asked for once more: this endpoint then revokes the grant."""

    name = "http, asked again"
    retry = 1
    killed = False
    failing = staticmethod(lambda call: call.name in ANSWER)

    def traced(self, *injections, **options):
        # The endpoint has to have used the token, or the second request overtakes the first.
        later = [i + ":delay_enter=50000" if ":error=" in i else i for i in injections]
        return super().traced(*later, **options)


class HardLink(Case):
    name = "hard link"
    indent = 120

    def prepare(self):
        super().prepare()
        os.link(self.path, self.place / "other.json")
        self.names = {"token.json", "other.json"}


class HardLinkShort(HardLink):
    name = "hard link, the new document is longer"
    indent = None


class HardLinkOther(HardLinkShort):
    """The next run takes the other name, by which no journal of this one is found."""

    name = "hard link, the next run by the other name"
    failed = False
    keeps = ("write file",)

    def rescued(self):
        """What a journal held that the first name found after a run by the other is kept."""
        return []

    def holders(self, result=None):
        return [place for place in super().holders(result) if place != "journal"]

    def again(self):
        """By the other name, and once more by the first: its journal is no newer than the file."""
        other = run([*self.command()[:-1], self.place / "other.json"], **self.options())
        return other if other.returncode else super().again()


class Busy(Case):
    name = "rename refused"
    injections = ("rename:error=EBUSY", "renameat2:error=EBUSY")


class NoExchange(Case):
    name = "a file system that cannot exchange names"
    injections = ("renameat2:error=EINVAL",)


class Alone(Case):
    """A name so long that no journal fits beside it."""

    name = "no journal, saved in place"
    file_name = "n" * 250 + ".json"

    def unchanged(self):
        """The room that was made for a save stays: blanks behind the document."""
        now = self.read()
        return now.rstrip(BLANKS) == self.old.rstrip(BLANKS) and len(now) >= len(self.old)


class Interrupted(Case):
    """A journal that is newer than the file: what it holds is the grant."""

    name = "after an interrupted save"

    def prepare(self):
        self.path.write_bytes(common.document("5Aep-RT-used-before"))
        journal_of(self.path).write_bytes(common.document(self.before_grant))
        os.utime(self.path, (1e9, 1e9))

    def unchanged(self):
        """The interrupted save is finished first, whatever then comes of the run."""
        token = parse(self.read()) or {}
        return token.get("refresh_token") in ("5Aep-RT-used-before", self.before_grant)


class Overtaken(Case):
    """A journal that is older than the file: somebody logged in anew since."""

    name = "after a login over an interrupted save"

    def prepare(self):
        journal_of(self.path).write_bytes(common.document("5Aep-RT-used-before"))
        os.utime(journal_of(self.path), (1e9, 1e9))
        super().prepare()

    def rescued(self):
        """What the old journal held is kept for its owner: it is no document of this run."""
        kept = {path: parse(contents(path)) for path in super().rescued()}
        used = "5Aep-RT-used-before"
        return [path for path, token in kept.items() if not token or token["refresh_token"] != used]


class Seeded(Case):
    name = "a new file"

    def prepare(self):
        pass

    def more_arguments(self):
        url = self.folder / "sfdx"
        url.write_text(f"force://{common.CLIENT_ID}::{self.before_grant}@login.salesforce.com\n")
        return ["--sfdx-url-file", url]

    def whole(self):
        # A file that was just made is empty, and the grant is in the sfdx URL.
        return not (self.read() or b"").strip() or super().whole()

    def unchanged(self):
        return not (self.read() or b"").strip()

    def holders(self, result=None):
        """Where the live refresh token is: the sfdx URL has the first."""
        seed = self.endpoint.state()["refresh_token"] == self.before_grant
        return super().holders(result) + (["seed"] if seed else [])


SCENARIOS = [
    Https, Plain, AskedAgain, HardLink, HardLinkShort, HardLinkOther, Busy, NoExchange, Alone,
    Interrupted, Overtaken, Seeded,
]
QUICK = [Plain, HardLink, Busy, Alone]


class Trace:
    """What a run did: its calls in their order, and what each did to its files."""

    def __init__(self, case, text):
        self.calls = []
        # What nobody expected: the kind, and the line.
        self.odd = {}
        lines = text.splitlines()
        for line in lines:
            found = CALL.match(line)
            if found:
                _, name, arguments, value, _ = found.groups()
                self.calls.append(Call(name, arguments, value, line))
                if name not in ERRORS and name not in CANNOT_FAIL:
                    self.odd[f"the call {name}, which has no errors here"] = line
            elif not NO_CALL.match(line):
                self.odd["a line that is not understood"] = line
        others = [line for line in lines if line.split()[0] != lines[0].split()[0]]
        if others:
            self.odd = {"a thread": others[0]}
        self.steps = list(steps(case, self.calls))

    def end(self):
        """Its last lines, for a message."""
        return [call.line for call in self.calls[-3:]]

    def numbered(self):
        """Each call with its index, and its number among those of its name, from 1."""
        seen = collections.Counter()
        for index, call in enumerate(self.calls):
            seen[call.name] += 1
            yield index, call, seen[call.name]

    def first(self, wanted, otherwise=None):
        """The index of the first call that is wanted."""
        return next((i for i, call in enumerate(self.calls) if wanted(call)), otherwise)

    def replies(self):
        """The indexes of the calls that brought bytes from the network."""
        return [i for i, c in enumerate(self.calls) if c.name == "recvfrom" and succeeded(c, 1)]

    def sends(self):
        """The indexes of the calls that sent bytes."""
        return [i for i, c in enumerate(self.calls) if c.name == "sendto" and succeeded(c, 1)]

    def received(self):
        """How many bytes came from the network."""
        return sum(int(self.calls[i].value) for i in self.replies())

    def sites(self):
        """The calls, numbered, without those that are like the one before."""
        before = set()
        for index, call, number in self.numbered():
            if call.name not in ALIKE:
                before.clear()
            elif call.name in before:
                continue
            before.add(call.name)
            yield index, call, number


class Baseline:
    """A run that nothing disturbs, and where its window lies."""

    def __init__(self, case, trace):
        self.trace = trace
        reply = max(trace.replies(), default=0)
        requests = [i for i in trace.sends() if i < reply]
        self.requests = len(requests)
        self.sent = max(requests, default=0)
        self.reply = reply
        self.kept = next((i for i, s in trace.steps if i > reply and s in case.keeps), reply)
        self.bytes = trace.received()

    def window(self):
        """The calls at which a kill loses the grant."""
        return self.trace.calls[self.sent + 1:self.kept + 1]

    def in_window(self, case, trace):
        """Whether a run ended after its request's last byte, and before the reply was kept."""
        sends = trace.sends()
        if len(sends) < self.requests:
            return False
        sent = sends[self.requests - 1]
        return not any(i > sent and s in case.keeps for i, s in trace.steps)

    def arrived(self, trace):
        """Whether the reply came; its length differs a little from run to run."""
        return trace.received() >= self.bytes - REPLY // 4


def kept_by(journal):
    """The document at the start of a journal: what it replaces may stand behind."""
    try:
        document, _ = json.JSONDecoder().raw_decode((contents(journal) or b"").decode())
    except ValueError:
        return None
    return parse(json.dumps(document))


def succeeded(call, least=0):
    """Whether a call gave a number, and at least this one."""
    return call.value.isdigit() and int(call.value) >= least


def steps(case, calls):
    """What calls do to the token file, its journal, their folder, the network and stdout."""
    paths = {"1": "stdout"}
    nouns = {str(case.path): "file", str(journal_of(case.path)): "journal"}
    nouns[str(case.place)] = "folder"
    verbs = {"pwrite64": "write", "ftruncate": "cut", "fsync": "sync", "fdatasync": "sync"}
    for index, call in enumerate(calls):
        descriptor = call.arguments.split(",")[0]
        noun = nouns.get(paths.get(descriptor))
        if "F_DUPFD" in call.arguments and succeeded(call):
            paths[call.value] = paths.get(descriptor)
        elif call.name == "close":
            paths.pop(descriptor, None)
        elif call.name in ("open", "openat") and succeeded(call):
            path = re.search(r'"([^"]*)"', call.arguments)
            paths[call.value] = path and path.group(1)
            if "O_CREAT" in call.arguments and paths[call.value] in nouns:
                yield index, f"make {nouns[paths[call.value]]}"
        elif call.name in ("rename", "renameat2"):
            what = "exchange" if "EXCHANGE" in call.arguments else "rename"
            yield index, what if succeeded(call) else "rename refused"
        elif call.name == "unlink":
            yield index, "remove journal" if succeeded(call) else "journal stays"
        elif call.name == "connect":
            yield index, "connect"
        elif call.name == "sendto" and succeeded(call, 1):
            yield index, "send"
        elif call.name == "recvfrom" and succeeded(call, 1):
            yield index, "receive"
        elif call.name == "write" and paths.get(descriptor) == "stdout":
            yield index, "stdout"
        elif call.name == "flock" and noun and succeeded(call):
            yield index, f"lock {noun}"
        elif call.name == "pwrite64" and noun and succeeded(call) and ROOM in call.arguments:
            yield index, f"room in {noun}"
        elif call.name in verbs and noun and succeeded(call):
            yield index, f"{verbs[call.name]} {noun}"


class Figures:
    """What came out of all cases."""

    def __init__(self, tally):
        self.tally = tally
        self.lock = threading.Lock()
        self.killed = self.failed_calls = self.torn = self.lost = 0
        self.answers_lost = self.not_reached = self.out_of_memory = self.lost_to_memory = 0
        # For each scenario, the kills in its window and those that lost the grant.
        self.window = collections.defaultdict(collections.Counter)
        self.baselines = {}
        self.statuses = collections.Counter()
        self.odd = set()

    def check(self, name, wrong):
        with self.lock:
            self.tally.check(name, wrong)

    def add(self, **counts):
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def expected(self, name, result, trace):
        """Fails once for each kind of thing that nobody expected in the trace of an ended run."""
        for kind, line in trace.odd.items() if result.returncode is not None else []:
            with self.lock:
                is_new = kind not in self.odd
                self.odd.add(kind)
            if is_new:
                self.check(f"{name}: {kind}", [line])


def killed_case(figures, scenario, endpoint, baseline, name, injection):
    """One run that is killed when it makes a call, before the call is done."""
    case = scenario(endpoint)
    try:
        result, trace = case.traced(injection)
        figures.expected(name, result, trace)
        figures.check(name, judge_killed(figures, case, result, trace, baseline))
    finally:
        case.close()


def judge_killed(figures, case, result, trace, baseline):
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
    inside = result.returncode != 0 and baseline.in_window(case, trace)
    holders = case.holders()
    with figures.lock:
        figures.window[case.name].update(killed=inside, lost=inside and not holders)
    if holders:
        return wrong + judge_next(case, trace)
    if not inside:
        figures.add(lost=1)
        wrong.append("lost, though the reply was kept or the request was not sent whole")
        wrong += trace.end()
    return wrong + judge_lost(case)


def judge_next(case, trace):
    """The run after one that went wrong goes on with the live grant."""
    wrong = []
    next_run = case.again()
    state = case.endpoint.state()
    if next_run.returncode != 0:
        wrong.append(f"next run: status {next_run.returncode}: {next_run.stderr!r}")
    if state["replays"] != case.before["replays"] or state["revoked"]:
        wrong.append("next run: sent a used refresh token")
    token = parse(case.read())
    if not token or token["refresh_token"] != state["refresh_token"]:
        wrong.append("next run: the file has not the live refresh token")
    return wrong + judge_folder(case, trace)


def judge_folder(case, trace):
    """Nothing is left beside the file, but the old document that an exchange left there."""
    names = [step for _, step in trace.steps if step == "exchange" or "journal" in step]
    left_old = re.search("exchange(?!; remove journal)", "; ".join(names))
    # A run that is killed as it begins to write one leaves it behind, and so does a dead disk.
    killed = trace.calls[-1].value == "?" and trace.calls[-1].name != "exit_group"
    killed |= any("rescued" in c.arguments and c.name == "unlink" and c.value == "-1" for c in trace.calls)
    rescued = [path for path in case.rescued() if not left_old and (contents(path) or not killed)]
    aside = {path.name for path in rescued_files(case.place)}
    left = {path.name for path in case.place.iterdir()} - aside
    wrong = [] if left == case.names else [f"left beside the file: {sorted(left ^ case.names)}"]
    return wrong + [f"a copy that nobody needs: {path}" for path in rescued]


def judge_lost(case):
    """After a loss the next run says what to do, and leaves the file alone."""
    before = case.read()
    next_run = case.again()
    wrong = []
    if next_run.returncode != 3:
        wrong.append(f"after a loss: status {next_run.returncode}: {next_run.stderr!r}")
    if parse(case.read()) != parse(before):
        wrong.append("after a loss: the file was changed")
    return wrong


def failing_case(figures, scenario, endpoint, baseline, name, injections, full):
    """One run in which calls fail as the injections say, with stdout on a full disk or not."""
    quick = ["--timeout", "1"] if any("EAGAIN" in i for i in injections) else []
    case = scenario(endpoint, quick)
    try:
        with open("/dev/full", "wb") as disk:
            result, trace = case.traced(*injections, stdout=disk if full else subprocess.PIPE)
        result.stdout = result.stdout or b""
        figures.add(failed_calls=1)
        figures.expected(name, result, trace)
        wrong = judge_failed(figures, case, result, trace, baseline, injections)
        if wrong:
            wrong.append(f"status {result.returncode}, stderr {result.stderr!r}")
        figures.check(name, wrong)
    finally:
        case.close()


def judge_failed(figures, case, result, trace, baseline, injections):
    status = result.returncode
    failing = {injection.split(":")[0] for injection in injections}
    died = status in (-6, -11, -4, -5) and bool(failing & MEMORY)
    with figures.lock:
        figures.statuses["out of memory" if died else status] += 1
    wrong = judge_status(case, result, case.endpoint.state())
    if status in range(1, 6) and "unlink" not in failing and case.left_journal():
        wrong.append("a journal is left")
    if not case.whole():
        figures.add(torn=1)
        wrong.append(f"torn: {case.read()!r}")
    if died:
        figures.add(out_of_memory=1)
    elif status not in range(7):
        wrong.append("it hangs" if status is None else f"not documented: status {status}")
    holders = case.holders(result)
    if holders:
        rescued = take_rescued(case) if status == 6 else None
        if not {"file", "journal", "seed"} & set(holders):
            case.path.write_bytes(rescued or result.stdout)
        return wrong + judge_next(case, trace)
    # Where it was asked again, the second request is part of the window of the first.
    inside = case.retry or baseline.in_window(case, trace)
    if inside and died:
        figures.add(lost_to_memory=1)
    elif inside and failing & NETWORK_CALLS and (case.retry or not baseline.arrived(trace)):
        figures.add(answers_lost=1)
        wrong += judge_answer_lost(case, result, injections)
    else:
        figures.add(lost=1)
        wrong.append("lost, though no answer was lost")
    return wrong + judge_lost(case)


def judge_answer_lost(case, result, injections):
    """The message tells what became of the refresh token, as far as a client can know."""
    told = result.returncode == 4 and b"may have used the refresh token" in result.stderr
    if case.retry and not told:
        told = result.returncode == 3 and re.search(rb"answer.*lost", result.stderr)
    wrong = [] if told else ["lost on the way, and not said so"]
    # A time-out is not asked again, and what fails for good fails the second time as well.
    asked_again = case.retry and not re.search(r"EAGAIN|ETIMEDOUT|\+$", " ".join(injections))
    if asked_again and result.returncode != 3:
        wrong.append("the answer was not asked for again")
    return wrong


def take_rescued(case):
    """The document in a rescue file, which is then put away as a user would; None without."""
    for rescued in case.rescued():
        data = rescued.read_bytes()
        rescued.unlink()
        return data
    return None


def judge_status(case, result, state):
    """Whether the exit status and stderr tell the truth."""
    wrong = []
    posts = state["posts"] - case.before["posts"]
    status, stderr = result.returncode, result.stderr
    if status in (1, 2) and posts:
        wrong.append(f"status {status} after {posts} requests")
    if b"nothing was sent" in stderr and posts:
        wrong.append("says that nothing was sent")
    if status in (1, 2, 3, 4, 5) and not case.unchanged():
        wrong.append("the file was changed")
    if status == 0:
        token = parse(case.read())
        if not token or token["refresh_token"] != state["refresh_token"]:
            wrong.append("status 0, and the file has not the live refresh token")
    if any(path.stat().st_mode & 0o077 for path in case.rescued()):
        wrong.append("others may read a rescued document")
    if status == 6:
        holders = case.holders(result)
        journal = str(journal_of(case.path)).encode()
        if b"it is in " + journal in stderr and "journal" not in holders:
            wrong.append("says that the journal has the document")
        if b"the token file is saved" in stderr and "file" not in holders:
            wrong.append("says that the file is saved")
        if b"on stdout" in stderr and "stdout" not in holders:
            wrong.append("says that stdout has the document")
        granted = b"".join(line for line in stderr.splitlines() if b"granted, but" in line)
        if b"rescued" in granted and "rescue" not in holders:
            wrong.append("says that the document is elsewhere")
    return wrong


# The steps of a save, in their order.
LOCKED = "(.*; )?lock file; (.*; )?connect; "
JOURNAL = "make journal; lock journal; room in journal; "
ASKED = "request; reply; "
KEPT = "((write journal; )+(cut journal; )?sync journal; )+"
# The folder keeps the journal's name before the file is touched, where it is synced then.
OVERWRITTEN = "(sync folder; )?(room in file; sync file; )?write file; sync file; "
OVERWRITTEN += "remove journal; sync folder; stdout"
ORDER = {
    HardLink: JOURNAL + ASKED + KEPT + OVERWRITTEN,
    Busy: JOURNAL + ASKED + KEPT + f"(rename refused; )+({KEPT})?" + OVERWRITTEN,
    NoExchange: JOURNAL + ASKED + KEPT + "rename refused; rename; sync folder; stdout",
    Alone: "room in file; (sync file; )?" + ASKED + "write file; sync file; stdout",
    Case: JOURNAL + ASKED + KEPT + "exchange; remove journal; sync folder; stdout",
}


def check_baseline(figures, scenario, endpoint):
    """A run that nothing disturbs: the order of its save, and how narrow its window is. None where
    it fails: then there is nothing to disturb."""
    case = scenario(endpoint)
    try:
        result, trace = case.traced()
        figures.expected(case.name, result, trace)
        if result.returncode != 0:
            figures.check(case.name, [f"status {result.returncode}: {result.stderr!r}"])
            return None
        baseline = Baseline(case, trace)
        if not baseline.requests:
            figures.check(case.name, ["no request and reply in its trace", *trace.end()])
            return None
        figures.baselines[case.name] = baseline
        figures.check(f"{case.name}: order of the save", order(case, baseline))
        after = [call.name for call in trace.calls[baseline.reply + 1:baseline.kept + 1]]
        if "write journal" in case.keeps and scenario is not Alone:
            wide = [f"{len(after)} calls, at most {KEPT_WITHIN} are allowed: {', '.join(after)}"]
            narrow = 1 <= len(after) <= KEPT_WITHIN
            figures.check(f"{case.name}: the reply is kept at once", [] if narrow else wide)
        return baseline
    finally:
        case.close()


def order(case, baseline):
    """What is out of order: each step of the save has to come after the last."""
    named = {baseline.sent: "request", baseline.reply: "reply"}
    done = [named.get(index, step) for index, step in baseline.trace.steps]
    shown = "; ".join(step for step in done if step not in ("send", "receive"))
    expected = next(order for kind, order in ORDER.items() if isinstance(case, kind))
    if re.fullmatch(LOCKED + expected, shown):
        return []
    return [f"was:      {shown}", f"expected: {LOCKED}{expected}"]


def failures(scenario, trace, quick):
    """The failing cases of these calls: a name, the injections, and whether stdout is full."""
    # The runtime first looks at the three standard files.
    first = trace.first(lambda call: call.name in ("poll", "ppoll"), 0)
    start = first if scenario.from_start else start_of_file(trace)
    for index, call, number in trace.sites() if scenario.failed else []:
        elsewhere = index < start or not scenario.failing(call)
        if elsewhere or (quick and call.name not in DEAD_DISK):
            continue
        for error in errors_of(call):
            name = f"call {index}, {call.name} {number} fails with {error}"
            yield name, [f"{call.name}:error={error}:when={number}"], False
            if call.name in DEAD_DISK and error == "EIO":
                yield f"{name}, and stdout is full", [f"{call.name}:error=EIO:when={number}"], True
        for error in LASTING.get(call.name, []):
            name = f"from call {index} on, {call.name} {number}, {error}"
            yield name, [f"{call.name}:error={error}:when={number}+"], False
    yield from dead_disks(trace.calls) if scenario.failed else []


def errors_of(call):
    """What a call can meet, as it is called here."""
    if call.name in CANNOT_FAIL:
        return []
    if call.name == "rt_sigaction" and not call.arguments.startswith(OWN_SIGNALS):
        return []
    return ERRORS.get(call.name, ["EPERM"])


def start_of_file(trace):
    """The first call that has to do with the token file."""
    return trace.first(lambda call: call.name in ("stat", "statx", "newfstatat", "flock"), 0)


def dead_disks(calls):
    """A disk that dies at one of its calls, for good: stdout is what is left."""
    seen = collections.Counter()
    for index, call in enumerate(calls):
        if call.name in DEAD_DISK:
            rest = [f"{name}:error=EIO:when={seen[name] + 1}+" for name in DEAD_DISK]
            yield f"the disk dies at call {index}, {call.name}", rest, False
        seen[call.name] += 1


def kills(scenario, trace):
    """The calls to be killed at, all but the one that starts the program: name and injection."""
    start = 1 if scenario.from_start else start_of_file(trace)
    for index, call, number in trace.sites() if scenario.killed else []:
        if index >= start:
            name = f"killed at call {index}, {call.name} {number}"
            yield name, f"{call.name}:signal=KILL:when={number}"


class Worker(threading.local):
    """The endpoints of one thread."""

    def __init__(self):
        self.endpoints = {}

    def endpoint(self, tls):
        if tls not in self.endpoints:
            options = ["--delay", THINKS, *(["--tls", "server"] if tls else [])]
            self.endpoints[tls] = common.Endpoint(*options)
            STARTED.append(self.endpoints[tls])
        return self.endpoints[tls]


STARTED = []


def all_cases(figures, scenarios, quick):
    """Runs everything, on more threads than processors: most of a run is waiting."""
    worker = Worker()
    with concurrent.futures.ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:

        def start(task, scenario, baseline, name, *rest):
            name = f"{scenario.name}: {name}"
            try:
                endpoint = worker.endpoint(scenario.tls)
                task(figures, scenario, endpoint, baseline, name, *rest)
            except (OSError, LookupError, ValueError, AttributeError) as unexpected:
                place = traceback.extract_tb(unexpected.__traceback__)[-1]
                told = f"{type(unexpected).__name__} in line {place.lineno}: {unexpected}"
                figures.check(name, [told])

        for scenario in scenarios:
            baseline = check_baseline(figures, scenario, worker.endpoint(scenario.tls))
            if not baseline:
                continue
            for kill in kills(scenario, baseline.trace):
                pool.submit(start, killed_case, scenario, baseline, *kill)
            for failure in failures(scenario, baseline.trace, quick):
                pool.submit(start, failing_case, scenario, baseline, *failure)


def report(figures):
    """The windows that no client can close, and the figures."""
    for name, baseline in figures.baselines.items():
        count = figures.window[name]
        calls = ", ".join(call.name for call in baseline.window())
        if count:
            print(f"window of '{name}', from the request's last byte until the reply is kept: "
                  f"{calls}; killed there {count['killed']}, lost {count['lost']}")
    if figures.not_reached * 50 > figures.killed:
        figures.check("kills reach their calls", [f"{figures.not_reached} did not"])
    killed = sum(count["killed"] for count in figures.window.values())
    lost = sum(count["lost"] for count in figures.window.values())
    # Where no kill falls into the window, nobody knows what one does there.
    if figures.killed:
        figures.check("kills in the window", [] if lost else ["none lost a grant"])
    statuses = sorted(figures.statuses.items(), key=lambda item: str(item[0]))
    shown = ", ".join(f"{status}: {count}" for status, count in statuses)
    print(f"exit statuses of the failing calls: {shown}")
    print(f"out of memory: {figures.out_of_memory} runs were ended by the allocator, "
          f"{figures.lost_to_memory} of them in the window")
    print(f"answers lost on the way by calls of the network that failed: {figures.answers_lost}")
    print(f"calls killed {figures.killed}, calls failed {figures.failed_calls}, "
          f"torn {figures.torn}, lost in the window {lost} of {killed} by SIGKILL, "
          f"lost elsewhere {figures.lost}")


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
