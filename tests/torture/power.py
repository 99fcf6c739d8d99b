"""Cuts the power at every write of a renewal: ext4, xfs and btrfs, all three plans of a save.

A file system lies on a loop device, and the file behind that is served by this script through
/dev/fuse, so that each write and each flush of the block layer is seen, in order. The device is
then rebuilt as a power cut could have left it: everything before a flush is there, and of the
writes since, any choice. Each of these states is mounted anew, its token file is read, and for
each distinct content the program runs once more.

usage: power.py [--quick] [WORD...]

--quick tries each plan with two files. With WORDs, only the combinations whose names hold one of
them, and each one's figures. SEED repeats the random choices, CUTS=N makes so many of them in each
stretch between two flushes. Needs root, loop devices and FUSE, and installs the mkfs programs by
apt-get where they are missing.

What has to be 0: the token file is no JSON for another reader (torn, trailing NULs), the new
refresh token is not in it though the program ended with 0 (lost after exit 0), or is nowhere though
it had been on the disk (lost once safe), or the next run does not find it (replays, next runs
failed). What no client can help is counted: a cut between the answer and the first sync (in the
window), and a disk that tears the page that is saved in place (torn by the disk; with a journal
the next run mends it, and 'torn without a journal' has to be 0).
"""

import collections
import contextlib
import ctypes
import errno
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading

import common
from common import journal_of, parse, refresh, run

NOBODY = 65534
PAGE, SECTOR = 4096, 512
MEBIBYTE = 1 << 20
THINK = "50"
# Of the failures of one combination, so many are told.
TOLD = 6

# The size of the device, the mkfs command, its package.
SYSTEMS = {
    # Inode tables are written now, and not by a kernel thread in the middle of the renewal.
    "ext4": (32, "mkfs.ext4 -q -b 4096 -E lazy_itable_init=0,nodiscard", "e2fsprogs"),
    "xfs": (300, "mkfs.xfs -q -K", "xfsprogs"),
    "btrfs": (128, "mkfs.btrfs -q -K", "btrfs-progs"),
}
RENAME, JOURNAL, ALONE = "rename", "overwrite with a journal", "overwrite alone"
# The token file before the renewal: what replaces it is shorter, longer, or finds its room made.
LONGER, SHORTER, ROOMY, LARGE, CUT = (
    "a longer file", "a shorter file", "a file with room", "a file of several pages",
    "an interrupted save",
)
KINDS = {
    LONGER: lambda token: common.document(token, 60),
    SHORTER: lambda token: json.dumps({"refresh_token": token}).encode(),
    ROOMY: lambda token: common.document(token) + b" " * 6000 + b"\n",
    LARGE: lambda token: json.dumps({"refresh_token": token, "note": "x" * 9000}).encode(),
    # The live token is in the journal of a save that a first power cut ended.
    CUT: lambda token: common.document("5Aep-RT-used-before", 60),
}
# How the disk is mounted for the renewal. Lazily, the kernel orders what no sync orders; at once,
# each system call is on the disk before the next one, as if a neighbour synced all the time.
LAZY, AT_ONCE = "defaults", "sync"
# What each plan is tried with. Without a journal nothing helps a document larger than a page.
PLANS = {
    RENAME: [(LONGER, LAZY), (LARGE, LAZY), (CUT, LAZY), (LONGER, AT_ONCE)],
    JOURNAL: [
        (LONGER, LAZY), (SHORTER, LAZY), (LARGE, LAZY), (CUT, LAZY),
        (SHORTER, AT_ONCE), (CUT, AT_ONCE),
    ],
    ALONE: [(LONGER, LAZY), (SHORTER, LAZY), (ROOMY, LAZY), (LONGER, AT_ONCE), (ROOMY, AT_ONCE)],
}
# What the closing line tells, also where it is 0.
FIGURES = (
    "combinations", "states", "torn", "trailing NULs", "torn without a journal",
    "lost after exit 0", "lost once safe", "next runs", "replays", "next runs failed",
    "in the window", "torn by the disk", "rescue files", "unmountable",
)

