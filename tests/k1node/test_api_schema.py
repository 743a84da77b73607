import re
from typing import Any

import pytest
from django.test import Client
from drf_spectacular.drainage import GENERATOR_STATS
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from k1node.api import document

SERVERS = ["https://api.k1node.local/api/v2", "http://localhost:3000/api/v2"]


@pytest.fixture
def probe(settings: Any) -> dict[str, Any]:
    """Return the document of the node with the probe's endpoints beside its own."""
    settings.ROOT_URLCONF = "tests.k1node.api_probe"
    return document.build()


def test_the_document_is_public_and_valid(client: Client) -> None:
    response = client.get("/api/v2/openapi.json", headers={"Accept": "text/yaml"})

    content = response.json()
    assert (response.status_code, response["Content-Type"]) == (200, "application/json")
    assert (content["openapi"], content["info"]["title"]) == ("3.1.0", "K1.Node API v2")
    assert [server["url"] for server in content["servers"]] == SERVERS
    validate(content, cls=OpenAPIV31SpecValidator)


def test_the_document_is_made_without_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    GENERATOR_STATS.reset()

    document.build()

    assert not GENERATOR_STATS, capsys.readouterr().err


def test_an_unchanged_document_is_not_sent_again(client: Client) -> None:
    etag = client.get("/api/v2/openapi.json")["ETag"]

    assert client.get("/api/v2/openapi.json", headers={"If-None-Match": etag}).status_code == 304


def test_the_probe_is_valid(probe: dict[str, Any]) -> None:
    validate(probe, cls=OpenAPIV31SpecValidator)


def test_names_are_the_designs(probe: dict[str, Any]) -> None:
    listing, item = probe["paths"]["/echoes"], probe["paths"]["/echoes/{echoId}"]["get"]

    assert (listing["get"]["operationId"], listing["post"]["operationId"]) == ("listEchoes", "createEcho")
    assert (listing["get"]["summary"], listing["get"]["description"]) == ("List the echoes", "At length.")
    assert listing["get"]["tags"] == ["Scheduling"]
    assert item["parameters"] == [{"in": "path", "name": "echoId", "schema": {"type": "string"}, "required": True}]
    assert {"EchoInput", "Echo", "Key", "EchoList", "Error"} <= set(probe["components"]["schemas"])


def test_pagination_is_shared(probe: dict[str, Any]) -> None:
    parameters = probe["paths"]["/keys"]["get"]["parameters"]

    assert parameters == [
        {"$ref": f"#/components/parameters/{name}"} for name in ("CursorParam", "LimitParam", "PageParam")
    ]
    assert set(probe["components"]["schemas"]["EchoList"]["properties"]) == {"echoes", "pagination"}


def test_links_of_lists_are_declared(probe: dict[str, Any]) -> None:
    for path in ("/echoes", "/keys", "/circuit-breaker/status"):
        assert (
            "first, prev, next and last"
            in probe["paths"][path]["get"]["responses"]["200"]["headers"]["Link"]["description"]
        )
    assert "Link" not in probe["paths"]["/echoes/{echoId}"]["get"]["responses"]["200"]["headers"]


def test_idempotency_is_declared_on_every_post(probe: dict[str, Any]) -> None:
    reference = {"$ref": "#/components/parameters/IdempotencyKey"}
    posts = {path: item["post"] for path, item in probe["paths"].items() if "post" in item}

    without = {path for path, post in posts.items() if reference not in post.get("parameters", [])}
    others = [item[name] for item in probe["paths"].values() for name in item if name != "post"]
    assert without == {"/made/heedless", "/auth/token", "/auth/refresh", "/auth/revoke"}
    assert not [operation for operation in others if reference in operation.get("parameters", [])]
    for path in posts.keys() - without:
        answers = [answer for code, answer in posts[path]["responses"].items() if code.startswith("2")]
        assert [("Idempotency-Replayed" in answer["headers"]) for answer in answers] == [True] * len(answers)
    assert probe["components"]["parameters"]["IdempotencyKey"]["required"] is False
    assert {"Location", "Idempotency-Replayed"} <= set(probe["paths"]["/tasks"]["post"]["responses"]["202"]["headers"])


def test_errors_are_declared(probe: dict[str, Any]) -> None:
    operation = probe["paths"]["/echoes"]["post"]

    assert operation["responses"]["401"] == {"$ref": "#/components/responses/Unauthorized"}
    assert operation["responses"]["429"] == {"$ref": "#/components/responses/TooManyRequests"}
    assert set(operation["responses"]) == {
        *("201", "400", "401", "403", "406", "409", "413", "415", "429", "500", "503")
    }
    assert "404" in probe["paths"]["/echoes/{echoId}"]["get"]["responses"]
    for answer in probe["components"]["responses"].values():
        assert answer["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_scopes_are_declared(probe: dict[str, Any]) -> None:
    operation = probe["paths"]["/echoes"]["post"]

    assert operation["security"] == [
        {"ApiKey": []},
        {"JWT": []},
        {"OAuth2": ["scheduler:write"]},
        {"OAuth2": ["error-recovery:write"]},
        {"OperatorSession": []},
    ]
    assert operation["x-required-scopes"] == ["scheduler:write", "error-recovery:write"]


def test_old_nullables_are_rewritten() -> None:
    content = {
        "a": {"type": "string", "nullable": True},
        "b": [{"oneOf": [{}, {"type": "null"}]}],
        "properties": {"nullable": {"type": "boolean"}},
    }

    document.without_nullable(content)

    assert content == {
        "a": {"type": ["string", "null"]},
        "b": [{}],
        "properties": {"nullable": {"type": "boolean"}},
    }


@pytest.mark.parametrize("path", ["/api/v2/docs", "/api/v2/docs?script=", "/api/v2/redoc"])
def test_pages_ask_nobody_else_for_anything(client: Client, path: str) -> None:
    response = client.get(path)

    content = response.content.decode()
    assert response.status_code == 200
    assert re.findall(r"(?:https?:)?//[\w-]+(?:\.[\w-]+)+", content) == []
    assert "/static/drf_spectacular_sidecar/" in content or "script=" in path
    assert response["Content-Security-Policy"].startswith("default-src 'self'; img-src 'self' data:;")


def test_pages_find_the_document(client: Client) -> None:
    assert "/api/v2/openapi.json" in client.get("/api/v2/redoc").content.decode()
    script = client.get("/api/v2/docs?script=").content.decode()
    assert "/api/v2/openapi.json" in script
    assert '"validatorUrl": null' in script


@pytest.mark.django_db  # closing a file's response ends the request, which looks after the connection
@pytest.mark.parametrize("name", ["redoc/bundles/redoc.standalone.js", "swagger-ui-dist/swagger-ui-bundle.js"])
def test_their_scripts_are_served_from_here(client: Client, name: str) -> None:
    response = client.get(f"/static/drf_spectacular_sidecar/{name}")

    assert response.status_code == 200
    response.close()
