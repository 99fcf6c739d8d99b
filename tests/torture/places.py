"""Renews token files in the places where they are kept, kind ones and unkind ones.

usage: places.py [PLACE...]

Each place is a test by its name. Those that need a mount namespace, root, or a file system that
knows attributes are named as skipped, with the reason, where this machine has none.
"""

import contextlib
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile

import common
from common import contents, journal_of, parse, refresh, rescued_files, run

NOBODY = 65534
# What may follow a document, and is no change of it.
BLANKS = b" \t\r\n\0"
# How long the endpoint thinks in places that need it, in milliseconds.
THINKS = 300
KILLS = 100
PLACES = []


def place(name, *needs):
    """Marks a test of a place, and what it needs: root, mounts, attributes, lists (of access), or
    an endpoint that thinks."""
    def mark(test):
        PLACES.append((name, needs, test))
        return test
    return mark


class Skip(Exception):
    """Why a place cannot be had here."""


class Room:
    """A folder with a token file, and what became of it."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sf-refresh-place-"))
        self.folder.chmod(0o755)
        self.mounts = []
        self.wrong = []
        self.grant = endpoint.live()
        self.posts = endpoint.state()["posts"]

    def put(self, path, mode=0o600):
        """Writes the token file that holds the live grant."""
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(common.document(self.grant))
        path.chmod(mode)
        return path

    def mount(self, *words):
        done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
        if done.returncode != 0:
            raise Skip(f"mount: {done.stderr.strip()}")
        if words[-1] not in self.mounts:
            self.mounts.append(words[-1])

    def tmpfs(self, *options):
        """A file system of its own."""
        folder = self.folder / "mounted"
        folder.mkdir()
        self.mount("-t", "tmpfs", "-o", ",".join(["size=64k", *options]), "tmpfs", folder)
        return folder

    def fails(self, path, status, hint=b"", tail=b"", **options):
        """A run that has to end so, having sent nothing and changed nothing; a tail of these bytes
        may follow the document."""
        before = path.read_bytes()
        result = run(refresh(self.endpoint.url, path), **options)
        self.expect(result.returncode == status, f"{result.returncode}: {result.stderr!r}")
        self.expect(hint in result.stderr, f"no hint {hint!r}: {result.stderr!r}")
        self.expect(self.endpoint.state()["posts"] == self.posts, "something was sent")
        changed = path.read_bytes().rstrip(tail) != before.rstrip(tail)
        self.expect(not changed, f"{path} was changed")
        self.nothing_beside(path)
        return result

    def renews(self, path, status=0, real=None, delivers=True, **options):
        """A run that has to save the new grant there, and leave nothing beside it."""
        result = run(refresh(self.endpoint.url, path), **options)
        return self.judge(result, path, status, real, delivers)

    def watches(self, path, users=(), **options):
        """A run that has to save the new grant, and what is seen of it while the endpoint thinks:
        for the file and the journal the sizes, the modes, and the users who could read it."""
        seen = {"file": set(), "journal": set()}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [str(word) for word in refresh(self.endpoint.url, path)]
        process = subprocess.Popen(command, **pipes, **options)
        while process.poll() is None:
            for name, file in (("file", path), ("journal", journal_of(path))):
                seen[name] |= sights(file) | {("read", user) for user in readers(file, users)}
        output, errors = process.communicate()
        result = subprocess.CompletedProcess(command, process.returncode, output, errors)
        self.judge(result, path)
        return seen

    def judge(self, result, path, status=0, real=None, delivers=True):
        """Whether a run saved the new grant, and left nothing beside it."""
        state = self.endpoint.state()
        real = pathlib.Path(real or path)
        self.expect(result.returncode == status, f"{result.returncode}: {result.stderr!r}")
        self.expect(state["posts"] == self.posts + 1, "not sent once")
        token = parse(real.read_bytes())
        saved = token and token["refresh_token"] == state["refresh_token"]
        self.expect(saved, "the file has not the live refresh token")
        if delivers:
            line = f"{state['access_token']}\n".encode()
            self.expect(result.stdout == line, f"stdout: {result.stdout!r}")
        self.nothing_beside(real)
        return result

    def nothing_beside(self, path):
        folder = path.resolve().parent
        left = [*folder.glob(".*sf-refresh*"), *rescued_files(folder)]
        self.expect(not left, f"left beside the file: {[entry.name for entry in left]}")

    def expect(self, truth, otherwise):
        if not truth:
            self.wrong.append(otherwise)

    def close(self):
        for folder in reversed(self.mounts):
            subprocess.run(["umount", "-l", str(folder)], check=False)
        for path in self.folder.rglob("*"):
            if not path.is_symlink():
                subprocess.run(["chattr", "-ia", str(path)], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def sights(path):
    """What everybody sees of a file: its size and its mode. Nothing where there is none."""
    try:
        found = path.stat()
    except OSError:
        return set()
    return {("size", found.st_size), ("mode", stat.S_IMODE(found.st_mode))}


def readers(path, users):
    """Those of these users, (user, group) each, who can read a file."""
    able = set()
    for user, group in users:
        identity = {"user": user, "group": group, "extra_groups": []}
        if subprocess.run(["cat", path], capture_output=True, **identity).stdout:
            able.add((user, group))
    return able


def as_nobody():
    """Options that run a program as a user who owns nothing."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@place("a plain file, as the measure of the others")
