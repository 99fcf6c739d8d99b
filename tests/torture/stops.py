"""Stops runs by signals: before the request, while the endpoint thinks, and after the save.

usage: stops.py [--quick]

The endpoint sends the signals itself, so each comes at the point that its name says. After each
stop: is the live refresh token ours, is the exit status true, is a journal left, and does the
next run go on without sending a used token? The closing line has the figures.
"""

import array
import collections
import contextlib
import fcntl
import functools
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time

import common
from common import journal_of, parse, refresh, run
from thinking import Endpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
KILLS = (signal.SIGQUIT, signal.SIGKILL)
# How long the endpoint thinks, in seconds, and at how many points of that a signal comes.
THINKING = 0.3
POINTS = 12
MANY = 5
NOBODY = 65534
# Longer than the watchdog: no run ends by its own time-out.
PATIENCE = ("--timeout", 10 * common.WATCHDOG)

Form = collections.namedtuple("Form", "name files plan container", defaults=(1, "rename", False))
FILE = Form("a file")
LINKED = Form("a file with two names", plan="links")
CLOSED = Form("a file in a closed folder", plan="closed")
FILTER = Form("stdin to stdout", files=0)
FIVE = Form("five files", files=MANY)


class Stage:
    """Token files with a grant each, their endpoint, and one run on them."""

    def __init__(self, form, **hooks):
        self.form = form
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sf-refresh-stops-")).resolve()
        self.folder.chmod(0o755)
        self.place = self.folder / "place"
        self.place.mkdir()
        self.endpoint = Endpoint(**hooks)
        self.process = self.result = None
        self.started = threading.Event()
        self.paths = [self.place / f"{number}.json" for number in range(max(form.files, 1))]
        self.old = [common.document(self.endpoint.login()) for _ in self.paths]
        for path, data in zip(self.paths, self.old):
            path.write_bytes(data)
            os.chown(path, *self.owner())
        if form.plan == "links":
            os.link(self.paths[0], self.place / "other.json")
        if form.plan == "closed":
            self.place.chmod(0o555)
        self.names = set(os.listdir(self.place))

    def owner(self):
        return (NOBODY, NOBODY) if self.form.plan == "closed" else (os.getuid(), os.getgid())

    def options(self):
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(self.folder)}
        options = {"cwd": self.folder, "env": environment}
        return {**options, **user} if self.form.plan == "closed" else options

    def command(self, url, *options):
        paths = self.paths if self.form.files else ["-"]
        return [str(word) for word in refresh(url, *PATIENCE, *options, *paths)]

    def start(self, *options, url=None, wrapper=(), proxy=None, stdin=None, stdout=None):
        """Starts the run; `pid` is that of the program itself."""
        if self.form.container:
            wrapper = [*wrapper, "unshare", "-p", "-f", "--mount-proc"]
        if stdin is None and not self.form.files:
            stdin = self.paths[0].open("rb")
        how = self.options()
        how["env"]["HTTPS_PROXY"] = proxy or ""
        self.process = subprocess.Popen(
            [*wrapper, *self.command(url or self.endpoint.url, *options)],
            stdin=stdin or subprocess.DEVNULL, stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE, **how,
        )
        if stdin and hasattr(stdin, "close"):
            stdin.close()
        self.pid = self.child() if self.form.container else self.process.pid
        self.started.set()

    def child(self):
        """The only child of the process that was started."""
        parent = self.process.pid
        children = pathlib.Path(f"/proc/{parent}/task/{parent}/children")
        until(lambda: children.read_text().split() or self.process.poll() is not None)
        return int((children.read_text().split() or [parent])[0])

    def send(self, *signals):
        self.started.wait(common.WATCHDOG)
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self):
        """Waits for the run; the status is None where it hangs."""
        try:
            stdout, stderr = self.process.communicate(timeout=common.WATCHDOG)
            status = self.process.returncode
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            stdout, stderr = self.process.communicate()
            status = None
        self.result = subprocess.CompletedProcess([], status, stdout or b"", stderr)

    def read(self):
        return [path.read_bytes() for path in self.paths]

    def live(self, number):
        return self.endpoint.families[number].live

    def is_kept(self, number):
        """Whether the live refresh token of this file is anywhere that a user would look."""
        places = [self.paths[number], journal_of(self.paths[number])]
        places += self.folder.rglob("sf-refresh-rescued-*")
        texts = [place.read_bytes() for place in places if place.exists()]
        tokens = [parse(text) for text in [*texts, self.result.stdout]]
        return any(token and token["refresh_token"] == self.live(number) for token in tokens)

    def left(self):
        """What a run that is over has left behind."""
        rescued = {path.name for path in self.folder.rglob("sf-refresh-rescued-*")}
        return rescued | (set(os.listdir(self.place)) - self.names)

    def close(self):
        if self.process and self.process.poll() is None:
            self.send(signal.SIGKILL)
            self.process.communicate()
        self.endpoint.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def until(happened):
    """Waits for something that has to happen; a run that hangs shows here."""
    end = time.monotonic() + common.WATCHDOG
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError("what the test waited for did not happen")
        time.sleep(0.001)


