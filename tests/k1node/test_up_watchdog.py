from dataclasses import replace

import pytest

from k1node.node.watchdog import Look, Snapshot, diagnose, observe

STARTED = 1000.0
NOW = STARTED + 500

HEALTHY = Look(
    started_at=STARTED,
    sentinel_at=NOW - 0.5,
    pusher_at=NOW - 1,
    sent=7,
    picked=7,
    finished=7,
    acknowledged=7,
    workers=4,
    idle_workers=4,
    busy_workers=0,
)


def after(*looks: tuple[Look, float]) -> str | None:
    """Return the diagnosis after these looks, each taken so many seconds before NOW, with beats fresh at that time."""
    snapshot: Snapshot | None = None
    at = NOW
    for look, ago in looks:
        at = NOW - ago
        snapshot = observe(snapshot, replace(look, sentinel_at=at, pusher_at=at), at)
    assert snapshot is not None
    return diagnose(snapshot, at)


def test_a_healthy_cluster_is_left_alone() -> None:
    assert diagnose(observe(None, HEALTHY, NOW), NOW) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"sentinel_at": NOW - 8.1}, "its sentinel has stopped", id="sentinel"),
        pytest.param({"sentinel_at": NOW - 7.9}, None, id="sentinel-late"),
        pytest.param({"pusher_at": NOW - 10.1}, "its pusher has stopped", id="pusher"),
        pytest.param({"pusher_at": NOW - 9.9}, None, id="pusher-late"),
    ],
)
def test_a_beat_that_stops_is_noticed(changes: dict[str, float], reason: str | None) -> None:
    assert diagnose(observe(None, replace(HEALTHY, **changes), NOW), NOW) == reason  # type: ignore[arg-type]


@pytest.mark.parametrize(("age", "reason"), [(29.0, None), (31.0, "its sentinel has stopped")])
def test_a_new_cluster_has_thirty_seconds_until_its_first_beat(age: float, reason: str | None) -> None:
    born = NOW - age
    starting = replace(HEALTHY, started_at=born, sentinel_at=born, pusher_at=born, idle_workers=0)

    assert diagnose(observe(None, starting, NOW), NOW) == reason


UNANSWERED = replace(HEALTHY, sent=9, idle_workers=2, busy_workers=2, finished=5, acknowledged=5)
UNREAD = replace(HEALTHY, acknowledged=6)
SHORT = replace(HEALTHY, idle_workers=3)
LOST = replace(HEALTHY, finished=6, acknowledged=6)


@pytest.mark.parametrize(
    ("look", "limit", "reason"),
    [
        pytest.param(UNANSWERED, 5, "its free workers do not answer", id="unanswered"),
        pytest.param(UNREAD, 15, "its results are not read", id="unread"),
        pytest.param(SHORT, 15, "its workers do not come back", id="short"),
        pytest.param(LOST, 10, "a wake token is lost", id="lost"),
    ],
)
def test_a_counter_that_stands_still_is_noticed_after_its_limit(look: Look, limit: float, reason: str) -> None:
    assert after((look, limit + 0.2), (look, 0.3)) is None
    assert after((look, limit + 0.2), (look, 0)) == reason


@pytest.mark.parametrize(
    ("look", "moved"),
    [
        pytest.param(UNANSWERED, {"picked": 8, "busy_workers": 3, "idle_workers": 1}, id="another-picked"),
        pytest.param(UNANSWERED, {"idle_workers": 0, "busy_workers": 4}, id="nobody-is-free"),
        pytest.param(UNREAD, {"finished": 8, "picked": 8, "sent": 8, "acknowledged": 7}, id="another-acknowledged"),
        pytest.param(SHORT, {"idle_workers": 4}, id="all-there-again"),
        pytest.param(LOST, {"busy_workers": 1, "idle_workers": 3}, id="somebody-has-it"),
    ],
)
def test_any_movement_counts_anew(look: Look, moved: dict[str, int]) -> None:
    assert after((look, 60), (replace(look, **moved), 4), (look, 2), (look, 0)) is None


def test_tokens_wait_while_every_worker_is_busy() -> None:
    full = replace(HEALTHY, sent=9, finished=3, acknowledged=3, idle_workers=0, busy_workers=4)

    assert after((full, 600), (full, 0)) is None
