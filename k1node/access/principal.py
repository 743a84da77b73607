"""Who a request comes from, whatever it was recognised by."""

from dataclasses import dataclass
from typing import Literal

from k1node.access import scopes

Kind = Literal["key", "jwt", "oauth", "operator", "task"]


@dataclass(frozen=True, slots=True)
class Principal:
    """`name` is what logs and `performed_by` show; `identity` tells two of the same name apart ("key:12").

    Who has the same identity shares one allowance of requests.
    """

    name: str
    kind: Kind
    scopes: frozenset[str]
    identity: str
    requests_per_hour: int | None = None  # None: the node's own limit
    is_authenticated: bool = True

    def may(self, *required: str) -> bool:
        """Say whether any one of `required` is covered."""
        return scopes.allows(self.scopes, required)

    def __str__(self) -> str:
        return self.name