libc = ctypes.CDLL(None, use_errno=True)


def command(*words):
    """Runs a command that has to work."""
    done = run(words, env=dict(os.environ))
    if done.returncode != 0:
        raise OSError(f"{' '.join(map(str, words))}: {done.stderr.decode().strip()}")


class Disk:
    """An image file behind FUSE, and the log of what reaches it, in order.

    The log has ("write", offset, bytes) for each page, ("flush",) and ("mark", name). A range that
    is discarded or zeroed is a write of zeros.
    """

    GETATTR, SETATTR, OPEN, READ, WRITE, STATFS = 3, 4, 14, 15, 16, 17
    FORGET, RELEASE, FSYNC, FLUSH, INIT, INTERRUPT = 2, 18, 20, 25, 26, 36
    DESTROY, BATCH_FORGET, FALLOCATE = 38, 42, 43
    BIG_WRITES, DIRECT_IO = 1 << 5, 1
    MAX_WRITE = 128 << 10

    def __init__(self, image, path):
        self.log = []
        self.path = path
        self.path.touch()
        self.image = os.open(image, os.O_RDWR)
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=100600,user_id=0,group_id=0,allow_other"
        # NOSUID and NODEV. The root of this file system is the file itself.
        done = libc.mount(b"disk", os.fsencode(path), b"fuse", 2 | 4, options.encode())
        if done != 0:
            os.close(self.device)
            os.close(self.image)
            raise OSError(f"fuse: {os.strerror(ctypes.get_errno())}")
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def mark(self, name):
        self.log.append(("mark", name))

    def close(self):
        libc.umount2(os.fsencode(self.path), 2)
        self.thread.join(common.WATCHDOG)
        os.close(self.device)
        os.close(self.image)

    def serve(self):
        """Answers the kernel, one request after the other, until it is unmounted."""
        while True:
            try:
                request = os.read(self.device, self.MAX_WRITE + 4096)
            except InterruptedError:
                continue
            except OSError as e:
                if e.errno in (errno.ENOENT, errno.EAGAIN):
                    continue
                return
            _, opcode, unique = struct.unpack_from("<IIQ", request)
            if opcode in (self.FORGET, self.BATCH_FORGET, self.INTERRUPT):
                continue
            try:
                answer, error = self.answer(opcode, request[40:]), 0
            except OSError as e:
                answer, error = b"", -e.errno
            head = struct.pack("<IiQ", 16 + len(answer), error, unique)
            try:
                os.write(self.device, head + answer)
            except OSError:
                return
            if opcode == self.DESTROY:
                return

    def answer(self, opcode, body):
        """What a request gets, logged where it changes the disk."""
        if opcode == self.INIT:
            major, minor, ahead = struct.unpack_from("<III", body)
            sizes = (self.BIG_WRITES, 16, 12, self.MAX_WRITE, 1)
            return struct.pack("<IIIIHHII", major, min(minor, 31), ahead, *sizes) + bytes(36)
        if opcode in (self.GETATTR, self.SETATTR):
            size = os.fstat(self.image).st_size
            times, owner = bytes(36), (0o100600, 1, 0, 0, 0, PAGE, 0)
            attributes = struct.pack("<3Q36s7I", 1, size, size // SECTOR, times, *owner)
            return bytes(16) + attributes
        if opcode == self.OPEN:
            return struct.pack("<QII", 0, self.DIRECT_IO, 0)
        if opcode == self.READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return os.pread(self.image, size, offset)
        if opcode == self.WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            # What a disk writes at once is a page: a request of several can be cut between them.
            for start in range(0, size, PAGE):
                data = body[40 + start:40 + min(start + PAGE, size)]
                self.write(offset + start, data)
            return struct.pack("<II", size, 0)
        if opcode == self.FALLOCATE:
            _, offset, size, _ = struct.unpack_from("<QQQI", body)
            self.write(offset, bytes(size))
            return b""
        if opcode == self.FSYNC:
            self.log.append(("flush",))
            return b""
        if opcode == self.STATFS:
            return bytes(80)
        if opcode in (self.RELEASE, self.FLUSH, self.DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "no such request")

    def write(self, offset, data):
        os.pwrite(self.image, data, offset)
        self.log.append(("write", offset, data))


class Relay:
    """Hands each request on to the endpoint, and marks in the log when its answer begins."""

    def __init__(self, endpoint, disk):
        self.endpoint, self.disk = endpoint, disk
        self.listener = socket.create_server(("127.0.0.1", 0))
        port = self.listener.getsockname()[1]
        self.url = endpoint.url.replace(str(endpoint.port), str(port))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self.endpoint.port)) as server:
                way_back = (server, client, "answer")
                back = threading.Thread(target=self.pump, args=way_back, daemon=True)
                back.start()
                self.pump(client, server, "request")
                back.join()

    def pump(self, source, sink, name):
        try:
            while data := source.recv(1 << 16):
                self.disk.mark(name)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Stretch:
    """The writes between two flushes, and what had happened before they were lost or landed."""

    def __init__(self):
        self.writes = []
        self.answered = self.exited = False


