"""The OpenAPI document as a whole, with the touches that no single operation can put to it."""

import copy
from typing import Any

import inflection
from drf_spectacular.generators import SchemaGenerator

from k1node.api.conditional import IF_MATCH_PARAMETER, IF_NONE_MATCH_PARAMETER
from k1node.api.idempotency import KEY_PARAMETER
from k1node.api.pagination import CURSOR_PARAMETER, LIMIT_PARAMETER, PAGE_PARAMETER
from k1node.api.schema import Document

SHARED_PARAMETERS: dict[str, Document] = {
    "PageParam": PAGE_PARAMETER,
    "LimitParam": LIMIT_PARAMETER,
    "CursorParam": CURSOR_PARAMETER,
    "IdempotencyKey": KEY_PARAMETER,
    "IfMatch": IF_MATCH_PARAMETER,
    "IfNoneMatch": IF_NONE_MATCH_PARAMETER,
}


def build() -> Document:
    """Return the document of all endpoints, whoever asks."""
    return Generator().get_schema(public=True)


class Generator(SchemaGenerator):
    """Makes the document and puts its last touches; named by DEFAULT_GENERATOR_CLASS for `manage.py spectacular`."""

    def get_schema(self, request: Any = None, public: bool = False) -> Document:
        # The constants above are shared by reference; the touches below must not change them.
        document: Document = copy.deepcopy(super().get_schema(request, public))
        without_nullable(document)
        document["paths"] = {
            _camel_path(path): {method: _camel_parameters(operation) for method, operation in item.items()}
            for path, item in document["paths"].items()
        }
        share_parameters(document)
        document["jsonSchemaDialect"] = "https://spec.openapis.org/oas/3.1/dialect/base"
        return document


def without_nullable(node: Any) -> None:
    """Rewrite OpenAPI 3.0's `nullable`, and the oneOf with null that refuses null, as 3.1 says both."""
    if isinstance(node, list):
        for item in node:
            without_nullable(item)
    if not isinstance(node, dict):
        return
    for item in node.values():
        without_nullable(item)
    if node.get("nullable") is True and isinstance(node.get("type"), str):
        node["type"] = [node["type"], "null"]
    if isinstance(node.get("nullable"), bool):
        del node["nullable"]
    # {} admits null too, so of the two exactly one never matches.
    if isinstance(node.get("oneOf"), list) and {} in node["oneOf"] and {"type": "null"} in node["oneOf"]:
        del node["oneOf"]


def share_parameters(document: Document) -> None:
    """Replace the parameters that many operations have by references to components."""
    shared = {name: {**parameter, "required": False} for name, parameter in SHARED_PARAMETERS.items()}
    used: set[str] = set()
    for item in document["paths"].values():
        for operation in item.values():
            parameters = operation.get("parameters", [])
            for index, parameter in enumerate(parameters):
                for name, known in shared.items():
                    if parameter.get("name") == known["name"] and parameter.get("schema") == known["schema"]:
                        parameters[index] = {"$ref": f"#/components/parameters/{name}"}
                        used.add(name)
    if used:
        components = document.setdefault("components", {})
        components.setdefault("parameters", {}).update({name: shared[name] for name in sorted(used)})


def _camel_path(path: str) -> str:
    head, *rest = path.split("{")
    return head + "".join("{" + _camel(part.partition("}")[0]) + "}" + part.partition("}")[2] for part in rest)


def _camel_parameters(operation: Document) -> Document:
    for parameter in operation.get("parameters", []):
        if parameter.get("in") == "path":
            parameter["name"] = _camel(parameter["name"])
    return operation


def _camel(name: str) -> str:
    return inflection.camelize(name, uppercase_first_letter=False)
