"""One operation of the OpenAPI document: the design's names, its answers and its errors."""

from collections.abc import Iterator
from typing import Any

import inflection
from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from rest_framework import permissions
from rest_framework.pagination import BasePagination

from k1node.access import scopes
from k1node.access.permissions import ANY_KEY, required_scopes
from k1node.api import conditional, idempotency
from k1node.api import serializers as strict
from k1node.api.error_codes import CODES
from k1node.api.pagination import LINK_HEADER, PagePagination
from k1node.api.renderers import JSON, PROBLEM

Document = dict[str, Any]

# Status -> component name and description; Unauthorized, NotFound and TooManyRequests are the design's.
ERRORS: dict[int, tuple[str, str]] = {
    400: ("BadRequest", "Request validation failed"),
    401: ("Unauthorized", "Authentication required"),
    403: ("Forbidden", "Insufficient permissions"),
    404: ("NotFound", "Resource not found"),
    405: ("MethodNotAllowed", "Method not allowed on this path"),
    406: ("NotAcceptable", "No representation the client accepts"),
    409: ("Conflict", "Resource conflict (e.g., duplicate ID)"),
    412: ("PreconditionFailed", "The resource has changed since it was read"),
    413: ("PayloadTooLarge", "Request body larger than 1 MB"),
    415: ("UnsupportedMediaType", "Request body in another media type than JSON"),
    429: ("TooManyRequests", "Rate limit exceeded"),
    500: ("InternalError", "Server error"),
    503: ("ServiceUnavailable", "Service temporarily unavailable"),
}
ERROR_SCHEMA: Document = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "status", "timestamp", "request_id", "details"],
            "properties": {
                "code": {"type": "string", "enum": sorted(set(CODES.values())), "examples": ["INVALID_REQUEST"]},
                "message": {"type": "string", "examples": ["Request validation failed"]},
                "status": {"type": "integer", "examples": [400]},
                "timestamp": {"type": "string", "format": "date-time"},
                "request_id": {"type": "string", "examples": ["req-abc123xyz"]},
                "details": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["field", "message", "suggestion"],
                        "properties": {
                            "field": {"type": "string", "examples": ["schedule_expr"]},
                            "message": {"type": "string", "examples": ["Invalid cron expression"]},
                            "suggestion": {"type": ["string", "null"]},
                        },
                    },
                },
            },
        }
    },
}
# Any error, for who accepts application/problem+json (RFC 9457). Those of a 429 have its figures too.
PROBLEM_SCHEMA: Document = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id", "timestamp", "errors"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "examples": ["/api/errors#INVALID_REQUEST"]},
        "title": {"type": "string", "examples": ["Request validation failed"]},
        "status": {"type": "integer", "examples": [400]},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri", "examples": ["urn:k1node:request:req-abc123xyz"]},
        "code": {"type": "string", "description": "As in Error", "examples": ["INVALID_REQUEST"]},
        "request_id": {"type": "string", "examples": ["req-abc123xyz"]},
        "timestamp": {"type": "string", "format": "date-time"},
        "errors": ERROR_SCHEMA["properties"]["error"]["properties"]["details"],
        "limit": {"type": "integer"},
        "remaining": {"type": "integer"},
        "reset_at": {"type": "string", "format": "date-time"},
        "retry_after": {"type": "integer"},
    },
}
# The design's flat body of a 429.
RATE_LIMIT_SCHEMA: Document = {
    "type": "object",
    "required": ["error", "message", "limit", "remaining", "reset_at", "retry_after"],
    "properties": {
        "error": {"type": "string", "const": "rate_limit_exceeded"},
        "message": {"type": "string"},
        "limit": {"type": "integer"},
        "remaining": {"type": "integer"},
        "reset_at": {"type": "string", "format": "date-time"},
        "retry_after": {"type": "integer"},
    },
}


