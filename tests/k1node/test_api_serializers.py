from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from rest_framework.test import APIClient

from tests.k1node.api_probe import EchoFilter, EchoInput, EchoOutput, ItemInput

Clients = Callable[..., APIClient]
pytestmark = pytest.mark.urls("tests.k1node.api_probe")


def problems(client: APIClient, body: Any) -> dict[str, tuple[str, str | None]]:
    """Return field -> message and suggestion of a refused body."""
    response = client.post("/api/v2/echoes", body, format="json")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    return {
        detail["field"]: (detail["message"], detail["suggestion"]) for detail in response.json()["error"]["details"]
    }


def test_a_body_of_nothing_but_unknown_fields_costs_no_more_than_a_few(api_client: Clients) -> None:
    found = problems(api_client("admin"), {f"x{index:03}": 1 for index in range(500)})

    named = [field for field, (message, _) in found.items() if message == "Unknown field"]
    assert named == [f"x{index:03}" for index in range(20)]
    assert found["body"] == ("Unknown field: 480 more", None)


@pytest.mark.parametrize(
    ("value", "message", "suggestion"),
    [
        (0, "Must be from 1 to 10", "Use a number from 1 to 10"),
        (11, "Must be from 1 to 10", "Use a number from 1 to 10"),
        ("5", "Must be a whole number, not a string", "Write 5 without quotes"),
        ("high", "Must be a whole number, not a string", "Use a number from 1 to 10"),
        (True, "Must be a whole number, not a boolean", "Use a number from 1 to 10"),
        (5.5, "Must be a whole number, not a number with a fraction", "Use a number from 1 to 10"),
        ([5], "Must be a whole number, not a list", "Use a number from 1 to 10"),
        (None, "Must not be null", None),
    ],
)
def test_priorities_are_taken_at_their_word(api_client: Clients, value: Any, message: str, suggestion: str) -> None:
    found = problems(api_client("admin"), {"tasks": [{"handler": "x", "priority": value}]})

    assert found == {"tasks[0].priority": (message, suggestion)}


def test_a_whole_number_may_be_written_with_a_fraction_of_nothing(api_client: Clients) -> None:
    body = {"tasks": [{"handler": "x", "priority": 5.0}]}

    response = api_client("admin").post("/api/v2/echoes", body, format="json")

    assert (response.status_code, response.json()["tasks"][0]["priority"]) == (201, 5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("title", 5, "Must be a string, not a number"),
        ("title", "", "Must not be empty"),
        ("title", "a\u001b[31m", "Must not contain control characters"),
        ("kind", "corn", "'corn' is not one of the choices"),
        ("kind", ["cron"], "Must be a string, not a list"),
        ("kind", {}, "Must be a string, not an object"),
        ("parameters", [], "Must be an object, not a list"),
        ("parameters", "{}", "Must be an object, not a string"),
        ("parameters", {"a": "x" * 65536}, "Must be at most 65,536 bytes of JSON, not 65,544"),
        ("at", 1762691849, "Must be a string with date, time and offset, not a number"),
        ("at", "tomorrow", "Must be a date and time in ISO 8601"),
        ("at", "2025-11-09", "Must be a date and time in ISO 8601"),
        ("at", "2025-11-09T20:37:29", "Must name its offset from UTC"),
        ("at", "2025-02-30T00:00:00Z", "There is no such date and time"),
        ("at", "0001-01-01T00:00:00+14:00", "There is no such date and time"),
        ("ratio", "1.5", "Must be a number, not a string"),
        ("ratio", 11, "Must be at most 10"),
        ("names", "a", "Must be a list, not a string"),
        ("names", {"0": "a"}, "Must be a list, not an object"),
        ("names", ["a"] * 4, "Must have at most 3 items, not 4"),
        ("tasks", {}, None),
    ],
)
def test_other_types_are_too(api_client: Clients, field: str, value: Any, message: str | None) -> None:
    found = problems(api_client("admin"), {field: value})

    assert list(found) == [field]
    assert message is None or found[field][0] == message


def test_all_problems_come_at_once_with_their_paths(api_client: Clients) -> None:
    tasks = [{"handler": "x"}, {}, {"handler": "refused", "urgent": "true"}, {"handler": "x", "priorty": 3}, 7]

    found = problems(api_client("admin"), {"tasks": tasks, "knd": "cron", "names": ["a", 1]})

    assert found == {
        "knd": ("Unknown field", "Did you mean kind?"),
        "names[1]": ("Must be a string, not a number", 'Write "1" with quotes'),
        "tasks[1].handler": ("This field is required", None),
        "tasks[2].handler": ("is not allowed", "Use bash"),
        "tasks[2].urgent": ("Must be true or false, not a string", "Write true without quotes"),
        "tasks[3].priorty": ("Unknown field", "Did you mean priority?"),
        "tasks[4]": ("Must be an object, not a number", None),
    }


def test_what_concerns_the_whole_body_says_so(api_client: Clients) -> None:
    client = api_client("admin")

    assert problems(client, {"title": "whole"}) == {"body": ("Does not fit together", "Change it")}
    assert problems(client, [1]) == {"body": ("Must be an object, not a list", None)}
    assert problems(client, "text") == {"body": ("Must be an object, not a string", None)}


def test_null_is_no_object(api_client: Clients) -> None:
    response = api_client("admin").post("/api/v2/echoes", "null", content_type="application/json")

    assert response.status_code == 400
    assert response.json()["error"]["details"] == [
        {"field": "body", "message": "Must be an object, not null", "suggestion": None}
    ]


def test_moments_become_utc() -> None:
    message = EchoInput(data={"at": "2025-11-09T20:37:29.5+08:00"})

    assert message.is_valid()
    assert message.validated_data["at"] == datetime(2025, 11, 9, 12, 37, 29, 500_000, tzinfo=UTC)


def test_moments_are_written_in_one_format(now: datetime) -> None:
    assert EchoOutput({"title": "x", "at": now}).data["at"] == "2026-03-04T05:06:07.890+00:00"


def test_a_default_is_no_coercion() -> None:
    message = ItemInput(data={"handler": "x"})

    assert message.is_valid()
    assert message.validated_data == {"handler": "x", "priority": 5}


def test_query_parameters_are_text() -> None:
    message = EchoFilter(data={"enabled": "true", "since": "2025-11-09T00:00:00Z", "number": "-7"})

    assert message.is_valid(), message.errors
    assert message.validated_data == {
        "enabled": True,
        "since": datetime(2025, 11, 9, tzinfo=UTC),
        "number": -7,
    }


@pytest.mark.parametrize(
    ("query", "field", "message", "suggestion"),
    [
        ("enabled=1", "enabled", "Must be true or false", "Use true or false"),
        ("enabled=", "enabled", "Must be true or false", "Use true or false"),
        ("number=11", "number", "Must be at most 10", "Use a number of at most 10"),
        ("number=x", "number", "Must be a whole number", "Use a number of at most 10"),
        ("enabeld=true", "enabeld", "Unknown query parameter", "Did you mean enabled?"),
        ("enabled=true&enabled=false", "enabled", "Must be given once", "Leave out all but one enabled"),
        (
            "since=2025-11-09T00:00:00+08:00",
            "since",
            "Has lost the + of its offset",
            "Write %2B for + in a query string",
        ),
    ],
)
def test_query_parameters_are_checked(
    api_client: Clients, query: str, field: str, message: str, suggestion: str
) -> None:
    response = api_client("admin").get(f"/api/v2/echoes?{query}")

    assert response.status_code == 400
    assert response.json()["error"]["details"] == [{"field": field, "message": message, "suggestion": suggestion}]
