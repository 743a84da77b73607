"""What makes two failures the same: the exit code and the first line of the error without what differs each time."""

import re
from hashlib import blake2s

LINE_LENGTH = 200
# In this order: the longer and more special first.
VARYING = (
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I), "<id>"),
    (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"), "<address>"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "<address>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"), "<time>"),
    (re.compile(r"\b\d\d?:\d\d:\d\d(?:[.,]\d+)?\b"), "<time>"),
    (
        re.compile(r"(?<![\w:])\[?(?=[0-9a-f:]*\d)(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?!\w)\]?(?::\d+)?", re.I),
        "<address>",
    ),
    (re.compile(r"\b0x[0-9a-f]+\b", re.I), "<id>"),
    # Letters and digits in one word: the name of a thing made by a machine, unless it is short (utf8, http2).
    (re.compile(r"\b(?=[\w-]*\d)(?=[\w-]*[a-z])[\w-]{10,}\b", re.I), "<id>"),
    (re.compile(r"\d+(?:[.,]\d+)*"), "<n>"),
)


def line_of(error: str) -> str:
    """Return the first line that says something, with numbers, ids, times and addresses replaced."""
    first = next((line.strip() for line in error.splitlines() if line.strip()), "")[: 5 * LINE_LENGTH]
    for pattern, word in VARYING:
        first = pattern.sub(word, first)
    return " ".join(first.split())[:LINE_LENGTH]


def fingerprint(code: int, error: str) -> str:
    """Return 16 hex digits that failures for the same reason share."""
    return blake2s(f"{code} {line_of(error)}".encode(), digest_size=8).hexdigest()
