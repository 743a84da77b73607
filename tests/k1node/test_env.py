"""The readers of the environment: what they take, and what they say about nonsense."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from k1node.access import issuers
from k1node.lib import secrets
from k1node.lib.env import env_bool, env_choice, env_duration, env_int, env_list, env_str

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


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param(None, timedelta(hours=5), id="unset"),
        pytest.param(" ", timedelta(hours=5), id="blank"),
        pytest.param("90s", timedelta(seconds=90), id="seconds"),
        pytest.param(" 30m ", timedelta(minutes=30), id="minutes"),
        pytest.param("24h", DAY, id="hours"),
        pytest.param("7d", timedelta(days=7), id="days"),
    ],
)
def test_a_length_of_time_is_read(monkeypatch: pytest.MonkeyPatch, text: str | None, value: timedelta) -> None:
    set_or_unset(monkeypatch, text)

    assert env_duration(NAME, timedelta(hours=5), low=timedelta(seconds=90), high=7 * DAY) == value


@pytest.mark.parametrize("text", ["24", "h", "1.5h", "-1h", "24 h", "24H", "1d12h", "forever", "9999999999s"])
def test_a_length_without_its_unit_stops_the_start(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAME, text)

    with pytest.raises(ImproperlyConfigured, match=f"^{NAME} must be a length of time such as 90s, 30m, 24h or 7d"):
        env_duration(NAME, DAY, low=DAY, high=DAY)


@pytest.mark.parametrize("text", ["59s", "0d", "169h", "999999999d"])
def test_a_length_out_of_bounds_stops_the_start(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAME, text)

    with pytest.raises(ImproperlyConfigured, match=f"^{NAME} must be "):
        env_duration(NAME, DAY, low=timedelta(minutes=1), high=7 * DAY)


STRONG = "kq3VbT7mWz9XcR2nYp5sLd8fGh1jAe4u"


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        pytest.param("your-secret-key", "32 characters", id="the design's placeholder"),
        pytest.param("changeme", "32 characters", id="changeme"),
        pytest.param("x" * 31, "32 characters", id="short"),
        pytest.param("your-secret-key-your-secret-key-0123456789", "placeholder", id="the placeholder at length"),
        pytest.param("CHANGE_ME_CHANGE_ME_0123456789_abcdefghij", "placeholder", id="change me"),
        pytest.param("replace-me-with-something-long-and-random", "placeholder", id="replace me"),
        pytest.param("a-string-secret-at-least-256-bits-long", "placeholder", id="the one of jwt.io"),
        pytest.param("a" * 64, "again and again", id="one character"),
        pytest.param("abababab" * 5, "again and again", id="two characters"),
        pytest.param("0123456789abcdef" * 2, "again and again", id="a pattern"),
        pytest.param("another secret of this node 0987654321", "same as SECRET_KEY", id="another secret"),
        pytest.param(STRONG, "", id="random"),
        pytest.param("9f86d081884c7d659a2feaa0c55ad015", "", id="hexadecimal"),
    ],
)
def test_what_tokens_are_not_signed_with(value: str, wrong: str) -> None:
    others = {"SECRET_KEY": "another secret of this node 0987654321"}

    said = secrets.weakness(value, others=others)

    assert (wrong in said) if wrong else said == ""
    if wrong:
        with pytest.raises(ImproperlyConfigured, match=f"^{NAME} must .*openssl rand") as caught:
            secrets.check_signing_key(NAME, value, others=others)
        assert value not in str(caught.value)


def test_generated_secrets_are_strong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(NAME, raising=False)

    secrets.check_signing_key(NAME, secrets.required(NAME, tmp_path, production=False), others={})


def test_issuers_are_read() -> None:
    text = json.dumps(
        {
            "https://billing.internal": {"key": STRONG, "scopes": ["scheduler:read"]},
            "crm": {"key": STRONG[::-1], "scopes": ["admin"], "audience": "k1"},
        }
    )

    found = issuers.read(text, secrets_of_the_node={})

    assert found["crm"] == issuers.Issuer("crm", STRONG[::-1], ("admin",), "k1")
    assert found["https://billing.internal"].audience == "k1node-api"
    assert issuers.read("", secrets_of_the_node={}) == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("{", "must be JSON", id="no JSON"),
        pytest.param([], "must be a JSON object", id="a list"),
        pytest.param({"k1node": {"key": STRONG, "scopes": ["admin"]}}, "another issuer", id="this node"),
        pytest.param(
            dict.fromkeys("ab", {"key": STRONG, "scopes": ["admin"]}), "same as that of 'a'", id="one for two"
        ),
        pytest.param({"": {"key": STRONG, "scopes": ["admin"]}}, "another issuer", id="no name"),
        pytest.param({"a" * 201: {"key": STRONG, "scopes": ["admin"]}}, "another issuer", id="a long name"),
        pytest.param({"a": STRONG}, "must have key and scopes", id="a key alone"),
        pytest.param({"a": {"key": STRONG}}, "must have key and scopes", id="no scopes"),
        pytest.param({"a": {"key": STRONG, "scopes": ["admin"], "alg": "none"}}, "nothing else", id="more"),
        pytest.param({"a": {"key": 5, "scopes": ["admin"]}}, "must be a string", id="a key that is a number"),
        pytest.param({"a": {"key": "short", "scopes": ["admin"]}}, "32 characters", id="a short key"),
        pytest.param({"a": {"key": "our own secret of 32 characters!", "scopes": ["admin"]}}, "same as JWT", id="ours"),
        pytest.param({"a": {"key": STRONG, "scopes": "admin"}}, "must be a list", id="scopes as text"),
        pytest.param({"a": {"key": STRONG, "scopes": []}}, "at least one", id="an empty list"),
        pytest.param({"a": {"key": STRONG, "scopes": ["root"]}}, "have root", id="an unknown scope"),
        pytest.param({"a": {"key": STRONG, "scopes": ["admin"], "audience": ""}}, "audience", id="an empty audience"),
    ],
)
def test_issuers_that_cannot_be_stop_the_start(value: object, message: str) -> None:
    text = value if isinstance(value, str) else json.dumps(value)

    with pytest.raises(ImproperlyConfigured, match=message) as caught:
        issuers.read(text, secrets_of_the_node={"JWT_SECRET": "our own secret of 32 characters!"})
    assert STRONG not in str(caught.value)