class Schema(AutoSchema):
    """Reads what an ApiViewSet says of itself: operation_ids, tags, required_scopes, list_key, list_name.

    The first paragraph of an action's docstring is its summary, the rest its description.
    """

    def get_operation_id(self) -> str:
        names: dict[str, str] = getattr(self.view, "operation_ids", {})
        action = getattr(self.view, "action", "")
        return names.get(action) or inflection.camelize(super().get_operation_id(), uppercase_first_letter=False)

    def get_tags(self) -> list[str]:
        return list(getattr(self.view, "tags", ())) or super().get_tags()

    def get_summary(self) -> str | None:
        return " ".join(super().get_description().split("\n\n")[0].split()).rstrip(".") or None

    def get_description(self) -> str:  # type: ignore[override]
        return super().get_description().partition("\n\n")[2]

    def get_extensions(self) -> Document:
        """Name the scopes of which any one opens the operation: an http scheme has nowhere else to put them."""
        required = required_scopes(self.view, self.method)
        return {
            **super().get_extensions(),
            **({"x-required-scopes": list(required)} if required and required != ANY_KEY else {}),
        }

    def get_paginated_name(self, serializer_name: str) -> str:
        return getattr(self.view, "list_name", None) or f"{serializer_name}List"

    def _get_paginator(self) -> BasePagination | None:
        paginator: BasePagination | None = super()._get_paginator()
        if isinstance(paginator, PagePagination):
            paginator.view = self.view
        return paginator

    def _get_serializer_name(self, serializer: Any, direction: Any, bypass_extensions: bool = False) -> str:
        """Return the component's name: ScheduleInput, ScheduleUpdate as they are, ScheduleOutput as Schedule."""
        name = super()._get_serializer_name(serializer, direction, bypass_extensions).removeprefix("Patched")
        bare = name.removesuffix("Request")
        if bare.endswith(("Input", "Update", "Submission")):
            return bare
        return name.removesuffix("Output")

    def _map_serializer(self, serializer: Any, direction: Any, bypass_extensions: bool = False) -> Document:
        schema: Document = super()._map_serializer(serializer, direction, bypass_extensions)
        for field in serializer.fields.values() if direction == "request" else ():
            # Not with the rest of the field: the library would let a blank string pass beside the pattern.
            if isinstance(field, strict.StrictString) and not field.read_only:
                schema["properties"][field.field_name]["pattern"] = pattern_of(field)
        if isinstance(serializer, strict.StrictSerializer) and direction == "request":
            schema["additionalProperties"] = False
        if not type(serializer).__dict__.get("__doc__"):
            # What the class inherits is about some other message.
            schema.pop("description", None)
        return schema

    def _map_serializer_field(self, field: Any, direction: Any, bypass_extensions: bool = False) -> Document:
        schema: Document = super()._map_serializer_field(field, direction, bypass_extensions)
        child = getattr(field, "child", None)
        if direction == "request" and isinstance(child, strict.StrictString):
            schema["items"]["pattern"] = pattern_of(child)
        if isinstance(field, strict.StrictList) and field.unique:
            schema["uniqueItems"] = True
        return schema

    def _get_parameters(self) -> list[Document]:
        return [*super()._get_parameters(), *({"required": False, **each} for each in self._header_parameters())]

    def _header_parameters(self) -> Iterator[Document]:
        if self._is_idempotent():
            yield idempotency.KEY_PARAMETER
        if self._is_conditional() and self.method in ("PATCH", "PUT", "DELETE"):
            yield conditional.IF_MATCH_PARAMETER
        elif self._is_conditional() and self.method == "GET":
            yield conditional.IF_NONE_MATCH_PARAMETER

    def _is_idempotent(self) -> bool:
        return self.method == "POST" and bool(getattr(self.view, "idempotent", False))

    def _is_conditional(self) -> bool:
        return getattr(self.view, "action", "") in getattr(self.view, "conditional_actions", ())

    def _answer_headers(self) -> Document:
        """Return the headers of answers 2xx that no single view has to name."""
        headers: Document = {}
        if self._is_idempotent():
            headers[idempotency.REPLAYED] = idempotency.REPLAYED_HEADER
        if self._is_conditional() and self.method != "DELETE":
            headers["ETag"] = conditional.ETAG_HEADER
        if self.method == "GET" and "list" in getattr(self.view, "action", ""):
            headers["Link"] = LINK_HEADER
        return headers

    def _get_response_bodies(self, direction: Any = "response") -> Document:
        bodies: Document = super()._get_response_bodies(direction)
        headers = self._answer_headers()
        for code, body in bodies.items():
            if code.startswith("2") and headers:
                body["headers"] = {**headers, **body.get("headers", {})}
        if self._is_conditional() and self.method == "GET":
            bodies["304"] = {"description": conditional.NOT_MODIFIED, "headers": {"ETag": conditional.ETAG_HEADER}}
        for status in self._error_statuses():
            # What a view documents itself stands.
            bodies.setdefault(str(status), self._error_reference(status))
        return dict(sorted(bodies.items()))

    def _error_statuses(self) -> Iterator[int]:
        yield from (400, 406)
        if permissions.AllowAny not in {type(permission) for permission in self.view.get_permissions()}:
            yield from (401, 403)
        if "{" in self.path:
            yield 404
        if self.method in ("POST", "PUT", "PATCH"):
            yield from (409, 413, 415)
        elif self.method == "DELETE":
            yield 409
        yield from getattr(self.view, "more_errors", {}).get(getattr(self.view, "action", ""), ())
        if self._is_conditional() and self.method in ("PATCH", "PUT", "DELETE"):
            yield 412
        yield from (429, 500, 503)

    def _error_reference(self, status: int) -> Document:
        name, description = ERRORS[status]
        body = ResolvedComponent("Error", ResolvedComponent.SCHEMA, ERROR_SCHEMA, "Error")
        self.registry.register_on_missing(body)
        problem = ResolvedComponent("Problem", ResolvedComponent.SCHEMA, PROBLEM_SCHEMA, "Problem")
        self.registry.register_on_missing(problem)
        content: Document = {JSON: {"schema": body.ref}, PROBLEM: {"schema": problem.ref}}
        if status == 429:
            limited = ResolvedComponent("RateLimitError", ResolvedComponent.SCHEMA, RATE_LIMIT_SCHEMA, "RateLimitError")
            self.registry.register_on_missing(limited)
            content = {**content, JSON: {"schema": limited.ref}}
        answer: Document = {"description": description, "content": content}
        component = ResolvedComponent(name, ResolvedComponent.RESPONSE, answer, name)
        self.registry.register_on_missing(component)
        return dict(component.ref)


