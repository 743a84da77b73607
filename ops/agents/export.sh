#!/usr/bin/env bash
# Export the tasks of a period as CSV or JSON, read through the API with the token that this task was given.
#
# Parameters:  format    csv (default) or json
#              since     start of the period: 90m, 24h, 7d ago, or a time such as 2026-03-01T00:00:00Z (default 24h)
#              until     its end, written the same way (default: now)
#              status    only tasks in this state
#              dataset   first part of the file's name (default tasks): letters, digits, dot, dash, underscore
#              keep      how many files of this dataset and format stay (default 50)
# Result:      $K1NODE_DATA/exports/<dataset>-<UTC time>.<format>
# Exit codes:  0 done; 1 failed; 64 a bad parameter; 75 the node was too busy; 78 not run by a node
#
# CSV is for spreadsheets: text that one would take for a formula gets a ' in front. JSON holds what the API gave.
set -euo pipefail
umask 077

exec "${K1_PYTHON:-python3}" -I /dev/fd/3 3<<'PYTHON'
import csv
import http.client
import json
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path

COLUMNS = (
    "task_id", "task_name", "status", "schedule", "batch", "origin", "handler", "priority", "retry_policy", "attempt",
    "created_by", "created_at", "due_at", "started_at", "finished_at", "exit_code", "duration_ms", "last_error",
)
STATUSES = "scheduled queued executing blocked paused completed failed skipped cancelled".split()
UNITS = {"m": "minutes", "h": "hours", "d": "days"}
PAGE = 100
TRIES = 5
TIMEOUT_SECONDS = 30


def fail(code, text):
    print(f"export: {text}", file=sys.stderr)
    sys.exit(code)


def parameter(name, default):
    return os.environ.get(f"K1_PARAM_{name.upper()}") or default


def choice(name, default, allowed):
    value = parameter(name, default)
    if value and value not in allowed:
        fail(64, f"{name} must be one of {', '.join(allowed)}, not {value[:50]!r}.")
    return value


def moment(name, default, now):
    """Return the UTC time that a parameter names; a time without a zone is UTC."""
    text = parameter(name, default)
    ago = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    try:
        if ago:
            return now - timedelta(**{UNITS[ago[2]]: int(ago[1])})
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        fail(64, f"{name} must be a length such as 24h, or a time such as 2026-03-01T00:00:00Z, not {text[:50]!r}.")


def dataset():
    text = parameter("dataset", "tasks")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        fail(64, f"dataset may have letters, digits, dot, dash and underscore (at most 64), not {text[:80]!r}.")
    return text


def how_many():
    text = parameter("keep", "50")
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) < 1:
        fail(64, f"keep must be a whole number from 1 to 9999, not {text[:50]!r}.")
    return int(text)


def setting(name):
    value = os.environ.get(name, "")
    if not value:
        fail(78, f"{name} is not set: run this as a task of the node, which gives each task a token of its own.")
    return value


def get(address, token):
    """Return the JSON at `address`; waits where the node says that it has had too many requests."""
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}", "Accept": "application/json"})
    # The node is on this machine: no proxy of the environment has a say.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for left in reversed(range(TRIES)):
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 429 and left:
                time.sleep(wait(error.headers.get("Retry-After", "")))
                continue
            explain(error)
        except (OSError, http.client.HTTPException) as error:
            fail(1, f"the API at {address.partition('?')[0]} does not answer: {error}. Does the node's web process run?")
        except ValueError as error:
            fail(1, f"the API's answer is no JSON: {error}.")


def wait(text):
    return min(60, int(text)) if text.isdigit() else 5


def explain(error):
    said = error.read(2000).decode("utf-8", "replace")
    try:
        said = json.loads(said)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = " ".join(said.split())[:200]
    if error.code == 401:
        fail(1, f"the API refused this task's token (401): {said}. It is good only while the task runs.")
    if error.code == 429:
        fail(75, "the node is too busy to answer (429). Export a shorter period, or try later.")
    fail(64 if error.code == 400 else 1, f"the API answered {error.code}: {said}")


def tasks(base, token, since, until, status):
    """Yield the tasks of the period, newest first, page after page by the cursor."""
    query = {"limit": PAGE, "since": since.isoformat()}
    if status:
        query["status"] = status
    while True:
        page = get(f"{base}/tasks?{urllib.parse.urlencode(query)}", token)
        try:
            for task in page["tasks"]:
                if since <= datetime.fromisoformat(task["created_at"]) <= until:
                    yield task
            cursor = page["pagination"].get("next_cursor")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            fail(1, f"the API's answer has an unexpected form ({type(error).__name__}: {error}).")
        if not cursor:
            return
        query["cursor"] = cursor


def cell(value):
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    return json.dumps(value)


def write_csv(rows, file):
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    count = 0
    for row in rows:
        flat = {**row, **(row.get("result") or {})}
        writer.writerow([cell(flat.get(name)) for name in COLUMNS])
        count += 1
    return count


def write_json(rows, file):
    count = 0
    file.write("[")
    for row in rows:
        file.write(",\n" if count else "\n")
        json.dump(row, file, ensure_ascii=False)
        count += 1
    file.write("\n]\n")
    return count


def main():
    now = datetime.now(timezone.utc)
    form = choice("format", "csv", ("csv", "json"))
    status = choice("status", "", STATUSES)
    since, until = moment("since", "24h", now), moment("until", "0m", now)
    if since > until:
        fail(64, f"since ({since:%Y-%m-%dT%H:%M:%SZ}) lies after until ({until:%Y-%m-%dT%H:%M:%SZ}).")
    name, most = dataset(), how_many()
    folder = Path(setting("K1NODE_DATA")) / "exports"
    rows = tasks(setting("K1_API_URL").rstrip("/"), setting("K1_API_TOKEN"), since, until, status)
    folder.mkdir(mode=0o700, exist_ok=True)
    final = folder / f"{name}-{now:%Y%m%dT%H%M%SZ}.{form}"
    part = folder / f".part-{os.getpid()}-{final.name}"
    try:
        with part.open("w", encoding="utf-8", errors="replace", newline="") as file:
            count = (write_csv if form == "csv" else write_json)(rows, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(final)
    finally:
        part.unlink(missing_ok=True)
    ours = re.compile(re.escape(name) + r"-\d{8}T\d{6}Z\." + form)
    for old in sorted((each for each in folder.iterdir() if ours.fullmatch(each.name)), reverse=True)[most:]:
        old.unlink(missing_ok=True)
    print(f"Wrote {final}")
    print(f"{count:,} tasks of {since:%Y-%m-%dT%H:%M:%SZ} to {until:%Y-%m-%dT%H:%M:%SZ}, {final.stat().st_size:,} bytes")


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    main()
except OSError as error:
    fail(1, f"{error}. No file was written.")
PYTHON
