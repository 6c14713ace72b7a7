"""What a lease opens of logs and artifacts: those of its own runs, and the report of its host."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from stillreel.artifacts import key_suffix
from stillreel.errors import NotLeased
from stillreel.gateway.calls import RUNS_MOST, Answered, Asked, Passed, only
from stillreel.gateway.desk import Desk
from stillreel.gateway.lease import Lease
from stillreel.host_report import artifact_key as host_key
from stillreel.prefect_api import Json

LOG_BYTES = 5_000_000
"""Prefect sends up to 4 MB of log lines at once."""
LINES = 10_000
_LINE = (
    *("name", "level", "message", "timestamp", "flow_run_id", "task_run_id"),
    *("worker_id", "__payload_size__"),
)


async def write_logs(desk: Desk, lease: Lease, asked: Asked) -> Passed | Answered:
    """Log lines of the lease's own runs; others are left out.

    A worker says that it submits a run before it claims it, so such a line is no offence.
    """
    if not isinstance(asked.body, list) or not 0 < len(asked.body) <= LINES:
        raise NotLeased("This is no list of log lines.")
    runs = {str(only(entry, *_LINE).get("flow_run_id")) for entry in asked.body}
    tasks = {str(entry.get("task_run_id")) for entry in asked.body}
    if len(runs) > RUNS_MOST or len(tasks) > 5 * RUNS_MOST:
        raise NotLeased("These are log lines of more runs than a host has.")
    kept = [line for entry in asked.body if (line := await _own_line(desk, lease, entry))]
    if kept:
        return Passed("/logs/", kept)
    for run_id in runs:
        await desk.waiting_run(lease, _as_id(run_id))
    return Answered(None, 201)


async def make_artifact(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    """An artifact of an own run under a key of that job, or the report of this very host."""
    body = only(asked.body, "key", "type", "description", "data", "metadata_", "flow_run_id",
                 "task_run_id")  # fmt: skip
    key, run_id = body.get("key"), body.get("flow_run_id")
    if run_id is None and key == host_key(lease.worker(desk.installation)):
        if body.get("task_run_id"):
            raise NotLeased("The report of a host belongs to no task run.")
        return Passed("/artifacts/", body)
    held = await desk.leases.held(lease, str(run_id), writes=True)
    if key is not None and not str(key).endswith(f"-{key_suffix(held.job_id)}"):
        raise NotLeased("This is no key of an artifact of this job.")
    if body.get("task_run_id"):
        await desk.task_run(held, _as_id(body["task_run_id"]))
    return Passed("/artifacts/", {**body, "flow_run_id": held.run_id})


async def change_artifact(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    artifact_id = asked.names["id"]
    await desk.leases.held(lease, await desk.artifact(artifact_id), writes=True)
    body = only(asked.body, "data", "description", "metadata_")
    return Passed(f"/artifacts/{artifact_id}", body)


async def _own_line(desk: Desk, lease: Lease, entry: Any) -> Json | None:
    line = only(entry, *_LINE)
    if line.get("worker_id") is not None:
        return None
    try:
        held = await desk.leases.held(lease, str(line.get("flow_run_id")))
        if line.get("task_run_id"):
            await desk.task_run(held, _as_id(line["task_run_id"]))
    except NotLeased:
        return None
    kept = {name: value for name, value in line.items() if name not in ("worker_id",)}
    return {**kept, "flow_run_id": held.run_id}


def _as_id(text: Any) -> str:
    try:
        return str(UUID(str(text)))
    except ValueError as exc:
        raise NotLeased("This is no id.") from exc
