#!/usr/bin/env bash
# Check that the disk under the node's data has room, and that a URL answers.
#
# Parameters:  min_free_percent   least free space, in percent (default 5)
#              url                what must answer with 200 to 399 (default: this node's own /readyz)
#              timeout_seconds    how long it may take (default 10)
# Exit codes:  0 all well; 1 something is wrong, standard error says what to do; 64 a bad parameter; 78 not run by a node
set -euo pipefail

exec "${K1_PYTHON:-python3}" -I /dev/fd/3 3<<'PYTHON'
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request


def fail(code, text):
    print(f"healthcheck: {text}", file=sys.stderr)
    sys.exit(code)


def number(name, default, low, high):
    text = os.environ.get(f"K1_PARAM_{name.upper()}") or default
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or not low <= float(text) <= high:
        fail(64, f"{name} must be a number from {low} to {high}, not {text[:50]!r}.")
    return float(text)


def setting(name):
    value = os.environ.get(name, "")
    if not value:
        fail(78, f"{name} is not set: run this as a task of the node.")
    return value


def address():
    """Return what to ask, and whether it is this node itself."""
    given = os.environ.get("K1_PARAM_URL")
    if not given:
        api = urllib.parse.urlsplit(setting("K1_API_URL"))
        return f"{api.scheme}://{api.netloc}/readyz", True
    try:
        parts = urllib.parse.urlsplit(given)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[!-~]{1,2000}", given):
        fail(64, f"url must be a complete http:// or https:// address, not {given[:100]!r}.")
    if "@" in parts.netloc:
        fail(64, "url must not hold a user name or a password: it is shown in the output.")
    return given, False


def check_disk(folder, least):
    """Return what is wrong, empty if nothing is."""
    usage = shutil.disk_usage(folder)
    percent = 100 * usage.free / usage.total
    free = f"{percent:.1f} % ({usage.free / 1e9:,.1f} GB) of the disk of {folder} are free"
    if percent >= least:
        print(f"disk: ok, {free}")
        return ""
    return (
        f"disk: only {free}, less than {least:g} %. Delete old backups and exports there, "
        "keep tasks for fewer days (K1NODE_KEEP_TASK_DAYS), or move the folder to a larger disk."
    )


def check_url(url, is_own, timeout):
    """Return what is wrong, empty if nothing is."""
    handlers = [urllib.request.ProxyHandler({})] if is_own else []
    request = urllib.request.Request(url, headers={"User-Agent": "k1node-healthcheck"})
    began = time.monotonic()
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as answer:
            answer.read(1)
            print(f"url: ok, {url} answered {answer.status} in {(time.monotonic() - began) * 1000:.0f} ms")
            return ""
    except urllib.error.HTTPError as error:
        if is_own:
            return f"url: this node is not ready ({error.code}): {not_ready(error)}. Look at its log and at /admin/."
        return f"url: {url} answered {error.code} {error.reason}. Look at the log of what serves it."
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return f"url: {url} does not answer: {reason}. Is it running, and can this machine reach it?"


def not_ready(error):
    try:
        checks = json.loads(error.read(10_000))["checks"]
        return ", ".join(f"{name} does not answer" for name, well in checks.items() if not well)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return str(error.reason)


least = number("min_free_percent", "5", 0, 100)
timeout = number("timeout_seconds", "10", 0.1, 300)
url, is_own = address()
problems = [check_disk(setting("K1NODE_DATA"), least), check_url(url, is_own, timeout)]
for problem in filter(None, problems):
    print(problem, file=sys.stderr)
sys.exit(1 if any(problems) else 0)
PYTHON
