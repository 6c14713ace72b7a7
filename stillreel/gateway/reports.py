"""What a lease opens of logs and artifacts: those of its own runs, and the report of its host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from stillreel.artifacts import artifact_key, key_suffix
from stillreel.errors import NotLeased
from stillreel.gateway import bounds
from stillreel.gateway.calls import RUNS_MOST, Answered, Asked, Passed, only
from stillreel.gateway.desk import Desk
from stillreel.gateway.lease import Held, Lease
from stillreel.host_report import artifact_key as host_key
from stillreel.host_report import artifact_of, report_of
from stillreel.models.registry import MODELS
from stillreel.prefect_api import Json

LOG_BYTES = 5_000_000
"""Prefect sends up to 4 MB of log lines at once."""
LINES = 10_000
_LINE = (
    *("name", "level", "message", "timestamp", "flow_run_id", "task_run_id"),
    *("worker_id", "__payload_size__"),
)
_TYPES = frozenset({"progress", "markdown", "link", "image"})
"""Of artifacts: those that a flow of ours makes."""
_FACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,_+()/-]{0,99}|")


async def write_logs(desk: Desk, lease: Lease, asked: Asked) -> Passed | Answered:
    """Log lines of the lease's own runs; others are left out.

    A worker says that it submits a run before it claims it, so such a line is no offence.
    """
    if not isinstance(asked.body, list) or not 0 < len(asked.body) <= LINES:
        raise NotLeased("This is no list of log lines.")
    runs = {str(only(entry, *_LINE).get("flow_run_id")) for entry in asked.body}
    tasks = {_task_of(entry) for entry in asked.body}
    if len(runs) > RUNS_MOST or len(tasks) > 5 * RUNS_MOST:
        raise NotLeased("These are log lines of more runs than a host has.")
    own = {run_id: held for run_id in runs if (held := await _own(desk, lease, run_id))}
    with_task = {task for task in tasks if task[1] and await _is_own_task(desk, lease, own, *task)}
    kept = [
        _line(entry, own[task[0]])
        for entry in asked.body
        if entry.get("worker_id") is None
        and (task := _task_of(entry))[0] in own
        and (not task[1] or task in with_task)
    ]
    if kept:
        return Passed("/logs/", kept)
    for run_id in runs - set(own):
        await desk.waiting_run(lease, _as_id(run_id))
    return Answered(None, 201)


async def make_artifact(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    """An artifact of an own run under a key of that job, or the report of this very host."""
    body = only(asked.body, "key", "type", "description", "data", "metadata_", "flow_run_id",
                "task_run_id")  # fmt: skip
    key, run_id = bounds.text(body.get("key"), "keys of artifacts"), body.get("flow_run_id")
    if run_id is None and key == host_key(lease.worker(desk.installation)):
        desk.budget.report(lease.id)
        return Passed("/artifacts/", _report(desk, lease, body))
    held = await desk.leases.held(lease, str(run_id), writes=True)
    if not key.endswith(f"-{key_suffix(held.job_id)}"):
        raise NotLeased("This is no key of an artifact of this job.")
    kind = bounds.text(body.get("type"), "a type of artifact")
    if kind not in _TYPES:
        raise NotLeased("A flow makes no artifacts of this type.")
    desk.budget.artifact(held.run_id)
    made: Json = {"key": key, "type": kind, "flow_run_id": held.run_id}
    if body.get("task_run_id"):
        made["task_run_id"] = _as_id(body["task_run_id"])
        await desk.task_run(lease, held, made["task_run_id"])
    is_page = key == artifact_key(held.job_id, "result") and kind == "markdown"
    most = bounds.RESULT_PAGE if is_page else bounds.ARTIFACT
    return Passed("/artifacts/", made | _content(body, most))


async def change_artifact(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    artifact_id = asked.names["id"]
    await desk.leases.held(lease, await desk.artifact(lease, artifact_id), writes=True)
    body = only(asked.body, "data", "description", "metadata_")
    return Passed(f"/artifacts/{artifact_id}", _content(body, bounds.ARTIFACT))


def _content(body: Json, most: int) -> Json:
    """What an artifact says: a text, or a number of percent."""
    kept: Json = {}
    if (data := body.get("data")) is not None:
        is_text = isinstance(data, str)
        kept["data"] = (
            bounds.text(data, "texts of artifacts", most=most)
            if is_text
            else bounds.number(data, "progress", most=100)
        )
    if body.get("description") is not None:
        kept["description"] = bounds.cut(body["description"])
    if body.get("metadata_") is not None:
        kept["metadata_"] = bounds.scalars(body["metadata_"], "metadata")
    return kept


def _report(desk: Desk, lease: Lease, body: Json) -> Json:
    """The report of a lease's host, written anew from the few facts that it may tell."""
    given = bounds.scalars(body.get("metadata_"), "facts", most=bounds.NAME)
    facts = {name: str(value) for name, value in given.items()}
    report = report_of({"metadata_": facts})
    if body.get("task_run_id") or body.get("type") != "markdown" or report is None:
        raise NotLeased("This is no report of a host.")
    texts = (report.gpu or "", report.version, *report.models)
    if report.pool != lease.pool or report.worker != lease.worker(desk.installation):
        raise NotLeased("This is the report of another host.")
    if not all(_FACT.fullmatch(text) for text in texts) or not set(report.models) <= set(MODELS):
        raise NotLeased("A host reports in plain words only, and models that there are.")
    bounds.number(report.usd_per_hour, "prices", most=1_000)
    return artifact_of(report, at=datetime.now(UTC))


def _task_of(entry: Json) -> tuple[str, str]:
    """The run and the task run that a log line is of; "" for one of no task."""
    return str(entry.get("flow_run_id")), str(entry.get("task_run_id") or "")


async def _own(desk: Desk, lease: Lease, run_id: str) -> Held | None:
    try:
        return await desk.leases.held(lease, run_id)
    except NotLeased:
        return None


async def _is_own_task(
    desk: Desk, lease: Lease, own: Mapping[str, Held], run_id: str, task_run: str
) -> bool:
    if run_id not in own:
        return False
    try:
        await desk.task_run(lease, own[run_id], _as_id(task_run))
    except NotLeased:
        return False
    return True


def _line(entry: Json, held: Held) -> Json:
    task_run = entry.get("task_run_id")
    return {
        "name": bounds.text(entry.get("name"), "names of loggers"),
        "level": int(bounds.number(entry.get("level"), "levels of log lines", most=100)),
        "message": bounds.cut(entry.get("message"), bounds.LOG_LINE) or "",
        "timestamp": bounds.instant(entry.get("timestamp")).isoformat(),
        "flow_run_id": held.run_id,
        "task_run_id": _as_id(task_run) if task_run else None,
    }


def _as_id(text: Any) -> str:
    try:
        return str(UUID(str(text)))
    except ValueError as exc:
        raise NotLeased("This is no id.") from exc
