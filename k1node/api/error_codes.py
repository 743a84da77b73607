"""Every code an error of the API can have: the table behind the bodies, the page at /api/errors and docs/errors.md."""

from dataclasses import dataclass

PAGE = "/api/errors"


@dataclass(frozen=True)
class ErrorCode:
    """`when` and `remedy` are Markdown with nothing but `code` in it; `remedy` may be empty."""

    code: str
    status: int
    title: str
    when: str
    remedy: str


TABLE = (
    ErrorCode(
        "INVALID_REQUEST",
        400,
        "Request validation failed",
        "the body is not JSON or breaks a rule for bodies; a field or query parameter is unknown, missing, of another "
        "type or out of range; `Accept` and `X-API-Version` ask for different versions",
        "read `details`",
    ),
    ErrorCode(
        "UNAUTHORIZED",
        401,
        "Authentication required",
        "no credential, or one that is unknown, revoked or expired; `WWW-Authenticate` says which of the two",
        "send `Authorization: Bearer sk-…`",
    ),
    ErrorCode(
        "FORBIDDEN",
        403,
        "Insufficient permissions",
        "the credential is good but lacks the scope that `message` and `WWW-Authenticate` name; or a browser session "
        "without its CSRF token",
        "use a credential with that scope",
    ),
    ErrorCode(
        "NOT_FOUND",
        404,
        "Resource not found",
        "no such address or resource; addresses have no trailing slash",
        "",
    ),
    ErrorCode(
        "METHOD_NOT_ALLOWED",
        405,
        "Method not allowed",
        "the address exists, not with this method; `Allow` lists the methods",
        "use one of those",
    ),
    ErrorCode(
        "NOT_ACCEPTABLE",
        406,
        "Not acceptable",
        "`Accept` names no media type this API can answer in, or `Accept`, `X-API-Version` or the path a version there "
        "is not",
        "take one that `details` names; `GET /api/versions` lists them",
    ),
    ErrorCode(
        "REQUEST_TIMEOUT",
        408,
        "Request timeout",
        "the body did not arrive within 10 seconds; the connection is closed",
        "send again",
    ),
    ErrorCode(
        "CONFLICT",
        409,
        "Resource conflict",
        "the resource's present state does not allow it, or the id is taken",
        "read the resource, then decide",
    ),
    ErrorCode(
        "GONE",
        410,
        "Gone",
        "version 1 was asked for and has ended on this node",
        "use version 2",
    ),
    ErrorCode(
        "PRECONDITION_FAILED",
        412,
        "Precondition failed",
        "the resource is no longer the one that `If-Match` names",
        "read the resource, then decide",
    ),
    ErrorCode(
        "PAYLOAD_TOO_LARGE",
        413,
        "Payload too large",
        "the body is larger than 1 MB; the connection is closed",
        "send less at once",
    ),
    ErrorCode(
        "URI_TOO_LONG",
        414,
        "Address too long",
        "the address is longer than 8,192 bytes; the connection is closed",
        "",
    ),
    ErrorCode(
        "UNSUPPORTED_MEDIA_TYPE",
        415,
        "Unsupported media type",
        "the body is said to be something other than JSON, or not UTF-8; the headers `Accept`, `Accept-Post` and "
        "`Accept-Patch` list what is taken",
        "send `Content-Type: application/json`",
    ),
    ErrorCode(
        "PRECONDITION_REQUIRED",
        428,
        "Precondition required",
        "the request must name the state of the resource that it is meant for",
        "send `If-Match` with the `ETag` of the resource",
    ),
    ErrorCode(
        "RATE_LIMIT_EXCEEDED",
        429,
        "API rate limit exceeded",
        "too many requests; this one error has a flat body of its own",
        "wait for `Retry-After` seconds",
    ),
    ErrorCode(
        "HEADERS_TOO_LARGE",
        431,
        "Headers too large",
        "the address and the headers are larger than 64 kB; the connection is closed",
        "",
    ),
    ErrorCode(
        "INTERNAL_ERROR",
        500,
        "Server error",
        "a bug of the node; its log has the traceback under the `request_id`",
        "report it",
    ),
    ErrorCode(
        "SERVICE_UNAVAILABLE",
        503,
        "Service temporarily unavailable",
        "the database does not answer at the moment, or too many large bodies arrive at once",
        "wait for `Retry-After` seconds, send again",
    ),
)
BY_CODE = {entry.code: entry for entry in TABLE}
CODES = {entry.status: entry.code for entry in TABLE}


def title_of(code: str) -> str:
    entry = BY_CODE.get(code)
    return entry.title if entry else code
