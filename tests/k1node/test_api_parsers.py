from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.test import APIClient

from k1node.api import parsers, renderers

Clients = Callable[..., APIClient]


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


REFUSED = [
    pytest.param(b"{", "not valid JSON", id="cut off"),
    pytest.param(b'{"a": 1,}', "not valid JSON", id="trailing comma"),
    pytest.param(b"{'a': 1}", "not valid JSON", id="single quotes"),
    pytest.param(b'{"a": NaN}', "not valid JSON", id="NaN"),
    pytest.param(b'{"a": -Infinity}', "not valid JSON", id="Infinity"),
    pytest.param(b'{"a": 1e400}', "too large", id="1e400"),
    pytest.param(b'{"a": -1e999999}', "too large", id="-1e999999"),
    pytest.param(b'{"a": "\\ud800"}', "surrogate", id="lone surrogate"),
    pytest.param(b'{"\\udc00": 1}', "surrogate", id="lone surrogate in a key"),
    pytest.param(b'{"a": "\\u0000"}', "NUL", id="NUL"),
    pytest.param(b'{"a": [{"b\\u0000": 1}]}', "NUL", id="NUL in a key"),
    pytest.param(b'{"a": "\x00"}', "not valid JSON", id="raw NUL"),
    pytest.param(b'{"a": 1, "a": 2}', "twice", id="duplicate key"),
    pytest.param(b'{"a": {"b": 1, "\\u0062": 2}}', "twice", id="duplicate key in disguise"),
    pytest.param(b"\xef\xbb\xbf{}", "byte order mark", id="BOM"),
    pytest.param(b'{"a": "\xff"}', "UTF-8", id="Latin-1"),
    pytest.param('{"a": 1}'.encode("utf-16"), "UTF-8", id="UTF-16"),
    pytest.param(b'{"a": "\xed\xa0\x80"}', "UTF-8", id="surrogate in UTF-8"),
    pytest.param(b'{"a": 9223372036854775808}', "64 bits", id="2**63"),
    pytest.param(b'{"a": -9223372036854775809}', "64 bits", id="-2**63-1"),
    pytest.param(b'{"a": ' + b"9" * 300 + b"}", "64 bits", id="300 digits"),
    pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "too large", id="5000 digits"),
    pytest.param(deep(65), "deeper", id="65 levels"),
    pytest.param(deep(5000), "deeper", id="5000 levels"),
    pytest.param(b'{"a":' * 400_000, "deeper", id="2 MB of openings"),
]


@pytest.mark.parametrize(("raw", "words"), REFUSED)
def test_what_no_one_could_carry_is_refused_in_words(raw: bytes, words: str) -> None:
    with pytest.raises(parsers.BodyInvalid) as caught:
        parsers.loads(raw)

    (detail,) = caught.value.details
    assert detail.field == "body"
    assert words in detail.message


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"", {}),
        (b"  \n", {}),
        (b"null", None),
        (b'{"a": 9223372036854775807, "b": -9223372036854775808}', {"a": 2**63 - 1, "b": -(2**63)}),
        (b'{"a": "\\\\u0000"}', {"a": "\\u0000"}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'{"a": 1.5, "b": 1e3}', {"a": 1.5, "b": 1000.0}),
        (b'{"a": "' + b"[{" * 100 + b'"}', {"a": "[{" * 100}),
        (b"[" + b",".join([b"[]"] * 100) + b"]", [[]] * 100),
    ],
)
def test_what_is_fine_is_read(raw: bytes, value: Any) -> None:
    assert parsers.loads(raw) == value


def test_64_levels_are_fine() -> None:
    parsers.loads(deep(64))


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
).filter(lambda value: "\\u0000" not in str(renderers.dumps(value)))


@given(JSON_VALUES)
def test_what_is_written_can_be_read(value: Any) -> None:
    assert parsers.loads(renderers.dumps(value)) == value


@given(st.binary())
def test_no_bytes_do_worse_than_a_refusal(raw: bytes) -> None:
    with suppress(parsers.BodyInvalid):
        parsers.loads(raw)


@pytest.mark.django_db
@pytest.mark.urls("tests.k1node.api_probe")
@pytest.mark.parametrize(("raw", "words"), REFUSED)
def test_over_http_it_is_a_400(api_client: Clients, raw: bytes, words: str) -> None:
    response = api_client("admin").post("/api/v2/echoes", raw, content_type="application/json")

    expected = (413, "PAYLOAD_TOO_LARGE") if len(raw) > 2**20 else (400, "INVALID_REQUEST")
    assert (response.status_code, response.json()["error"]["code"]) == expected


@pytest.mark.urls("tests.k1node.api_probe")
@pytest.mark.parametrize("content_type", ["", "application/json", "application/json; charset=utf-8"])
@pytest.mark.parametrize("raw", [b"", b"{}"])
def test_an_empty_body_is_an_empty_object(api_client: Clients, content_type: str, raw: bytes) -> None:
    response = api_client("admin").generic("POST", "/api/v2/echoes", raw.decode(), content_type=content_type)

    assert (response.status_code, response.json()) == (201, {})


def test_stored_poison_does_not_spoil_an_answer() -> None:
    written = renderers.dumps({"huge": 2**70, "half": "\ud800", "none": float("nan")})

    assert written == b'{"huge":1180591620717411303424,"half":"\\ud800","none":null}'