class Figures:
    """What came out of all stops."""

    def __init__(self):
        self.lock = threading.Lock()
        self.tally = common.Tally()
        self.counts = collections.Counter()

    def judge(self, name, phase, stage, wrong, named=False):
        """Counts one stop, and what holds after each: the next run goes on with the grant."""
        wrong = list(wrong)
        counts = collections.Counter({phase: 1})
        lost = [n for n in range(len(stage.paths)) if not stage.is_kept(n)]
        counts["lost as named" if named else "lost"] += len(lost)
        if lost and not named:
            wrong.append("lost: the live refresh token is nowhere")
        if stage.left() and not named:
            counts["left"] += 1
            wrong.append(f"left behind: {sorted(stage.left())}")
        if any(parse(data) is None for data in stage.read()):
            counts["torn"] += 1
            wrong.append("torn: the token file is no token document")
        wrong += [] if lost else self.next_run(stage, counts)
        if wrong:
            wrong.append(f"status {stage.result.returncode}, stderr {stage.result.stderr!r}")
        with self.lock:
            self.counts += counts
            self.tally.check(name, wrong)

    def next_run(self, stage, counts):
        """The run after a stop, undisturbed."""
        stage.endpoint.before = stage.endpoint.after = stage.endpoint.halfway = lambda post: None
        printed = parse(stage.result.stdout)
        text = stage.result.stdout if printed else stage.old[0]
        given = stage.folder / "stdin"
        given.write_bytes(b"" if stage.form.files else text)
        with given.open("rb") as stdin:
            result = run(stage.command(stage.endpoint.url), stdin=stdin, **stage.options())
        wrong = []
        if result.returncode != 0:
            wrong.append(f"next run: status {result.returncode}: {result.stderr!r}")
        if stage.endpoint.replays():
            counts["replays"] += 1
            wrong.append("next run: a used refresh token was sent")
        if stage.form.files and any(not stage.is_kept(n) for n in range(len(stage.paths))):
            wrong.append("next run: the file has not the live refresh token")
        if stage.left():
            wrong.append(f"next run: left behind: {sorted(stage.left())}")
        return wrong

    def report(self):
        count = self.counts.__getitem__
        named = count("lost as named")
        print(f"stopped before the request {count('before')}, in the wait {count('wait')}, after "
              f"the save {count('after')}; lost {count('lost')}, torn {count('torn')}, journals "
              f"left {count('left')}, replays {count('replays')}; ended at once by SIGQUIT or "
              f"SIGKILL in the wait {count('kill')}, of which lost {named}")


# ---- In the wait ----


