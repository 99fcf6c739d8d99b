"""A rotating token endpoint inside the test: it thinks as a test wants, and logs who sent what."""

import http.server
import json
import secrets
import threading
import time
import urllib.parse


class Family:
    """What one login started: its refresh tokens, of which one is live."""

    def __init__(self, number):
        self.number = number
        self.count = 0
        self.revoked = False
        self.next()

    def next(self):
        """Makes the next pair of tokens; gives the reply that brings them."""
        name = f"F{self.number}-T{self.count}-{secrets.token_hex(6)}"
        self.count += 1
        self.live = f"5Aep-{name}"
        return {
            "access_token": f"00Dxx0000001gPL!AT-{name}",
            "refresh_token": self.live,
            "instance_url": "https://example.my.salesforce.com",
            "token_type": "Bearer",
            "issued_at": str(time.time_ns() // 1_000_000),
        }


class Post:
    """One request: who sent which token, when it was here whole, and what came of it."""

    def __init__(self, who, token):
        self.who = who
        self.token = token
        self.arrived = time.time()
        self.processed = self.given = self.family = None
        self.is_replay = False
        self.done = None


class Endpoint:
    """Grants each refresh token once. A token that comes again revokes its family.

    `before`, `after` and `halfway` are called with the post: before it is processed, between
    that and the answer, and between the two halves of the answer. The endpoint waits for them.
    Where `before` gives a status, that is the answer, with a long Retry-After.
    """

    def __init__(self, before=None, after=None, halfway=None):
        nothing = lambda post: None
        self.before, self.after = before or nothing, after or nothing
        self.halfway = halfway or nothing
        self.lock = threading.Lock()
        self.families = []
        self.owners = {}
        self.posts = []
        handler = type("Handler", (Handler,), {"endpoint": self})
        self.server = Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/oauth2/token"
        # The default poll would hold up each close by half a second.
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def login(self):
        """Starts a family, and gives its first refresh token."""
        with self.lock:
            family = Family(len(self.families))
            self.families.append(family)
            self.owners[family.live] = family
            return family.live

    def ask(self, who, token):
        """Answers one request: the post, the status and the members of the answer."""
        post = Post(who, token)
        with self.lock:
            self.posts.append(post)
        busy = self.before(post)
        status, answer = (busy, {}) if busy else self.process(post)
        self.after(post)
        return post, status, answer

    def process(self, post):
        refused = {"error": "invalid_grant", "error_description": "expired access/refresh token"}
        with self.lock:
            post.processed = time.time()
            post.family = family = self.owners.get(post.token)
            if family is None or family.revoked:
                return 400, refused
            if post.token != family.live:
                post.is_replay = family.revoked = True
                return 400, refused
            answer = family.next()
            post.given = family.live
            self.owners[family.live] = family
            return 200, answer

    def replays(self):
        return [post for post in self.posts if post.is_replay]


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """A client that was killed is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        length = self.headers["Content-Length"]
        if length is None:
            self.send_error(411)
            return
        form = self.rfile.read(int(length))
        if len(form) < int(length):
            return
        fields = dict(urllib.parse.parse_qsl(form.decode()))
        who, token = fields.get("run", "run"), fields.get("refresh_token", "")
        post, status, answer = self.endpoint.ask(who, token)
        try:
            self.answer(post, status, json.dumps(answer).encode())
        finally:
            post.done = time.time()

    def answer(self, post, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        if status == 503:
            self.send_header("Retry-After", "300")
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.endpoint.halfway(post)
        self.wfile.write(body[half:])

    def log_message(self, *words):
        pass
