"""An API that wants a token, for the recipes that call one: api.py PORT_FILE LOG.

Answers with the path, or with 401 where there is no bearer token, and writes each
request's path and Authorization header to LOG. Listens on a free port of 127.0.0.1.
"""

import http.server
import os
import sys

PORT_FILE, LOG = sys.argv[1:]


class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        authorization = self.headers.get("Authorization", "")
        with open(LOG, "a") as log:
            log.write(f"{self.path} {authorization}\n")
        known = authorization.startswith("Bearer ")
        body = f'{{"path": "{self.path}"}}\n'.encode() if known else b""
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
with open(PORT_FILE + ".part", "w") as file:
    file.write(f"{server.server_port}\n")
os.rename(PORT_FILE + ".part", PORT_FILE)
server.serve_forever()
