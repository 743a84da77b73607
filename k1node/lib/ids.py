"""Identifiers given out by the node: URL-safe, with at least 80 random bits."""

import hashlib
import secrets

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def random_part(length: int = 16) -> str:
    """Return `length` characters of base 36 (16 are 82 bits)."""
    # One call for all: each asks the kernel, and gives other threads the turn meanwhile.
    return _digits(secrets.randbelow(36**length), length)


def _digits(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 36)
        digits.append(ALPHABET[digit])
    return "".join(digits)


def prefixed(prefix: str) -> str:
    return f"{prefix}-{random_part()}"


def derived(prefix: str, fact: bytes) -> str:
    """Return an identifier like those of prefixed() that is always the same for `fact`."""
    return f"{prefix}-{_digits(int.from_bytes(hashlib.sha256(fact).digest()), 16)}"
