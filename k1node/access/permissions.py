"""The one permission of the API: the scopes a view names for its action. A view that names none is closed."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from k1node.access.principal import Principal

if TYPE_CHECKING:  # rest_framework.views imports this module, as its default permission
    from rest_framework.views import APIView

logger = logging.getLogger(__name__)

# In the place of scopes: open to every API key, whatever it may do, and to no other kind of credential.
ANY_KEY = ("any API key",)


def required_scopes(view: "APIView", method: str) -> Sequence[str]:
    """Return the scopes of which any one opens the view's present action; empty if it names none."""
    table: Mapping[str, Sequence[str]] = getattr(view, "required_scopes", None) or {}
    return table.get(getattr(view, "action", None) or method.lower(), ())


class InsufficientScope(PermissionDenied):
    """The credential is good, but has none of the scopes that open the operation."""

    def __init__(self, required: Sequence[str]) -> None:
        super().__init__(f"Insufficient permissions: this operation needs {_either(required)}")
        # RFC 6750 can only name what is needed all together, and the first alone is enough.
        self.auth_header = f'Bearer realm="k1node", error="insufficient_scope", scope="{required[0]}"'


class HasScopes(BasePermission):
    def has_permission(self, request: Request, view: "APIView") -> bool:
        principal = request.user
        if not isinstance(principal, Principal):
            return False
        if (request.method or "") not in view.allowed_methods:
            return True  # on to the 405
        required = required_scopes(view, request.method or "")
        if not required:
            logger.error("View without required_scopes refused", extra={"view": type(view).__name__})
            raise PermissionDenied("Insufficient permissions: this operation is open to nobody")
        if required == ANY_KEY:
            if principal.kind != "key":
                raise PermissionDenied("Insufficient permissions: this operation needs an API key")
            return True
        if not principal.may(*required):
            raise InsufficientScope(required)
        return True


def _either(scopes: Sequence[str]) -> str:
    if len(scopes) == 1:
        return f"the scope {scopes[0]}"
    return f"one of the scopes {', '.join(scopes)}"
