"""Runs on one token file in disorder: slowed, stopped and killed among logins and other programs.

usage: disorder.py [--quick]        SEED=N and ROUNDS=N in the environment

Each round has a seed, from which everything is drawn that the test decides: one to three runs,
slowed at system calls of theirs, before an endpoint that thinks; somebody who logs in anew, by
rename or over the text; a program that knows no locks and rotates the grant in the file; signals.
An undisturbed run follows. Then a judge compares what the endpoint gave with what is on the disk.
What no client can prevent is counted apart, each by a condition that the logs have to meet; all
else is a failure, told with its seed and its timeline. The closing line has the figures.
"""

import collections
import ctypes
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import common
from common import journal_of, parse, refresh
from thinking import Endpoint

ROUNDS = 200
NOBODY = 65534
PLANS = ("rename", "links", "closed")
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds: how long the endpoint may think, a call may be held up, and all that happens may take.
THINKING = 0.3
DELAY = 0.3
SPAN = 0.9
# Calls that decide nothing about the file or the grant.
DULL = {
    "execve", "exit", "exit_group", "mmap", "mremap", "munmap", "mprotect", "brk", "arch_prctl",
    "set_tid_address", "sigaltstack", "rt_sigprocmask", "getrandom", "futex", "rt_sigreturn",
}
RENAMES = {"rename", "renameat", "renameat2"}
WRITES = {"pwrite64", "write", "pwritev", "writev", "ftruncate"}
CHANGES = {*RENAMES, "pwrite64", "ftruncate", "fsync", "unlink"}
READS = {"read", "pread64", "readv", "preadv"}
STATS = {"stat", "lstat", "statx", "newfstatat"}
SHOWN = {*RENAMES, *WRITES, "open", "openat", "flock", "fsync", "unlink", "sendto", "recvfrom",
         "connect", "utimensat", "link", "linkat"}

LINE = re.compile(r"^\d+\s+(\d+\.\d+) (.*)$")
CALL = re.compile(r"^(\w+)\((.*)\)\s+= (\S+)(.*?)<(\d+\.\d+)>$")
TOKEN = re.compile(r"F\d+-T\d+-\w+")


class Call:
    """A system call of a run: `begin` is when it really began, after what held it up."""

    def __init__(self, at, text, delay):
        name, self.arguments, self.value, note, took = CALL.match(text).groups()
        self.name = name
        self.end = at + float(took)
        self.begin = at + (delay if "DELAYED" in note else 0)
        self.tokens = set(TOKEN.findall(self.arguments))

    def is_on(self, path):
        """Whether it names this path, by itself or by what its descriptor stands for."""
        return f'"{path}"' in self.arguments or f"<{path}>" in self.arguments


class Trace:
    """What a run did: its calls, and every line with its time."""

    def __init__(self, path, delays):
        text = path.read_text(errors="replace") if path.exists() else ""
        self.lines, self.calls = [], []
        seen = collections.Counter()
        for line in text.splitlines():
            found = LINE.match(line)
            if not found:
                continue
            at, text = float(found.group(1)), found.group(2)
            self.lines.append((at, text))
            if CALL.match(text):
                name = text.split("(")[0]
                seen[name] += 1
                self.calls.append(Call(at, text, delays.get((name, seen[name]), 0)))

    def numbered(self):
        """The calls that may be held up, a name and a number each: all, those after the answer,
        and of these the ones that change a file."""
        seen, found, save = collections.Counter(), [], 0
        for call in self.calls:
            seen[call.name] += 1
            if call.name not in DULL:
                found.append((call.name, seen[call.name]))
            if call.name.startswith("recv") and call.tokens:
                save = len(found)
        late = found[save:]
        return found, late, [call for call in late if call[0] in CHANGES]

    def wrote(self, token):
        """Whether a call that wrote this token ended."""
        short = token.partition("-")[2]
        writes = (call for call in self.calls if call.name in WRITES and call.value != "?")
        return any(short in call.tokens for call in writes)


