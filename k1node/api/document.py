"""The OpenAPI document as a whole, with the touches that no single operation can put to it."""

import copy
from collections.abc import Iterator
from typing import Any

import inflection
import orjson
from drf_spectacular.generators import SchemaGenerator

from k1node.api import declared, example
from k1node.api.conditional import IF_MATCH_PARAMETER, IF_NONE_MATCH_PARAMETER
from k1node.api.error_codes import CODES
from k1node.api.idempotency import KEY_PARAMETER
from k1node.api.pagination import CURSOR_PARAMETER, LIMIT_PARAMETER, PAGE_PARAMETER
from k1node.api.renderers import JSON, PROBLEM
from k1node.api.schema import ERRORS, Document
from k1node.events import catalogue

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


def written() -> bytes:
    """Return the document as its file has it."""
    return orjson.dumps(build(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


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
        declare_examples(document)
        declare_answers(document)
        declare_events(document)
        declare_tags(document)
        document["info"]["description"] = declared.DESCRIPTION
        document["jsonSchemaDialect"] = "https://spec.openapis.org/oas/3.1/dialect/base"
        return document


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    """Give method, path and description of every operation."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


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
    for _method, _path, operation in operations(document):
        parameters = operation.get("parameters", [])
        for index, parameter in enumerate(parameters):
            for name, known in shared.items():
                if parameter.get("name") == known["name"] and parameter.get("schema") == known["schema"]:
                    parameters[index] = {"$ref": f"#/components/parameters/{name}"}
                    used.add(name)
    if used:
        components = document.setdefault("components", {})
        components.setdefault("parameters", {}).update({name: shared[name] for name in sorted(used)})


def declare_examples(document: Document) -> None:
    """Put each example among the components and refer to it where it is used."""
    known = example.collected()
    shared: Document = {}

    def put(operation_id: str, kind: str, content: Document, value: Any) -> None:
        if value is not example.NOTHING and JSON in content:
            name = f"{operation_id}{kind}"
            shared[name] = {"value": value}
            content[JSON]["examples"] = {name: {"$ref": f"#/components/examples/{name}"}}

    for _method, _path, operation in operations(document):
        operation_id = operation["operationId"]
        messages = known.get(operation_id)
        if messages is None:
            continue
        put(operation_id, "Request", operation.get("requestBody", {}).get("content", {}), messages.request)
        for status, answer in operation["responses"].items():
            if status.startswith("2"):
                put(operation_id, "Response", answer.get("content", {}), messages.response)
    document["components"]["examples"] = dict(sorted(shared.items()))


def declare_answers(document: Document) -> None:
    """Declare media types and headers of every request and answer."""
    components = document["components"]
    components["headers"] = copy.deepcopy(declared.HEADERS)
    status_of = {name: status for status, (name, _description) in ERRORS.items()}
    for name, answer in components.get("responses", {}).items():
        if name in status_of:
            said = CODES[status_of[name]], ERRORS[status_of[name]][1], status_of[name]
            body = copy.deepcopy(declared.ERROR_EXAMPLES.get(name) or declared.error_example(*said))
            details = body["error"]["details"] if isinstance(body["error"], dict) else []
            problem = declared.problem_example(*said, details)
            answer["content"][JSON]["examples"] = {name: {"value": body}}
            answer["content"][PROBLEM]["examples"] = {f"{name}Problem": {"value": problem}}
        declared.media_types(answer)
        declared.headers(answer, *declared.ON_ANSWER.get(name, ()))
    for _method, _path, operation in operations(document):
        declared.media_types(operation.get("requestBody", {}))
        for answer in operation["responses"].values():
            if "$ref" not in answer:
                declared.media_types(answer)
                declared.headers(answer)


def declare_events(document: Document) -> None:
    """Describe, as webhooks, what is sent for each event."""
    document["webhooks"] = {}
    for name, event in sorted(catalogue.EVENTS.items()):
        component = f"{inflection.camelize(name.replace('.', '_'))}Event"
        document["components"]["schemas"][component] = event.envelope()
        document["webhooks"][name] = {
            "post": {
                "operationId": f"on{component.removesuffix('Event')}",
                "summary": event.summary,
                "description": "Sent to the webhooks that name this event; any 2xx answer takes it.",
                "tags": ["Events"],
                "security": [],
                "requestBody": {
                    "required": True,
                    "content": {
                        JSON: {
                            "schema": {"$ref": f"#/components/schemas/{component}"},
                            "examples": {component: {"value": event.sample()}},
                        }
                    },
                },
                "responses": {"2XX": {"description": "Taken"}},
            }
        }
    document["components"]["schemas"] = dict(sorted(document["components"]["schemas"].items()))


def declare_tags(document: Document) -> None:
    """List the tags that are used, in the order and with the words of the table."""
    used = {tag for _method, _path, operation in operations(document) for tag in operation.get("tags", ())}
    used |= {tag for item in document["webhooks"].values() for tag in item["post"]["tags"]}
    named = [tag for tag in declared.TAGS if tag in used] + sorted(used - declared.TAGS.keys())
    document["tags"] = [
        {"name": tag, "description": declared.TAGS[tag]} if tag in declared.TAGS else {"name": tag} for tag in named
    ]


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
