"""Every variable the settings read is in the README's settings table and in .env.example, and nothing else is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READERS = {
    "env_str",
    "env_int",
    "env_bool",
    "env_choice",
    "env_date",
    "env_duration",
    "env_list",
    "env_networks",
    "required",
    "get",
}
# `up` tells each of its processes which one it is; not for operators.
INTERNAL = {"K1NODE_ROLE"}


def names_read(source: str) -> set[str]:
    """Return the environment variables that a settings file reads."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Name(id=reader) | ast.Attribute(attr=reader), args=[ast.Constant(value=str(name)), *_]
            ) if reader in READERS:
                names.add(name)
            case ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str(name))):
                names.add(name)
    return names


def names_in_table(readme: str) -> set[str]:
    """Return the names in the first column of the tables under the headings that speak of settings."""
    names: set[str] = set()
    level = 0
    for line in readme.splitlines():
        if heading := re.match(r"(#+) (.*)", line):
            if re.search(r"\b(settings|configuration)\b", heading[2], re.IGNORECASE):
                level = len(heading[1])
            elif len(heading[1]) <= level:
                level = 0
        elif level and (row := re.match(r"\|([^|]*)\|", line)):
            names.update(re.findall(r"`([A-Z][A-Z0-9_]+)`", row[1]))
    return names


def names_in_example(text: str) -> set[str]:
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))


def test_the_readme_documents_every_setting_and_no_other() -> None:
    readme = ROOT / "README.md"
    assert readme.exists(), "README.md, whose settings table this test checks, is not there."

    documented = names_in_table(readme.read_text())

    assert documented - INTERNAL == names_read((ROOT / "k1node/settings.py").read_text()) - INTERNAL


def test_the_example_environment_has_every_setting_and_no_other() -> None:
    shown = names_in_example((ROOT / ".env.example").read_text())

    assert shown == names_read((ROOT / "k1node/settings.py").read_text()) - INTERNAL


@pytest.mark.parametrize(
    ("source", "names"),
    [
        pytest.param("A = env_str('A')", {"A"}, id="a helper"),
        pytest.param("A = [Path(env.env_int('A', 1)).b(), env_bool('B', True)]", {"A", "B"}, id="deep inside"),
        pytest.param("A = secrets.required('A', folder, production=True)", {"A"}, id="a secret"),
        pytest.param("A = os.environ.get('A', '') or os.environ['B']", {"A", "B"}, id="the environment itself"),
        pytest.param("A = 'B'\nlogs.configure('C')", set(), id="nothing"),
    ],
)
def test_what_settings_read_is_found(source: str, names: set[str]) -> None:
    assert names_read(source) == names


def test_only_the_first_column_of_the_settings_table_counts() -> None:
    readme = """
# K1.Node
| `NOT_THIS` | a table elsewhere |
## Settings
Not `THIS` either.
| Variable | Default |
|---|---|
| `PORT` | not `THAT` |
### More settings
| `DB_HOST`, `DB_PORT` | |
## Next
| `NOR_THIS` | |
"""

    assert names_in_table(readme) == {"PORT", "DB_HOST", "DB_PORT"}
