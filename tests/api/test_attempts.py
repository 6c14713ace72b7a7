"""A job that breaks off is tried again, three times a round; its first end then stands."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import inf
from threading import Event
from time import monotonic
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.states import (
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Pending,
    Running,
    Scheduled,
)

from stillreel.chores import dead_runs
from stillreel.chores import revive as chore
from stillreel.chores.dead_runs import DeadRuns
from stillreel.chores.reopen import Reopen
from stillreel.chores.revive import Revive
from stillreel.chores.tally import Tally
from stillreel.errors import StaleExecution
from stillreel.execution import Execution, assert_current
from stillreel.jobs import attempts, marks
from tests.api.control import Control, Listen

CRASH = Crashed(message="the process died")
STALLED = Failed(message="Flow run encountered an exception: InferenceStalled: no progress for 9 s")


@pytest.fixture
def tally() -> Tally:
    return Tally()


def put(control: Control, job_id: str, *states: Any) -> str:
    """Bring the run into these states, as its host or an orphan would; the run's id."""
    run_id = control.read(job_id).record.run_id
    with get_client(sync_client=True) as client:
        for state in states:
            found = state.model_copy(update={"timestamp": datetime.now(UTC)})
            client.set_flow_run_state(run_id, found, force=True)
    control.api.forget()
    return run_id


def revive(control: Control, tally: Tally, job_id: str) -> None:
    """One look of the keeper at this job, as if its rest were over."""
    control.run(Revive(control.services, tally).revive(control.read(job_id).record))


def break_off(control: Control, tally: Tally, job_id: str, end: Any = CRASH) -> None:
    put(control, job_id, Running(), end)
    revive(control, tally, job_id)


# --- attempts -----------------------------------------------------------------------------------


def test_a_crash_is_no_end_and_the_same_run_waits_again(control: Control, tally: Tally) -> None:
    job_id = control.api.submit()["job_id"]
    run_id = put(control, job_id, Running(), CRASH)
    assert control.read(job_id).status == "processing"
    revive(control, tally, job_id)
    found = control.read(job_id)
    assert (found.record.run_id, found.status) == (run_id, "queued")
    assert found.record.state_message.startswith("attempt 2 of 3 in round 1")
    assert found.record.attempt == 2
    assert tally.counts == {"requeued": 1}


def test_the_third_attempt_is_the_last_and_is_told_once_with_its_reason(
    control: Control, tally: Tally, listen: Listen, secret: str
) -> None:
    heard = listen()
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    break_off(control, tally, job_id)
    break_off(control, tally, job_id)
    break_off(control, tally, job_id, STALLED)
    assert tally.counts == {"requeued": 2, "gave_up": 1}
    job = control.wait(job_id, "delivered")
    assert (job["status"], job["error_code"]) == ("failed", "inference_stalled")
    [request] = heard.requests
    message = request.verify(secret)
    assert (message["status"], message["error"]) == ("failed", "no progress for 9 s")


def test_a_retry_of_the_caller_opens_a_round_with_three_new_attempts(
    control: Control, tally: Tally
) -> None:
    job_id = control.api.submit()["job_id"]
    for _ in range(attempts.ATTEMPTS):
        break_off(control, tally, job_id)
    assert control.api.job(job_id)["status"] == "failed"
    assert control.api.client.post(f"/api/v1/jobs/{job_id}/retry").is_success
    control.api.forget()
    assert control.api.job(job_id)["round"] == 2
    break_off(control, tally, job_id)
    assert control.read(job_id).record.state_message.startswith("attempt 2 of 3 in round 2")


def test_polite_hand_overs_cost_no_attempt(control: Control, tally: Tally) -> None:
    job_id = control.api.submit()["job_id"]
    handed_back = Scheduled(name="AwaitingRetry", message="handed back by its host")
    put(control, job_id, *[Running(), handed_back] * 5)
    break_off(control, tally, job_id)
    record = control.read(job_id).record
    assert record.run_count == 6
    assert record.state_message.startswith("attempt 2 of 3")


def test_an_outage_of_storage_costs_no_attempt(control: Control, tally: Tally) -> None:
    away = Failed(message="an exception: StorageUnavailable: Storage does not answer now")
    job_id = control.api.submit()["job_id"]
    for _ in range(5):
        break_off(control, tally, job_id, away)
    record = control.read(job_id).record
    assert record.state_message.startswith("attempt 1 again in round 1")
    assert record.expected_at


