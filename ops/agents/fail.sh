#!/usr/bin/env bash
# Fail, always: to see retries, backoff, and the end of a task that has used all its attempts.
set -euo pipefail

printf 'Importing ledger entries, attempt %s\n' "${K1_ATTEMPT:-1}"
printf 'Read 1,204 rows from ledger.csv\n'
printf 'import: ledger.csv line 1205: amount "12,50" is not a number; nothing was imported\n' >&2
exit 1
