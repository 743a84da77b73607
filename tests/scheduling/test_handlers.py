import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_django import Settings

from scheduling import handlers
from scheduling.handlers import CommandHandler, HandlerNotAllowed, PythonHandler, parse

if TYPE_CHECKING:
    from tests.conftest import HandlerRoot


def refusal(handler: str) -> tuple[str, str]:
    with pytest.raises(HandlerNotAllowed) as caught:
        parse(handler)
    (detail,) = caught.value.details
    assert (caught.value.code, caught.value.status, detail.field) == ("INVALID_REQUEST", 400, "handler")
    assert detail.suggestion
    return detail.message, detail.suggestion


@pytest.fixture
def script(handler_root: "HandlerRoot") -> Path:
    handler_root.write("jobs/backup.sh", "true")
    return handler_root.path / "jobs/backup.sh"


def test_a_command_names_the_real_script(handler_root: "HandlerRoot", script: Path) -> None:
    parsed = parse("bash jobs/../jobs/backup.sh --full 'two words' -x")

    assert parsed == CommandHandler(("bash", str(script), "--full", "two words", "-x"), str(handler_root.path))
    assert parsed.display == "bash jobs/backup.sh --full 'two words' -x"


def test_an_absolute_path_under_the_root_is_fine(script: Path) -> None:
    parsed = parse(f"sh {script}")

    assert isinstance(parsed, CommandHandler)
    assert parsed.argv == ("sh", str(script))


def test_a_link_inside_the_root_is_followed(handler_root: "HandlerRoot", script: Path) -> None:
    (handler_root.path / "current").symlink_to("jobs/backup.sh")

    parsed = parse("bash current")

    assert isinstance(parsed, CommandHandler)
    assert parsed.argv[1] == str(script)


def test_python_handlers_go_by_name() -> None:
    assert parse("python:noop") == PythonHandler("noop")
    assert parse("python:noop").display == "python:noop"


def test_an_unknown_python_handler_names_the_known_ones() -> None:
    message, suggestion = refusal("python:nope")

    assert message == "No Python handler is called 'nope'."
    assert "python:noop, python:sleep" in suggestion


REFUSED = {
    "empty": ("", "The handler is empty.", "bash ops/agents/backup.sh"),
    "blank": ("  ", "The handler is empty.", "bash ops/agents/backup.sh"),
    "too long": ("bash " + "x" * 500, "longer than 500 characters", "Move it into a script"),
    "unclosed quote": ("bash 'jobs/backup.sh", "never closed", "Close the quote"),
    "interpreter": ("perl jobs/backup.sh", "'perl' is not an allowed interpreter", "Start with one of: bash, sh, pyth"),
    "interpreter by path": ("/bin/bash jobs/backup.sh", "'/bin/bash' is not an allowed", "Start with one of: bash"),
    "script alone": ("jobs/backup.sh", "'jobs/backup.sh' is not an allowed interpreter", "Start with one of"),
    "variable first": ("A=1 bash jobs/backup.sh", "'A=1' is not an allowed interpreter", "Start with one of"),
    "no script": ("bash", "No script is named.", "bash ops/agents/backup.sh"),
    "empty script": ("bash ''", "No script is named.", "bash ops/agents/backup.sh"),
    "code": ("bash -c reboot", "'-c' is an option", "Put the code into a script"),
    "stdin": ("bash - jobs/backup.sh", "'-' is an option", "name the script"),
    "option": ("python3 --version jobs/backup.sh", "'--version' is an option", "name the script"),
    "quoted option": ("bash '-c' x", "'-c' is an option", "name the script"),
    "missing": ("bash jobs/nope.sh", "The script jobs/nope.sh cannot be opened: No such file", "Check the path"),
    "folder": ("bash jobs", "jobs is not a regular file.", "Name a script file"),
    "device": ("bash /dev/null", "/dev/null is not under the handler root.", "Move the script under the root"),
    "above": ("bash ../x.sh", "../x.sh is not under the handler root.", "Move the script under the root"),
    "around": ("bash jobs/../../x", "jobs/../../x is not under the handler root.", "Move the script under the root"),
    "root itself": ("bash .", ". is not under the handler root.", "Move the script under the root"),
    "line break": ("bash jobs/backup.sh\nreboot", "contains a line break", "one line of plain text"),
    "NUL": ("bash jobs/backup.sh\0", "contains a NUL byte", "one line of plain text"),
    "escape": ("bash jobs/backup.sh \x1b[2J", "contains the character U+001B", "one line of plain text"),
    "surrogate": ("bash jobs/\ud800", "contains the character U+D800", "one line of plain text"),
    "hard space": ("bash\xa0jobs/backup.sh", "contains the character U+00A0", "one line of plain text"),
}