def in_the_wait(figures, form, point, signals, ignored=(), halfway=False, number=None):
    """A run that is stopped while the endpoint thinks about one of its requests."""
    target = form.files // 2 if form.files > 1 else 0

    def think(post):
        if post.family.number != target:
            return
        if not halfway:
            time.sleep(THINKING * point)
        stage.send(*signals)
        time.sleep(0.02 if halfway else THINKING * (1 - point))

    stage = Stage(form, **{"halfway" if halfway else "after": think})
    try:
        stage.start(wrapper=ignoring(ignored))
        stage.end()
        wrong = judge_wait(stage, target, signals, ignored)
        names = ", ".join(signal.Signals(number).name for number in signals)
        where = "between the halves of the answer" if halfway else f"at {point:.2f} of the wait"
        box = " as process 1" if form.container else ""
        kept = ", ignored" if ignored else ""
        figures.judge(f"{form.name}{box}: {names}{kept} {where}", "wait", stage, wrong)
    finally:
        stage.close()


def ignoring(signals):
    """The start of a command line that ignores these signals, as nohup does."""
    names = " ".join(signal.Signals(number).name.removeprefix("SIG") for number in signals)
    return ["sh", "-c", f"trap '' {names}; exec \"$@\"", "sh"] if signals else []


def judge_wait(stage, target, signals, ignored):
    """The file under way is finished, the rest left; the status tells which signal it was."""
    form, wrong = stage.form, []
    is_cut = form.files > 1 and not set(signals) <= set(ignored)
    done = target + 1 if is_cut else len(stage.paths)
    allowed = {128 + number for number in signals if number not in ignored} if is_cut else {0}
    if stage.result.returncode not in allowed:
        wrong.append(f"status {stage.result.returncode}, expected {sorted(allowed)}")
    if len(stage.endpoint.posts) != done:
        wrong.append(f"{len(stage.endpoint.posts)} requests, expected {done}")
    if stage.endpoint.replays():
        wrong.append("a used refresh token was sent")
    for number, (data, old) in enumerate(zip(stage.read(), stage.old)):
        if number >= done and data != old:
            wrong.append(f"file {number} was changed, and not sent")
        token = parse(data)
        if 0 < form.files and number < done and (
                not token or token["refresh_token"] != stage.live(number)):
            wrong.append(f"file {number} has not the live refresh token")
    if not form.files and not parse(stage.result.stdout):
        wrong.append(f"stdout has no document: {stage.result.stdout!r}")
    return wrong


def ended_in_the_wait(figures, form, point, number):
    """SIGQUIT and SIGKILL end a run at once, in the wait as elsewhere."""
    def think(post):
        time.sleep(THINKING * point)
        stage.send(number)
        time.sleep(THINKING * (1 - point))

    stage = Stage(form, after=think)
    try:
        stage.start()
        stage.end()
        wrong = [] if stage.result.returncode == -number else ["it did not end by the signal"]
        if stage.read() != stage.old and form.plan == "rename":
            wrong.append("the file was changed")
        name = f"{form.name}: {signal.Signals(number).name} at {point:.2f} of the wait"
        figures.judge(name, "kill", stage, wrong, named=True)
    finally:
        stage.close()


# ---- Before the request: each of these brings a run to a place where it hangs, and says so. ----


@contextlib.contextmanager
def lock_is_held(stage):
    """Another process holds the lock."""
    with stage.paths[0].open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        stage.start()
        descriptors = pathlib.Path(f"/proc/{stage.pid}/fd")
        until(lambda: str(stage.paths[0]) in map(target_of, descriptors.iterdir()))
        yield


def target_of(link):
    with contextlib.suppress(OSError):
        return os.readlink(link)
    return ""


@contextlib.contextmanager
def handshake_hangs(stage):
    """A peer that accepts, and never answers the first message of TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stage.start(url=f"https://127.0.0.1:{listener.getsockname()[1]}/services/oauth2/token")
        with heard(listener):
            yield


@contextlib.contextmanager
def proxy_hangs(stage):
    """A proxy that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        stage.start(url="https://login.example.com/services/oauth2/token", proxy=proxy)
        with heard(listener):
            yield


@contextlib.contextmanager
def heard(listener):
    """A connection from which the first byte has come."""
    listener.settimeout(common.WATCHDOG)
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(common.WATCHDOG)
        connection.recv(1)
        yield


