"""The circuit breaker as arithmetic: values in, values out, no row and no clock of its own.

    CLOSED      calls go through and their results fill the window, the newest `window_size` of them. With `min_calls`
                in it and `failure_percent` of them failed, it opens.
    OPEN        no call goes through until `open_until`; then it probes. The time is `open_for`, doubled for each time
                in a row that probes have failed, at most `open_cap`.
    HALF-OPEN   `permits` calls go through at the same time. One that fails opens it again; `probes` that succeed, or
                all there were, close it.

Every change of state raises the generation. A result counts only if its call began under the present generation, so
one that comes late moves nothing. Pinned by an operator, it stays open or closed until `pinned_until`, or for ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db.models import TextChoices

OK, FAILED = "s", "f"

OPENINGS_MOST = 1_000  # are counted: the wait has long stopped growing by then
RAMP_FIRST = 10  # tasks let through in the first second after it has closed; twice as many in each second after
RAMP_MOST = 5_000
RAMP_EVERY = timedelta(seconds=1)


class State(TextChoices):
    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF-OPEN"


class Pin(TextChoices):
    NONE = ""
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Figures:
    """What an operator can set of a breaker."""

    window_size: int = 20
    min_calls: int = 5
    failure_percent: int = 50
    open_for: timedelta = timedelta(seconds=60)
    open_cap: timedelta = timedelta(minutes=15)
    probes: int = 3


@dataclass(frozen=True, slots=True)
class Call:
    """The result of one call, and the generation it began under."""

    generation: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Circuit:
    """The state of one breaker. `window` has a letter for each call, the newest last."""

    state: State = State.CLOSED
    generation: int = 0
    window: str = ""
    open_until: datetime | None = None  # of OPEN; None while pinned
    openings: int = 0  # in a row, since it was last closed
    permits: int = 0  # of HALF-OPEN: calls at the same time
    successes: int = 0  # of HALF-OPEN
    pin: Pin = Pin.NONE
    pinned_until: datetime | None = None

    @property
    def failures(self) -> int:
        return self.window.count(FAILED)

    @property
    def failure_rate(self) -> float:
        return self.failures / len(self.window) if self.window else 0.0

    @property
    def is_door_closed(self) -> bool:
        return self.state is not State.CLOSED


def record(circuit: Circuit, calls: Sequence[Call], figures: Figures, *, now: datetime) -> Circuit:
    """Return the circuit after these results, in their order."""
    window = circuit.window  # ahead of the circuit's while that is closed: this is done for every call there is
    for call in calls:
        if call.generation != circuit.generation:
            continue
        if circuit.state is State.CLOSED:
            window = (window + (OK if call.ok else FAILED))[-figures.window_size :]
            if circuit.pin is Pin.NONE and _is_failing(window, figures):
                circuit = _opened(replace(circuit, window=window), figures, now=now)
        elif circuit.state is State.HALF_OPEN:
            circuit = _probed(circuit, figures, now=now) if call.ok else _opened(circuit, figures, now=now)
            window = circuit.window
    return circuit if window == circuit.window else replace(circuit, window=window)


def due(circuit: Circuit, *, probes: int, now: datetime) -> Circuit:
    """Return the circuit as the passing of time leaves it."""
    if circuit.pin is not Pin.NONE:
        if circuit.pinned_until is None or circuit.pinned_until > now:
            return circuit
        if circuit.pin is Pin.CLOSED:
            return closed(circuit)
        return _half_open(circuit, probes)
    if circuit.state is State.OPEN and (circuit.open_until is None or circuit.open_until <= now):
        return _half_open(circuit, probes)
    return circuit


def closed(circuit: Circuit) -> Circuit:
    """Return it closed and as new: nothing in its window, nothing pinned."""
    return Circuit(generation=circuit.generation + 1)


def pinned_open(circuit: Circuit, until: datetime | None) -> Circuit:
    return Circuit(
        State.OPEN,
        circuit.generation + 1,
        circuit.window,
        openings=circuit.openings,
        pin=Pin.OPEN,
        pinned_until=until,
    )


def pinned_closed(circuit: Circuit, until: datetime | None) -> Circuit:
    return replace(closed(circuit), pin=Pin.CLOSED, pinned_until=until)


def probing_one(circuit: Circuit) -> Circuit:
    """Return an open circuit as half-open for one call; once that has succeeded the others follow."""
    return _half_open(circuit, 1)


def wait_when_open(circuit: Circuit, figures: Figures) -> timedelta:
    """Return how long the next opening lasts: open_for × 2 ** (failed probings in a row), at most open_cap."""
    try:
        return min(figures.open_cap, figures.open_for * float(2**circuit.openings))
    except OverflowError:
        return figures.open_cap


def ramp(step: int) -> int:
    """Return how many waiting tasks may start in second `step` (from 0) after it has closed."""
    return min(RAMP_MOST, RAMP_FIRST << min(step, 20))


def _is_failing(window: str, figures: Figures) -> bool:
    calls = len(window)
    # A window smaller than min_calls would never open.
    return calls >= min(figures.min_calls, figures.window_size) and (
        window.count(FAILED) * 100 >= figures.failure_percent * calls
    )


def _opened(circuit: Circuit, figures: Figures, *, now: datetime) -> Circuit:
    return Circuit(
        State.OPEN,
        circuit.generation + 1,
        circuit.window,
        open_until=now + wait_when_open(circuit, figures),
        openings=min(circuit.openings + 1, OPENINGS_MOST),
    )


def _half_open(circuit: Circuit, permits: int) -> Circuit:
    return Circuit(State.HALF_OPEN, circuit.generation + 1, circuit.window, openings=circuit.openings, permits=permits)


def _probed(circuit: Circuit, figures: Figures, *, now: datetime) -> Circuit:
    if circuit.successes + 1 >= figures.probes:
        return closed(circuit)
    return replace(circuit, successes=circuit.successes + 1, permits=figures.probes)
