"""What a user writes with requests-oauthlib. Arguments: endpoint, PEM roots, token file."""

import json
import os
import sys

from requests_oauthlib import OAuth2Session

endpoint, roots, path = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    token = json.load(file)
session = OAuth2Session("CONSUMER_KEY", token=token)
token |= session.refresh_token(endpoint, client_id="CONSUMER_KEY", verify=roots)
with open(path + ".new", "w", encoding="utf-8") as file:
    json.dump(token, file, indent=2)
os.replace(path + ".new", path)
print(token["access_token"])
