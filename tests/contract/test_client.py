"""A client that openapi-python-client generates from the committed document, at work on a running node."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from k1node.management.commands.openapi import DOCUMENT
from tests.node.running import RunningNode

pytestmark = pytest.mark.contract

NAME = "k1node_client"
SETTINGS = DOCUMENT.parent / "openapi-python-client.yaml"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a function that imports a module of the generated client."""
    folder = tmp_path_factory.mktemp("client")
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "openapi-python-client", "generate", "--path", DOCUMENT, "--meta", "none"),
            *("--output-path", folder / NAME, "--config", SETTINGS),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    try:
        yield lambda module: importlib.import_module(f"{NAME}.{module}")
    finally:
        sys.path.remove(str(folder))
        for module in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[module]


@pytest.fixture
def api(generated: Any, contract_node: RunningNode) -> Iterator[SimpleNamespace]:
    """Return the client's calls by tag, and its models."""
    connection = generated("client").AuthenticatedClient(
        base_url=f"http://127.0.0.1:{contract_node.port}/api/v2", token=contract_node.key
    )

    with connection as client:

        def call(tag: str, operation: str, *arguments: Any, **named: Any) -> Any:
            return generated(f"api.{tag}.{operation}").sync_detailed(*arguments, client=client, **named)

        yield SimpleNamespace(call=call, models=generated("models"))


def test_a_schedule_is_made_listed_triggered_and_deleted(api: SimpleNamespace) -> None:
    body = api.models.ScheduleInput(
        task_id="from-a-client",
        handler="python:noop",
        schedule_type=api.models.ScheduleTypeEnum.EVENT,
        schedule_expr="client.called",
        priority=8,
    )

    made = api.call("scheduling", "create_schedule", body=body)
    listed = api.call("scheduling", "list_schedules", type_=api.models.ListSchedulesType.EVENT)
    event = api.models.TriggerInput(event="client.called")
    triggered = api.call("scheduling", "trigger_event", body=event)
    deleted = api.call("scheduling", "delete_schedule", "from-a-client")

    assert (made.status_code, made.parsed.priority, made.parsed.next_execution) == (201, 8, None)
    assert made.headers["Location"] == "/api/v2/scheduler/schedules/from-a-client"
    assert "from-a-client" in [schedule.task_id for schedule in listed.parsed.schedules]
    assert listed.parsed.pagination.page == 1
    assert (triggered.status_code, triggered.parsed.queued_tasks) == (202, 1)
    assert (deleted.status_code, deleted.parsed) == (204, None)


def test_errors_are_of_the_error_s_own_type(api: SimpleNamespace) -> None:
    wrong = api.models.ScheduleInput(
        task_id="wrong",
        handler="python:noop",
        schedule_type=api.models.ScheduleTypeEnum.CRON,
        schedule_expr="61 * * * *",
    )

    refused = api.call("scheduling", "create_schedule", body=wrong)
    missing = api.call("scheduling", "get_schedule", "nothing-of-this-name")

    assert isinstance(refused.parsed, api.models.Error)
    assert (refused.status_code, refused.parsed.error.code) == (400, "INVALID_REQUEST")
    assert [detail.field for detail in refused.parsed.error.details] == ["schedule_expr"]
    assert (missing.status_code, missing.parsed.error.code) == (404, "NOT_FOUND")


def test_a_task_is_followed_to_its_end(api: SimpleNamespace, contract_node: RunningNode) -> None:
    body = api.models.TaskInput(handler="python:noop")

    accepted = api.call("scheduling", "create_task", body=body)
    contract_node.wait_for(accepted.parsed.task_id, "completed")
    task = api.call("scheduling", "get_task", accepted.parsed.task_id)
    history = api.call("error_recovery", "get_intervention_history", accepted.parsed.task_id)

    assert (accepted.status_code, task.parsed.status) == (202, "completed")
    assert task.parsed.attempts[0].outcome == "completed"
    assert history.parsed.interventions == []
