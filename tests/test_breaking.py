"""The guard that finds what a new version of the OpenAPI document takes from its users."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.breaking import breaking_changes

ITEM: dict[str, Any] = {"type": "object", "properties": {"name": {}, "size": {}}, "required": ["name"]}
BEFORE: dict[str, Any] = {
    "paths": {
        "/items": {
            "post": {
                "operationId": "createItem",
                "parameters": [{"$ref": "#/components/parameters/Mode"}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Item"}}}},
                "responses": {
                    "201": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Item"}}}},
                    "400": {},
                },
            },
            "get": {"operationId": "listItems", "responses": {"200": {}}},
        }
    },
    "components": {"parameters": {"Mode": {"in": "query", "name": "mode"}}, "schemas": {"Item": ITEM}},
}


def post(document: dict[str, Any]) -> Any:
    return document["paths"]["/items"]["post"]


def item(document: dict[str, Any]) -> Any:
    return document["components"]["schemas"]["Item"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param(lambda d: d["paths"].pop("/items"), ["POST /items is gone", "GET /items is gone"], id="path"),
        pytest.param(lambda d: d["paths"]["/items"].pop("get"), ["GET /items is gone"], id="operation"),
        pytest.param(
            lambda d: post(d).update(operationId="makeItem"), ["POST /items is no longer called createItem"], id="name"
        ),
        pytest.param(lambda d: post(d)["parameters"].clear(), ["POST /items no longer takes mode"], id="parameter"),
        pytest.param(
            lambda d: d["components"]["parameters"]["Mode"].update(required=True),
            ["POST /items demands mode"],
            id="demanded parameter",
        ),
        pytest.param(
            lambda d: item(d).update(required=["name", "size"]), ["POST /items demands size"], id="demanded field"
        ),
        pytest.param(
            lambda d: item(d)["properties"].pop("size"),
            ["POST /items no longer takes size", "POST /items 201 no longer has size"],
            id="field",
        ),
        pytest.param(lambda d: post(d)["responses"].pop("201"), ["POST /items no longer answers 201"], id="answer"),
    ],
)
def test_what_breaks_a_client_is_found(change: Callable[[dict[str, Any]], Any], found: list[str]) -> None:
    after = copy.deepcopy(BEFORE)
    change(after)

    assert breaking_changes(BEFORE, after) == found


def test_what_is_added_breaks_nobody() -> None:
    after = copy.deepcopy(BEFORE)
    item(after)["properties"]["colour"] = {}
    post(after)["parameters"].append({"in": "query", "name": "more"})
    post(after)["responses"].pop("400")
    after["paths"]["/more"] = {"get": {"operationId": "more", "responses": {}}}

    assert breaking_changes(BEFORE, after) == []