def plain(room):
    room.renews(room.put("token.json"))


@place("a file named without a folder")
def bare(room):
    path = room.put("token.json")
    room.renews("token.json", real=path, cwd=room.folder)


@place("a file whose name has a blank, a newline and a dash in front")
def odd_name(room):
    path = room.put("-token\n 1.json")
    room.renews(path)


def bound(room, outside="outside/token.json"):
    """A token file, and another name in another folder by which it is mounted."""
    outside, inside = room.put(outside), room.put("inside/token.json")
    room.mount("--bind", outside, inside)
    return outside, inside


@place("a bind-mounted single file: a journal, though no rename", "mounts", "thinks")
def bind(room):
    outside, inside = bound(room)
    seen = room.watches(inside)
    room.expect(seen["journal"], "no journal was made")
    room.expect(outside.read_bytes() == inside.read_bytes(), "the mounted file has another text")
    room.nothing_beside(outside)


@place("a bind-mounted file after a save that was interrupted", "mounts")
def bind_interrupted(room):
    _, inside = bound(room)
    shutil.copy(inside, journal_of(inside))
    inside.write_bytes(common.document("5Aep-RT-used-before"))
    os.utime(inside, (1e9, 1e9))
    room.renews(inside)


@place("a bind-mounted file from another device: no journal", "mounts", "thinks")
def bind_far(room):
    outside, inside = bound(room, room.tmpfs() / "token.json")
    seen = room.watches(inside)
    room.expect(not seen["journal"], "a journal was made in a folder on another device")
    room.expect(outside.read_bytes() == inside.read_bytes(), "the mounted file has another text")


@place("a bind-mounted file from a full disk, without room for the reply", "mounts")
def bind_full(room):
    folder = room.tmpfs()
    # The page that the file has is full, but for less than a reply adds.
    path = folder / "token.json"
    path.write_bytes(common.document(room.grant, None, "x" * 3800))
    fill(folder)
    inside = room.put("inside/token.json")
    room.mount("--bind", path, inside)
    room.fails(inside, status=1, tail=BLANKS)


@place("a bind-mounted file from a full disk, with room in the file", "mounts")
def bind_full_with_room(room):
    folder = room.tmpfs()
    outside, inside = bound(room, folder / "token.json")
    with open(outside, "ab") as file:
        file.write(b" " * 20_000)
    fill(folder)
    room.renews(inside)
    room.expect(outside.stat().st_size > 20_000, "the room was given back")


def orphan(room, remove):
    """A mounted file whose last name is gone holds what nobody renews any more."""
    outside, inside = bound(room)
    remove(outside)
    room.fails(inside, status=1, hint=b"mount the folder, not the file")


@place("a bind-mounted file that was removed outside", "mounts")
def orphan_removed(room):
    orphan(room, os.unlink)


