"""Secrets at rest: bound to their place, readable with any key of the ring, sealed with the first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.conf import settings as node_settings
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from k1node.lib import keyring
from k1node.lib.keyring import SecretUnreadable

PLACE = "webhook wh-1 secret"
OLD, NEW = "b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQgb2xkIG9sZCE=", "bmV3IG5ldyBuZXcgbmV3IG5ldyBuZXcgbmV3IG5ldyE="


@pytest.mark.parametrize("text", ["whsec_abc", "", "é\n\nzwei Zeilen\n", "webhook wh-2 secret\nx", "x" * 100_000])
def test_what_was_sealed_opens_in_its_place(text: str) -> None:
    sealed = keyring.seal(text, PLACE)

    assert text == "" or text not in sealed
    assert keyring.unseal(sealed, PLACE) == text


def test_the_same_text_is_never_sealed_the_same_way() -> None:
    assert keyring.seal("a", PLACE) != keyring.seal("a", PLACE)


@pytest.mark.parametrize(
    "place", ["webhook wh-2 secret", "webhook wh-1 next_secret", "webhook wh-1", "", "webhook wh-1 secret "]
)
def test_what_was_moved_to_another_place_does_not_open(place: str) -> None:
    sealed = keyring.seal("whsec_abc", PLACE)

    with pytest.raises(SecretUnreadable) as caught:
        keyring.unseal(sealed, place)
    assert "whsec_abc" not in str(caught.value)


def test_what_was_changed_does_not_open() -> None:
    sealed = keyring.seal("whsec_abc", PLACE)

    for position in range(0, len(sealed), 7):
        other = "A" if sealed[position] != "A" else "B"
        # The last character before the padding has bits that are thrown away, and is none of these.
        with pytest.raises(SecretUnreadable):
            keyring.unseal(sealed[:position] + other + sealed[position + 1 :], PLACE)


@pytest.mark.parametrize("junk", ["", "gAAAA", "whsec_abc", "é", "\0", "A" * 1000])
def test_junk_does_not_open(junk: str) -> None:
    with pytest.raises(SecretUnreadable):
        keyring.unseal(junk, PLACE)


def test_what_is_no_text_under_the_right_key_does_not_open(settings: Settings) -> None:
    settings.K1NODE_KEYRING = [OLD]

    with pytest.raises(SecretUnreadable):
        keyring.unseal(Fernet(OLD).encrypt(b"\xff\xfe").decode(), PLACE)


def test_a_key_is_rotated_by_putting_a_new_one_in_front(settings: Settings) -> None:
    settings.K1NODE_KEYRING = [OLD]
    under_old = keyring.seal("a", PLACE)
    settings.K1NODE_KEYRING = [NEW, OLD]
    under_new = keyring.seal("a", PLACE)

    assert [keyring.unseal(sealed, PLACE) for sealed in (under_old, under_new)] == ["a", "a"]
    assert [keyring.is_under_first_key(sealed) for sealed in (under_old, under_new)] == [False, True]

    settings.K1NODE_KEYRING = [NEW]

    assert keyring.unseal(under_new, PLACE) == "a"
    with pytest.raises(SecretUnreadable):
        keyring.unseal(under_old, PLACE)


def test_a_new_key_can_be_used() -> None:
    keyring.check([keyring.new_key(), keyring.new_key()])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        pytest.param([], "at least one", id="none"),
        pytest.param(["short"], "Key 1", id="a word"),
        pytest.param([OLD, "b2xk"], "Key 2", id="too short"),
        pytest.param(["b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQgb2xkIG9sZCEh"], "Key 1", id="too long"),
        pytest.param([OLD[:-1]], "Key 1", id="no padding"),
        pytest.param(["é" * 44], "Key 1", id="no base64"),
        pytest.param([OLD, NEW, OLD], "twice", id="twice"),
    ],
)
def test_keys_that_cannot_be_used_are_named_without_showing_them(keys: list[str], words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words) as caught:
        keyring.check(keys)
    assert not any(key in str(caught.value) for key in keys)


def asked(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Read the settings in a process of their own."""
    environment = {name: value for name, value in os.environ.items() if name not in ("K1NODE_KEYRING", "DB_HOST")}
    return subprocess.run(
        [sys.executable, "-c", "from k1node import settings as s; print(*s.K1NODE_KEYRING)"],
        cwd=node_settings.BASE_DIR,
        env=environment | {"K1NODE_DATA": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_keys_of_a_node_are_those_of_its_environment(tmp_path: Path) -> None:
    assert asked(tmp_path, K1NODE_KEYRING=f" {NEW} , {OLD},").stdout.split() == [NEW, OLD]


def test_a_node_in_development_makes_its_own_key_and_keeps_it(tmp_path: Path) -> None:
    first, second = asked(tmp_path).stdout, asked(tmp_path).stdout

    keyring.check(first.split())
    assert first == second


@pytest.mark.parametrize("keys", ["short", ",", f"{OLD},{OLD}"])
def test_a_node_does_not_start_with_keys_that_cannot_be_used(tmp_path: Path, keys: str) -> None:
    answer = asked(tmp_path, K1NODE_KEYRING=keys)

    assert answer.returncode != 0
    assert "ImproperlyConfigured: " in answer.stderr and "K1NODE_KEYRING" in answer.stderr


def test_a_node_in_production_makes_up_no_key(tmp_path: Path) -> None:
    answer = asked(tmp_path, NODE_ENV="production")

    assert answer.returncode != 0
    assert "K1NODE_KEYRING" in answer.stderr
