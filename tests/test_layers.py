"""The order of the layers: every import and every foreign key points downwards.

wiring (the rest: root files of k1node, management, manage.py, bench)   imports anything, imported by nobody
batches                                                                 recovery, scheduling, base
recovery                                                                scheduling, base
scheduling | webhooks                                                   base
base (k1node.api, access, audit, events, operations, live, lib)                nothing above
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.apps import apps

ROOT = Path(__file__).resolve().parent.parent
BASE = {"api", "access", "audit", "events", "operations", "live", "lib"}
BELOW = {
    "base": {"base"},
    "scheduling": {"scheduling", "base"},
    "webhooks": {"webhooks", "base"},
    "recovery": {"recovery", "scheduling", "base"},
    "batches": {"batches", "recovery", "scheduling", "base"},
    "wiring": {"wiring", "batches", "recovery", "webhooks", "scheduling", "base"},
}
FOREIGN_KEYS_TO_DJANGO = {"auth", "contenttypes"}


@dataclass(frozen=True)
class Import:
    line: int
    module: str
    names: tuple[str, ...] = ()


def layer_of(module: str) -> str:
    """Return the layer of a module of this project."""
    top, *rest = module.split(".")
    if top == "k1node":
        return "base" if rest and rest[0] in BASE else "wiring"
    return top if top in BELOW or top == "tests" else "wiring"


def sources(root: Path) -> dict[str, Path]:
    """Return the project's files by module name, without the tests and what is not ours."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in ("tests", "data") or any(part.startswith(".") or part == "node_modules" for part in parts):
            continue
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.AST, package: str) -> Iterator[Import]:
    """Give every import of a file, those inside functions and those by name included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(node.lineno, alias.name)
            case ast.ImportFrom(module=module, names=names, level=level):
                parts = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                yield Import(
                    node.lineno,
                    ".".join([*parts, *([module] if module else [])]),
                    tuple(alias.name for alias in names),
                )
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(str(module)), *_]) if (
                name in ("import_module", "__import__", "import_string")
            ):
                yield Import(node.lineno, module)


def targets(found: Import, ours: set[str]) -> Iterator[str]:
    """Give the modules of this project that an import reaches."""
    for name in found.names:
        if f"{found.module}.{name}" in ours:
            yield f"{found.module}.{name}"
    rest_of_names = [name for name in found.names if f"{found.module}.{name}" not in ours]
    if rest_of_names or not found.names:
        yield found.module


def listens_to_a_signal(tree: ast.AST) -> Iterator[int]:
    """Give the lines on which a file connects something to a Django signal, or makes a signal."""
    signals: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.startswith("django.dispatch"):
                yield node.lineno
            for alias in node.names if node.module.startswith("django.") else []:
                if "signals" in (*node.module.split("."), alias.name):
                    signals.add(alias.asname or alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("django.dispatch"):
                    yield node.lineno
                elif alias.name.startswith("django.") and "signals" in alias.name.split("."):
                    signals.add(alias.asname or alias.name.split(".")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "connect":
            owner = node.func.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in signals:
                yield node.lineno


def violations(root: Path) -> list[str]:
    """Return what breaks the order in the project at `root`, one line each."""
    files = sources(root)
    ours = set(files)
    tops = {module.split(".")[0] for module in ours} | {"tests"}
    broken = []
    for module, path in files.items():
        place = path.relative_to(root)
        tree = ast.parse(path.read_text())
        layer = layer_of(module)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for found in imports(tree, package):
            if "*" in found.names:
                broken.append(f"{place}:{found.line} imports * from {found.module}")
            for target in targets(found, ours):
                if target.split(".")[0] not in tops:
                    continue
                if layer_of(target) not in BELOW[layer]:
                    broken.append(f"{place}:{found.line} ({layer}) imports {target} ({layer_of(target)})")
        broken += [f"{place}:{line} uses a signal" for line in listens_to_a_signal(tree)]
    return broken


def test_every_import_of_the_project_points_downwards() -> None:
    assert violations(ROOT) == []


def test_every_foreign_key_of_the_project_points_downwards() -> None:
    upward = []
    for model in apps.get_models(include_auto_created=True):
        if not (ROOT / model.__module__.split(".")[0]).is_dir():
            continue
        for field in model._meta.get_fields():
            if not field.is_relation or field.auto_created or not isinstance(field.related_model, type):
                continue
            target = field.related_model
            ours = (ROOT / target.__module__.split(".")[0]).is_dir()
            if ours and layer_of(target.__module__) not in BELOW[layer_of(model.__module__)]:
                upward.append(f"{model.__name__}.{field.name} -> {target.__name__}")
            if not ours and target._meta.app_label not in FOREIGN_KEYS_TO_DJANGO:
                upward.append(f"{model.__name__}.{field.name} -> {target._meta.label}")

    assert upward == []


TREE = {
    "manage.py": "",
    "k1node/__init__.py": "",
    "k1node/settings.py": "",
    "k1node/lib/__init__.py": "",
    "k1node/lib/ids.py": "",
    "k1node/events/__init__.py": "",
    "k1node/events/log.py": "",
    "scheduling/__init__.py": "",
    "scheduling/queue.py": "",
    "recovery/__init__.py": "",
    "recovery/decisions.py": "",
    "webhooks/__init__.py": "",
    "webhooks/fanout.py": "",
    "batches/__init__.py": "",
    "batches/progress.py": "",
    "bench/__init__.py": "",
    "tests/__init__.py": "",
    "tests/factories.py": "",
}


def project(root: Path, **changed: str) -> Path:
    """Write a made-up project in which the named files (slashes as __) have another text."""
    files = TREE | {f"{name.replace('__', '/')}.py": text for name, text in changed.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        pytest.param("k1node__lib__ids", "from scheduling import queue", id="base imports an app"),
        pytest.param("k1node__lib__ids", "from k1node import settings", id="base imports the wiring"),
        pytest.param("k1node__lib__ids", "import k1node.settings", id="base imports the wiring by its whole name"),
        pytest.param("scheduling__queue", "from recovery.decisions import decide", id="scheduling imports recovery"),
        pytest.param("scheduling__queue", "import recovery.decisions as d", id="under another name"),
        pytest.param("scheduling__queue", "from webhooks import fanout", id="scheduling imports its neighbour"),
        pytest.param("webhooks__fanout", "from scheduling import queue", id="webhooks imports scheduling"),
        pytest.param("recovery__decisions", "import batches", id="recovery imports batches"),
        pytest.param("recovery__decisions", "from webhooks import fanout", id="recovery imports webhooks"),
        pytest.param("batches__progress", "from webhooks import fanout", id="batches imports webhooks"),
        pytest.param("batches__progress", "from k1node.settings import DEBUG", id="an app imports the wiring"),
        pytest.param("batches__progress", "import bench", id="an app imports the benchmark"),
        pytest.param("scheduling__queue", "def f():\n    from recovery import decisions", id="inside a function"),
        pytest.param("scheduling__queue", "import_module('recovery.decisions')", id="by a string"),
        pytest.param("scheduling__queue", "from ..recovery import decisions", id="relatively"),
        pytest.param("scheduling__queue", "if TYPE_CHECKING:\n    import recovery", id="only for types"),
        pytest.param("scheduling__migrations__0001_a", "from recovery import decisions", id="in a migration"),
        pytest.param("k1node__settings", "from tests import factories", id="the wiring imports the tests"),
        pytest.param("k1node__settings", "from k1node.lib.ids import *", id="a star"),
        pytest.param("k1node__settings", "from os.path import *", id="a star from elsewhere"),
        pytest.param("recovery__decisions", "from django.dispatch import receiver", id="a receiver"),
        pytest.param(
            "recovery__decisions",
            "from django.db.models.signals import post_save\npost_save.connect(print)",
            id="a connected signal",
        ),
        pytest.param(
            "recovery__decisions",
            "from django.db.models import signals\nsignals.post_save.connect(print)",
            id="a connected signal of a module",
        ),
        pytest.param(
            "k1node__settings",
            "import django.core.signals\ndjango.core.signals.request_started.connect(print)",
            id="a connected signal by its whole name",
        ),
    ],
)
def test_what_breaks_the_order_is_found(tmp_path: Path, file: str, text: str) -> None:
    root = project(tmp_path, **{file: text})

    broken = violations(root)

    assert [line.split(".py:")[0].replace("/", "__") for line in broken] == [file]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        pytest.param("k1node__lib__ids", "from k1node.events import log", id="base imports base"),
        pytest.param("scheduling__queue", "from k1node.events import log", id="scheduling imports base"),
        pytest.param("webhooks__fanout", "from k1node.lib.ids import prefixed", id="webhooks imports base"),
        pytest.param("recovery__decisions", "from scheduling import queue", id="recovery imports scheduling"),
        pytest.param("batches__progress", "from recovery import decisions", id="batches imports recovery"),
        pytest.param("k1node__settings", "from batches import progress", id="the wiring imports batches"),
        pytest.param("k1node__management__commands__up", "from k1node import settings", id="the wiring imports wiring"),
        pytest.param("bench__claims", "from k1node.lib import ids", id="the benchmark imports anything"),
        pytest.param("tests__factories", "from k1node import settings", id="tests import anything"),
        pytest.param("scheduling__queue", "import sqlite3\nsqlite3.connect(':memory:')", id="a connection, no signal"),
        pytest.param("k1node__node", "from django_q.signals import post_spawn\npost_spawn.connect(print)", id="a hook"),
        pytest.param("scheduling__queue", "import signal\nsignal.signal(15, print)", id="a signal of the system"),
    ],
)
def test_what_keeps_the_order_is_let_through(tmp_path: Path, file: str, text: str) -> None:
    root = project(tmp_path, **{file: text})

    broken = violations(root)

    assert broken == []
