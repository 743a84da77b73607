from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from pytest_django import DjangoAssertNumQueries

from k1node.access import keys
from k1node.access.models import ApiKey


@pytest.mark.django_db
def test_a_key_is_kept_as_its_digest_only() -> None:
    key, text = keys.issue("backup", ["scheduler:read", "scheduler:read", "batch:write"])

    stored = ApiKey.objects.values().get()
    assert keys.SHAPE.fullmatch(text)
    assert text not in str(stored)
    assert (key.digest, key.hint) == (keys.digest(text), text[-4:])
    assert key.scopes == ["batch:write", "scheduler:read"]


@pytest.mark.django_db
def test_a_key_opens_and_its_use_is_noted(now: datetime) -> None:
    key, text = keys.issue("backup", ["scheduler:read"])

    found = keys.verify(text, now=now)

    assert found is not None
    assert found.pk == key.pk
    key.refresh_from_db()
    assert key.last_used_at == now


@pytest.mark.django_db
def test_its_use_is_noted_once_a_minute(now: datetime, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    _, text = keys.issue("backup", ["scheduler:read"])

    with django_assert_num_queries(2):
        keys.verify(text, now=now)
    with django_assert_num_queries(1):
        keys.verify(text, now=now + timedelta(seconds=59))
    with django_assert_num_queries(2):
        keys.verify(text, now=now + timedelta(seconds=60))


@pytest.mark.django_db
def test_a_revoked_key_ends_at_once(now: datetime) -> None:
    key, text = keys.issue("backup", ["scheduler:read"])
    assert keys.verify(text, now=now)

    assert keys.revoke(key, now=now) is True

    assert keys.verify(text, now=now) is None
    assert keys.revoke(key, now=now + timedelta(days=1)) is False
    assert ApiKey.objects.get().revoked_at == now


@pytest.mark.django_db
def test_a_key_expires_to_the_moment(now: datetime) -> None:
    _, text = keys.issue("backup", ["scheduler:read"], expires_at=now)

    assert keys.verify(text, now=now - timedelta(microseconds=1))
    assert keys.verify(text, now=now) is None


# No django_db mark: a query would fail this test.
@pytest.mark.parametrize(
    "text",
    [
        "",
        "sk-",
        "sk-k1n_" + "a" * 46,
        "sk-k1n_" + "a" * 40 + keys.checksum("a" * 40) + "\n",
        "sk-k1n_" + "a" * 41 + keys.checksum("a" * 41),
        "sk-k1n_" + "é" * 46,
        "sk-k1n_" + "b" * 40 + keys.checksum("a" * 40),
        "x" * 100_000,
    ],
)
def test_a_wrong_checksum_costs_no_query(text: str) -> None:
    assert keys.verify(text) is None


def test_the_checksum_is_six_characters_of_base_62() -> None:
    assert keys.checksum("") == "000000"
    assert keys.checksum("a" * 40) == keys.checksum("a" * 40)
    assert all(len(keys.checksum(str(number))) == 6 for number in range(100))


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "scopes", "rate", "field"),
    [
        ("", ["admin"], None, "name"),
        ("x" * 101, ["admin"], None, "name"),
        ("a\nb", ["admin"], None, "name"),
        ("x", [], None, "scopes"),
        ("x", ["scheduler:*"], None, "scopes"),
        ("x", ["admin"], 0, "requests_per_hour"),
    ],
)
def test_what_no_key_is_made_from(name: str, scopes: list[str], rate: int | None, field: str) -> None:
    with pytest.raises(keys.KeyInvalid) as caught:
        keys.issue(name, scopes, requests_per_hour=rate)

    assert [detail.field for detail in caught.value.details] == [field]
    assert not ApiKey.objects.exists()


@pytest.mark.django_db
def test_the_command_prints_the_key_alone() -> None:
    out, err = StringIO(), StringIO()

    call_command(
        "createapikey", "backup", scopes=["scheduler:read", "batch:write"], rate_limit=50, stdout=out, stderr=err
    )

    key = keys.verify(out.getvalue().splitlines()[-1])
    assert key is not None
    assert (key.name, key.scopes, key.requests_per_hour) == ("backup", ("batch:write", "scheduler:read"), 50)
    assert out.getvalue().strip() not in err.getvalue()


@pytest.mark.django_db
def test_the_command_names_the_known_scopes() -> None:
    with pytest.raises(CommandError, match=r"Unknown scope 'schedules:read'.*scheduler:read"):
        call_command("createapikey", "backup", "--scope", "schedules:read")


@pytest.mark.django_db
def test_the_present_is_the_default_moment() -> None:
    _, text = keys.issue("backup", ["admin"], expires_at=datetime.now(UTC) - timedelta(seconds=1))

    assert keys.verify(text) is None
