"""The circuit breaker as arithmetic."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery import breaker_rules as rules
from recovery.breaker_rules import Call, Circuit, Figures, Pin, State
from tests.factories import NOW

FIGURES = Figures()
MINUTE = timedelta(minutes=1)


def after(circuit: Circuit, results: str, figures: Figures = FIGURES) -> Circuit:
    """Return the circuit after calls of its present generation: s for a success, f for a failure."""
    calls = [Call(circuit.generation, letter == "s") for letter in results]
    return rules.record(circuit, calls, figures, now=NOW)


def half_open(successes: int = 0, openings: int = 1) -> Circuit:
    return Circuit(State.HALF_OPEN, 7, "ffff", openings=openings, permits=3, successes=successes)


@pytest.mark.parametrize(
    ("results", "state"),
    [
        pytest.param("ffff", State.CLOSED, id="too few calls"),
        pytest.param("fffff", State.OPEN, id="enough, all failed"),
        pytest.param("sssff", State.CLOSED, id="40 of 100"),
        pytest.param("sssfff", State.OPEN, id="50 of 100"),
        pytest.param("f" * 2 + "s" * 18 + "f" * 9, State.CLOSED, id="the oldest have left the window"),
        pytest.param("s" * 20 + "f" * 10, State.OPEN, id="half of a full window"),
    ],
)
def test_it_opens_when_enough_of_enough_calls_failed(results: str, state: State) -> None:
    assert after(Circuit(), results).state is state


def test_an_opening_lasts_twice_as_long_each_time_the_probes_fail_up_to_the_cap() -> None:
    lengths = []
    circuit = after(Circuit(), "fffff")
    for _ in range(6):
        assert circuit.open_until is not None
        lengths.append(circuit.open_until - NOW)
        probing = rules.due(circuit, probes=3, now=circuit.open_until)
        circuit = after(probing, "f")

    assert lengths == [1 * MINUTE, 2 * MINUTE, 4 * MINUTE, 8 * MINUTE, 15 * MINUTE, 15 * MINUTE]


def test_a_breaker_that_opens_ten_thousand_times_in_a_row_has_a_length_still() -> None:
    assert rules.wait_when_open(Circuit(openings=10_000), FIGURES) == 15 * MINUTE


def test_results_of_an_earlier_generation_move_nothing() -> None:
    for circuit in (Circuit(generation=3, window="ffff"), half_open(successes=2), replace(half_open(), generation=9)):
        late = [Call(circuit.generation - 1, ok) for ok in (True, False, False, False, False, False)]

        assert rules.record(circuit, late, FIGURES, now=NOW) == circuit


def test_what_follows_an_opening_in_the_same_settlement_is_late() -> None:
    circuit = rules.record(Circuit(), [Call(0, False)] * 5 + [Call(0, True)] * 9, FIGURES, now=NOW)

    assert (circuit.state, circuit.generation, circuit.window) == (State.OPEN, 1, "fffff")


def test_it_probes_when_its_time_is_over_and_not_before() -> None:
    circuit = after(Circuit(), "fffff")

    assert rules.due(circuit, probes=3, now=NOW + MINUTE - timedelta(microseconds=1)) == circuit
    probing = rules.due(circuit, probes=3, now=NOW + MINUTE)
    assert (probing.state, probing.permits, probing.generation) == (State.HALF_OPEN, 3, 2)


def test_the_last_good_probe_closes_it_as_new() -> None:
    assert after(half_open(), "ss") == half_open(successes=2)

    assert after(half_open(), "sss") == Circuit(generation=8)


def test_one_bad_probe_opens_it_again() -> None:
    circuit = after(half_open(), "sfs")

    assert (circuit.state, circuit.openings, circuit.successes) == (State.OPEN, 2, 0)


def test_a_probe_by_hand_that_succeeds_lets_the_others_follow() -> None:
    alone = rules.probing_one(after(Circuit(), "fffff"))
    assert alone.permits == 1

    circuit = after(alone, "s")

    assert (circuit.state, circuit.permits, circuit.successes) == (State.HALF_OPEN, 3, 1)


def test_held_closed_it_notes_failures_and_stays_closed() -> None:
    circuit = after(rules.pinned_closed(Circuit(), NOW + MINUTE), "f" * 30)

    assert (circuit.state, circuit.failures) == (State.CLOSED, 20)
    assert rules.due(circuit, probes=3, now=NOW + MINUTE) == Circuit(generation=2)


def test_held_open_it_stays_so_until_its_time_and_probes_then() -> None:
    circuit = rules.pinned_open(Circuit(), NOW + MINUTE)

    assert rules.due(circuit, probes=3, now=NOW) == circuit
    assert rules.due(circuit, probes=3, now=NOW + MINUTE).state is State.HALF_OPEN
    for_ever = rules.pinned_open(Circuit(), None)
    assert rules.due(for_ever, probes=3, now=NOW + timedelta(days=9999)) == for_ever


def test_min_calls_above_the_window_do_not_keep_it_closed_for_ever() -> None:
    assert after(Circuit(), "fff", Figures(window_size=3, min_calls=5)).state is State.OPEN


def test_the_ramp_doubles_each_second_up_to_its_most() -> None:
    assert [rules.ramp(step) for step in range(4)] == [10, 20, 40, 80]
    assert {rules.ramp(step) for step in range(20, 1000, 70)} == {rules.RAMP_MOST}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("call"), st.integers(0, 2), st.booleans()),
            st.tuples(st.just("wait"), st.integers(0, 2000), st.booleans()),
            st.tuples(st.sampled_from(["open", "close", "reset", "probe"]), st.integers(0, 600), st.booleans()),
        ),
        max_size=60,
    )
)
def test_whatever_happens_it_keeps_its_rules(steps: list[tuple[str, int, bool]]) -> None:
    circuit, now = Circuit(), NOW
    for what, number, flag in steps:
        before = circuit
        match what:
            case "call":
                circuit = rules.record(circuit, [Call(circuit.generation - number, flag)], FIGURES, now=now)
                assert number == 0 or circuit == before
            case "wait":
                now += timedelta(seconds=number)
                circuit = rules.due(circuit, probes=FIGURES.probes, now=now)
            case "open":
                circuit = rules.pinned_open(circuit, now + timedelta(seconds=number) if flag else None)
            case "close":
                circuit = rules.pinned_closed(circuit, now + timedelta(seconds=number) if flag else None)
            case "reset":
                circuit = rules.closed(circuit)
            case "probe" if circuit.state is State.OPEN and not circuit.pin:
                circuit = rules.probing_one(circuit)

        moved = (circuit.state, circuit.pin) != (before.state, before.pin)
        assert circuit.generation - before.generation in ((1,) if moved else (0, 1))
        assert len(circuit.window) <= FIGURES.window_size
        assert circuit.successes <= circuit.permits <= FIGURES.probes
        assert (circuit.permits > 0) == (circuit.state is State.HALF_OPEN)
        assert circuit.successes < FIGURES.probes
        if circuit.state is State.OPEN and circuit.pin is Pin.NONE:
            assert circuit.open_until is not None
            assert circuit.open_until - now <= FIGURES.open_cap
        if circuit.pin is Pin.CLOSED:
            assert circuit.state is State.CLOSED
        if circuit.pin is Pin.OPEN:
            assert circuit.state is State.OPEN
