import pytest

from k1node.access.scopes import ALL_SCOPES, DESCRIPTIONS, IMPLIES, allows, closure, common


@pytest.mark.parametrize(
    ("granted", "required", "allowed"),
    [
        (["scheduler:read"], ["scheduler:read"], True),
        (["scheduler:read"], ["scheduler:write"], False),
        (["scheduler:write"], ["scheduler:read"], True),
        (["scheduler:write"], ["scheduler:trigger"], False),
        (["scheduler:trigger"], ["scheduler:read"], True),
        (["scheduler:trigger"], ["scheduler:write"], False),
        (["scheduling:admin"], ["scheduler:write"], True),
        (["scheduling:admin"], ["scheduler:trigger"], True),
        (["scheduling:admin"], ["error-recovery:read"], False),
        (["error-recovery:admin"], ["error-recovery:write"], True),
        (["error-recovery:write"], ["error-recovery:admin"], False),
        (["error-recovery:write"], ["scheduler:read"], False),
        (["batch:admin"], ["batch:write"], True),
        (["batch:write"], ["scheduler:read"], False),
        (["webhooks:write"], ["webhooks:read"], True),
        (["webhooks:read"], ["webhooks:write"], False),
        (["dashboard:read"], ["scheduler:read"], True),
        (["dashboard:read"], ["error-recovery:read"], True),
        (["dashboard:read"], ["error-recovery:write"], False),
        (["dashboard:write"], ["error-recovery:write"], True),
        (["dashboard:write"], ["scheduler:write"], False),
        (["dashboard:write"], ["admin"], False),
        (["admin"], ["webhooks:write"], True),
        (["scheduling:admin", "error-recovery:admin", "batch:admin"], ["admin"], False),
        (["scheduler:read"], ["batch:write", "scheduler:read"], True),
        (["unknown"], ["unknown"], False),
        (["admin"], ["unknown"], False),
        (["admin"], [], False),
        ([], ["scheduler:read"], False),
    ],
)
def test_what_brings_what(granted: list[str], required: list[str], allowed: bool) -> None:
    assert allows(granted, required) is allowed


def test_admin_brings_everything() -> None:
    assert closure("admin") == ALL_SCOPES


def test_every_scope_is_known_and_described() -> None:
    assert {inner for group in IMPLIES.values() for inner in group} <= ALL_SCOPES == set(DESCRIPTIONS)


@pytest.mark.parametrize(
    ("some", "others", "both"),
    [
        (["scheduler:write"], ["scheduler:read"], ["scheduler:read"]),
        (["scheduler:write"], ["admin"], ["scheduler:write"]),
        (["admin"], ["admin"], ["admin"]),
        (["scheduling:admin"], ["scheduler:trigger", "batch:write"], ["scheduler:trigger"]),
        (["scheduler:write", "scheduler:read"], ["scheduler:write"], ["scheduler:write"]),
        (["dashboard:read"], ["scheduler:write", "webhooks:write"], ["scheduler:read", "webhooks:read"]),
        (["scheduler:write"], ["batch:write"], []),
        (["unknown"], ["unknown", "admin"], []),
        ([], ["admin"], []),
    ],
)
def test_what_two_have_in_common(some: list[str], others: list[str], both: list[str]) -> None:
    assert list(common(tuple(some), tuple(others))) == both == list(common(tuple(others), tuple(some)))
