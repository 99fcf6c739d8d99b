"""A small Salesforce for tests: one org behind login.salesforce.com and its My Domain, over TLS.

Arguments: the port of 127.0.0.1, the PEM file with certificate and key, and a folder.
The folder's `log` gets a line for each request: method, host, path, status, and what was asked for.
While the folder holds a file `rotation`, each renewal ends the refresh token that it was made with.
Whoever sends a token that has ended loses the whole grant, access tokens included, as in an org
with Refresh Token Rotation.
"""

import base64
import hashlib
import json
import os
import secrets
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

MY_DOMAIN = "mydomain.my.salesforce.com"
ORG, USER = "00Dxx0000001gPLEAY", "005xx000001SwiUAAS"
USERNAME = "user@example.com"
FIRST_REFRESH_TOKEN = "5Aep861FirstRefreshToken.OfTheTests"
API_VERSIONS = ("51.0", "64.0")


class Grant:
    """What one login gave: its refresh tokens and access tokens that are alive."""

    def __init__(self, refresh_token=None):
        self.live = {refresh_token or f"5Aep861{secrets.token_urlsafe(24)}"}
        self.dead = set()
        self.access_tokens = set()


class Org:
    """All logins of the org. Its lock is held for a whole request."""

    def __init__(self, folder):
        self.folder = folder
        self.lock = threading.Lock()
        self.grants = [Grant(FIRST_REFRESH_TOKEN)]
        self.codes = {}

    def token(self, form):
        """The token endpoint's status and reply to a form."""
        if form.get("grant_type") == "authorization_code":
            challenge = self.codes.pop(form.get("code"), None)
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            if challenge != base64.urlsafe_b64encode(digest).rstrip(b"=").decode():
                return refused("invalid_grant", "invalid authorization code")
            grant = Grant()
            self.grants.append(grant)
            return 200, self.reply(grant, *grant.live)
        if form.get("grant_type") != "refresh_token":
            return refused("unsupported_grant_type", "grant type not supported")
        if form.get("client_id") != "PlatformCLI":
            return refused("invalid_client_id", "client identifier invalid")
        sent = form.get("refresh_token")
        for grant in self.grants:
            if sent in grant.live:
                return 200, self.renewal(grant, sent)
            if sent in grant.dead:
                self.grants.remove(grant)
        return refused("invalid_grant", "expired access/refresh token")

    def renewal(self, grant, sent):
        """The reply to a live refresh token; with rotation it is dead from now on."""
        if not os.path.exists(f"{self.folder}/rotation"):
            return self.reply(grant)
        grant.live.remove(sent)
        grant.dead.add(sent)
        new = f"5Aep861{secrets.token_urlsafe(24)}"
        grant.live.add(new)
        return self.reply(grant, new)

    def reply(self, grant, refresh_token=None):
        """A reply with a new access token."""
        access_token = f"{ORG[:15]}!AQ4AQ{secrets.token_urlsafe(32)}"
        grant.access_tokens.add(access_token)
        reply = {"access_token": access_token}
        if refresh_token:
            reply["refresh_token"] = refresh_token
        return reply | {
            "signature": base64.b64encode(secrets.token_bytes(32)).decode(),
            "scope": "refresh_token web api",
            "instance_url": f"https://{MY_DOMAIN}",
            "id": f"https://login.salesforce.com/id/{ORG}/{USER}",
            "token_type": "Bearer",
            "issued_at": str(int(time.time() * 1000)),
        }

    def revoke(self, token):
        """Ends the grant that a token belongs to; whether there was one."""
        for grant in self.grants:
            if token in grant.live | grant.access_tokens:
                self.grants.remove(grant)
                return True
        return False

    def accepts(self, access_token):
        """Whether an access token is alive."""
        return any(access_token in grant.access_tokens for grant in self.grants)


def refused(error, description):
    """The status and reply of the token endpoint to a request that it does not grant."""
    return 400, {"error": error, "error_description": description}


