"""requests-oauthlib at work on a token file.

Arguments: ACTION, the issuer, and the file. `renew`: renews the token by the library and writes the
file. `use`: asks the server who the user is, by the library's session, which refuses an expired
token. `age`: makes the file an hour and more older, as it lies on the disk, and then as `use`.
"""

import json
import sys

from oauthlib.oauth2 import TokenExpiredError
from requests_oauthlib import OAuth2Session


def main():
    action, issuer, path = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        token = json.load(file)
    if action == "renew":
        session = OAuth2Session("public", token=token)
        token = session.refresh_token(f"{issuer}/token", client_id="public")
        save(path, token)
        print("renewed")
        return
    if action == "age":
        token["expires_at"] -= 4000
        save(path, token)
    try:
        user = OAuth2Session("public", token=token).get(f"{issuer}/me").json()["sub"]
        print(f"valid: {user}")
    except TokenExpiredError:
        print("expired")


def save(path, token):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(token, file, indent=2)


main()
