"""A cancel that broke off between its label and the run's state is carried out by the keeper."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Completed, Pending, Running, Scheduled

from stillreel.chores import cancels as chore
from stillreel.chores.cancels import Cancels
from stillreel.chores.tally import Tally
from stillreel.jobs import marks
from stillreel.prefect_api import PrefectApi
from tests.api.background import using
from tests.api.control import Control, Listen

WAITS_AGAIN = Scheduled(name="AwaitingRetry", message="handed back by its host")


class Died(BaseException):
    """The process is dead: nobody catches it, and nothing is done after it."""


class Dying(PrefectApi):
    """Prefect's API of a process that is killed just before it sets a state."""

    async def post(self, path: str, body: Any, *, patience: float | None = None) -> Any:
        if path.endswith("/set_state"):
            raise Died
        return await super().post(path, body, patience=patience)


@pytest.fixture
def keeper(control: Control, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`keeper()`: one look of the keeper, to whom no cancel is too young; what it has done."""
    monkeypatch.setattr(chore, "GRACE", timedelta(0))

    def look() -> Tally:
        tally = Tally()
        control.run(Cancels(control.services, tally).look())
        control.api.forget()
        return tally

    return look


def break_off(control: Control, job_id: str) -> None:
    """Cancel the job in a process that dies after the label, before the state."""
    url = control.services.api.url
    snapshot = control.read(job_id)
    with pytest.raises(Died):
        using(control.api, Dying(url), lambda services: services.actions.cancel(snapshot))
    record = control.read(job_id).record
    assert record.labels[marks.CANCELLED]
    assert marks.UNWANTED in record.tags
    control.api.forget()


def put(control: Control, job_id: str, *states: Any) -> None:
    with get_client(sync_client=True) as client:
        for state in states:
            client.set_flow_run_state(control.read(job_id).record.run_id, state, force=True)
    control.api.forget()


@pytest.mark.parametrize("states", [(), (Pending(),), (Running(), WAITS_AGAIN)])
def test_a_waiting_job_is_cancelled_and_told_so(
    control: Control, listen: Listen, keeper: Any, states: tuple[Any, ...]
) -> None:
    heard = listen()
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    put(control, job_id, *states)
    break_off(control, job_id)
    assert control.api.job(job_id)["status"] == "queued"

    assert keeper().counts["cancel_carried_out"] >= 1

    assert control.wait(job_id, "delivered")["status"] == "cancelled"
    [request] = heard.requests
    assert request.headers["webhook-id"] == f"{job_id}-r1"
    keeper()
    assert control.read(job_id).record.round == 1


def test_the_host_of_a_running_job_is_told_to_end_it(control: Control, keeper: Any) -> None:
    job_id = control.api.submit()["job_id"]
    put(control, job_id, Running())
    break_off(control, job_id)
    keeper()
    assert control.read(job_id).record.state_type == "CANCELLING"


def test_a_cancel_that_is_being_carried_out_is_left_alone(
    control: Control, keeper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chore, "GRACE", timedelta(hours=1))
    job_id = control.api.submit()["job_id"]
    break_off(control, job_id)
    keeper()
    assert control.read(job_id).record.state_type == "SCHEDULED"
    assert control.api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    assert control.api.job(job_id)["status"] == "cancelled"


def test_a_retry_is_not_cancelled_by_the_cancel_of_the_round_before(
    control: Control, keeper: Any
) -> None:
    job_id = control.cancelled()
    control.wait(job_id, "none")
    assert marks.UNWANTED in control.read(job_id).record.tags
    assert control.api.client.post(f"/api/v1/jobs/{job_id}/retry").is_success
    assert marks.UNWANTED not in control.read(job_id).record.tags
    control.run(control.services.actions.tag(control.read(job_id).record.run_id, add=["unwanted"]))
    keeper()
    assert control.api.job(job_id)["status"] == "queued"


def test_a_job_that_ended_meanwhile_stays_as_it_ended(
    control: Control, keeper: Any, inference_server: None
) -> None:
    job_id = control.api.submit()["job_id"]
    assert control.api.execute(job_id).is_completed()
    put(control, job_id, Running())  # its process is about to end, and its receipt is there
    before = control.read(job_id)
    control.label(job_id, CANCELLED="2026-11-20T00:00:00.000+00:00")
    control.run(control.services.actions.tag(before.record.run_id, add=[marks.UNWANTED]))
    keeper()
    assert control.read(job_id).record.state_type in ("RUNNING", "CANCELLING")
    put(control, job_id, Completed())
    assert control.api.job(job_id)["status"] == "completed"
