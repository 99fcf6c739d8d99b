"""The services that recipes talk to beside the token endpoint: api.py PORT_FILE FOLDER.

Listens on a free port of 127.0.0.1, and writes each request's path and Authorization header to
FOLDER/api.log. It is
- an API that wants a token: it answers with the path, or with 401 if there is no bearer token;
- a login with PKCE: /services/oauth2/authorize sends the browser on with a code, and a POST of code
  and verifier gets the tokens in FOLDER/login.json;
- GitLab's variables: a PUT writes FOLDER/variable, unless FOLDER/refuse-write is there.
"""

import base64
import hashlib
import http.server
import os
import sys
import urllib.parse

PORT_FILE, FOLDER = sys.argv[1:]
CODE = "aPrxCodeOfTheTests=="


class Api(http.server.BaseHTTPRequestHandler):
    challenged = {}

    def do_GET(self):
        if self.path.startswith("/services/oauth2/authorize?"):
            return self.authorize()
        known = self.headers.get("Authorization", "").startswith("Bearer ")
        self.answer(200 if known else 401, f'{{"path": "{self.path}"}}\n' if known else "")

    def authorize(self):
        query = dict(urllib.parse.parse_qsl(self.path.partition("?")[2]))
        asked = query.pop("response_type"), query.pop("code_challenge_method")
        if asked != ("code", "S256"):
            return self.answer(400)
        Api.challenged = query
        self.answer(302, location=f"{query['redirect_uri']}?code={urllib.parse.quote(CODE)}&state=")

    def do_POST(self):
        form = dict(urllib.parse.parse_qsl(self.body().decode()))
        verifier = form.pop("code_verifier", "")
        digest = hashlib.sha256(verifier.encode()).digest()
        form["code_challenge"] = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        wanted = {"grant_type": "authorization_code", "code": CODE, **Api.challenged}
        if form != wanted or not 43 <= len(verifier) <= 128:
            return self.answer(400, '{"error": "invalid_grant"}')
        with open(f"{FOLDER}/login.json") as file:
            self.answer(200, file.read())

    def do_PUT(self):
        value = self.body().split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
        if os.path.exists(f"{FOLDER}/refuse-write") or self.headers["PRIVATE-TOKEN"] != "glpat-1":
            return self.answer(403)
        with open(f"{FOLDER}/variable", "wb") as file:
            file.write(value)
        self.answer(200, "{}")

    def body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, status, body="", location=""):
        with open(f"{FOLDER}/api.log", "a") as log:
            log.write(f"{self.path} {self.headers.get('Authorization', '')}\n")
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
with open(PORT_FILE + ".part", "w") as file:
    file.write(f"{server.server_port}\n")
os.rename(PORT_FILE + ".part", PORT_FILE)
server.serve_forever()
