"""The only code that talks to the Prefect API about jobs."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectException

from stillreel.errors import PrefectUnavailable, StaleExecution
from stillreel.job import job_id_of


@dataclass(frozen=True)
class Execution:
    """One process working on a run: which run, which job, and the how-many-th start it is."""

    run_id: str
    job_id: str
    number: int


def current_execution() -> Execution:
    """The execution that this code runs in; call it inside the flow."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise StaleExecution("this code works inside a flow run only")
    run = context.flow_run
    return Execution(str(run.id), job_id_of(run.id, run.idempotency_key), run.run_count)


def assert_current(execution: Execution) -> None:
    """Raise StaleExecution when the run has ended or another execution has taken over.

    Prefect has no fencing: a process that was paused, or cut off from the server, goes on when
    its successor already works. Call this before anything that others can see. Raises
    PrefectUnavailable when the server cannot be asked.
    """
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(execution.run_id))
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


def is_current(execution: Execution) -> bool:
    """Whether this execution may still tell how its job ended; True when nobody can say."""
    try:
        assert_current(execution)
    except StaleExecution:
        return False
    except PrefectUnavailable:
        return True
    return True
