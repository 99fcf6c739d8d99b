#!/bin/sh
# Renews the token document in a Kubernetes Secret, one run at a time. If the renewal fails, the
# Secret stays as it is. With rotation too.
set -eu
kubectl auth can-i patch secret/salesforce
# From here on a stop waits until the Secret is written.
trap '' HUP INT TERM
umask 077
document=$(kubectl get secret salesforce --output 'jsonpath={.data.token\.json}' |
    base64 -d | sf-refresh --client-id CONSUMER_KEY -)
printf '%s\n' "$document" |
    kubectl create secret generic salesforce --from-file token.json=/dev/stdin \
        --dry-run=client --output yaml |
    kubectl apply --filename - || {
    # With rotation this is the only copy of the grant.
    printf '%s\n' "$document" >rescued-token.json
    echo "the Secret could not be written; the new token document is in rescued-token.json" >&2
    exit 1
}
