"""What a change of the OpenAPI document would break for those who use it: what is gone, and what is newly demanded.

The version to compare with is that of the last release (a tag v…), or else the one that is committed.
"""

import subprocess
from typing import Any

import orjson

from k1node.api.document import operations
from k1node.management.commands.openapi import DOCUMENT

Document = dict[str, Any]
Parameters = dict[tuple[str, str], Document]  # by place and name


def committed() -> Document | None:
    """Return the document others hold; None outside a git repository, and before there was one."""
    folder = DOCUMENT.parent.parent
    tag = _git(folder, "describe", "--tags", "--match", "v*", "--abbrev=0").strip()
    for version in (tag, "HEAD"):
        if version and (text := _git(folder, "show", f"{version}:docs/{DOCUMENT.name}")):
            found: Document = orjson.loads(text)
            return found
    return None


def _git(folder: Any, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def breaking_changes(before: Document, after: Document) -> list[str]:
    """Return, a line each, what a client of `before` would stumble over."""
    broken = []
    now = {(method, path): operation for method, path, operation in operations(after)}
    for method, path, old in operations(before):
        where, new = f"{method.upper()} {path}", now.get((method, path))
        if new is None:
            broken.append(f"{where} is gone")
            continue
        if new["operationId"] != old["operationId"]:
            broken.append(f"{where} is no longer called {old['operationId']}")
        broken += _of_parameters(where, _parameters(before, old), _parameters(after, new))
        broken += _of_body(where, _body(before, old), _body(after, new))
        for status, answer in old["responses"].items():
            if status.startswith("2") and status not in new["responses"]:
                broken.append(f"{where} no longer answers {status}")
            elif status.startswith("2"):
                gone = _properties(before, answer) - _properties(after, new["responses"][status])
                broken += [f"{where} {status} no longer has {name}" for name in sorted(gone)]
    return broken


def _of_parameters(where: str, old: Parameters, new: Parameters) -> list[str]:
    broken = [f"{where} no longer takes {key[1]}" for key in sorted(old.keys() - new.keys())]
    for key, parameter in new.items():
        if parameter.get("required") and not old.get(key, {}).get("required"):
            broken.append(f"{where} demands {key[1]}")
    return broken


def _of_body(where: str, old: Document, new: Document) -> list[str]:
    demanded = set(new.get("required", ())) - set(old.get("required", ()))
    gone = old.get("properties", {}).keys() - new.get("properties", {}).keys()
    return [f"{where} demands {name}" for name in sorted(demanded)] + [
        f"{where} no longer takes {name}" for name in sorted(gone)
    ]


def _parameters(document: Document, operation: Document) -> Parameters:
    found = [_resolved(document, each) for each in operation.get("parameters", ())]
    return {(each["in"], each["name"]): each for each in found}


def _body(document: Document, operation: Document) -> Document:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return _resolved(document, content.get("schema", {}))


def _properties(document: Document, answer: Document) -> set[str]:
    content = _resolved(document, answer).get("content", {}).get("application/json", {})
    return set(_resolved(document, content.get("schema", {})).get("properties", {}))


def _resolved(document: Document, node: Document) -> Document:
    while "$ref" in node:
        found: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node
