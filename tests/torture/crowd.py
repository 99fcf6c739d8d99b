"""Many runs at once on one token file, and holders of the lock that do not let go."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import common
from common import parse, refresh, run

CROWD = 32
# How long an endpoint thinks that takes longer than what is left of a time-out, in milliseconds.
LONG = 600


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


def late_holder(tally, endpoint, path):
    """A holder that lets go just before the time-out: there is time anew for the answer."""
    path.write_bytes(common.document(endpoint.live()))
    timeout, left = 2, 0.3
    for _ in range(10):
        with open(path, "rb") as holder:
            fcntl.flock(holder, fcntl.LOCK_EX)
            began = time.monotonic()
            process = start(refresh(endpoint.url, "--timeout", timeout, path))
            time.sleep(timeout - left)
        in_time = time.monotonic() - began < timeout - left / 2
        wrong, _ = ends([process])
        # Where this machine was too busy to let go in time, the run is right to give up.
        if in_time or not wrong:
            break
    token = parse(path.read_bytes())
    if token["refresh_token"] != endpoint.state()["refresh_token"]:
        wrong.append("the file has not the live refresh token")
    tally.check("a holder that lets go 0.3 s before the time-out", wrong)


def killed_holder(tally, endpoint, path, waiting):
    """A holder that is killed frees the lock: those who wait go on, with one request for all."""
    path.write_bytes(common.document(endpoint.live()))
    before = endpoint.state()
    silent = common.Silent()
    holder = start(refresh(silent.url, path))
    try:
        silent.wait_for_request(holder)
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
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sf-refresh-holder-"))
        path = pathlib.Path(folder) / "token.json"
        endpoint, thinking = common.Endpoint(), common.Endpoint("--delay", LONG)
        stack.callback(endpoint.close)
        stack.callback(thinking.close)
        stubborn_holder(tally, endpoint, path)
        late_holder(tally, thinking, path)
        killed_holder(tally, endpoint, path, 0)
        killed_holder(tally, endpoint, path, 8)
    return tally.finish("crowd")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
