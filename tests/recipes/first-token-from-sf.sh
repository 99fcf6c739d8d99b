#!/bin/sh
# Makes the first token file from a login of the sf CLI, called ALIAS: sf org login web --alias ALIAS.
# Later runs: sf-refresh --client-id PlatformCLI token.json.
# The logout sends nothing. Without it sf keeps a copy, and with rotation whoever refreshes second
# kills the grant.
set -eu
NO_COLOR=1 sf org auth show-sfdx-auth-url --target-org ALIAS --json |
    sf-refresh --output none --sfdx-url-file - token.json
sf org logout --target-org ALIAS --no-prompt
