"""Who a request comes from, whatever it was recognised by."""

from dataclasses import dataclass
from typing import Literal

from k1node.access import scopes

Kind = Literal["key", "operator", "task"]


@dataclass(frozen=True, slots=True)
class Principal:
    """`name` is what logs and `performed_by` show; `identity` tells two of the same name apart ("key:12")."""

    name: str
    kind: Kind
    scopes: frozenset[str]
    identity: str
    is_authenticated: bool = True

    def may(self, *required: str) -> bool:
        """Say whether any one of `required` is covered."""
        return scopes.allows(self.scopes, required)

    def __str__(self) -> str:
        return self.name