@place("a bind-mounted file that was renamed over outside", "mounts")
def orphan_renamed_over(room):
    orphan(room, lambda outside: os.replace(room.put("outside/new.json"), outside))


@place("overlayfs, a file of the lower layer", "mounts")
def overlay(room):
    folder = room.tmpfs("size=1m")
    layers = {name: folder / name for name in ("lower", "upper", "work", "merged")}
    for layer in layers.values():
        layer.mkdir()
    lower = room.put(layers["lower"] / "token.json")
    before = lower.read_bytes()
    options = ",".join(f"{name}dir={layers[name]}" for name in ("lower", "upper", "work"))
    room.mount("-t", "overlay", "-o", options, "overlay", layers["merged"])
    for _ in range(2):
        room.renews(layers["merged"] / "token.json")
        room.posts += 1
    room.expect(lower.read_bytes() == before, "the lower layer was changed")
    names = [entry.name for entry in layers["upper"].iterdir()]
    room.expect(names == ["token.json"], f"left in the upper layer: {names}")


@place("a read-only root with one writable file", "mounts")
def read_only_root(room):
    outside = room.put("outside/token.json")
    root = room.tmpfs()
    inside = root / "token.json"
    inside.touch()
    room.mount("-o", "remount,ro", root)
    room.mount("--bind", outside, inside)
    room.renews(inside)


@place("a file on a read-only file system", "mounts")
def read_only_system(room):
    folder = room.tmpfs()
    path = room.put(folder / "token.json")
    room.mount("-o", "remount,ro", folder)
    room.fails(path, status=1)


@place("a read-only file, as another user than root", "root")
def read_only_file(room):
    path = room.put("token.json", 0o400)
    os.chown(path, NOBODY, NOBODY)
    os.chown(room.folder, NOBODY, NOBODY)
    room.fails(path, status=1, **as_nobody())


@place("a read-only file, as root: its mode stays", "root")
def read_only_file_as_root(room):
    path = room.put("token.json", 0o400)
    room.renews(path)
    room.expect(stat.S_IMODE(path.stat().st_mode) == 0o400, oct(path.stat().st_mode))


def fill(folder):
    """Fills a file system to its last byte."""
    with open(folder / "ballast", "wb", buffering=0) as ballast:
        try:
            while ballast.write(b"x" * 4096):
                pass
        except OSError:
            pass


@place("a full tmpfs", "mounts")
def full(room):
    folder = room.tmpfs()
    path = room.put(folder / "token.json")
    fill(folder)
    room.fails(path, status=1)


@place("a tmpfs with one page left", "mounts")
def nearly_full(room):
    folder = room.tmpfs()
    path = room.put(folder / "token.json")
    spare = folder / "spare"
    spare.write_bytes(b"x" * 4096)
    fill(folder)
    spare.unlink()
    room.fails(path, status=1)


@place("a tmpfs without room for one more file", "mounts")
def no_inodes(room):
    folder = room.tmpfs("nr_inodes=3")
    path = room.put(folder / "token.json")
    (folder / "last").touch()
    room.fails(path, status=1)


@place("a full tmpfs, to be saved in place", "mounts")
def full_in_place(room):
    folder = room.tmpfs()
    path = room.put(folder / "token.json")
    os.link(path, folder / "other.json")
    fill(folder)
    room.fails(path, status=1)


@place("a symlink as Kubernetes lays it")
def kubernetes(room):
    real = room.put("..2024_01_01/token.json")
    (room.folder / "..data").symlink_to("..2024_01_01")
    link = room.folder / "token.json"
    link.symlink_to("..data/token.json")
    room.renews(link, real=real)
    room.expect(os.readlink(link) == "..data/token.json", "the symlink was replaced")
    room.expect((room.folder / "..data").is_symlink(), "the folder's symlink was replaced")
    room.expect(not real.is_symlink(), "the target is a symlink")
    room.nothing_beside(real)


@place("a symlink to a place on another file system", "mounts")
def far_symlink(room):
    real = room.put(room.tmpfs() / "token.json")
    link = room.folder / "token.json"
    link.symlink_to(real)
    room.renews(link, real=real)
    room.expect(link.is_symlink(), "the symlink was replaced")


