#!/usr/bin/env bash
# Say what set this run off: the event's name from the environment, its metadata and all parameters from stdin as JSON.
set -euo pipefail

printf 'Hello from task %s, attempt %s.\n' "${K1_TASK_ID:-by-hand}" "${K1_ATTEMPT:-1}"
printf 'Event: %s\n' "${K1_EVENT_NAME:-none, this run was not set off by an event}"
printf 'Parameters: '
cat
printf '\n'
