"""Identifiers given out by the node: URL-safe, with at least 80 random bits."""

import secrets

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def random_part(length: int = 16) -> str:
    """Return `length` characters of base 36 (16 are 82 bits)."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def prefixed(prefix: str) -> str:
    return f"{prefix}-{random_part()}"
