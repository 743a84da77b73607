"""Tokens for one run of one task: a handler's command may read the API while it runs, and not a moment longer.

Nothing is stored: the token is signed and says which task, under which fence, until when. Whether that run is still
going on is asked at each use (see k1node.access.authentication).
"""

import time

from django.core.signing import BadSignature, Signer

PREFIX = "kt-"
SALT = "k1node.access.task_tokens"


def issue(task_pk: int, fence: int, lifetime_seconds: float) -> str:
    expires = int(time.time() + lifetime_seconds) + 1
    return PREFIX + _signer().sign(f"{task_pk}-{fence}-{expires}")


def read(token: str) -> tuple[int, int] | None:
    """Return the task's primary key and fence; None for a token that is forged, damaged or over."""
    if not token.startswith(PREFIX) or len(token) > 200:
        return None
    try:
        signed = _signer().unsign(token.removeprefix(PREFIX))
    except BadSignature:
        return None
    task_pk, fence, expires = (int(part) for part in signed.split("-"))
    return (task_pk, fence) if time.time() < expires else None


def _signer() -> Signer:
    return Signer(sep=".", salt=SALT)
