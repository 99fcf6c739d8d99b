"""Many runs at once on one token file, and holders of the lock that do not let go."""

import fcntl
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import common
from common import parse, refresh, run

CROWD = 32


def start(command):
    words = [str(word) for word in command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ends(processes):
    """Waits for all of them; what went wrong with each that failed, and all that stdout got."""
    wrong, outputs = [], set()
    for process in processes:
        try:
            output, errors = process.communicate(timeout=common.WATCHDOG)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            errors += b" (did not end)"
        outputs.add(output)
        if process.returncode != 0:
            wrong.append(f"status {process.returncode}: {errors!r}")
    return wrong, outputs


def judge(endpoint, path, before, most):
    """After a crowd: no replay, at most so many requests, and the file has the live token."""
    state = endpoint.state()
    posts = state["posts"] - before["posts"]
    wrong = []
    if state["replays"] or state["revoked"]:
        wrong.append("a used refresh token was sent")
    if not 1 <= posts <= most:
        wrong.append(f"{posts} requests, at most {most} are allowed")
    if posts != state["grants"] - before["grants"]:
        wrong.append(f"{posts} requests, and not as many grants")
    token = parse(path.read_bytes())
    if not token or token["refresh_token"] != state["refresh_token"]:
        wrong.append("the file has not the live refresh token")
    left = {entry.name for entry in path.parent.glob(".*")}
    if left:
        wrong.append(f"left beside the file: {left}")
    return wrong


def crowd(tally, name, options, most, names=("token.json",)):
    """Starts the crowd, on one file by these names in turn."""
    endpoint = common.Endpoint(*options)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sf-refresh-crowd-"))
    try:
        path = folder / names[0]
        path.write_bytes(common.document(endpoint.live()))
        for other in names[1:]:
            os.link(path, folder / other)
        before = endpoint.state()
        command = [[*refresh(endpoint.url, folder / names[i % len(names)])] for i in range(CROWD)]
        wrong, outputs = ends([start(words) for words in command])
        wrong += judge(endpoint, path, before, most)
        posts = endpoint.state()["posts"] - before["posts"]
        if not all(output.startswith(b"00Dxx0000001gPL!AT-") for output in outputs):
            wrong.append("a run printed no access token")
        tally.check(f"{name}: {CROWD} runs, {posts} requests", wrong)
        print(f"{name}: {CROWD} runs, {posts} requests")
    finally:
        endpoint.close()
        shutil.rmtree(folder)


class Silent:
    """An endpoint that accepts and never answers."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/services/oauth2/token"

    def wait_for_request(self):
        """Waits until a run has sent its request, and so holds the lock."""
        self.listener.settimeout(common.WATCHDOG)
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(common.WATCHDOG)
        self.connection.recv(1)

    def close(self):
        self.connection.close()
        self.listener.close()


def stubborn_holder(tally, endpoint, path):
    """A holder that never lets go: exit 4 within the time-out, nothing sent."""
    path.write_bytes(common.document(endpoint.live()))
    before, data = endpoint.state(), path.read_bytes()
    with open(path, "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        began = time.monotonic()
        result = run(refresh(endpoint.url, "--timeout", "1", path))
        took = time.monotonic() - began
    wrong = [] if result.returncode == 4 else [f"{result.returncode}: {result.stderr!r}"]
    # The time-out decides; the limit here is one of another order.
    if not 1 <= took < common.WATCHDOG / 2:
        wrong.append(f"it took {took:.1f} s")
    if endpoint.state()["posts"] != before["posts"] or b"nothing was sent" not in result.stderr:
        wrong.append(f"something was sent, or not said: {result.stderr!r}")
    if path.read_bytes() != data:
        wrong.append("the file was changed")
    tally.check("a holder that never lets go", wrong)


def killed_holder(tally, endpoint, path, waiting):
    """A holder that is killed frees the lock: those who wait go on, with one request for all."""
    path.write_bytes(common.document(endpoint.live()))
    before = endpoint.state()
    silent = Silent()
    holder = start(refresh(silent.url, path))
    try:
        silent.wait_for_request()
        crowd_of = [start(refresh(endpoint.url, path)) for _ in range(waiting)]
        holder.kill()
        holder.communicate()
        wrong, _ = ends(crowd_of or [start(refresh(endpoint.url, path))])
    finally:
        silent.close()
    wrong += judge(endpoint, path, before, max(waiting, 1))
    tally.check(f"a holder that is killed while {waiting} wait", wrong)


def main(arguments):
    quick = "--quick" in arguments
    tally = common.Tally()
    slow = ("--delay", "250")
    for _ in range(1 if quick else 5):
        crowd(tally, "fast endpoint", (), CROWD)
        crowd(tally, "fast endpoint, two names of one file", (), CROWD, ("a.json", "b.json"))
    crowd(tally, "slow endpoint", slow, 3)
    crowd(tally, "slow endpoint, over TLS", ("--tls", "server", *slow), 3)
    crowd(tally, "slow endpoint, two names of one file", slow, 3, ("a.json", "b.json"))
    crowd(tally, "slow endpoint that refuses parallel requests", (*slow, "--refuse-parallel"), 3)
    endpoint = common.Endpoint()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sf-refresh-holder-"))
    try:
        stubborn_holder(tally, endpoint, folder / "token.json")
        killed_holder(tally, endpoint, folder / "token.json", 0)
        killed_holder(tally, endpoint, folder / "token.json", 8)
    finally:
        endpoint.close()
        shutil.rmtree(folder)
    return tally.finish("crowd")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
