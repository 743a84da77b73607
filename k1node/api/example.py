"""Example messages of the OpenAPI document, written beside the serializers: EXAMPLES in an app's api/examples.py.

They are by operationId. A test holds each against its schema and finds operations without one.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from django.apps import apps
from django.utils.module_loading import module_has_submodule

NOTHING: Any = object()


@dataclass(frozen=True, slots=True)
class Example:
    """What a caller sends, and what a successful answer says; NOTHING where there is no body."""

    request: Any = NOTHING
    response: Any = NOTHING


def collected() -> dict[str, Example]:
    """Return the examples of all apps, by operationId."""
    found: dict[str, Example] = {}
    for config in apps.get_app_configs():
        api = f"{config.name}.api"
        if module_has_submodule(config.module, "api") and module_has_submodule(import_module(api), "examples"):
            found |= import_module(f"{api}.examples").EXAMPLES
    return found
