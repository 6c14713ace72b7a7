"""Which execution of a run this process is, and whether it is still the current one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectException

from stillreel.errors import JobCancelled, JobExpired, PrefectUnavailable, StaleExecution
from stillreel.job import job_id_of
from stillreel.jobs import marks
from stillreel.jobs.attempts import was_started_again


@dataclass(frozen=True)
class Execution:
    """One process working on a run: which run, which job, and the how-many-th start it is."""

    run_id: str
    job_id: str
    number: int
    round: int = 1


def current_execution() -> Execution:
    """The execution that this code runs in; call it inside the flow."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise StaleExecution("this code works inside a flow run only")
    run = context.flow_run
    job_id = job_id_of(run.id, run.idempotency_key)
    return Execution(str(run.id), job_id, run.run_count, int(_label(run, marks.ROUND) or 1))


def assert_current(execution: Execution, *, has_video: bool = False) -> None:
    """Raise StaleExecution when the run has ended or another execution has taken over.

    Prefect has no fencing: a process that was paused, or cut off from the server, goes on when
    its successor already works, and one that starts takes even a run that has ended. A round that
    is settled has ended, unless somebody has had the run started again since, or `has_video`: then
    it was the receipt that settled it. Call this before anything that others can see. Raises
    JobCancelled when somebody has asked for the end of the job, JobExpired when its first start
    came after its deadline, and PrefectUnavailable when the server cannot be asked.
    """
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(execution.run_id))
            settled_at = None if has_video else _settled_at(run)
            states = client.read_flow_run_states(run.id) if settled_at else []
    except ObjectNotFound as exc:
        raise StaleExecution("the run was deleted") from exc
    except (httpx.HTTPError, PrefectException) as exc:
        raise PrefectUnavailable from exc
    state = run.state
    if run.run_count != execution.number:
        raise StaleExecution(f"execution {run.run_count} has taken over from {execution.number}")
    if state is None or not (state.is_running() or state.is_cancelling()):
        name = state.name if state else "unknown"
        raise StaleExecution(f"the run is {name}, not running")
    if settled_at and not was_started_again([_plain(s) for s in states], settled_at):
        raise StaleExecution("the job has ended, and nobody has had it tried again")
    if _label(run, marks.CANCELLED):
        raise JobCancelled
    if _started_late(run):
        raise JobExpired


def is_current(execution: Execution) -> bool:
    """Whether this execution may still tell how its job ended; True when nobody can say."""
    try:
        assert_current(execution)
    except StaleExecution:
        return False
    except (JobCancelled, JobExpired, PrefectUnavailable):
        return True
    return True


def is_prefect_lost(error: Exception) -> bool:
    """Whether Prefect's engine failed inside the flow because its server did not answer.

    What our own code asks Prefect, storage and others ends in errors of ours.
    """
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.TransportError | ConcurrencySlotAcquisitionError)


def _started_late(run: FlowRun) -> bool:
    """Whether the first start was after the deadline; a later one goes on with what is begun."""
    deadline = _label(run, marks.DEADLINE)
    if not deadline or run.run_count > 1:
        return False
    return (run.start_time or datetime.now(UTC)) > datetime.fromisoformat(deadline)


def _settled_at(run: FlowRun) -> datetime | None:
    """When the round of this run was over for good; None while it is open."""
    is_settled = run.labels.get(marks.SETTLED) == int(_label(run, marks.ROUND) or 1)
    at = _label(run, marks.END_AT)
    return datetime.fromisoformat(at) if is_settled and at else None


def _plain(state: State) -> dict[str, str]:
    return {
        "type": str(state.type.value),
        "message": state.message or "",
        "timestamp": state.timestamp.isoformat(),
    }


def _label(run: FlowRun, name: str) -> str:
    return str(run.labels.get(name) or "")
