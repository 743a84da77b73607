"""The catalogue of events, and that the tests see a publish that does not keep to it."""

import re
from pathlib import Path

import pytest
from django.conf import settings
from jsonschema import Draft202012Validator

from k1node.events.catalogue import EVENTS
from scheduling import schedules
from tests import event_shapes
from tests.factories import NOW, make_schedule


@pytest.mark.parametrize("name", EVENTS)
def test_the_example_of_an_event_has_its_shape(name: str) -> None:
    event = EVENTS[name]

    Draft202012Validator.check_schema(event.envelope())
    Draft202012Validator({**event.data(), "additionalProperties": False}).validate(dict(event.example))
    Draft202012Validator(event.envelope()).validate(event.sample())


def test_an_event_that_is_not_described_is_found() -> None:
    with pytest.raises(event_shapes.UnknownEvent):
        event_shapes.check([("task.vanished", "{}")])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"task_id": "a", "by": "ana", "more": 1}', id="more than is said"),
        pytest.param('{"task_id": "a"}', id="less than is said"),
        pytest.param('{"task_id": 1, "by": "ana"}', id="something else"),
    ],
)
def test_data_of_another_shape_is_found(text: str) -> None:
    with pytest.raises(event_shapes.WrongShape):
        event_shapes.check([("schedule.deleted", text)])


@pytest.mark.django_db
def test_what_the_code_publishes_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(EVENTS, "schedule.deleted")

    with pytest.raises(event_shapes.UnknownEvent):
        schedules.delete(make_schedule(), "ana", now=NOW)


def test_the_table_of_the_architecture_has_every_event() -> None:
    page = (Path(settings.BASE_DIR) / "docs" / "architecture.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]

    assert set(EVENTS) <= {name for row in rows for name in re.findall(r"`([a-z_-]+\.[a-z_]+)`", row.split("|")[1])}
