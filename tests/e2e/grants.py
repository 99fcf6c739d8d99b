"""A token endpoint by Authlib that takes assertions (RFC 7523) of the client `job`, for the user
`user`. Arguments: the port of 127.0.0.1, the PEM file with certificate and key, and the file with
the client's public key.
"""

import sys

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin
from authlib.oauth2.rfc7523 import JWTBearerGrant
from flask import Flask

port, pem, key_file = sys.argv[1:]
endpoint = f"https://localhost:{port}/token"
with open(key_file, encoding="ascii") as file:
    public_key = file.read()


class Client(ClientMixin):
    """The only client."""

    def get_allowed_scope(self, scope):
        return scope or ""

    def check_grant_type(self, grant_type):
        return True


class Assertion(JWTBearerGrant):
    """The grant, with what the server knows of its clients and users."""

    def get_audiences(self):
        return [endpoint]

    def resolve_issuer_client(self, issuer):
        return Client() if issuer == "job" else None

    def resolve_client_public_key(self, client):
        return public_key

    def authenticate_user(self, subject):
        return subject if subject == "user" else None

    def has_granted_permission(self, client, user):
        return True


app = Flask(__name__)
server = AuthorizationServer(app, query_client=lambda _: Client(), save_token=lambda *_: None)
server.register_grant(Assertion)


@app.post("/token")
def token():
    return server.create_token_response()


app.run("127.0.0.1", int(port), ssl_context=(pem, pem))
