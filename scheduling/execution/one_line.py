"""Texts of handlers as one line for people: nothing in it can harm a terminal or a database."""

import re
from collections.abc import Callable

ERROR_CHARACTERS = 500
NOT_PLAIN = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f]")


def safe_text(value: object, form: Callable[[object], str] = str) -> str:
    try:
        return form(value)
    except Exception:  # whatever its author wrote in __str__
        return f"<{type(value).__name__} without a text>"


def clean(text: str) -> str:
    """Return `text` as one line that any database takes, cut to ERROR_CHARACTERS."""
    plain = NOT_PLAIN.sub(" ", text[: 4 * ERROR_CHARACTERS]).encode("utf-8", "replace").decode()
    line = " ".join(plain.split())
    return line if len(line) <= ERROR_CHARACTERS else f"{line[: ERROR_CHARACTERS - 1]}…"
