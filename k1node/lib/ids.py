"""Identifiers given out by the node: URL-safe, with at least 80 random bits."""

import secrets

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def random_part(length: int = 16) -> str:
    """Return `length` characters of base 36 (16 are 82 bits)."""
    # One call for all: each asks the kernel, and gives other threads the turn meanwhile.
    number = secrets.randbelow(36**length)
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 36)
        digits.append(ALPHABET[digit])
    return "".join(digits)


def prefixed(prefix: str) -> str:
    return f"{prefix}-{random_part()}"
