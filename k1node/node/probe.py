"""Whether the web process answers: asked from a thread, so that one that hangs holds up nobody."""

import http.client
import logging
import threading
import time

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0
TIMEOUT_SECONDS = 5.0
FAILURES = 3
START_SECONDS = 30.0


def address_to_ask(bind: str) -> str:
    """Return the address under which a server that listens on `bind` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(bind, bind)


def answers(host: str, port: int, *, timeout: float = TIMEOUT_SECONDS) -> bool:
    """Say whether GET /healthz gives any answer in time; an error is an answer too, silence is not."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", "/healthz", headers={"Connection": "close"})
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


class WebProbe:
    """Written by its thread: how often in a row the present web process has not answered."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._lock = threading.Lock()
        self._watched_since: float | None = None
        self._failures = 0
        self._has_answered = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="web-probe", daemon=True).start()

    def watch(self, since: float | None) -> None:
        """Count from now on for the web process started at `since`; None: there is none."""
        with self._lock:
            self._watched_since, self._failures, self._has_answered = since, 0, False

    def is_hung(self, now: float) -> bool:
        with self._lock:
            if self._watched_since is None or self._failures < FAILURES:
                return False
            return self._has_answered or now - self._watched_since > START_SECONDS

    def ask(self) -> None:
        with self._lock:
            asked_for = self._watched_since
        if asked_for is None:
            return
        answered = answers(self._host, self._port)
        with self._lock:
            if self._watched_since == asked_for:
                self._failures = 0 if answered else self._failures + 1
                self._has_answered = self._has_answered or answered

    def _run(self) -> None:
        while True:
            time.sleep(INTERVAL_SECONDS)
            self.ask()
