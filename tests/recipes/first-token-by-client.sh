#!/bin/sh
# Makes a token file without any refresh token, and renews it: nothing can be lost. The app allows
# the client credentials flow, and its secret is in the file client-secret.
set -eu
sf-refresh --output none --endpoint https://MyDomain.my.salesforce.com --client-id CONSUMER_KEY \
    --client-secret-file client-secret --grant-type client_credentials token.json