@contextlib.contextmanager
def connection_hangs(stage):
    """A peer whose queue of connections is full: the kernel answers none of the next ones."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as first:
        first.connect(listener.getsockname())
        port = listener.getsockname()[1]
        stage.start(url=f"https://127.0.0.1:{port}/services/oauth2/token")
        # State 02 is SYN_SENT.
        entry = f"0100007F:{port:04X} 02 "
        until(lambda: entry in pathlib.Path("/proc/net/tcp").read_text())
        yield


@contextlib.contextmanager
def name_server_hangs(stage):
    """A name server that hears the question and never answers it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        # Any address of this machine that nobody else listens on: the port is always 53.
        server.bind((f"127.{stage.endpoint.server.server_port // 256}.53.53", 53))
        server.settimeout(common.WATCHDOG)
        settings = stage.folder / "resolv.conf"
        settings.write_text(f"nameserver {server.getsockname()[0]}\noptions timeout:30\n")
        script = f"mount --bind {settings} /etc/resolv.conf && exec \"$@\""
        stage.start(url="https://login.example.com/services/oauth2/token",
                    wrapper=["unshare", "-m", "sh", "-c", script, "sh"])
        server.recv(512)
        yield


@contextlib.contextmanager
def stdin_hangs(stage):
    """Stdin that does not end."""
    reader, writer = os.pipe()
    with open(reader, "rb") as stdin, open(writer, "wb") as pipe:
        stage.start(stdin=stdin)
        pipe.write(stage.old[0])
        pipe.flush()
        until(lambda: unread(pipe) == 0)
        yield


def unread(pipe):
    """How many bytes wait in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


HANGS = [lock_is_held, handshake_hangs, proxy_hangs, connection_hangs, name_server_hangs,
         stdin_hangs]


def before_the_request(figures, form, hang, number):
    """The run ends by the signal although its peer goes on hanging, and leaves no trace."""
    stage = Stage(form)
    try:
        with hang(stage):
            stage.send(number)
            stage.end()
        wrong = []
        if stage.result.returncode != -number:
            wrong.append(f"status {stage.result.returncode}, expected {-number}")
        if stage.read() != stage.old:
            wrong.append("the file was changed")
        if stage.endpoint.posts or stage.result.stdout:
            wrong.append("something was sent or printed")
        what = hang.__doc__.removesuffix(".")
        name = f"{form.name}: {signal.Signals(number).name} before the request: {what}"
        figures.judge(name, "before", stage, wrong)
    finally:
        stage.close()


def between_tries(figures, form, number, early):
    """A stop before a busy server's answer, or while the run waits to ask again: it never asks."""
    def busy(post):
        if early:
            stage.send(number)
        return 503

    stage = Stage(form, before=busy)
    try:
        stage.start("--retry", "3")
        until(lambda: any(post.done for post in stage.endpoint.posts))
        if not early:
            stage.send(number)
        stage.end()
        wrong = []
        # A stop that comes before the answer was read is noted, and obeyed then.
        allowed = {128 + number} if early else {128 + number, -number}
        if stage.result.returncode not in allowed:
            wrong.append(f"status {stage.result.returncode}, expected {sorted(allowed)}")
        if len(stage.endpoint.posts) != 1:
            wrong.append(f"{len(stage.endpoint.posts)} requests, expected 1")
        if [parse(data) for data in stage.read()] != [parse(data) for data in stage.old]:
            wrong.append("the file was changed")
        when = "before a busy server's answer" if early else "while it waits to ask again"
        name = f"{form.name}: {signal.Signals(number).name} {when}"
        figures.judge(name, "wait" if early else "before", stage, wrong)
    finally:
        stage.close()


def first_process_before(figures, form, number):
    """The kernel drops what process 1 does not handle: the run goes on, and renews the file."""
    stage = Stage(form)
    try:
        with lock_is_held(stage):
            stage.send(number)
        stage.end()
        wrong = [] if stage.result.returncode == 0 else ["it did not renew the file"]
        name = f"{form.name} as process 1: {signal.Signals(number).name} before the request"
        figures.judge(name, "before", stage, wrong)
    finally:
        stage.close()


