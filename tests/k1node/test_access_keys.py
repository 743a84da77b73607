import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import DjangoAssertNumQueries

from k1node.access import addresses, keys
from k1node.access.models import ApiKey
from k1node.lib import origin
from k1node.lib.errors import FieldInvalid
from tests.databases import Rival


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
    assert [keys.checksum(text) for text in ("a", "abc", "a" * 40)] == ["4GEHKN", "0yKviM", "3gcfED"]
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


# --- networks ---------------------------------------------------------------------------------------------------


@contextmanager
def coming_from(address: str) -> Iterator[None]:
    with origin.of(origin.Origin(address, "req-test")):
        yield


@pytest.mark.parametrize(
    ("networks", "address", "inside"),
    [
        (["10.0.0.0/8"], "10.255.255.255", True),
        (["10.0.0.0/8"], "11.0.0.0", False),
        (["192.0.2.7/32"], "192.0.2.7", True),
        (["192.0.2.7/32"], "192.0.2.8", False),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["2001:db8::/32"], "10.0.0.1", False),
        (["0.0.0.0/0"], "::1", False),
        (["192.0.2.0/24", "10.0.0.0/8"], "10.0.0.1", True),
        (["0.0.0.0/0", "::/0"], origin.UNKNOWN, False),
        ([], "10.0.0.1", False),
    ],
)
def test_which_address_lies_in_which_network(networks: list[str], address: str, inside: bool) -> None:
    assert addresses.contains(networks, address) is inside


def test_networks_are_written_in_one_way() -> None:
    read, problems = addresses.read(["10.0.0.1", " 10.0.0.0/8", "10.0.0.0/255.0.0.0", "2001:DB8:0::/32"])

    assert (read, problems) == (["10.0.0.1/32", "10.0.0.0/8", "2001:db8::/32"], [])


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("10.1.2.3/8", "Did you mean 10.0.0.0/8?"),
        ("2001:db8::1/32", "Did you mean 2001:db8::/32?"),
        ("localhost", addresses.EXAMPLE),
        ("", addresses.EXAMPLE),
        ("10.0.0.0/33", addresses.EXAMPLE),
        ("1" * 5000, addresses.EXAMPLE),
    ],
)
def test_what_is_no_network(text: str, suggestion: str) -> None:
    read, (problem,) = addresses.read([text])

    assert (read, problem.field, problem.suggestion) == ([], "allowed_cidrs[0]", suggestion)


@pytest.mark.django_db
def test_a_key_opens_from_its_networks_only(now: datetime) -> None:
    key, text = keys.issue("a", ["scheduler:read"], allowed_cidrs=["192.0.2.0/24"])

    with coming_from("192.0.2.9"):
        assert keys.verify(text, now=now)
    with coming_from("198.51.100.1"):
        assert keys.examine(text) == (None, f"key {key} used from 198.51.100.1, which it is not for")
    assert keys.examine(text) == (None, f"key {key} used from an unknown address, which it is not for")
    key.refresh_from_db()
    assert (key.last_used_at, key.last_used_ip) == (now, "192.0.2.9")


# --- rotation ---------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_new_key_lives_as_long_as_the_old_one_was_made_for() -> None:
    made = datetime.now(UTC)
    key, _ = keys.issue("a", ["scheduler:read"], expires_at=made + timedelta(days=90))

    new, _ = keys.rotate(key, now=made + timedelta(days=80))

    assert new.expires_at and abs(new.expires_at - (made + timedelta(days=170))) < timedelta(seconds=10)
    assert key.expires_at == made + timedelta(days=81)


@pytest.mark.django_db
def test_a_key_made_until_the_end_of_the_calendar_can_be_rotated() -> None:
    end = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    key, _ = keys.issue("a", ["scheduler:read"], expires_at=end)

    new, _ = keys.rotate(key, now=datetime.now(UTC) + timedelta(days=1))

    assert new.expires_at == end


@pytest.mark.django_db
def test_an_overlap_never_lengthens_a_key() -> None:
    now = datetime.now(UTC)
    key, _ = keys.issue("a", ["scheduler:read"], expires_at=now + timedelta(hours=1))

    keys.rotate(key, overlap=timedelta(days=7), now=now)

    assert key.expires_at == now + timedelta(hours=1)


