"""The readers of the environment: what they take, and what they say about nonsense."""

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from k1node.lib import secrets
from k1node.lib.env import env_bool, env_choice, env_int, env_list, env_str

NAME = "K1NODE_TEST_VALUE"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param(None, "default", id="unset"),
        pytest.param("", "default", id="empty"),
        pytest.param("  ", "default", id="blank"),
        pytest.param(" a b ", "a b", id="text"),
    ],
)
def test_text_is_stripped_and_has_a_default(monkeypatch: pytest.MonkeyPatch, text: str | None, value: str) -> None:
    set_or_unset(monkeypatch, text)

    assert env_str(NAME, "default") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param(None, 7, id="unset"),
        pytest.param(" ", 7, id="blank"),
        pytest.param("1", 1, id="lowest"),
        pytest.param("10", 10, id="highest"),
        pytest.param(" 5 ", 5, id="with blanks"),
    ],
)
def test_a_whole_number_within_its_bounds_is_read(
    monkeypatch: pytest.MonkeyPatch, text: str | None, value: int
) -> None:
    set_or_unset(monkeypatch, text)

    assert env_int(NAME, 7, low=1, high=10) == value


@pytest.mark.parametrize(
    ("text", "high", "message"),
    [
        pytest.param("many", 10, f"{NAME} must be a whole number, not 'many'.", id="a word"),
        pytest.param("1.5", 10, f"{NAME} must be a whole number, not '1.5'.", id="a fraction"),
        pytest.param("0", 10, f"{NAME} must be from 1 to 10, not 0.", id="too low"),
        pytest.param("-1", 10, f"{NAME} must be from 1 to 10, not -1.", id="negative"),
        pytest.param("11", 10, f"{NAME} must be from 1 to 10, not 11.", id="too high"),
        pytest.param("0", None, f"{NAME} must be at least 1, not 0.", id="too low without an upper bound"),
    ],
)
def test_a_number_that_is_none_or_out_of_bounds_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, text: str, high: int | None, message: str
) -> None:
    monkeypatch.setenv(NAME, text)

    with pytest.raises(ImproperlyConfigured) as caught:
        env_int(NAME, 7, low=1, high=high)

    assert str(caught.value) == message


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("1", True, id="1"),
        pytest.param("TRUE", True, id="TRUE"),
        pytest.param(" yes ", True, id="yes"),
        pytest.param("on", True, id="on"),
        pytest.param("0", False, id="0"),
        pytest.param("False", False, id="False"),
        pytest.param("no", False, id="no"),
        pytest.param("off", False, id="off"),
        pytest.param("", None, id="empty is unset"),
        pytest.param(None, None, id="unset"),
    ],
)
def test_a_switch_is_read(monkeypatch: pytest.MonkeyPatch, text: str | None, value: bool | None, default: bool) -> None:
    set_or_unset(monkeypatch, text)

    assert env_bool(NAME, default) is (default if value is None else value)


@pytest.mark.parametrize("text", ["2", "maybe", "yes please"])
def test_a_switch_that_is_neither_on_nor_off_stops_the_start(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAME, text)

    with pytest.raises(ImproperlyConfigured, match=rf"^{NAME} must be one of .*, not '{text}'\.$"):
        env_bool(NAME, default=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(None, ["a", "b"], id="unset"),
        pytest.param("c", ["c"], id="one"),
        pytest.param(" c , d,,", ["c", "d"], id="blanks and empty words"),
    ],
)
def test_a_list_is_split_at_commas(monkeypatch: pytest.MonkeyPatch, text: str | None, words: list[str]) -> None:
    set_or_unset(monkeypatch, text)

    assert env_list(NAME, "a,b") == words


@pytest.mark.parametrize(("text", "value"), [(None, "a"), ("b", "b"), (" b ", "b")])
def test_one_of_several_words_is_read(monkeypatch: pytest.MonkeyPatch, text: str | None, value: str) -> None:
    set_or_unset(monkeypatch, text)

    assert env_choice(NAME, "a", ("a", "b")) == value


@pytest.mark.parametrize("text", ["B", "bee", "a,b"])
def test_a_word_that_is_none_of_them_stops_the_start(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    # NODE_ENV=prod must not be a development node in disguise.
    monkeypatch.setenv(NAME, text)

    with pytest.raises(ImproperlyConfigured, match=f"{NAME} must be one of a, b"):
        env_choice(NAME, "a", ("a", "b"))


def test_a_secret_of_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = "0123456789abcdef" * 2
    monkeypatch.setenv(NAME, told)

    assert secrets.required(NAME, tmp_path, production=True) == told
    assert list(tmp_path.iterdir()) == []


def test_a_short_secret_stops_a_production_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(NAME, "changeme")

    with pytest.raises(ImproperlyConfigured, match="at least 32 characters"):
        secrets.required(NAME, tmp_path, production=True)
    assert secrets.required(NAME, tmp_path, production=False) == "changeme"


def test_a_missing_secret_stops_a_production_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(NAME, raising=False)

    with pytest.raises(ImproperlyConfigured, match=f"^{NAME} must be set when NODE_ENV=production"):
        secrets.required(NAME, tmp_path, production=True)


def test_a_development_secret_is_made_once_for_its_owner_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(NAME, raising=False)

    first = secrets.required(NAME, tmp_path, production=False)
    second = secrets.required(NAME, tmp_path, production=False)

    (kept,) = tmp_path.iterdir()
    assert len(first) >= 50
    assert (second, kept.stat().st_mode & 0o777) == (first, 0o600)


def set_or_unset(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    if text is None:
        monkeypatch.delenv(NAME, raising=False)
    else:
        monkeypatch.setenv(NAME, text)