def stretches(log):
    """The log, cut at its flushes."""
    found = [Stretch()]
    for event, *what in log:
        now = found[-1]
        if event == "flush":
            found.append(Stretch())
            found[-1].answered, found[-1].exited = now.answered, now.exited
        elif event == "write":
            now.writes.append(tuple(what))
        elif what == ["answer"]:
            now.answered = True
        elif what == ["exit"]:
            # Any write since the last flush may be lost, and the program has ended all the same.
            now.exited = True
    # Where nothing was written, the flush is one with the one before it.
    return [each for each in found[:-1] if each.writes] + found[-1:]


def choices(stretch, chance, count):
    """Which writes of a stretch land: each beginning, and all choices where they are few."""
    numbers = range(len(stretch.writes))
    chosen = [numbers[:end] for end in range(len(numbers) + 1)]
    if 2 ** len(numbers) <= 2 * count:
        chosen += [[n for n in numbers if 1 << n & bits] for bits in range(2 ** len(numbers))]
    else:
        chosen += [numbers[-1:], [*numbers[:-2], numbers[-1]]]
        for _ in range(count):
            share = chance.random()
            chosen.append([n for n in numbers if chance.random() < share])
    return list(dict.fromkeys(map(tuple, chosen)))


def torn(stretch, chance):
    """For each write of a stretch, those before it and some of its sectors."""
    for number, (offset, data) in enumerate(stretch.writes):
        sectors = [
            (offset + start, data[start:start + SECTOR]) for start in range(0, len(data), SECTOR)
        ]
        if 1 < len(sectors) <= PAGE // SECTOR:
            yield number, sectors[:1]
            yield number, [each for each in sectors if chance.random() < 0.5]