@place("hard links: both names keep seeing one file")
def hard_links(room):
    path = room.put("token.json")
    other = room.folder / "other.json"
    os.link(path, other)
    room.renews(path)
    room.expect(path.stat().st_ino == other.stat().st_ino, "they are two files now")
    room.posts += 1
    room.renews(other)
    room.expect(path.read_bytes() == other.read_bytes(), "they have two texts")


@place("a folder that is not ours with a file that is", "root")
def foreign_folder(room):
    path = room.put("theirs/token.json")
    os.chown(path, NOBODY, NOBODY)
    room.renews(path, **as_nobody())
    room.expect(path.stat().st_uid == NOBODY, "the owner changed")


@place("a foreign folder: room is made once, however many runs are killed", "root")
def killed_in_place(room):
    path = room.put("theirs/token.json")
    os.chown(path, NOBODY, NOBODY)
    # Once renewed, the document is as long as it will be, but for a digit of its tokens.
    room.renews(path, **as_nobody())
    silent = common.Silent()
    sizes = set()
    try:
        for _ in range(KILLS):
            command = [str(word) for word in refresh(silent.url, path)]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **as_nobody())
            silent.wait_for_request(process)
            process.kill()
            process.wait()
            sizes.add(path.stat().st_size)
            if len(sizes) > 1:
                break
    finally:
        silent.close()
    room.expect(len(sizes) == 1, f"sizes after {KILLS} kills: {sorted(sizes)[:4]}")
    for _ in range(2):
        room.posts += 1
        room.renews(path, **as_nobody())
        sizes.add(path.stat().st_size)
    grown = max(sizes) - min(sizes)
    room.expect(grown < 100, f"sizes after two renewals: {sorted(sizes)[:4]}")


@place("a sticky folder with another user's file that all may write", "root")
def sticky_folder(room):
    path = room.put("shared/token.json", 0o666)
    path.parent.chmod(0o1777)
    room.renews(path, **as_nobody())
    room.expect(path.stat().st_uid == 0, "the owner changed")


@place("a group's file in a folder of the group", "root")
def group_file(room):
    path = room.put("group/token.json", 0o660)
    os.chown(path, 1, NOBODY)
    os.chown(path.parent, 0, NOBODY)
    path.parent.chmod(0o2775)
    room.renews(path, **as_nobody())
    room.expect((path.stat().st_uid, path.stat().st_gid) == (1, NOBODY), "the owner changed")


@place("mode and owner kept, as root", "root")
def mode_and_owner(room):
    path = room.put("token.json", 0o640)
    os.chown(path, NOBODY, 1)
    room.renews(path)
    now = path.stat()
    kept = (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode))
    room.expect(kept == (NOBODY, 1, 0o640), f"now {kept}")


# Who may read a token file: someone whom its list names, a member of its group, a member of a
# group that the list names, and somebody else.
USERS = [(1001, 1001), (1002, 2001), (1003, 2002), (1004, 1004)]
ENTRIES = "u:1001:r--,g:2002:rw-,m::r--"


def access_list(path, *words):
    """Changes the access control list of a file or a folder."""
    done = subprocess.run(["setfacl", *words, path], capture_output=True, text=True)
    if done.returncode != 0:
        raise Skip(done.stderr.strip())


def rights(path):
    """All that says who may do what with a file."""
    command = ["getfacl", "--numeric", "--absolute-names", path]
    return subprocess.run(command, capture_output=True, text=True).stdout


def keeps_rights(room, path):
    """A renewal in which nobody gains or loses a right to the file or gains one to the journal."""
    before, able = rights(path), readers(path, USERS)
    seen = room.watches(path, USERS)
    for name, sights in seen.items():
        gained = {user for what, user in sights if what == "read"} - able
        room.expect(not gained, f"could read the {name} meanwhile: {gained}")
    room.expect(rights(path) == before, f"rights now: {rights(path)}; before: {before}")
    room.expect(readers(path, USERS) == able, f"can read it now: {readers(path, USERS)}")


