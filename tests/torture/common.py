"""What the torture scripts share: the program, the test endpoint, and a tally of results."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
CA = HERE.parent / "certs" / "ca.pem"
CLIENT_ID = "3MVG9.test_client-id"
PROGRAM = os.environ.get("SF_REFRESH", "")
STAND_IN = os.environ.get("STAND_IN", "")
# How long a run may take before it counts as hanging; nothing is decided by less.
WATCHDOG = 60
# Cases at a time: each spends its life waiting.
CROWD = 8

if not PROGRAM or not STAND_IN:
    sys.exit("SF_REFRESH and STAND_IN name the programs: start run.sh")


class Endpoint:
    """A strict, rotating token endpoint, and the grant that is live there."""

    def __init__(self, *options):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sf-refresh-endpoint-"))
        self.options = [str(option) for option in options]
        self.process = None
        self.start()

    def start(self):
        """Starts it, or starts it again with a new grant."""
        self.stop()
        state = self.folder / "state.json"
        command = [STAND_IN, "--strict", "--rotate", "--state", state, *self.options]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.split(":")[2].split("/")[0])
        # Main thread and accepting thread; each connection has one more.
        self.wait_for_threads()

    def stop(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        self.process = None

    def close(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait_for_threads(self):
        """Waits until no connection is being served."""
        while len(os.listdir(f"/proc/{self.process.pid}/task")) > 2:
            time.sleep(0.0005)

    def state(self):
        """The live tokens and the counts, once everything that was sent has been processed."""
        # Connections are accepted in turn: when this one has been answered, so have those before
        # it been accepted, and each has a thread until it ends.
        with socket.create_connection(("127.0.0.1", self.port)) as probe:
            try:
                probe.sendall(b"no request\r\n\r\n")
                while probe.recv(4096):
                    pass
            except OSError:
                pass
        self.wait_for_threads()
        return json.loads((self.folder / "state.json").read_text())

    def live(self):
        """The refresh token that works now; where the grant is revoked, that of a new one."""
        state = self.state()
        if state["revoked"] or state["refresh_token"] is None:
            self.start()
            state = self.state()
        return state["refresh_token"]


class Silent:
    """An endpoint that takes requests and never answers."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/services/oauth2/token"
        self.connections = []

    def wait_for_request(self, process):
        """Waits until a run has sent its refresh token; an error where the run ended before."""
        self.listener.settimeout(0.1)
        while process.poll() is None:
            with contextlib.suppress(TimeoutError):
                self.connections.append(self.listener.accept()[0])
                break
        else:
            raise ConnectionError(f"status {process.returncode}, and no request")
        connection = self.connections[-1]
        connection.settimeout(WATCHDOG)
        request = b""
        while b"refresh_token=" not in request:
            received = connection.recv(4096)
            if not received:
                raise ConnectionError(f"no refresh token in the request: {request!r}")
            request += received

    def close(self):
        for connection in [*self.connections, self.listener]:
            connection.close()


def document(refresh_token, indent=12, note="kept \u00e9"):
    """A token file as another program might have written it, longer than what replaces it."""
    members = {
        "access_token": "00Dxx0000001gPL!AT-old",
        "refresh_token": refresh_token,
        "instance_url": "https://example.my.salesforce.com",
        "note": note,
        "issued_at": "1",
        "numbers": [1.50, 1e3],
    }
    return (json.dumps(members, indent=indent) + "\n").encode()


def parse(data):
    """The token document in these bytes; None where they hold none, or are None."""
    try:
        token = json.loads(data or b"")
    except ValueError:
        return None
    usable = isinstance(token, dict) and isinstance(token.get("refresh_token"), str)
    return token if usable and token["refresh_token"] else None


def contents(path):
    """The bytes of a file; None where there is none."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def journal_of(path):
    return path.with_name(f".{path.name}.sf-refresh")


def rescued_files(*folders):
    """The documents in these folders that runs could not save elsewhere."""
    return [path for folder in folders for path in folder.glob("sf-refresh-rescued-*")]


def run(command, input=b"", **options):
    """Runs a command to its end, with this on its stdin; its status is None where it hangs."""
    command = [str(word) for word in command]
    streams = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    options = {"env": {"PATH": os.environ["PATH"]}, **streams, **options}
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        output, errors = process.communicate(input, timeout=WATCHDOG)
        status = process.returncode
    except subprocess.TimeoutExpired:
        # strace would leave behind what it watches.
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        status = None
    return subprocess.CompletedProcess(command, status, output, errors)


def refresh(url, *words, retry=0):
    """The command line that renews token files there, with these options."""
    return [PROGRAM, "-i", CLIENT_ID, "-e", url, "--ca-cert", CA, "--retry", retry, *words]


class Tally:
    """Counts what passed, and tells what did not."""

    def __init__(self):
        self.passed = 0
        self.failed = 0
        self.skipped = 0

    def check(self, name, wrong):
        """A test by its name, and a list of what was wrong."""
        if wrong:
            self.failed += 1
            print(f"FAILED: {name}")
            for line in wrong:
                print(f"    {line}")
        else:
            self.passed += 1
        sys.stdout.flush()

    def skip(self, name, reason):
        self.skipped += 1
        print(f"skipped: {name} ({reason})")

    def finish(self, what):
        """The closing line; the status of the script."""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        print(f"{what}: {self.passed} passed, {self.failed} failed{skipped}")
        return 1 if self.failed else 0


def judge_all(what, figures, judge, cases):
    """Judges each of these cases, some at a time; tells the figures, and gives the status."""
    with concurrent.futures.ThreadPoolExecutor(CROWD) as pool:
        for _ in pool.map(judge, cases):
            pass
    figures.report()
    return figures.tally.finish(what)