@pytest.mark.parametrize(("handler", "message", "suggestion"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_say_why_and_what_to_write(script: Path, handler: str, message: str, suggestion: str) -> None:
    given = refusal(handler)

    assert message in given[0]
    assert suggestion in given[1]


@pytest.mark.parametrize(
    ("rest", "operator"),
    [
        ("; reboot", ";"),
        ("| tee x", "|"),
        ("|| true", "||"),
        ("& true", "&"),
        ("&& true", "&&"),
        ("> /etc/passwd", ">"),
        (">> x", ">>"),
        ("< x", "<"),
        ("<< x", "<<"),
        ("$HOME", "$"),
        ("$(id)", "$("),
        ("`id`", "`"),
        ("(id)", "("),
        (")", ")"),
        ("{a,b}", "{"),
        ("}", "}"),
        ("*.log", "*"),
        ("?.log", "?"),
        ("~/x", "~"),
        ("'a;b'", ";"),
        (r"\;", ";"),
    ],
)
def test_shell_syntax_is_named(script: Path, rest: str, operator: str) -> None:
    message, suggestion = refusal(f"bash jobs/backup.sh {rest}")

    assert message == f"The handler contains the shell operator {operator!r}, and no shell reads it."
    assert suggestion == "Put it into a script, and pass what changes as parameters"


def test_a_link_out_of_the_root_is_refused(handler_root: "HandlerRoot", tmp_path: Path) -> None:
    (tmp_path / "outside.sh").write_text("true")
    (handler_root.path / "link.sh").symlink_to(tmp_path / "outside.sh")
    (handler_root.path / "folder").symlink_to(tmp_path)

    assert refusal("bash link.sh")[0] == "link.sh is not under the handler root."
    assert refusal("bash folder/outside.sh")[0] == "folder/outside.sh is not under the handler root."


def test_a_path_outside_does_not_tell_whether_it_exists() -> None:
    assert refusal("bash /etc/passwd")[0].replace("passwd", "nope") == refusal("bash /etc/nope")[0]


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o666])
def test_a_script_that_others_may_write_is_refused(script: Path, mode: int) -> None:
    script.chmod(mode)

    assert refusal("bash jobs/backup.sh") == (
        "jobs/backup.sh can be written by other users of this machine.",
        "chmod go-w jobs/backup.sh",
    )


@pytest.mark.parametrize("folder", ["jobs", "."])
def test_a_script_in_a_folder_that_everyone_can_write_is_refused(
    handler_root: "HandlerRoot", script: Path, folder: str
) -> None:
    (handler_root.path / folder).chmod(0o777)

    message, suggestion = refusal("bash jobs/backup.sh")

    assert message == "jobs/backup.sh lies in a folder that everyone can write."
    assert suggestion.startswith("chmod o-w")


def test_a_sticky_folder_is_fine(script: Path) -> None:
    script.parent.chmod(0o1777)

    parse("bash jobs/backup.sh")


def loosen(script: Path) -> None:
    script.chmod(0o777)


def redirect(script: Path) -> None:
    script.unlink()
    script.symlink_to("/etc/hostname")