class Combination:
    """A file system, a plan and a file: a renewal, and the states that it went through."""

    def __init__(self, system, plan, kind, mode, folder):
        self.system, self.plan, self.kind, self.mode = system, plan, kind, mode
        self.name = f"{system}, {plan}, {kind}" + (", synced" if mode == AT_ONCE else "")
        self.folder = folder
        self.image, self.base = folder / "image", folder / "base"
        self.mounted = folder / "mounted"
        self.mounted.mkdir(exist_ok=True)
        self.path = self.mounted / "kept" / "token.json"
        self.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if plan == ALONE else {}
        self.wrong = []
        self.figures = collections.Counter({"states": 0})

    def failures(self):
        """What was wrong, the first of it."""
        more = len(self.wrong) - TOLD
        return self.wrong[:TOLD] + ([f"and {more} more"] if more > 0 else [])

    def expect(self, truth, otherwise):
        if not truth:
            self.wrong.append(otherwise)

    def make(self):
        """Makes the file system, in an image."""
        size, make, _ = SYSTEMS[self.system]
        self.image.write_bytes(b"")
        os.truncate(self.image, size * MEBIBYTE)
        command(*make.split(), self.image)

    def lacks(self):
        """Why this file system cannot be watched here; None where it can."""
        try:
            self.make()
            disk = Disk(self.image, self.folder / "disk")
            try:
                with self.mount(disk.path):
                    return None
            finally:
                disk.close()
        except OSError as e:
            return str(e)

    def record(self):
        """Renews a token file on a disk that is watched."""
        self.make()
        command("cp", "--sparse=always", self.image, self.base)
        disk = Disk(self.image, self.folder / "disk")
        endpoint = common.Endpoint("--delay", THINK)
        relay = Relay(endpoint, disk)
        try:
            with self.mount(disk.path, self.mode):
                self.renew(disk, endpoint, relay)
        finally:
            relay.close()
            endpoint.close()
            disk.close()
        start = disk.log.index(("mark", "start"))
        self.before = [entry[1:] for entry in disk.log[:start] if entry[0] == "write"]
        self.stretches = stretches(disk.log[start:disk.log.index(("mark", "end"))])
        self.figures["writes"] = sum(len(each.writes) for each in self.stretches)

    def renew(self, disk, endpoint, relay):
        """Lays the token file, and renews it between two marks in the log."""
        self.path.parent.mkdir()
        self.old_token = endpoint.live()
        self.old = KINDS[self.kind](self.old_token)
        self.path.write_bytes(self.old)
        self.path.chmod(0o600)
        if self.kind == CUT:
            os.utime(self.path, (1, 1))
            journal_of(self.path).write_bytes(common.document(self.old_token, None))
            journal_of(self.path).chmod(0o600)
        if self.plan == JOURNAL:
            os.link(self.path, self.path.with_name("other.json"))
        if self.plan == ALONE:
            os.chown(self.path, NOBODY, NOBODY)
        names = {each.name for each in self.path.parent.iterdir()}
        self.names = names - {journal_of(self.path).name}
        inode = self.path.stat().st_ino
        command("sync", "-f", self.mounted)
        disk.mark("start")
        result = run(refresh(relay.url, self.path), **self.user)
        if result.returncode == 0:
            disk.mark("exit")
        self.expect(result.returncode == 0, f"{result.returncode}: {result.stderr!r}")
        # What the kernel would write by itself, seconds later.
        command("sync", "-f", self.mounted)
        disk.mark("end")
        self.new, self.new_token = self.path.read_bytes(), endpoint.state()["refresh_token"]
        stays = self.path.stat().st_ino == inode
        # The number of a file that is gone may come again in the same run.
        planned = self.kind == CUT or stays == (self.plan != RENAME)
        self.expect(planned, f"not the plan: the inode stays: {stays}")

    @contextlib.contextmanager
    def mount(self, image, mode=LAZY):
        """Mounts the file system in this image."""
        command("mount", "-t", self.system, "-o", f"loop,{mode}", image, self.mounted)
        try:
            yield
        finally:
            command("umount", self.mounted)

    def cut(self, chance, count):
        """Looks at each state that a power cut can leave."""
        self.seen, self.safe, self.journals = set(), False, 0
        apply(self.before, self.base)
        last = self.stretches[-1]
        for number, stretch in enumerate(self.stretches):
            where = f"stretch {number + 1} of {len(self.stretches)}"
            writes = stretch.writes
            for chosen in choices(stretch, chance, count):
                # All of them is none of the next stretch.
                if stretch is last or len(chosen) < len(writes):
                    landed = [writes[n] for n in chosen]
                    of = f"{where}, writes {list(chosen)} of {len(writes)}"
                    self.state(stretch, landed, of, first=not chosen)
            # A torn page of btrfs does not pass its checksum. And of what the program has not
            # synced, nobody says that it lasts.
            tears = self.system != "btrfs" and self.mode == LAZY
            for end, sectors in torn(stretch, chance) if tears else ():
                of = f"{where}, {end} of {len(writes)} writes and {len(sectors)} sectors"
                self.state(stretch, [*writes[:end], *sectors], of, sectors=True)
            apply(writes, self.base)
        used = self.journals > 0
        self.expect(used == (self.plan != ALONE), f"not the plan: a journal was seen: {used}")

    def state(self, stretch, landed, where, first=False, sectors=False):
        """Rebuilds one state, mounts it, and judges what is there."""
        image = self.folder / "state"
        command("cp", "--sparse=auto", self.base, image)
        apply(landed, image)
        self.figures["states"] += 1
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.mount(image))
            except OSError as e:
                # A torn block of the file system's own, where it wants whole ones.
                self.figures["unmountable"] += 1
                self.expect(sectors, f"{where}: {e}")
                return
            try:
                self.judge(stretch, where, first, sectors)
            except OSError as e:
                self.wrong.append(f"{where}: {e}")

    def judge(self, stretch, where, first, sectors):
        """What a reader, the promises, and the next run say to the state that is mounted."""
        files = {each.name: each.read_bytes() for each in self.path.parent.iterdir()}
        data = files.get(self.path.name)
        # A journal may hold more behind its document.
        journal = journal_of(self.path).name
        tokens = {token_in(each, name == journal) for name, each in files.items()}
        holds, lives = self.new_token in tokens, tokens & {self.old_token, self.new_token}
        self.journals += journal in files
        whole = data is not None and self.knows(data)

        def count(figure, wrong):
            if wrong:
                self.figures[figure] += 1
                self.wrong.append(f"{where}: {figure}: {shown(files)}")

        # A save in place cannot help that a disk tears a page, or lands one page of several. An
        # interrupted save may be finished in place.
        in_place = self.plan != RENAME or self.kind == CUT
        excused = in_place and (sectors or self.kind == LARGE)
        if excused and not whole:
            self.figures["torn by the disk"] += 1
            count("torn without a journal", self.plan != ALONE and not lives)
        else:
            count("torn", not whole)
            # Other readers take NULs for no JSON.
            count("trailing NULs", whole and b"\0" in data)
        # Once it was on the disk, it stays there; until then, the old one does.
        self.safe = self.safe or (first and holds)
        saved = data is not None and token_in(data) == self.new_token
        count("lost after exit 0", stretch.exited and not saved)
        gone = not holds if self.safe else whole and not lives
        count("lost once safe", gone)
        # Nobody can help what is between the answer and the first sync.
        if stretch.answered and not self.safe and not holds:
            self.figures["in the window"] += 1
        if lives:
            self.next_run(files, where, self.new_token if holds else self.old_token)

    def knows(self, data):
        """Whether this is the old document or the new one, whole."""
        # What an interrupted save makes of the two that it finds, is for the program to say.
        finished = self.kind == CUT and token_in(data) == self.old_token
        return finished or blankless(data) in (blankless(self.old), blankless(self.new))

    def next_run(self, files, where, live):
        """Runs the program on the state that is mounted, once for each content."""
        journal = journal_of(self.path)
        newer = journal.exists() and journal.stat().st_mtime_ns > self.path.stat().st_mtime_ns
        key = (live, newer, *sorted(files.items()))
        if key in self.seen:
            return
        self.seen.add(key)
        self.figures["next runs"] += 1
        endpoint = common.Endpoint("--refresh-token", live)
        try:
            result = run(refresh(endpoint.url, self.path), **self.user)
            state = endpoint.state()
        finally:
            endpoint.close()
        saved = token_in(self.path.read_bytes()) == state["refresh_token"]
        left = {each.name for each in self.path.parent.iterdir()} - self.names
        # What may be somebody's grant is kept: here, the old document that was exchanged.
        rescued = {name for name in left if name.startswith("sf-refresh-rescued-")}
        self.figures += collections.Counter({"rescue files": len(rescued)})
        if state["posts"] != state["grants"]:
            self.figures["replays"] += 1
            self.wrong.append(f"{where}: a dead refresh token was sent: {shown(files)}")
        elif result.returncode != 0 or not saved or left - rescued:
            self.figures["next runs failed"] += 1
            how = f"{result.returncode}, {result.stderr!r}, saved: {saved}, left: {left}"
            self.wrong.append(f"{where}: next run: {how}: {shown(files)}")


