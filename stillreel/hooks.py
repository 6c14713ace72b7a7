"""What happens when a run does not end with a video; hooks may run twice, so each is idempotent."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import httpx
import stamina
from prefect import Flow, State
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectException
from prefect.logging import get_logger

from stillreel.errors import (
    JobCancelled,
    JobExpired,
    ReceiverUnavailable,
    StaleExecution,
    StillreelError,
)
from stillreel.inference.in_hand import forget_deaths
from stillreel.job import JobStatus, job_id_of
from stillreel.jobs.attempts import can_pass
from stillreel.leader import VARIABLE
from stillreel.prefect_env import has_lease
from stillreel.settings import get_settings
from stillreel.stages.infer import cancel
from stillreel.stages.notify import notify
from stillreel.workdir import clean, job_dir

log = get_logger("stillreel.hooks")

TRIES = 3

_STATUSES = {JobCancelled: JobStatus.CANCELLED, JobExpired: JobStatus.EXPIRED}


def tell_failed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Have it told that the job failed, and why; a stale execution has no say.

    Where no server may end under it any more that is forgotten: whoever retries it begins anew.
    """
    error = state.result(raise_on_failure=False)
    if isinstance(error, StaleExecution):
        return
    folder = job_dir(job_id_of(flow_run.id, flow_run.idempotency_key), settings=get_settings())
    forget_deaths(folder, str(flow_run.id))
    if can_pass(str(state.type.value), state.message or "") and _is_kept():
        return  # it is no end yet; the keeper starts it again, or tells the end
    known = isinstance(error, StillreelError)
    reason = error.message if known else "an internal error; see the run's log"
    _tell(flow_run, _STATUSES.get(type(error), JobStatus.FAILED), reason, at=state.timestamp)


def _is_kept() -> bool:
    """Whether a keeper looks after the jobs of this Prefect server."""
    if has_lease():  # it is an API that we speak to, which has one; and a lease reads no variables
        return True
    try:
        with get_client(sync_client=True) as client:
            return client.read_variable_by_name(VARIABLE) is not None
    except (httpx.HTTPError, PrefectException):
        return True  # nothing can be told now in any case


def cancel_work(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Stop the run's GPU work, delete its files, and have it told."""
    settings = get_settings()
    try:
        cancel(str(flow_run.id), settings=settings)
        clean(job_id_of(flow_run.id, flow_run.idempotency_key), settings=settings)
    finally:
        _tell(flow_run, JobStatus.CANCELLED, state.message or "cancelled", at=state.timestamp)


def _tell(run: FlowRun, status: JobStatus, error: str, *, at: datetime) -> None:
    settings = get_settings()
    try:
        for attempt in stamina.retry_context(
            on=ReceiverUnavailable, attempts=TRIES, wait_initial=1, wait_max=5
        ):
            with attempt:
                notify(run, status, at=at, error=error, settings=settings)
    except StillreelError as exc:
        log.warning("notification of run %s not delivered: %s", run.id, exc.message)
