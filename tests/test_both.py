"""The sum of two runs, in the words of pytest."""

import os
from pathlib import Path

import pytest

from tests.both import Run, closing_line, counts_of, workers


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        pytest.param("===== 5 passed in 0.12s =====", {"passed": 5}, id="passed"),
        pytest.param("5 passed in 0.12s", {"passed": 5}, id="quiet"),
        pytest.param(
            "== 1 failed, 2 passed, 3 skipped, 1 warning, 2 errors in 75.00s (0:01:15) ==",
            {"failed": 1, "passed": 2, "skipped": 3, "warning": 1, "error": 2},
            id="everything, slowly",
        ),
        pytest.param("\x1b[31m== \x1b[1m1 failed\x1b[0m in 0.10s ==\x1b[0m", {"failed": 1}, id="in colour"),
        pytest.param("=== no tests ran in 0.01s ===", {}, id="no tests"),
        pytest.param("2 workers [107 items]", {}, id="another line"),
        pytest.param("it is 5 passed in spirit", {}, id="prose"),
    ],
)
def test_a_closing_line_is_counted(line: str, counts: dict[str, int]) -> None:
    assert dict(counts_of(line)) == counts


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        ("5 passed in 1s", "7 passed in 1s", "12 passed in 3.50s"),
        ("1 failed, 5 passed in 1s", "6 passed, 1 skipped in 1s", "1 failed, 11 passed, 1 skipped in 3.50s"),
        ("1 passed, 1 error in 1s", "1 passed, 1 error in 1s", "2 passed, 2 errors in 3.50s"),
        ("1 passed, 1 warning in 1s", "1 passed in 1s", "2 passed, 1 warning in 3.50s"),
        ("", "no tests ran in 1s", "no tests ran in 3.50s"),
    ],
)
def test_two_closing_lines_make_one(first: str, second: str, line: str) -> None:
    total = closing_line(counts_of(first) + counts_of(second), 3.5)

    assert total.strip("= ") == line
    assert counts_of(total) == counts_of(first) + counts_of(second)


@pytest.mark.parametrize(
    ("arguments", "number"),
    [([], 1), (["-n", "2"], 2), (["-n3", "tests"], 3), (["--numprocesses=4"], 4), (["-n", "0"], 1), (["-k", "no"], 1)],
)
def test_each_worker_gets_a_server(arguments: list[str], number: int) -> None:
    assert workers(arguments) == number


ALONE = ["-c", os.devnull, "-p", "no:django", "-p", "no:randomly", "-p", "no:xdist", "-p", "no:cacheprovider"]


@pytest.mark.parametrize(
    ("body", "code", "counts"),
    [("pass", 0, {"passed": 1}), ("assert False", 1, {"failed": 1})],
    ids=["passed", "failed"],
)
def test_a_run_is_shown_and_says_how_it_closed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, code: int, counts: dict[str, int]
) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(f"def test_it():\n    {body}\n")

    with Run("Here", [*ALONE, str(file)], dict(os.environ)) as run:
        given, closing = run.show()

    assert (given, dict(counts_of(closing))) == (code, counts)
    assert capsys.readouterr().out.startswith("Here\n")


def test_a_run_that_nobody_waits_for_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text("import time\n\n\ndef test_it():\n    time.sleep(60)\n")

    with pytest.raises(KeyboardInterrupt), Run("Here", [*ALONE, str(file)], dict(os.environ)) as run:
        raise KeyboardInterrupt

    code, closing = run.show()
    assert (code != 0, closing) == (True, "")