@place("an access control list: kept, and nobody gains a right", "root", "lists", "thinks")
def listed(room):
    path = room.put("token.json", 0o600)
    os.chown(path, 0, 2001)
    access_list(path, "-m", ENTRIES)
    room.expect(readers(path, USERS) == {(1001, 1001), (1003, 2002)}, "the list does not count")
    keeps_rights(room, path)


@place("a list without a mask's rights: kept, and nobody gains one", "root", "lists", "thinks")
def masked(room):
    path = room.put("token.json", 0o600)
    os.chown(path, 0, 2001)
    access_list(path, "-m", "u:1001:r--,g::r--,m::---")
    keeps_rights(room, path)


@place("a folder whose default list names others: they gain nothing", "root", "lists", "thinks")
def listed_folder(room):
    path = room.put("folder/token.json", 0o640)
    os.chown(path, 0, 2001)
    access_list(path.parent, "-d", "-m", ENTRIES)
    keeps_rights(room, path)


@place("the mode says who reads: nobody else does meanwhile", "root", "lists", "thinks")
def unlisted(room):
    path = room.put("token.json", 0o640)
    os.chown(path, 0, 2001)
    keeps_rights(room, path)


@place("several names and a mode for all: the journal is for its owner", "root", "thinks")
def linked_for_all(room):
    path = room.put("token.json", 0o644)
    os.link(path, room.folder / "other.json")
    seen = room.watches(path, USERS)
    room.expect(("mode", 0o600) in seen["journal"], f"the journal: {seen['journal']}")
    able = {sight for sight in seen["journal"] if sight[0] == "read"}
    room.expect(not able, f"others could read the journal: {able}")


@place("an attribute of a user: kept")
def attributed(room):
    path = room.put("token.json")
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError as cause:
        raise Skip(str(cause)) from cause
    room.renews(path)
    room.expect(os.listxattr(path) == ["user.note"], f"attributes now: {os.listxattr(path)}")


@place("a strange umask: the mode stays")
def strange_umask(room):
    path = room.put("token.json", 0o664)
    room.renews(path, umask=0o777)
    room.expect(stat.S_IMODE(path.stat().st_mode) == 0o664, oct(path.stat().st_mode))


@place("a file name of 255 bytes")
def long_name(room):
    room.renews(room.put("n" * 250 + ".json"))


@place("a path of nearly 4,000 bytes")
def long_path(room):
    deep = room.folder
    while len(str(deep)) < 3800:
        deep /= "d" * 200
    room.renews(room.put(deep / "token.json"))