def data(path, query):
    """The status and reply of the data API to a request that is authorized."""
    parts = path.strip("/").split("/")[3:]
    if parts[:2] == ["sobjects", "User"]:
        return 200, {"Id": USER, "Username": USERNAME}
    if parts == ["limits"]:
        return 200, {"DailyApiRequests": {"Max": 15000, "Remaining": 14998}}
    if not parts:
        return 200, {"query": f"{path}/query"}
    if parts[-1] == "query":
        if "columns" in query:
            return 200, {"columnMetadata": []}
        return select(query.get("q", ""))
    return 404, [{"errorCode": "NOT_FOUND", "message": "The requested resource does not exist"}]


def select(soql):
    """The reply to a query: one record of the object that it asks for."""
    records = {
        "Organization": {
            "Id": ORG, "Name": "Tests", "InstanceName": "NA1", "IsSandbox": False,
            "TrialExpirationDate": None, "NamespacePrefix": None,
            "OrganizationType": "Enterprise Edition",
        },
        "User": {"Id": USER, "Username": USERNAME},
        "Account": {"Id": "001xx000003DGb2AAG", "Name": "Acme"},
    }
    words = soql.split()
    name = words[[word.lower() for word in words].index("from") + 1]
    if name not in records:
        message = f"sObject type '{name}' is not supported."
        return 400, [{"errorCode": "INVALID_TYPE", "message": message}]
    record = {"attributes": {"type": name, "url": "/"}} | records[name]
    return 200, {"totalSize": 1, "done": True, "records": [record]}


def fields(form):
    """The fields of a form or a query, each once."""
    return {name: values[0] for name, values in parse_qs(form).items()}


class Handler(BaseHTTPRequestHandler):
    """One request; everything that it knows is in `org`."""

    protocol_version = "HTTP/1.1"
    org = None

    def do_GET(self):
        url = urlsplit(self.path)
        query = fields(url.query)
        with self.org.lock:
            self.get(url.path.rstrip("/"), query)

    def get(self, path, query):
        if path == "/services/oauth2/authorize":
            code = secrets.token_urlsafe(24)
            self.org.codes[code] = query.get("code_challenge")
            answer = urlencode({"code": code, "state": query.get("state", "")})
            self.answer(302, {}, location=f"{query['redirect_uri']}?{answer}")
        elif path == "/services/data":
            self.answer(200, [
                {"label": version, "url": f"/services/data/v{version}", "version": version}
                for version in API_VERSIONS])
        elif not self.org.accepts(self.headers.get("Authorization", "").removeprefix("Bearer ")):
            message = "Session expired or invalid"
            self.answer(401, [{"errorCode": "INVALID_SESSION_ID", "message": message}])
        elif path == "/services/oauth2/userinfo" or path.startswith("/id/"):
            self.answer(200, {
                "sub": f"https://login.salesforce.com/id/{ORG}/{USER}", "user_id": USER,
                "organization_id": ORG, "preferred_username": USERNAME, "username": USERNAME})
        else:
            self.answer(*data(path, query), asked=query.get("q", ""))

    def do_POST(self):
        form = fields(self.body().decode())
        path = urlsplit(self.path).path
        with self.org.lock:
            if path == "/services/oauth2/token":
                self.answer(*self.org.token(form), asked=form.get("grant_type", ""))
            elif path == "/services/oauth2/revoke":
                self.answer(200 if self.org.revoke(form.get("token")) else 400, {})
            else:
                self.answer(404, {})

    def body(self):
        """The body of the request; jsforce sends it in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status, value, asked="", location=None):
        """Sends a reply as JSON, after its line is in the log."""
        host = self.headers.get("Host", "").partition(":")[0]
        with open(f"{self.org.folder}/log", "a", encoding="utf-8") as log:
            print(self.command, host, urlsplit(self.path).path, status, asked, file=log)
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json;charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    port, pem, folder = sys.argv[1:]
    Handler.org = Org(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.daemon_threads = True
    # Each connection's own thread shakes hands, so that one that is silent holds up no other.
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
