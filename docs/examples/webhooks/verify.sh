#!/usr/bin/env bash
# Verify a webhook of K1.Node with bash and openssl, for trying things out: the body on standard input, the secret in
# WEBHOOK_SECRET, the headers webhook-id, webhook-timestamp and webhook-signature as the three arguments. Ends with 0 if
# the message is to be trusted. Other users of the machine can see openssl's arguments while it runs, and the key in them.
set -euo pipefail

id=$1 timestamp=$2 signatures=$3 tolerance=300

fail() { echo "$1" >&2; exit 1; }

[[ $timestamp =~ ^[0-9]{1,12}$ ]] || fail "The timestamp is not a number of seconds"
age=$(($(date +%s) - 10#$timestamp))
((age <= tolerance && age >= -tolerance)) || fail "Too old, or from the future: look at both clocks"

hex=$(printf %s "${WEBHOOK_SECRET#whsec_}" | base64 -d | od -An -v -tx1 | tr -d ' \n')
expected=v1,$({ printf '%s.%s.' "$id" "$timestamp"; cat; } | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$hex" -binary | base64)

# Digests under a random key: how long it takes to compare them says nothing about what they are of.
salt=$(openssl rand -hex 16)
digest() { printf %s "$1" | openssl dgst -sha256 -hmac "$salt"; }
wanted=$(digest "$expected")
for signature in $signatures; do  # one for each secret, while it is rotated
  [[ $(digest "$signature") == "$wanted" ]] && exit 0
done
fail "The signature is not K1.Node's"