class Run:
    """One run of the program: when it starts, what holds it up, and which signal it gets when."""

    def __init__(self, name, dice, calls):
        self.name = name
        self.start = dice.uniform(0, SPAN / 3)
        self.delays = {}
        for _ in range(dice.choice((0, 1, 1, 2, 3))):
            self.delays[dice.choice(dice.choice(calls))] = dice.uniform(DELAY / 6, DELAY)
        self.signal = self.sent = None
        # Some time after its start, or after the endpoint has made up its mind.
        self.after_answer = dice.random() < 0.4
        self.wait = dice.uniform(0, THINKING if self.after_answer else SPAN)
        self.process = self.began = self.ended = self.status = None
        self.stdout = self.stderr = b""

    def __str__(self):
        delays = ", ".join(f"{name} {number} by {delay * 1000:.0f} ms"
                           for (name, number), delay in self.delays.items())
        return f"{self.name}: slowed at {delays or 'nothing'}"

    def strace(self, log):
        command = ["strace", "-D", "-f", "-q", "-y", "-ttt", "-T", "-s", "1000", "-o", log]
        for (name, number), delay in self.delays.items():
            command += ["-e", f"inject={name}:delay_enter={int(delay * 1e6)}:when={number}"]
        return command


# What somebody else wrote into the token file: when, which family, how, and what was there before.
# `changed` is when its first byte changed.
Write = collections.namedtuple("Write", "who begin changed end family in_place displaced")


def exchange(one, other):
    """Swaps two names in one step, so that what stood under the second is known."""
    words = [os.fsencode(path) for path in (one, other)]
    at_fdcwd, rename_exchange = -100, 2
    if LIBC.renameat2(at_fdcwd, words[0], at_fdcwd, words[1], rename_exchange) != 0:
        raise OSError(ctypes.get_errno(), "cannot exchange two files here", str(other))


LIBC = ctypes.CDLL(None, use_errno=True)


def short(token):
    """The family and the number of a token."""
    return "-".join(token.split("-")[1:3])


