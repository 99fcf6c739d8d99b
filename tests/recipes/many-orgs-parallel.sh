#!/bin/sh
# Renews each orgs/*.json, eight runs at a time with up to 25 files each.
set -eu
printf '%s\0' orgs/*.json |
    xargs -0 -n 25 -P 8 sf-refresh --quiet --output none --client-id CONSUMER_KEY