def test_an_error_that_no_attempt_mends_ends_the_job_at_once(
    control: Control, tally: Tally
) -> None:
    job_id = control.api.submit()["job_id"]
    put(control, job_id, Running(), Failed(message="an exception: ImageRejected: no picture"))
    assert control.api.job(job_id)["status"] == "failed"
    control.run(Revive(control.services, tally).look())
    assert job_id not in str(tally.counts)
    assert control.read(job_id).record.state_type == "FAILED"


def test_the_keeper_finds_what_broke_off_by_itself(
    control: Control, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chore, "REST", timedelta(0))
    job_id = control.api.submit()["job_id"]
    cancelled = control.api.submit()["job_id"]
    put(control, cancelled, Running())
    control.label(cancelled, CANCELLED=datetime.now(UTC).isoformat())
    put(control, cancelled, CRASH)
    put(control, job_id, Running(), CRASH)
    control.run(Revive(control.services, tally).look())
    assert control.read(job_id).status == "queued"
    assert control.read(cancelled).status == "cancelled"


def test_a_job_with_a_receipt_has_completed_and_is_not_started_again(
    control: Control, tally: Tally, listen: Listen, inference_server: None
) -> None:
    heard, api = listen(), control.api
    job_id = api.submit(webhook_url=heard.url)["job_id"]
    assert api.execute(job_id).is_completed()
    put(control, job_id, CRASH)
    revive(control, tally, job_id)
    job = control.wait(job_id, "delivered")
    assert job["status"] == "completed"
    assert control.read(job_id).record.state_type == "CRASHED"


# --- the first end stands -----------------------------------------------------------------------


@pytest.mark.parametrize("late", [Completed(), Failed(message="an orphan"), CRASH, Running()])
def test_the_first_end_stands_whatever_an_orphan_says(
    control: Control, tally: Tally, listen: Listen, late: Any
) -> None:
    heard = listen()
    job_id = control.cancelled(webhook_url=heard.url)
    before = control.wait(job_id, "delivered")
    put(control, job_id, late)
    control.run(Revive(control.services, tally).look())
    control.run(Reopen(control.services, tally).look())
    control.api.forget()
    after = control.api.job(job_id)
    assert (after["status"], after["round"]) == ("cancelled", 1)
    assert after["ended_at"] == before["ended_at"]
    assert len(heard.requests) == 1


def test_a_process_that_starts_after_the_end_leaves_without_work(control: Control) -> None:
    job_id = control.api.submit()["job_id"]
    run_id = put(control, job_id, Cancelled())  # in Prefect itself: no label says so
    control.wait(job_id, "none")
    put(control, job_id, Running())
    with pytest.raises(StaleExecution, match="has ended"):
        assert_current(Execution(run_id, job_id, 1))


def test_a_retry_in_prefects_own_ui_opens_the_next_round(
    control: Control, tally: Tally, listen: Listen
) -> None:
    heard = listen()
    job_id = control.cancelled(webhook_url=heard.url)
    control.wait(job_id, "delivered")
    control.label(job_id, CANCELLED="")  # as a job that failed has it
    run_id = put(control, job_id, Scheduled(name="AwaitingRetry"), Running())
    assert_current(Execution(run_id, job_id, 1))  # a host may be quicker than the keeper
    control.run(Reopen(control.services, tally).look())
    assert control.read(job_id).record.round == 2
    assert control.read(job_id).status == "processing"
    put(control, job_id, Cancelled())
    control.wait(job_id, "delivered")
    ids = [request.headers["webhook-id"] for request in heard.requests]
    assert ids == [f"{job_id}-r1", f"{job_id}-r2"]
    assert marks.OVER in control.read(job_id).record.tags


# --- runs without a sign of life ----------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keeper(control: Control, tally: Tally, clock: Clock) -> Any:
    """`keeper(seconds)`: looks as often as it should for so long by its own clock.

    That one is faster than Prefect stores events, so it need not hear itself.
    """
    return looking(control, DeadRuns(control.services, tally, clock=clock, deaf_seconds=inf), clock)


def looking(control: Control, runs: DeadRuns, clock: Clock) -> Callable[..., None]:
    def look(seconds: float = 0.0) -> None:
        until = clock.now + seconds
        while clock.now < until:
            clock.now = min(until, clock.now + 15.0)
            control.run(runs.look())
        if not seconds:
            control.run(runs.look())

    return look