def apply(writes, image):
    """Puts these writes on an image."""
    disk = os.open(image, os.O_RDWR)
    for offset, data in writes:
        os.pwrite(disk, data, offset)
    os.close(disk)


def blankless(data):
    return data.rstrip(b" \t\r\n\0")


def token_in(data, first=False):
    """The refresh token in these bytes, or in their first document; None where there is none."""
    data = blankless(data)
    if first:
        with contextlib.suppress(ValueError):
            text = data.decode().lstrip()
            data = text[:json.JSONDecoder().raw_decode(text)[1]].encode()
    token = parse(data)
    return token and token["refresh_token"]


def shown(files):
    """The start of each file, for a failure."""
    return ", ".join(f"{name} {len(data)} {data[:60]!r}" for name, data in sorted(files.items()))


def lacks(system):
    """Why this file system cannot be had here; None where it can."""
    _, words, package = SYSTEMS[system]
    make = words.split()[0]
    if not shutil.which(make) and shutil.which("apt-get"):
        options = ["--yes", "--no-install-recommends"]
        for words in (["update"], ["install", *options, package]):
            run(["apt-get", *words], env=dict(os.environ), timeout=300)
    return None if shutil.which(make) else f"no {make}"


def enter_namespace():
    """Starts this script again in a mount namespace of its own; says why where that cannot be."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        return "no /dev/fuse or no loop devices"
    if "SF_REFRESH_POWER" in os.environ:
        return None
    words = ["unshare", "--mount", "--propagation", "private"]
    if not shutil.which("unshare") or run([*words, "true"]).returncode != 0:
        return "no mount namespace can be made here"
    os.environ["SF_REFRESH_POWER"] = "yes"
    sys.stdout.flush()
    os.execvp("unshare", [*words, sys.executable, *sys.argv])


@contextlib.contextmanager
def workshop():
    """A folder in memory that every user may enter, with the program and the CA in it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sf-refresh-power-"))
    try:
        command("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
        folder.chmod(0o755)
        common.PROGRAM = shutil.copy(common.PROGRAM, folder)
        common.CA = shutil.copy(common.CA, folder)
        os.chmod(common.CA, 0o644)
        yield folder
    finally:
        run(["umount", "--lazy", folder])
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments):
    words = [word for word in arguments if not word.startswith("-")]
    tries = [(plan, *each) for plan, kinds in PLANS.items() for each in kinds]
    if "--quick" in arguments:
        # The first is mounted lazily, the last syncs at once.
        tries = [(plan, *each) for plan, kinds in PLANS.items() for each in kinds[::len(kinds) - 1]]
    count = int(os.environ.get("CUTS", "8"))
    seed = os.environ.get("SEED") or str(random.randrange(1 << 32))
    tally, figures = common.Tally(), collections.Counter()
    # Where mkfs is, also if only the users' programs are named.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    reason = enter_namespace()
    if reason:
        tally.skip("power cuts", reason)
        return tally.finish("power cuts")
    print(f"power cuts: SEED={seed} CUTS={count}")
    # The traces of a run that is stopped go as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with workshop() as folder:
        for system in SYSTEMS:
            wanted = [Combination(system, *each, folder) for each in tries]
            wanted = [each for each in wanted if not words or any(w in each.name for w in words)]
            reason = wanted and (lacks(system) or wanted[0].lacks())
            for combination in wanted:
                if reason:
                    tally.skip(combination.name, reason)
                    continue
                combination.record()
                combination.cut(random.Random(f"{seed} {combination.name}"), count)
                tally.check(combination.name, combination.failures())
                if words or combination.wrong:
                    print(f"{combination.name}: {told(combination.figures, combination.figures)}")
                figures += combination.figures
                figures["combinations"] += 1
    print(f"power cuts: {told(figures, FIGURES)}")
    return tally.finish("power cuts")


def told(figures, names):
    return ", ".join(f"{name} {figures[name]}" for name in names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