def attribute(path, flag):
    done = subprocess.run(["chattr", flag, str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Skip(done.stderr.strip())


@place("chattr +i on the file", "root", "attributes")
def immutable(room):
    path = room.put("token.json")
    attribute(path, "+i")
    room.fails(path, status=1)


@place("chattr +a on the file", "root", "attributes")
def append_only(room):
    path = room.put("token.json")
    attribute(path, "+a")
    room.fails(path, status=1)


@place("chattr +i on the folder", "root", "attributes")
def immutable_folder(room):
    path = room.put("folder/token.json")
    attribute(path.parent, "+i")
    room.renews(path)


@place("chattr +a on the folder: the journal can be made, and not renamed", "root", "attributes")
def append_only_folder(room):
    path = room.put("folder/token.json")
    attribute(path.parent, "+a")
    result = run(refresh(room.endpoint.url, path))
    state = room.endpoint.state()
    token = parse(path.read_bytes())
    room.expect(result.returncode == 0, f"{result.returncode}: {result.stderr!r}")
    room.expect(token["refresh_token"] == state["refresh_token"], "not the live refresh token")
    # The journal cannot be removed there; what it holds must not come back.
    room.posts = state["posts"]
    again = run(refresh(room.endpoint.url, path))
    room.expect(again.returncode in (0, 1), f"again: {again.returncode}: {again.stderr!r}")
    room.expect(not room.endpoint.state()["revoked"], "a used refresh token was sent")


@place("stdout full: saved, exit 6")
def stdout_full(room):
    with open("/dev/full", "wb") as disk:
        room.renews(room.put("token.json"), status=6, delivers=False, stdout=disk)


@place("stdout a closed pipe: saved, exit 0")
def stdout_pipe_closed(room):
    reader, writer = os.pipe()
    os.close(reader)
    room.renews(room.put("token.json"), delivers=False, stdout=writer)
    os.close(writer)


@place("stdout closed: saved, exit 0")
def stdout_closed(room):
    path = room.put("token.json")
    options = {"preexec_fn": lambda: os.close(1)}
    room.renews(path, delivers=False, **options)


@place("all standard files closed: saved, and no text of ours in the token file")
def all_closed(room):
    path = room.put("token.json")
    room.renews(path, delivers=False, preexec_fn=lambda: [os.close(n) for n in range(3)])
    room.expect(path.read_bytes().rstrip().endswith(b"}"), "text after the document")


@place("two different token files in one folder at once")
def two_files(room):
    second = common.Endpoint()
    try:
        first_path = room.put("one.json")
        second_path = room.folder / "two.json"
        second_path.write_bytes(common.document(second.live()))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        commands = [refresh(room.endpoint.url, first_path), refresh(second.url, second_path)]
        started = [subprocess.Popen([str(word) for word in c], **pipes) for c in commands]
        for process in started:
            _, errors = process.communicate()
            room.expect(process.returncode == 0, f"{process.returncode}: {errors!r}")
        for path, endpoint in ((first_path, room.endpoint), (second_path, second)):
            live = endpoint.state()["refresh_token"]
            room.expect(parse(path.read_bytes())["refresh_token"] == live, f"{path.name} is old")
            room.nothing_beside(path)
    finally:
        second.close()


def lacks(needs, mounts):
    """Why a place cannot be tried; None where it can."""
    if "mounts" in needs and not mounts:
        return "no mount namespace can be made here"
    if "root" in needs and os.geteuid() != 0:
        return "needs root"
    if "attributes" in needs and not shutil.which("chattr"):
        return "no chattr"
    if "lists" in needs and not shutil.which("setfacl"):
        return "no setfacl"
    return None


def enter_namespace():
    """Starts this script again in a mount namespace of its own, where one can be had."""
    if "SF_REFRESH_MOUNTS" in os.environ:
        return os.environ["SF_REFRESH_MOUNTS"] == "yes"
    ways = [["--mount"]] if os.geteuid() == 0 else [["--mount", "--map-root-user"]]
    for way in ways:
        command = ["unshare", *way, "--propagation", "private"]
        probe = [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True).returncode == 0:
            os.environ["SF_REFRESH_MOUNTS"] = "yes"
            sys.stdout.flush()
            os.execvp("unshare", [*command, sys.executable, *sys.argv])
    return False


def within_reach(tools):
    """Copies the program and the CA to where every user may read them."""
    os.chmod(tools, 0o755)
    common.PROGRAM = shutil.copy(common.PROGRAM, tools)
    common.CA = shutil.copy(common.CA, tools)
    os.chmod(common.CA, 0o644)


def try_place(tally, name, test, endpoint):
    """One place, in a folder of its own."""
    room = Room(endpoint)
    try:
        test(room)
        tally.check(name, room.wrong)
    except Skip as reason:
        tally.skip(name, reason)
    except OSError as unexpected:
        tally.check(name, [*room.wrong, f"{type(unexpected).__name__}: {unexpected}"])
    finally:
        room.close()


def main(arguments):
    wanted = [word for word in arguments if not word.startswith("-")]
    mounts = enter_namespace()
    tally = common.Tally()
    with contextlib.ExitStack() as stack:
        within_reach(stack.enter_context(tempfile.TemporaryDirectory()))
        quick, thinking = common.Endpoint(), common.Endpoint("--delay", THINKS)
        for endpoint in (quick, thinking):
            stack.callback(endpoint.close)
        for name, needs, test in PLACES:
            reason = lacks(needs, mounts)
            if wanted and not any(word in name for word in wanted):
                continue
            if reason:
                tally.skip(name, reason)
            else:
                try_place(tally, name, test, thinking if "thinks" in needs else quick)
    return tally.finish("places")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
