import ctypes
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from scheduling import execution, registry
from scheduling.execution import stop_signal, survivors
from scheduling.execution.control import Control
from scheduling.outcomes import Outcome
from tests.scheduling.runs import Run

if TYPE_CHECKING:
    from tests.conftest import HandlerRoot


@pytest.fixture
def worker_process(handler_root: "HandlerRoot", monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be a worker's main thread for one test: subreaper, in the handler root, with the stop signal."""
    registry.discover()
    kept = dict(registry._handlers)
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.chdir(handler_root.path)  # undone at the end
    monkeypatch.setattr(stop_signal, "_installed", False)
    execution.prepare_process()
    execution.install_stop_signal()
    yield
    signal.signal(signal.SIGUSR1, before)
    ctypes.CDLL(None).prctl(survivors.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    registry._handlers.clear()
    registry._handlers.update(kept)


@pytest.fixture
def run(handler_root: "HandlerRoot") -> Run:
    """Return run(body, ...): write a script, or name a Python handler, and run it with what the test does not say."""

    def go(body: str, *, interpreter: str = "bash", **options: Any) -> Outcome:
        is_python = body.startswith("python:")
        text = body if is_python else handler_root.write("job", body, interpreter=interpreter)
        defaults: dict[str, Any] = {
            "task_id": "backup-1",
            "attempt": 2,
            "parameters": {},
            "timeout": timedelta(seconds=10),
            "grace": timedelta(seconds=2),
            "control": Control(),
        }
        return execution.run(text, **defaults | options)

    return go
