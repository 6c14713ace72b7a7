"""Three attempts a round, counted in the states of the run, whoever wrote them in which order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.jobs.attempts import (
    ATTEMPTS,
    HANDED_BACK,
    LONGEST_OUTAGE,
    OUTAGE_PAUSES,
    PAUSES,
    Again,
    Over,
    begins_attempt,
    can_pass,
    decide,
    is_outage,
    number_of,
    was_started_again,
)

START = datetime(2026, 11, 28, 12, tzinfo=UTC)


def state(kind: str, message: str = "", *, minute: float = 0.0) -> dict[str, Any]:
    at = START + timedelta(minutes=minute)
    return {"type": kind, "message": message, "timestamp": at.isoformat()}


def scheduled(then: Again | Over, minute: float = 0.0) -> dict[str, Any]:
    assert isinstance(then, Again)
    return state("SCHEDULED", then.message, minute=minute)


def follow(
    history: Sequence[dict[str, Any]], *, in_round: int = 1, outage: bool = False, minute: float = 0
) -> Again | Over:
    """What follows after these states, when an execution has begun since and broken off."""
    now = START + timedelta(minutes=minute)
    begun = [*history, state("RUNNING"), state("CRASHED")]
    return decide(in_round, "it died", begun, is_outage=outage, now=now)


def test_a_round_has_three_attempts() -> None:
    history = [state("SCHEDULED"), state("RUNNING"), state("CRASHED")]
    numbers, pauses = [], []
    while isinstance(then := follow(history), Again):
        numbers.append(then.attempt)
        pauses.append(then.pause)
        history += [scheduled(then), state("RUNNING"), state("CRASHED")]
    assert numbers == [2, 3]
    assert tuple(pauses) == PAUSES
    assert then == Over(ATTEMPTS)


def test_polite_hand_overs_are_no_attempts() -> None:
    hand_over = [state("RUNNING"), state("SCHEDULED", "handed back by its host")] * 5
    then = follow([*hand_over, state("RUNNING"), state("CRASHED")])
    assert isinstance(then, Again)
    assert then.attempt == 2


def test_a_late_word_about_the_execution_before_is_no_attempt() -> None:
    first = scheduled(follow([]))
    late = [state("RUNNING"), state("FAILED"), first, state("CRASHED")]
    then = decide(1, "it died", late, is_outage=False, now=START)
    assert isinstance(then, Again)
    assert then.attempt == 2
    assert number_of(1, [*late, scheduled(then)]) == 2


def test_the_next_round_counts_anew() -> None:
    history = [scheduled(follow([])), scheduled(follow([scheduled(follow([]))]))]
    assert follow(history) == Over(3)
    then = follow(history, in_round=2)
    assert isinstance(then, Again)
    assert (then.attempt, number_of(2, [*history, scheduled(then)])) == (2, 2)


def test_a_crash_that_two_keepers_saw_counts_once() -> None:
    first = follow([state("CRASHED")])
    again = [state("CRASHED"), scheduled(first), scheduled(first)]
    then = follow([*again, state("CRASHED")])
    assert isinstance(then, Again)
    assert then.attempt == 3


def test_an_outage_of_ours_costs_no_attempt_but_time() -> None:
    history: list[dict[str, Any]] = []
    pauses = []
    for n in range(len(OUTAGE_PAUSES) + 2):
        then = follow(history, outage=True, minute=n)
        assert isinstance(then, Again)
        assert then.attempt == 1
        pauses.append(then.pause)
        history.append(scheduled(then, minute=n))
    assert tuple(pauses[: len(OUTAGE_PAUSES)]) == OUTAGE_PAUSES
    assert set(pauses[len(OUTAGE_PAUSES) :]) == {OUTAGE_PAUSES[-1]}
    late = follow(history, outage=True, minute=LONGEST_OUTAGE.total_seconds() / 60 + 1)
    assert isinstance(late, Again)
    assert late.attempt == 2


@given(st.lists(st.sampled_from(["crash", "outage", "hand-over", "twice"]), max_size=12))
def test_a_job_never_has_more_attempts_than_three(ends: list[str]) -> None:
    history: list[dict[str, Any]] = []
    crashes = 0
    for end in ends:
        if end == "hand-over":
            history.append(state("SCHEDULED", "handed back"))
            continue
        then = follow(history, outage=end == "outage")
        crashes += end != "outage"
        if crashes >= ATTEMPTS and end != "outage":
            assert then == Over(ATTEMPTS)
            return
        history += [scheduled(then)] * (2 if end == "twice" else 1)
        assert number_of(1, history) == crashes + 1
    assert number_of(1, history) <= ATTEMPTS


@given(st.text(max_size=2000), st.integers(1, 50))
def test_any_reason_can_be_read_again(reason: str, in_round: int) -> None:
    then = decide(in_round, reason, [state("RUNNING")], is_outage=False, now=START)
    assert isinstance(then, Again)
    written = scheduled(then)
    assert begins_attempt(written)
    assert number_of(in_round, [written]) == 2


@pytest.mark.parametrize(
    ("kind", "message", "passes", "outage"),
    [
        ("CRASHED", "", True, False),
        ("FAILED", "Flow run encountered an exception: InferenceStalled: no progress", True, False),
        ("FAILED", "encountered an exception: InferenceFailed: the model failed", True, False),
        ("FAILED", "an exception: StorageUnavailable: Storage does not answer", True, True),
        ("FAILED", "an exception: PrefectUnavailable: away", True, True),
        ("FAILED", "an exception: ConnectError: all attempts failed", True, False),
        ("FAILED", "an exception: httpx.ConnectError: all attempts failed", True, False),
        ("FAILED", "Ended early by exception: ImageUnavailable: gone", False, False),
        ("FAILED", "an exception: MemoryTooSmall: 50 GB", False, False),
        ("FAILED", "an exception: StaleExecution: left", False, False),
        ("FAILED", "Validation of flow parameters failed with error: width", False, False),
        ("CANCELLED", "", False, False),
        ("COMPLETED", "", False, False),
    ],
)
def test_what_another_attempt_may_mend(kind: str, message: str, passes: bool, outage: bool) -> None:
    assert (can_pass(kind, message), is_outage(kind, message)) == (passes, outage)


def test_only_what_schedules_a_settled_run_starts_it_again() -> None:
    ended = START + timedelta(minutes=10)
    before = [state("SCHEDULED"), state("RUNNING", minute=5), state("FAILED", minute=10)]
    orphan = [state("RUNNING", minute=11), state("COMPLETED", minute=12)]
    retry = [state("SCHEDULED", minute=13)]
    assert not was_started_again([*before, *orphan], ended)
    assert was_started_again([*before, *retry], ended)
    by_host = [retry[0] | {"message": f"{HANDED_BACK}a-1"}, *retry[1:]]
    assert not was_started_again([*before, *by_host], ended)
