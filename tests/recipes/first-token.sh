#!/bin/sh
# Makes the first token file from a login of the sf CLI; from then on sf is not needed.
set -eu
SFDX_AUTH_URL=$(sf org display --verbose --json | sed -n 's/.*"sfdxAuthUrl": *"\([^"]*\)".*/\1/p')
export SFDX_AUTH_URL
sf-refresh --output none token.json