@pytest.mark.django_db
@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=7, seconds=1)])
def test_overlaps_out_of_bounds(overlap: timedelta) -> None:
    key, _ = keys.issue("a", ["scheduler:read"])

    with pytest.raises(FieldInvalid):
        keys.rotate(key, overlap=overlap)
    assert ApiKey.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_rivals_that_rotate_a_key_exactly_one_does(rival: Rival, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = keys.issue("a", ["scheduler:read"])
    locked = keys._locked
    theirs: list[Any] = []

    def let_the_rival_begin(pk: int, now: datetime) -> ApiKey:
        row = locked(pk, now)
        monkeypatch.setattr(keys, "_locked", locked)  # the rival, which has to wait for the row, is not held up itself
        theirs.append(rival.start(keys.rotate, ApiKey.objects.get(pk=pk)))
        return row

    monkeypatch.setattr(keys, "_locked", let_the_rival_begin)
    new, _ = keys.rotate(key)

    with pytest.raises(keys.KeyEnded, match=f"{new.public_id} replaces it"):
        theirs[0].result(10)
    assert ApiKey.objects.count() == 2


# --- commands ---------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


@pytest.mark.django_db
def test_the_command_ties_a_key_to_networks_and_a_time() -> None:
    out, err = run("createapikey", "a", "--scope", "admin", "--cidr", "10.0.0.0/8", "--expires", "90d")

    key = ApiKey.objects.get()
    assert (key.allowed_cidrs, key.created_by) == (["10.0.0.0/8"], "command line")
    assert key.expires_at and timedelta(days=89) < key.expires_at - datetime.now(UTC) <= timedelta(days=90)
    assert keys.is_wellformed(out.strip())
    assert key.public_id in err and "10.0.0.0/8" in err


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--cidr", "10.0.0.1/8"),
        ("--expires", "soon"),
        ("--expires", "2020-01-01"),
        ("--expires", "0s"),
        ("--expires", "999999999d"),
        ("--rate-limit", "0"),
    ],
)
def test_the_command_refuses_what_cannot_be(option: str, text: str) -> None:
    with pytest.raises(CommandError):
        run("createapikey", "a", "--scope", "admin", option, text)
    assert not ApiKey.objects.exists()


@pytest.mark.django_db
def test_a_date_is_an_end_too() -> None:
    run("createapikey", "a", "--scope", "admin", "--expires", "2100-01-31")
    run("createapikey", "b", "--scope", "admin", "--expires", "2100-01-31T12:00:00+02:00")

    assert list(ApiKey.objects.order_by("name").values_list("expires_at", flat=True)) == [
        datetime(2100, 1, 31, tzinfo=UTC),
        datetime(2100, 1, 31, 10, tzinfo=UTC),
    ]


@pytest.mark.django_db
def test_keys_are_rotated_revoked_and_listed_by_command() -> None:
    key, text = keys.issue("backup", ["scheduler:read"], allowed_cidrs=["10.0.0.0/8"])

    out, err = run("rotateapikey", "backup", "--overlap", "2h")
    new = ApiKey.objects.exclude(pk=key.pk).get()
    assert keys.is_wellformed(out.strip())
    assert f"{new.public_id} replaces {key.public_id}" in err

    with pytest.raises(CommandError, match="Several keys are called 'backup'"):
        run("revokeapikey", "backup")
    assert run("revokeapikey", key.public_id, "--reason", "leaked")[0].startswith("Revoked backup")
    key.refresh_from_db()
    assert (key.revoked_reason, keys.verify(text)) == ("leaked", None)
    with pytest.raises(CommandError, match="was revoked before"):
        run("revokeapikey", key.public_id)

    listed = run("listapikeys")[0].splitlines()
    assert [re.split(r"\t", line)[0] for line in listed] == [key.public_id, new.public_id]
    assert "revoked" in listed[0] and f"replaced by {new.public_id}" in listed[0] and "10.0.0.0/8" in listed[0]
    assert run("listapikeys", "--state", "active")[0].splitlines() == [listed[1]]


@pytest.mark.django_db
def test_without_an_overlap_the_command_ends_the_old_key() -> None:
    key, text = keys.issue("backup", ["scheduler:read"])

    _, err = run("rotateapikey", key.public_id, "--overlap", "0s")

    assert "which has ended" in err
    assert keys.verify(text) is None


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "No key in use has the id or the name 'nobody'"),
        (["a", "--overlap", "8d"], "from 0 to 604800"),
        (["a", "--overlap", "a while"], "must be a time such as 24h"),
        (["old"], "No key in use"),
    ],
)
def test_what_the_command_does_not_rotate(arguments: list[str], message: str) -> None:
    keys.issue("a", ["scheduler:read"])
    keys.revoke(keys.issue("old", ["scheduler:read"])[0])

    with pytest.raises(CommandError, match=message):
        run("rotateapikey", *arguments)


@pytest.mark.django_db
def test_the_command_says_why_a_key_is_not_rotated_twice() -> None:
    key, _ = keys.issue("a", ["scheduler:read"])
    keys.rotate(key)

    with pytest.raises(CommandError, match="rotated already"):
        run("rotateapikey", key.public_id)
