"""Messages of signing in and of keys, as the OpenAPI document shows them."""

from typing import Any

from k1node.api.example import Example

KEY: dict[str, Any] = {
    "key_id": "key-4w0k6yq1m8z2f7tc",
    "name": "billing-service",
    "prefix": "sk-k1n_",
    "last_four": "x7Qa",
    "state": "active",
    "scopes": ["scheduler:read", "scheduler:trigger"],
    "allowed_cidrs": ["10.0.0.0/8"],
    "requests_per_hour": None,
    "created_at": "2025-11-09T12:37:29.123+00:00",
    "created_by": "operator-user-1",
    "last_used_at": None,
    "last_used_ip": None,
    "expires_at": None,
    "revoked_at": None,
    "revoked_reason": "",
    "replaced_by": None,
}
NEW_KEY: dict[str, Any] = {**KEY, "key": "sk-k1n_" + "0" * 40 + "000000"}
REVOKED: dict[str, Any] = {
    **KEY,
    "state": "revoked",
    "revoked_at": "2025-11-10T08:00:00.000+00:00",
    "revoked_reason": "Found in a repository",
}
TOKENS: dict[str, Any] = {
    "access_token": "eyJhbGciOiJIUzI1NiIs…",
    "token_type": "Bearer",
    "expires_in": 86400,
    "refresh_token": "rt-k1n_…",
    "scope": "scheduler:read",
}
EXAMPLES = {
    "issueToken": Example(request={"scope": "scheduler:read"}, response=TOKENS),
    "refreshToken": Example(request={"refresh_token": "rt-k1n_…"}, response=TOKENS),
    "revokeToken": Example(request={"token": "rt-k1n_…"}, response={"revoked": True}),
    "listApiKeys": Example(
        response={"api_keys": [KEY], "pagination": {"page": 1, "limit": 20, "total": 1}},
    ),
    "createApiKey": Example(
        request={
            "name": "billing-service",
            "scopes": ["scheduler:read", "scheduler:trigger"],
            "allowed_cidrs": ["10.0.0.0/8"],
        },
        response=NEW_KEY,
    ),
    "getApiKey": Example(response=KEY),
    "updateApiKey": Example(request={"requests_per_hour": 5000}, response={**KEY, "requests_per_hour": 5000}),
    "rotateApiKey": Example(request={"overlap_seconds": 86400}, response=NEW_KEY),
    "revokeApiKey": Example(request={"reason": "Found in a repository"}, response=REVOKED),
}
