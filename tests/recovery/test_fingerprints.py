"""Fingerprints: what differs each time does not count, what says why does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery.fingerprints import LINE_LENGTH, fingerprint, line_of


@pytest.mark.parametrize(
    ("error", "line"),
    [
        pytest.param("Exited with 3 after 12.5 s", "Exited with <n> after <n> s", id="numbers"),
        pytest.param("no route to 10.0.0.7:5432", "no route to <address>", id="address"),
        pytest.param("no route to [fe80::1:2:3:4]:80 now", "no route to <address> now", id="address of six"),
        pytest.param("std::runtime_error", "std::runtime_error", id="no address"),
        pytest.param("at 12:30:45.1 it broke", "at <time> it broke", id="time of day"),
        pytest.param("mail to ana.b@example.org bounced", "mail to <address> bounced", id="mail"),
        pytest.param("order 7b7c1e5e-3d0c-4a44-9c5b-0a4a2a1d9f10 is gone", "order <id> is gone", id="uuid"),
        pytest.param("task-9f8a7b6c5d failed at 0x7ffe12", "<id> failed at <id>", id="ids"),
        pytest.param("2026-03-04T05:06:07.123Z timeout", "<time> timeout", id="time"),
        pytest.param("bad utf8 in http2 frame", "bad utf<n> in http<n> frame", id="short names"),
        pytest.param("\n\n  boom \nTraceback follows 17", "boom", id="first line"),
        pytest.param("a\t b\xa0 c", "a b c", id="spaces"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_what_differs_each_time_is_left_out(error: str, line: str) -> None:
    assert line_of(error) == line


def test_the_same_line_with_another_code_is_another_failure() -> None:
    assert fingerprint(3, "disk 1 full") == fingerprint(3, "disk 27 full\nmore")
    assert fingerprint(3, "disk 1 full") != fingerprint(4, "disk 1 full")
    assert fingerprint(3, "disk 1 full") != fingerprint(3, "disk 1 broken")


@given(st.integers(), st.text())
def test_any_error_has_one_line_and_sixteen_digits(code: int, error: str) -> None:
    line = line_of(error)

    assert len(line) <= LINE_LENGTH
    assert "\n" not in line
    assert len(fingerprint(code, error)) == 16


def test_a_long_line_of_anything_takes_no_time() -> None:
    assert line_of("a1-" * 100_000).startswith("<id>")
    assert line_of("a.b+" * 100_000)
    assert line_of("1:" * 100_000)
