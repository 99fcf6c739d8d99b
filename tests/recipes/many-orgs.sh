#!/bin/sh
# Renews each orgs/*.json in turn, over one connection; one that fails does not stop the rest.
set -eu
sf-refresh --quiet --output none --client-id CONSUMER_KEY orgs/*.json