class Round:
    """One round: what is drawn from its seed, what happens, and what is told of it."""

    def __init__(self, seed, plan, calls):
        self.seed, self.plan = seed, plan
        self.dice = random.Random(seed)
        folder = tempfile.mkdtemp(prefix="sf-refresh-disorder-")
        self.folder = pathlib.Path(folder).resolve()
        self.folder.chmod(0o755)
        self.place = self.folder / "place"
        self.place.mkdir()
        self.here = self.folder / "here"
        self.here.mkdir()
        self.here.chmod(0o777)
        self.traces = self.folder / "traces"
        self.traces.mkdir()
        self.traces.chmod(0o777)
        self.path = self.place / "token.json"
        think = lambda post: time.sleep(self.dice.uniform(0, THINKING))
        self.endpoint = Endpoint(before=think, after=think)
        self.events, self.writes, self.torn = [], [], []
        self.writing = threading.Lock()
        self.over = threading.Event()
        self.put(document(self.endpoint.login()), self.path)
        if plan == "links":
            os.link(self.path, self.place / "other.json")
        if plan == "closed":
            self.place.chmod(0o555)
        self.draw(calls)

    def draw(self, calls):
        """Draws what is to happen; nothing, where no call is known yet."""
        dice, self.runs, self.others = self.dice, [], []
        if not calls:
            return
        self.runs = [Run(f"run {n + 1}", dice, calls) for n in range(dice.choice((1, 2, 2, 3)))]
        fate = dice.random()
        if fate < 0.6:
            dice.choice(self.runs).signal = signal.SIGKILL if fate < 0.3 else dice.choice(STOPS)
        acts = [self.login_by_rename, self.login_over_text, self.program_without_locks]
        for number in range(dice.choice((1, 1, 2, 3))):
            act = dice.choice(acts)
            name = f"{act.__name__.replace('_', ' ')} {number + 1}"
            # Some time after the start, the first request or the first answer.
            after, most = dice.choice((("", SPAN), ("arrived", THINKING * 2), ("done", DELAY)))
            wait = dice.uniform(0, most)
            self.others.append((after, wait, name, act, random.Random(dice.random())))

    def tell(self, who, what, at=None):
        self.events.append((at or time.time(), who, what))

    # ---- What happens ----

    def put(self, data, path):
        path.write_bytes(data)
        if self.plan == "closed":
            os.chown(path, NOBODY, NOBODY)

    def rename(self, who, token, data, begin):
        """Puts a document in the place of the file by rename, as other programs do."""
        new = self.place / ".new"
        with self.writing:
            self.put(data, new)
            changed = time.time()
            exchange(new, self.path)
            end = time.time()
            displaced = new.read_bytes()
            new.unlink()
            self.wrote(Write(who, begin, changed, end, family_of(token), False, displaced))

    def wrote(self, write):
        self.writes.append(write)
        what = f"wrote family {write.family} over {brief(write.displaced)}"
        self.tell(write.who, what, write.end)

    def login_by_rename(self, who, dice):
        token = self.endpoint.login()
        self.rename(who, token, document(token), time.time())

    def login_over_text(self, who, dice):
        """Writes over the text; some programs empty the file first, some cut it last."""
        token = self.endpoint.login()
        data = document(token)
        empties = dice.random() < 0.5
        pause = dice.choice((0, 0, 0.01, 0.05))
        with self.writing:
            begin = time.time()
            with open(self.path, "r+b", buffering=0) as file:
                displaced = file.read()
                if empties:
                    file.truncate(0)
                    changed = time.time()
                time.sleep(pause)
                file.seek(0)
                file.write(data)
                changed = changed if empties else time.time()
                time.sleep(pause)
                file.truncate(len(data))
            self.tell(who, f"began to write over the text, {'empty' if empties else 'cut last'}",
                      begin)
            end = time.time()
            self.wrote(Write(who, begin, changed, end, family_of(token), True, displaced))

    def program_without_locks(self, who, dice):
        """Reads the file, sends its refresh token, and writes the answer by rename."""
        read = time.time()
        token = parse(self.path.read_bytes())
        if not token:
            return
        self.tell(who, f"read {short(token['refresh_token'])}", read)
        post, status, answer = self.endpoint.ask(who, token["refresh_token"])
        post.read = read
        if status == 200:
            data = json.dumps(token | answer, indent=2).encode()
            self.rename(who, answer["refresh_token"], data, time.time())

    def start(self, run):
        """Runs the program to its end."""
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        who = user if self.plan == "closed" else {}
        log = self.traces / run.name.replace(" ", "-")
        words = [*run.strace(log), *refresh(self.endpoint.url, "-d", f"run={run.name}", self.path)]
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(self.here)}
        run.began = time.time()
        run.process = subprocess.Popen(
            [str(word) for word in words], cwd=self.here, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **who,
        )
        try:
            run.stdout, run.stderr = run.process.communicate(timeout=common.WATCHDOG)
            run.status = run.process.returncode
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.stdout, run.stderr = run.process.communicate()
        run.ended = time.time()
        run.trace = Trace(log, run.delays)

    def strike(self, run):
        """Sends a run its signal, when its time has come and where it is still there."""
        def is_due():
            return not run.after_answer or any(
                post.who == run.name and post.processed for post in self.endpoint.posts)

        while run.ended is None and not (run.process and is_due()):
            time.sleep(0.001)
        time.sleep(run.wait)
        while run.process.poll() is None and not self.is_program(run.process.pid):
            time.sleep(0.001)
        if run.process.poll() is None:
            run.sent = time.time()
            run.process.send_signal(run.signal)

    def is_program(self, pid):
        """Whether strace, which starts as this process, has made way for the program."""
        try:
            return os.path.samefile(f"/proc/{pid}/exe", common.PROGRAM)
        except OSError:
            return False

    def meddle(self, after, wait, name, act, dice):
        """Lets somebody else do something, when its time has come."""
        def is_due():
            return not after or any(getattr(post, after) for post in self.endpoint.posts)

        while not is_due() and any(run.ended is None for run in self.runs):
            time.sleep(0.001)
        time.sleep(wait)
        act(name, dice)

    def sample(self):
        """Reads the file now and then, as anybody may."""
        while not self.over.is_set():
            begin, data = time.time(), self.path.read_bytes()
            # A read in the middle of one write sees a half that no program left there.
            if parse(data) is None and data == self.path.read_bytes():
                self.torn.append((begin, time.time(), data))
            self.over.wait(0.004)

    def happen(self):
        """Lets all happen at its time, waits for the end, and lets an undisturbed run follow."""
        began = time.time()

        def at(offset, what, *rest):
            def act():
                time.sleep(max(0, began + offset - time.time()))
                what(*rest)

            return threading.Thread(target=act)

        sampler = threading.Thread(target=self.sample)
        threads = [at(run.start, self.start, run) for run in self.runs]
        threads += [at(run.start, self.strike, run) for run in self.runs if run.signal]
        threads += [at(0, self.meddle, *other) for other in self.others]
        for thread in (sampler, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        self.before_last = self.path.read_bytes()
        self.last = Run("last run", self.dice, [[("none", 1)]])
        self.last.delays = {}
        self.start(self.last)
        self.over.set()
        sampler.join()

    def documents(self):
        """Every token document that a user could find, and those that somebody else replaced."""
        texts = [path.read_bytes() for folder in (self.place, self.here)
                 for path in folder.iterdir() if path.is_file()]
        texts += [run.stdout for run in (*self.runs, self.last)]
        replaced = [write.displaced for write in self.writes]
        return [{token["refresh_token"] for token in map(parse, each) if token}
                for each in (texts, replaced)]

    def timeline(self):
        """Who did what when, in milliseconds from the first event."""
        events = list(self.events)
        for post in self.endpoint.posts:
            token = short(post.token)
            events.append((post.arrived, post.who, f"endpoint: {token} has come"))
            what = f"grants {short(post.given)}" if post.given else "refuses"
            what = "has been used: revokes the family" if post.is_replay else what
            if post.processed:
                events.append((post.processed, post.who, f"endpoint: {token} {what}"))
            if post.done:
                events.append((post.done, post.who, f"endpoint: has answered {token}"))
        for begin, _, data in self.torn[:3]:
            events.append((begin, "reader", f"sees {data[:300]!r}"))
        for run in (*self.runs, self.last):
            if run.began is None:
                continue
            events.append((run.began, run.name, "starts"))
            text = (run.stderr + run.stdout).decode(errors="replace").strip()
            events.append((run.ended, run.name, f"ended, {run.status}: {text}"))
            if run.sent:
                events.append((run.sent, run.name, f"gets {run.signal.name}"))
            events += [(at, run.name, line) for at, line in self.shown(run.trace.lines)]
        events.sort(key=lambda event: event[0])
        zero = events[0][0]
        lines = [f"{(at - zero) * 1000:8.1f} ms  {who:24} {what}" for at, who, what in events]
        return [f"plan {self.plan}", *map(str, self.runs), *lines]

    def shown(self, lines):
        """The lines of a trace that tell about the file or the grant, shortened."""
        waits = False
        for at, line in lines:
            name = line.split("(")[0]
            is_wait = name == "flock" and "EAGAIN" in line
            is_dull = "/certs/" in line or "<pipe:" in line or (is_wait and waits)
            is_ours = name in SHOWN and not is_dull
            if is_ours or line[0] in "-+":
                yield at, self.plain(line)
            waits = is_wait or (waits and name not in SHOWN)

    def plain(self, line):
        """A line of a trace, with what it writes shortened to its tokens."""
        tokens = sorted({short(f"-{token}") for token in TOKEN.findall(line)})
        line = line.replace(f"{self.folder}/", "").replace(str(self.folder), "")
        line = re.sub(r'"(?:[^"\\]|\\.){40,}"(\.\.\.)?', f'"…{", ".join(tokens)}"', line)
        return re.sub(r"\{sa_family=[^}]*\}", "…", line)

    def close(self):
        self.endpoint.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def family_of(token):
    return int(token.split("-")[1].removeprefix("F"))


def brief(data):
    token = parse(data)
    return short(token["refresh_token"]) if token else f"{data[:20]!r}…"


def document(token):
    """A token file as a login writes it: with an access token of its own."""
    name = token.partition("-")[2].encode()
    return common.document(token).replace(b"AT-old", b"AT-" + name)


# ---- The judge ----


class Judge:
    """What came of a round: `wrong` is what has no excuse, `counts` has the rest by its class."""

    def __init__(self, case):
        self.case = case
        self.runs = {run.name: run for run in (*case.runs, case.last)}
        self.posts = case.endpoint.posts
        self.granted = {post.token: post for post in self.posts if post.given}
        self.kept, self.replaced = case.documents()
        self.final = parse(case.path.read_bytes())
        self.changes = {name: [*self.changes_of(run)] for name, run in self.runs.items()}
        self.in_moment = [write for write in case.writes if self.is_in_moment(write)]
        self.counts, self.wrong = collections.Counter(), []
        self.counts.update(
            rounds=1, runs=len(case.runs), moments=len(self.in_moment),
            logins=sum(write.who.startswith("login") for write in case.writes),
            rotations=sum(write.who.startswith("program") for write in case.writes),
            kills=sum(run.sent is not None for run in case.runs),
            slowed=sum("(DELAYED)" in line for run in case.runs for _, line in run.trace.lines),
            rescued=len([*case.folder.rglob("sf-refresh-rescued-*")]),
        )
        for replay in case.endpoint.replays():
            self.judge_replay(replay)
        for family in case.endpoint.families:
            if not family.revoked:
                self.judge_live(family)
        self.judge_reads()
        self.judge_login()
        self.judge_statuses()

    def count(self, name, wrong=None):
        self.counts[name] += 1
        if wrong:
            self.wrong.append(f"{name}: {wrong}")

    def changes_of(self, run):
        """When a change that this run made to the file cannot be told from somebody else's.

        A write over the text: from the last look at the file to the end of the write. A rename
        that exchanges: what it has displaced can still be looked at, and put back.
        """
        path, journal = self.case.path, journal_of(self.case.path)
        calls, look, is_over = run.trace.calls, None, True
        for index, call in enumerate(calls):
            if call.name == "sendto" and call.tokens:
                look = None
            elif call.name in READS and call.is_on(path):
                # A look may take several calls, and then begins with the first.
                look = call.begin if is_over or not look else look
                is_over = call.value == "0"
            elif call.name in WRITES and call.is_on(path) and look:
                yield look, call.end, False
            elif call.name in RENAMES and call.is_on(path):
                checked = first_look(calls[index + 1:], journal)
                if checked:
                    yield checked, call.end, True
                elif "RENAME_EXCHANGE" in call.arguments:
                    yield call.begin, call.end, True
                elif look:
                    yield look, call.end, False

    def is_in_moment(self, write, runs=()):
        """Whether this write over the text came where these runs (or any) could not see it."""
        return write.in_place and any(
            write.begin <= end and (write.changed if is_exchange else write.end) >= begin
            for name in runs or self.changes for begin, end, is_exchange in self.changes[name])

    def lost_its_file(self, run):
        """Whether the file's name went to another file while this run, which was killed before it
        could look again, wrote over the text."""
        return any(not write.in_place and write.begin <= end and write.end >= begin
                   for begin, end, is_exchange in self.changes[run.name] if not is_exchange
                   for write in self.case.writes)

    def judge_replay(self, post):
        first = self.granted[post.token]
        by_run, first_run = self.runs.get(post.who), self.runs.get(first.who)
        if first_run and first_run.status == -signal.SIGKILL and (
                not by_run or not first_run.trace.wrote(first.given)):
            self.count("replays after SIGKILL")
        elif by_run and by_run.status == -signal.SIGKILL and first.arrived > by_run.sent:
            # Its request was on its way when it was killed, and was processed last.
            self.count("replays after SIGKILL")
        elif not by_run and not first_run:
            self.count("collisions")
        elif not by_run and post.read < self.saved_at(first_run, first.given):
            self.count("collisions")
        elif by_run and not first_run:
            self.judge_own_replay(post, first, by_run)
        else:
            what = f"{post.who} sent {short(post.token)}, which {first.who} had used"
            self.count("replays", what)

    def saved_at(self, run, token):
        """When the file had what this run was given; the run's end where it never had."""
        ours, answered = token.partition("-")[2], False
        for call in run.trace.calls:
            answered = answered or (call.name.startswith("recv") and ours in call.tokens)
            is_ours = call.name in RENAMES or ours in call.tokens
            is_change = call.name in WRITES | RENAMES and call.is_on(self.case.path)
            if answered and is_ours and is_change:
                return call.end
        return run.ended

    def gap(self, run, post):
        """When this run last looked at the file before it sent this request, and when that began.

        A look before the connection does not count: that takes as long as the network wants.
        """
        look, ours = None, post.token.partition("-")[2]
        for call in run.trace.calls:
            if call.name == "connect":
                look = None
            elif call.name in READS and call.value == "0":
                # That the file ends there may be told long after its text was read.
                pass
            elif call.name in READS | STATS and call.is_on(self.case.path):
                look = call.begin
            elif call.name == "sendto" and ours in call.tokens:
                return look or call.begin, call.begin
        return run.began, run.ended

    def judge_own_replay(self, post, first, run):
        """A token that a program without locks has used: where was its write by then?"""
        written = [write.end for write in self.case.writes if write.who == first.who]
        look, sent = self.gap(run, post)
        if not written or post.arrived < written[0]:
            self.count("collisions")
        elif look < written[0]:
            self.count("collisions in the gap")
        else:
            late = (sent - written[0]) * 1000
            what = f"{run.name} sent {short(post.token)}, {late:.0f} ms after {first.who} had "
            self.count("replays", what + "written another")

    def judge_live(self, family):
        """Where the live token is, if one of our runs got it."""
        first = next((post for post in self.posts if post.given == family.live), None)
        run = self.runs.get(first.who) if first else None
        if not run or family.live in self.kept:
            return
        if family.live in self.replaced:
            self.count("saved, then replaced by somebody else")
        elif run.status == -signal.SIGKILL and not run.trace.wrote(family.live):
            self.count("lost by SIGKILL in the wait")
        elif any(self.is_in_moment(write, [run.name]) for write in self.case.writes):
            self.count("lost in the moment")
        elif run.status == -signal.SIGKILL and self.lost_its_file(run):
            self.count("lost in the moment")
        else:
            self.count("lost", f"{short(family.live)}, which {run.name} got, is nowhere")

    def judge_reads(self):
        for begin, end, data in self.case.torn:
            texts = [write for write in self.case.writes if write.in_place]
            if any(write.begin <= end and write.end >= begin for write in texts):
                continue
            if any(write.begin <= end for write in self.in_moment):
                self.counts["torn in the moment"] = 1
                continue
            self.count("torn", f"the file was read as {data[:60]!r}")
            return

    def judge_login(self):
        """The file has the family of whoever wrote last, other than our runs."""
        last = max(self.case.writes, key=lambda write: write.end, default=None)
        expected = last.family if last else 0
        family = family_of(self.final["refresh_token"]) if self.final else None
        if family == expected:
            return
        if last in self.in_moment:
            self.count("overwritten in the moment")
        elif family is None:
            self.count("torn", "the file is no token document at the end")
        else:
            what = f"the file has family {family}, and {last.who} wrote family {expected}"
            self.count("overwritten", what)

    def judge_statuses(self):
        texts = any(write.in_place for write in self.case.writes)
        for run in self.case.runs:
            stops = {-run.signal, 128 + run.signal} if run.sent else set()
            # A text that is half-way cannot be read; another family's file is not overwritten.
            others = ({1} if texts else set()) | ({6} if self.case.writes else set())
            if run.status not in {0, 3} | stops | others:
                self.count("statuses", f"{run.name} ended with {run.status}")
            refused = [post for post in self.posts if post.who == run.name and not post.given]
            if run.status == 3 and not refused:
                self.count("statuses", f"{run.name} says refused, and nobody refused it")
        last = self.case.last
        number = self.final and family_of(self.final["refresh_token"])
        family = None if number is None else self.case.endpoint.families[number]
        # A family may be revoked by a request of a killed run after the last run got its grant.
        granted = any(post.given for post in self.posts if post.who == last.name)
        allowed = {1} if not family else {3} if family.revoked and not granted else {0}
        if last.status not in allowed:
            self.count("statuses", f"the last run ended with {last.status}, expected {allowed}")
        is_live = family and (family.revoked or self.final["refresh_token"] == family.live)
        if last.status == 0 and family and not is_live:
            self.count("statuses", "the last run ended with 0, and the file's token is not live")
        if journal_of(self.case.path).exists():
            self.count("left", "a journal after the last run")


def first_look(calls, journal):
    """When these calls first looked at what a rename displaced, before they went on; 0 if never."""
    for call in calls:
        if call.name in READS and call.is_on(journal):
            return call.begin
        if call.name in RENAMES or call.name == "unlink":
            break
    return 0


# ---- All rounds ----


class Figures:
    """What came out of all rounds."""

    def __init__(self):
        self.lock = threading.Lock()
        self.tally = common.Tally()
        self.counts = collections.Counter()

    def play(self, seed, calls):
        plan = list(calls)[seed % len(calls)]
        case = Round(seed, plan, calls[plan])
        try:
            case.happen()
            judge = Judge(case)
            wrong = judge.wrong and [*judge.wrong, *case.timeline()]
            with self.lock:
                self.counts += judge.counts
                self.tally.check(f"round with SEED={seed}", wrong)
        finally:
            case.close()

    def report(self):
        count = self.counts.__getitem__
        print(f"{count('rounds')} rounds: {count('runs')} runs, {count('slowed')} calls slowed, "
              f"{count('kills')} killed or stopped, {count('logins')} logins, "
              f"{count('rotations')} rotations by a program without locks; "
              f"{count('rescued')} documents kept in a file of their own")
        print(f"logins over the text in the very moment of a save {count('moments')}: "
              f"overwritten {count('overwritten in the moment')}, torn "
              f"{count('torn in the moment')}, lost {count('lost in the moment')}; "
              f"saved and then replaced by somebody else "
              f"{count('saved, then replaced by somebody else')}")
        print(f"rounds {count('rounds')}, torn {count('torn')}, logins overwritten "
              f"{count('overwritten')}, lost {count('lost')}, lost by SIGKILL in the wait "
              f"{count('lost by SIGKILL in the wait')}, replays {count('replays')}, after SIGKILL "
              f"{count('replays after SIGKILL')}, collisions no client can prevent "
              f"{count('collisions')}, in the gap between look and request "
              f"{count('collisions in the gap')}")


def calls_of(plan):
    """The calls that an undisturbed run makes."""
    case = Round(0, plan, [])
    try:
        case.happen()
        if case.last.status != 0:
            sys.exit(f"a run that nothing disturbs: {case.last.stderr!r}")
        return case.last.trace.numbered()
    finally:
        case.close()


def main(arguments):
    for number in STOPS:
        how = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, how)
    figures = Figures()
    plans = PLANS
    if os.getuid() != 0:
        plans = PLANS[:2]
        figures.tally.skip("a closed folder", "the user has to be changed, which only root may")
    count = int(os.environ.get("ROUNDS") or (30 if "--quick" in arguments else ROUNDS))
    first = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    print(f"{count} rounds from SEED={first} on", flush=True)
    calls = {plan: calls_of(plan) for plan in plans}
    rounds = range(first, first + count)
    return common.judge_all("disorder", figures, lambda seed: figures.play(seed, calls), rounds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