# ---- After the save ----


def after_the_save(figures, form, number):
    """A run that nobody reads from hangs in its last write: it ends by the signal."""
    stage = Stage(form)
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe, open(writer, "wb") as stdout:
        fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, 4096)
        try:
            long = parse(stage.old[0]) | {"note": "x" * 65536}
            stage.paths[0].write_text(json.dumps(long))
            stage.start("--output", "json", stdout=stdout)
            stdout.close()
            until(lambda: unread(pipe) or stage.process.poll() is not None)
            stage.send(number)
            if form.files:
                stage.end()
                wrong, expected = [], {-number}
            else:
                # What is under way is the only copy.
                text = pipe.read()
                stage.end()
                stage.result.stdout = text
                wrong, expected = [], {0, -number}
            if stage.result.returncode not in expected:
                wrong.append(f"status {stage.result.returncode}, expected {sorted(expected)}")
            name = f"{form.name}: {signal.Signals(number).name} while stdout hangs after the save"
            figures.judge(name, "after", stage, wrong)
        finally:
            stage.close()


def all_stops(quick, skipped):
    """Every stop, as functions that take the figures."""
    points = [(index + 0.5) / POINTS for index in range(POINTS)]
    points = points[::5] if quick else points
    container = [form._replace(container=True) for form in (FILE, FIVE, FILTER)]
    forms = [FILE, LINKED, CLOSED, FIVE, FILTER, *container]
    usable = [form for form in forms if form.plan not in skipped]
    usable = [form for form in usable if not (form.container and "container" in skipped)]
    make = functools.partial
    for form in usable:
        for number in SIGNALS:
            for point in points:
                yield make(in_the_wait, form=form, point=point, signals=[number])
            yield make(in_the_wait, form=form, point=0.5, signals=[number, number])
            yield make(in_the_wait, form=form, point=0.5, signals=[number], halfway=True)
            yield make(in_the_wait, form=form, point=0.5, signals=[number], ignored=[number])
        yield make(in_the_wait, form=form, point=0.5, signals=SIGNALS)
        yield make(in_the_wait, form=form, point=0.5, signals=SIGNALS[::-1])
        yield make(in_the_wait, form=form, point=0.5, signals=SIGNALS, ignored=SIGNALS)
        yield make(in_the_wait, form=form, point=0.5, signals=SIGNALS[:2], ignored=SIGNALS[:1])
    for number in SIGNALS:
        for form in (FILE, FIVE, FILTER):
            for hang in HANGS:
                if hang.__name__ in skipped or (hang is stdin_hangs) != (form is FILTER):
                    continue
                yield make(before_the_request, form=form, hang=hang, number=number)
        if "container" not in skipped:
            yield make(first_process_before, form=container[0], number=number)
        for form in (FILE, FILTER):
            yield make(after_the_save, form=form, number=number)
            for early in (True, False):
                yield make(between_tries, form=form, number=number, early=early)
    for form in (FILE, LINKED, FILTER):
        for number in KILLS:
            for point in points[::3]:
                yield make(ended_in_the_wait, form=form, point=point, number=number)


def missing():
    """What this machine cannot do, each with its reason."""
    skipped = {}
    if os.getuid() != 0:
        skipped["closed"] = "the user has to be changed, which only root may"
    for name, words in (("container", "-p -f --mount-proc"), ("name_server_hangs", "-m")):
        if run(["unshare", *words.split(), "true"]).returncode != 0:
            skipped[name] = f"unshare {words} is refused"
    return skipped


def main(arguments):
    # What the test was started with must not decide what its runs ignore.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    figures, skipped = Figures(), missing()
    for name, reason in skipped.items():
        figures.tally.skip(name.replace("_", " "), reason)
    stops = all_stops("--quick" in arguments, skipped)
    return common.judge_all("stops", figures, lambda stop: stop(figures), stops)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