def replace_by_a_pipe(script: Path) -> None:
    script.unlink()
    os.mkfifo(script, 0o700)


@pytest.mark.parametrize("change", [loosen, redirect, replace_by_a_pipe, Path.unlink])
def test_the_file_is_looked_at_again_every_time(script: Path, change: Callable[[Path], object]) -> None:
    parse("bash jobs/backup.sh")

    change(script)

    refusal("bash jobs/backup.sh")


def test_without_a_root_only_ops_may_run(settings: Settings, tmp_path: Path) -> None:
    settings.K1NODE_HANDLER_ROOT = None
    settings.BASE_DIR = tmp_path
    for name in ("manage.py", "ops/agents/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "ops/link.py").symlink_to("../manage.py")

    parsed = parse("python3 ops/agents/x.py")

    assert parsed == CommandHandler(("python3", str(tmp_path / "ops/agents/x.py")), str(tmp_path))
    for handler in ("python3 manage.py createapikey", "python3 ops/../manage.py", "python3 ops/link.py"):
        message, suggestion = refusal(handler)
        assert message == f"{handler.split()[1]} is not under ops/ of the project folder."
        assert suggestion == "Move the script under ops/, or set K1NODE_HANDLER_ROOT"


def test_interpreters_come_from_the_settings(settings: Settings, script: Path) -> None:
    settings.K1NODE_HANDLER_INTERPRETERS = ["node"]

    assert isinstance(parse("node jobs/backup.sh"), CommandHandler)
    assert "Start with one of: node" in refusal("bash jobs/backup.sh")[1]


def test_the_environment_holds_what_is_listed_and_no_secret(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hidden")
    monkeypatch.setenv("BACKUP_TARGET", "s3")
    settings.K1NODE_HANDLER_ENV = ["BACKUP_TARGET", "NOT_SET_ANYWHERE"]

    environment = handlers.environment()

    assert set(environment) == {"PATH", "HOME", "LANG", "TZ", "K1NODE_DATA", "K1_PYTHON", "BACKUP_TARGET"}
    assert environment["K1_PYTHON"] == sys.executable
    assert environment["K1NODE_DATA"] == str(settings.K1NODE_DATA)


def test_the_environment_is_a_copy() -> None:
    handlers.environment()["PATH"] = "changed"

    assert handlers.environment()["PATH"] != "changed"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("target", "s3", {"K1_PARAM_TARGET": "s3"}),
        ("dry-run.now", True, {"K1_PARAM_DRY_RUN_NOW": "true"}),
        ("off", False, {"K1_PARAM_OFF": "false"}),
        ("count", 3, {"K1_PARAM_COUNT": "3"}),
        ("huge", 2**70, {"K1_PARAM_HUGE": str(2**70)}),
        ("ratio", 0.5, {"K1_PARAM_RATIO": "0.5"}),
        ("nothing", None, {"K1_PARAM_NOTHING": ""}),
        ("list", ["a", 1], {"K1_PARAM_LIST": '["a",1]'}),
        ("object", {"a": {"b": None}}, {"K1_PARAM_OBJECT": '{"a":{"b":null}}'}),
        ("nul", "a\0b", {"K1_PARAM_NUL": "ab"}),
        ("half", "\ud83d", {"K1_PARAM_HALF": "?"}),
        ("été", "x", {"K1_PARAM__T_": "x"}),
        ("", "x", {}),
        ("--", "x", {}),
        ("large", "x" * 100_001, {}),
        ("shell", "$(reboot); `id`", {"K1_PARAM_SHELL": "$(reboot); `id`"}),
    ],
)
def test_parameters_as_variables(name: str, value: Any, expected: dict[str, str]) -> None:
    assert handlers.parameter_environment({name: value}) == expected


def test_all_variables_together_are_bounded() -> None:
    variables = handlers.parameter_environment({f"p{number}": "x" * 90_000 for number in range(20)})

    assert 4 <= len(variables) <= 6
