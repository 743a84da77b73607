"""Internal services that issue tokens of their own, as the environment names them: who, with which key, for what."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from k1node.access.scopes import ALL_SCOPES
from k1node.lib.secrets import weakness

NAME = "K1NODE_JWT_ISSUERS"
OURS = "k1node"  # the issuer of the tokens made here
AUDIENCE = "k1node-api"
FIELDS = {"key", "scopes", "audience"}
EXAMPLE = '{"https://billing.internal": {"key": "…", "scopes": ["scheduler:read"]}}'


@dataclass(frozen=True, slots=True)
class Issuer:
    """`scopes` is the most that a token of it may do, whatever the token says."""

    name: str
    key: str
    scopes: tuple[str, ...]
    audience: str


def read(text: str, *, secrets_of_the_node: Mapping[str, str]) -> dict[str, Issuer]:
    """Return the issuers by name. Raises ImproperlyConfigured, never with a key in its text."""
    if not text:
        return {}
    try:
        entries = json.loads(text)
    except ValueError:
        raise ImproperlyConfigured(f"{NAME} must be JSON such as {EXAMPLE}.") from None
    if not isinstance(entries, dict):
        raise ImproperlyConfigured(f"{NAME} must be a JSON object such as {EXAMPLE}.")
    issuers: dict[str, Issuer] = {}
    for name, entry in entries.items():
        # Who knows the key of another one could speak for it.
        others = {f"that of {other.name!r}": other.key for other in issuers.values()}
        issuers[name] = _issuer(name, entry, {**secrets_of_the_node, **others})
    return issuers


def _issuer(name: str, entry: Any, others: Mapping[str, str]) -> Issuer:
    where = f"{NAME}[{name!r}]"
    if not 0 < len(name) <= 200 or name == OURS:
        raise ImproperlyConfigured(f"{where} must have the name of another issuer: {OURS!r} is this node itself.")
    if not isinstance(entry, dict) or not {"key", "scopes"} <= entry.keys() <= FIELDS:
        raise ImproperlyConfigured(f"{where} must have key and scopes, may have audience, and nothing else.")
    key, scopes, audience = entry["key"], entry["scopes"], entry.get("audience", AUDIENCE)
    if not isinstance(key, str) or (wrong := weakness(key, others=others)):
        raise ImproperlyConfigured(f"The key of {where} {wrong if isinstance(key, str) else 'must be a string'}.")
    if not isinstance(audience, str) or not audience:
        raise ImproperlyConfigured(f"The audience of {where} must be a string.")
    if not isinstance(scopes, list) or not scopes or not all(isinstance(scope, str) for scope in scopes):
        raise ImproperlyConfigured(f"The scopes of {where} must be a list of at least one.")
    if unknown := sorted(set(scopes) - ALL_SCOPES):
        raise ImproperlyConfigured(
            f"The scopes of {where} have {', '.join(unknown)}; known are {', '.join(sorted(ALL_SCOPES))}."
        )
    return Issuer(name, key, tuple(scopes), audience)
