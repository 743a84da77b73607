"""Decisions: pure, and bounded whatever the figures are."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery.decisions import FIRST_LOST_WAIT, Policy, decide, wait_before
from scheduling.outcomes import Action, Outcome, OutcomeKind

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
STANDARD = Policy("standard", 5, timedelta(seconds=30), 2.0, timedelta(minutes=15), "none")

policies = st.builds(
    Policy,
    name=st.just("p"),
    max_attempts=st.integers(1, 50),
    first_wait=st.timedeltas(timedelta(0), timedelta(days=2)),
    multiplier=st.floats(1, 100),
    cap=st.timedeltas(timedelta(0), timedelta(days=7)),
    jitter=st.sampled_from(["none", "full", "equal"]),
)


def outcome(kind: OutcomeKind, exit_code: int | None = None) -> Outcome:
    return Outcome(kind, NOW, NOW, 10, exit_code)


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(2, 30), (3, 60), (4, 120), (6, 480), (7, 900), (50, 900), (5000, 900)]
)
def test_waits_grow_up_to_the_cap(attempt: int, seconds: int) -> None:
    assert wait_before(attempt, STANDARD) == timedelta(seconds=seconds)


def test_there_is_no_wait_before_the_first_attempt() -> None:
    with pytest.raises(ValueError, match="first attempt"):
        wait_before(1, STANDARD)


@given(policies, st.integers(2, 500), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_negative_and_never_above_the_cap(policy: Policy, attempt: int, chance: float) -> None:
    wait = wait_before(attempt, policy, lambda: chance)

    assert timedelta(0) <= wait <= policy.cap + timedelta(microseconds=1)


@given(policies, st.integers(2, 100), st.floats(0, 1, exclude_max=True))
def test_jitter_takes_away_all_or_half_at_the_most(policy: Policy, attempt: int, chance: float) -> None:
    plain = wait_before(attempt, Policy(*_figures(policy), "none"))
    full = wait_before(attempt, Policy(*_figures(policy), "full"), lambda: chance)
    equal = wait_before(attempt, Policy(*_figures(policy), "equal"), lambda: chance)

    slack = timedelta(microseconds=1)
    assert full <= plain + slack
    assert plain / 2 - slack <= equal <= plain + slack


@given(policies, st.integers(2, 100))
def test_without_jitter_waits_never_shrink(policy: Policy, attempt: int) -> None:
    plain = Policy(*_figures(policy), "none")

    assert wait_before(attempt, plain) <= wait_before(attempt + 1, plain)


def _figures(policy: Policy) -> tuple[str, int, timedelta, float, timedelta]:
    return policy.name, policy.max_attempts, policy.first_wait, policy.multiplier, policy.cap


@given(policies, st.integers(0, 60), st.sampled_from([OutcomeKind.FAILED, OutcomeKind.TIMEOUT, OutcomeKind.LOST]))
def test_a_failure_is_retried_exactly_while_attempts_are_left(policy: Policy, attempt: int, kind: OutcomeKind) -> None:
    decision = decide(outcome(kind, 1), attempt, policy)

    assert decision.spent
    assert (decision.action is Action.RETRY) == (attempt + 1 < policy.max_attempts)
    assert (decision.due_at is not None) == (decision.action is Action.RETRY)
    assert decision.due_at is None or decision.due_at >= NOW


@pytest.mark.parametrize("exit_code", [64, 78, 126, 127])
def test_what_trying_again_cannot_mend_is_final(exit_code: int) -> None:
    decision = decide(outcome(OutcomeKind.FAILED, exit_code), 0, STANDARD)

    assert (decision.action, decision.spent) == (Action.FAIL, True)


@pytest.mark.parametrize(
    ("kind", "action", "spent"),
    [
        (OutcomeKind.COMPLETED, Action.COMPLETE, True),
        (OutcomeKind.DRAINED, Action.AGAIN, False),
        (OutcomeKind.CANCELLED, Action.CANCEL, False),
        (OutcomeKind.SKIPPED, Action.SKIP, False),
    ],
)
def test_outcomes_that_no_policy_touches(kind: OutcomeKind, action: Action, spent: bool) -> None:
    decision = decide(outcome(kind, 0), 4, STANDARD)

    assert (decision.action, decision.spent, decision.due_at) == (action, spent, None)


def test_a_lost_task_starts_again_soon_the_first_time_and_by_policy_after() -> None:
    first = decide(outcome(OutcomeKind.LOST, 137), 0, STANDARD)
    second = decide(outcome(OutcomeKind.LOST, 137), 1, STANDARD, first_loss=False)

    assert first.due_at == NOW + FIRST_LOST_WAIT
    assert second.due_at == NOW + timedelta(seconds=60)


@given(
    policies,
    st.integers(0, 60),
    st.sampled_from(OutcomeKind),
    st.integers(0, 255),
    st.timedeltas(timedelta(0), timedelta(days=9)),
)
def test_no_retry_is_due_past_the_deadline(
    policy: Policy, attempt: int, kind: OutcomeKind, exit_code: int, used: timedelta
) -> None:
    limited = replace(policy, deadline=timedelta(hours=2))
    started = NOW - used

    free = decide(outcome(kind, exit_code), attempt, policy, first_started_at=started, chance=lambda: 0.5)
    decision = decide(outcome(kind, exit_code), attempt, limited, first_started_at=started, chance=lambda: 0.5)

    if free.due_at is not None and free.due_at > started + timedelta(hours=2):
        assert (decision.action, decision.spent, decision.due_at) == (Action.FAIL, True, None)
        assert "deadline of 2 h reached" in decision.note
    else:
        assert decision == free


@given(policies, st.integers(0, 60), st.integers(1, 255))
def test_exit_codes_fall_into_two_classes(policy: Policy, attempt: int, exit_code: int) -> None:
    decision = decide(outcome(OutcomeKind.FAILED, exit_code), attempt, policy)

    final = exit_code in (64, 78, 126, 127) or attempt + 1 >= policy.max_attempts
    assert (decision.action is Action.FAIL) == final


def test_a_temporary_failure_by_its_own_word_is_tried_again() -> None:
    assert decide(outcome(OutcomeKind.FAILED, 75), 0, STANDARD).action is Action.RETRY


# --- a timeout, a loss and a drain are told apart -----------------------------------------------------------------

chances = st.floats(0, 1, exclude_max=True)


@given(policies, st.integers(0, 60), st.booleans(), st.integers(0, 255))
def test_a_drain_never_spends_an_attempt_nor_ends_a_task(
    policy: Policy, attempt: int, first_loss: bool, exit_code: int
) -> None:
    strict = replace(policy, deadline=timedelta(0))
    started = NOW - timedelta(days=1)

    decision = decide(
        outcome(OutcomeKind.DRAINED, exit_code), attempt, strict, first_loss=first_loss, first_started_at=started
    )

    assert (decision.action, decision.spent, decision.due_at, decision.note) == (Action.AGAIN, False, None, "")


@given(policies, st.integers(0, 60), st.integers(0, 255), chances)
def test_a_loss_spends_an_attempt_whatever_its_exit_code(
    policy: Policy, attempt: int, exit_code: int, chance: float
) -> None:
    first, later = (
        decide(outcome(OutcomeKind.LOST, exit_code), attempt, policy, first_loss=is_first, chance=lambda: chance)
        for is_first in (True, False)
    )

    assert first.spent and later.spent
    if attempt + 1 >= policy.max_attempts:
        assert (first.action, later.action) == (Action.FAIL, Action.FAIL)
        return
    assert first.due_at == NOW + timedelta(seconds=2)  # whatever the policy says
    assert later.due_at == NOW + wait_before(attempt + 2, policy, lambda: chance)


@given(policies, st.integers(0, 60), st.booleans(), chances)
def test_a_timeout_is_a_failure_and_never_a_loss(policy: Policy, attempt: int, first_loss: bool, chance: float) -> None:
    timeout, failure = (
        decide(outcome(kind, code), attempt, policy, first_loss=first_loss, chance=lambda: chance)
        for kind, code in ((OutcomeKind.TIMEOUT, 124), (OutcomeKind.FAILED, 1))
    )

    assert timeout == failure
    if timeout.due_at is not None:
        assert timeout.due_at == NOW + wait_before(attempt + 2, policy, lambda: chance)


@given(policies, st.integers(0, 60), st.sampled_from([64, 78, 126, 127]))
def test_only_a_failure_is_final_by_its_exit_code(policy: Policy, attempt: int, exit_code: int) -> None:
    left = attempt + 1 < policy.max_attempts

    assert decide(outcome(OutcomeKind.FAILED, exit_code), attempt, policy).action is Action.FAIL
    for kind in (OutcomeKind.TIMEOUT, OutcomeKind.LOST):
        assert decide(outcome(kind, exit_code), attempt, policy).action is (Action.RETRY if left else Action.FAIL)


@given(policies, st.integers(2, 100), st.timedeltas(timedelta(0), timedelta(days=7)), chances)
def test_a_higher_cap_never_shortens_a_wait(policy: Policy, attempt: int, more: timedelta, chance: float) -> None:
    higher = replace(policy, cap=policy.cap + more)

    short, long = wait_before(attempt, policy, lambda: chance), wait_before(attempt, higher, lambda: chance)

    assert short <= long + timedelta(microseconds=1)


@given(policies, st.integers(0, 60), st.sampled_from([OutcomeKind.FAILED, OutcomeKind.TIMEOUT]), chances)
def test_a_retry_is_due_within_the_range_of_its_jitter(
    policy: Policy, attempt: int, kind: OutcomeKind, chance: float
) -> None:
    decision = decide(outcome(kind, 1), attempt, policy, chance=lambda: chance)

    whole = wait_before(attempt + 2, replace(policy, jitter="none"))
    least = {"none": whole, "equal": whole / 2, "full": timedelta(0)}[policy.jitter]
    slack = timedelta(microseconds=1)
    if decision.due_at is not None:
        assert least - slack <= decision.due_at - NOW <= min(whole, policy.cap) + slack