def pattern_of(field: strict.StrictString) -> str:
    """Return what the field takes: its shape, or text without control characters that is not only spaces."""
    if field.shape is not None:
        spaces = " *" if field.trim_whitespace else ""
        return f"^{spaces}(?:{field.shape}){spaces}$"
    # All written with \u: \x85 is read as a byte by some validators.
    controls = r"\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f"
    breaks = r"\u0000-\u001f\u007f\u0085\u2028\u2029"
    refused = controls if field.multiline else breaks
    text = f"[^{refused}]*"
    return f"^{text}$" if field.allow_blank else rf"^{text}[^\s\u0000-\u001f\u007f]{text}$"


class BearerScheme(OpenApiAuthenticationExtension):
    """Three kinds of one header. The requirements are alternatives, as the scopes of an action are.

    Only oauth2 has a place for scopes; for all kinds they are in x-required-scopes.
    """

    target_class = "k1node.access.authentication.BearerAuthentication"
    name = ["ApiKey", "JWT", "OAuth2"]

    def get_security_definition(self, auto_schema: AutoSchema) -> list[Document]:
        known = {scope: scopes.DESCRIPTIONS[scope] for scope in scopes.IMPLIES}
        return [
            {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "sk-k1n_…",
                "description": "For services: `Authorization: Bearer sk-…`. It has the scopes it was made with.",
            },
            {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "For internal services: a token for some of a key's scopes, good for 24 hours.",
            },
            {
                "type": "oauth2",
                "description": "For people, through an application they allow: the code flow with PKCE (S256).",
                "flows": {
                    "authorizationCode": {
                        "authorizationUrl": "/oauth/authorize",
                        "tokenUrl": "/oauth/token",
                        "refreshUrl": "/oauth/token",
                        "scopes": known,
                    }
                },
            },
        ]

    def get_security_requirement(self, auto_schema: AutoSchema) -> list[Document]:
        required = required_scopes(auto_schema.view, auto_schema.method)
        if required == ANY_KEY:
            return [{"ApiKey": []}]
        return [{"ApiKey": []}, {"JWT": []}, *({"OAuth2": [scope]} for scope in required)]


class OperatorScheme(OpenApiAuthenticationExtension):
    target_class = "k1node.access.authentication.OperatorSessionAuthentication"
    name = "OperatorSession"

    def get_security_definition(self, auto_schema: AutoSchema) -> Document:
        return {
            "type": "apiKey",
            "in": "cookie",
            "name": settings.SESSION_COOKIE_NAME,
            "description": "The session of an operator signed in at the console; writes also need X-CSRFToken.",
        }