def test_a_run_that_is_silent_for_too_long_is_crashed(
    control: Control, keeper: Any, tally: Tally
) -> None:
    job_id = control.api.submit()["job_id"]
    put(control, job_id, Running())
    keeper()
    keeper(dead_runs.NEVER_HEARD_SECONDS - 1)
    assert control.read(job_id).record.state_type == "RUNNING"
    keeper(20)
    assert control.read(job_id).record.state_type == "CRASHED"
    assert tally.counts["crashed"] >= 1


def test_a_heartbeat_is_a_sign_of_life(control: Control, keeper: Any) -> None:
    job_id = control.api.submit()["job_id"]
    run_id = put(control, job_id, Running())
    keeper()
    keeper(dead_runs.NEVER_HEARD_SECONDS - 1)
    beat(control, run_id)
    keeper(dead_runs.SILENCE_SECONDS - 1)
    assert control.read(job_id).record.state_type == "RUNNING"
    keeper(20)
    assert control.read(job_id).record.state_type == "CRASHED"


def test_time_in_which_nobody_looked_kills_nobody(
    control: Control, keeper: Any, clock: Clock
) -> None:
    job_id = control.api.submit()["job_id"]
    put(control, job_id, Running())
    keeper()
    clock.now += 3600  # Prefect or the keeper was away
    keeper()
    keeper(dead_runs.NEVER_HEARD_SECONDS - 1)
    assert control.read(job_id).record.state_type == "RUNNING"


def test_a_keeper_that_does_not_hear_itself_takes_nobody_for_dead(
    control: Control, tally: Tally, clock: Clock
) -> None:
    """As after an outage of Redis, when Prefect's servers do not hear each other for a minute."""
    keeper = looking(
        control, DeadRuns(control.services, tally, clock=clock, deaf_seconds=1.0), clock
    )
    job_id = control.api.submit()["job_id"]
    put(control, job_id, Running())
    keeper(dead_runs.NEVER_HEARD_SECONDS * 2)
    assert control.read(job_id).record.state_type == "RUNNING"


def test_a_keeper_hears_itself(control: Control, tally: Tally, clock: Clock) -> None:
    runs = DeadRuns(control.services, tally, clock=clock)
    put(control, control.api.submit()["job_id"], Running())
    deadline = monotonic() + 60
    while not runs.is_heard and monotonic() < deadline:
        control.run(runs.look())
        Event().wait(0.5)
    assert runs.is_heard


def test_a_claim_that_nobody_starts_goes_back_to_the_queue(control: Control, keeper: Any) -> None:
    job_id = control.api.submit()["job_id"]
    put(control, job_id, Pending())
    keeper()
    keeper(dead_runs.PENDING_SECONDS + 20)
    found = control.read(job_id)
    assert (found.record.state_type, found.record.attempt) == ("SCHEDULED", 1)


def test_a_host_that_is_slow_to_start_it_gets_twice_the_time_after_that(
    control: Control, keeper: Any
) -> None:
    job_id = control.api.submit()["job_id"]
    put(control, job_id, Pending())
    keeper()
    keeper(dead_runs.PENDING_SECONDS + 20)
    put(control, job_id, Pending())
    keeper()
    keeper(dead_runs.PENDING_SECONDS + 20)
    assert control.read(job_id).record.state_type == "PENDING"
    keeper(dead_runs.PENDING_SECONDS)
    assert control.read(job_id).record.state_type == "SCHEDULED"


def test_a_cancel_that_no_host_carries_out_ends_too(control: Control, keeper: Any) -> None:
    job_id = control.api.submit()["job_id"]
    put(control, job_id, Running(), Cancelling())
    keeper()
    keeper(dead_runs.NEVER_HEARD_SECONDS + 20)
    assert control.read(job_id).status == "cancelled"


def beat(control: Control, run_id: str) -> None:
    """A heartbeat of this run, as its process sends it, once Prefect has stored it."""
    resource = {"prefect.resource.id": f"prefect.flow-run.{run_id}"}
    event = emit_event("prefect.flow-run.heartbeat", resource=resource)
    assert event
    EventsWorker.drain_all()
    query = {
        "event": {"name": [event.event]},
        "resource": {"id": [resource["prefect.resource.id"]]},
    }
    deadline = monotonic() + 30
    while monotonic() < deadline:
        found = control.run(control.services.api.ask("/events/filter", {"filter": query}))
        if found["events"]:
            return
        Event().wait(0.2)
    raise AssertionError("Prefect has not stored the heartbeat")
