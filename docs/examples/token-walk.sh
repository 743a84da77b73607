#!/usr/bin/env bash
# From a key to a JWT, to the next one, to its end. Needs bash, curl and python3.
#
#   K1NODE_KEY=sk-k1n_… docs/examples/token-walk.sh
#
# K1NODE_API says where the node is (default: http://localhost:3000/api/v2). The key needs scheduler:read.
# It ends with 0 if every step went as it should, else with 1 at the first that did not.
set -euo pipefail

API=${K1NODE_API:-http://localhost:3000/api/v2}
: "${K1NODE_KEY:?Set K1NODE_KEY to an API key: manage.py createapikey walk --scope scheduler:read}"

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

# call EXPECTED_STATUS CREDENTIAL METHOD PATH [BODY]: makes a request and keeps its answer.
# Credentials go through standard input, for a command line can be read by everybody on the machine.
call() {
    local expected=$1 credential=$2 method=$3 path=$4 body=${5:-} status
    status=$(
        {
            [ -z "$credential" ] || printf 'header = "Authorization: Bearer %s"\n' "$credential"
            [ -z "$body" ] || printf 'header = "Content-Type: application/json"\ndata = "%s"\n' "${body//\"/\\\"}"
        } | curl --config - --silent --show-error --request "$method" --output "$answer" --write-out '%{http_code}' \
            "$API$path"
    )
    printf '%-4s %-14s -> %s\n' "$method" "$path" "$status"
    if [ "$status" != "$expected" ]; then
        printf 'expected %s, the answer was: %s\n' "$expected" "$(cat "$answer")" >&2
        exit 1
    fi
}

# field NAME: prints one field of the last answer.
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$answer" "$1"; }

echo '1. The key signs in, for no more than it needs'
call 200 "$K1NODE_KEY" POST /auth/token '{"scope": "scheduler:read"}'
access=$(field access_token) refresh=$(field refresh_token)
echo "   good for $(field expires_in) s: $(field scope)"

echo '2. The JWT reads the queue'
call 200 "$access" GET /scheduler/queue

echo '3. Before it ends, the refresh token gives the next two'
call 200 '' POST /auth/refresh "{\"refresh_token\": \"$refresh\"}"
next_access=$(field access_token) next_refresh=$(field refresh_token)
call 200 "$next_access" GET /scheduler/queue

echo '4. One access token is revoked, the other goes on'
call 200 '' POST /auth/revoke "{\"token\": \"$access\"}"
call 401 "$access" GET /scheduler/queue
call 200 "$next_access" GET /scheduler/queue

echo '5. A refresh token that comes a second time was copied: all that came of this sign-in ends'
call 401 '' POST /auth/refresh "{\"refresh_token\": \"$refresh\"}"
call 401 "$next_access" GET /scheduler/queue
call 401 '' POST /auth/refresh "{\"refresh_token\": \"$next_refresh\"}"

echo '6. The key signs in anew, and revokes it in good order'
call 200 "$K1NODE_KEY" POST /auth/token '{"scope": "scheduler:read"}'
access=$(field access_token) refresh=$(field refresh_token)
call 200 '' POST /auth/revoke "{\"token\": \"$refresh\"}"
call 401 "$access" GET /scheduler/queue
echo 'Done.'
