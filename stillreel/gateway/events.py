"""Which events a rented host may send, and what of each reaches Prefect.

Prefect's server makes task runs of events, and takes every column that an event's payload names,
the id and the flow run included; automations go by whatever an event says it is related to. So an
event is made anew: about an own run, with the columns that a task run of it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from stillreel.errors import NotLeased
from stillreel.gateway import bounds
from stillreel.gateway.desk import Desk
from stillreel.gateway.lease import Held, Lease
from stillreel.gateway.states import task_run_payload
from stillreel.prefect_api import Json

EVENT_BYTES = 1_000_000
RELATED_MOST = 50

_UUID = r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_FLOW_RUN = re.compile(r"prefect\.flow-run\." + _UUID)
_TASK_RUN = re.compile(r"prefect\.task-run\." + _UUID)
_OF_TASK_RUN = re.compile(r"prefect\.task-run\.[A-Za-z]{1,40}")
_HEARTBEAT = "prefect.flow-run.heartbeat"
_OF_FLOW_RUN = frozenset({_HEARTBEAT, "prefect.flow-run.pull-step.executed"})
_UNHEARD = frozenset({"prefect.artifact.created", "prefect.artifact.updated"})
"""Sent by every flow process, and needed by nobody: what they tell is in the artifacts."""
_OF_WORKER = frozenset(
    {
        "prefect.worker.submitted-flow-run",
        "prefect.worker.executed-flow-run",
        "prefect.worker.started",
        "prefect.worker.stopped",
    }
)
_FIELDS = frozenset({"occurred", "event", "resource", "related", "payload", "id", "follows"})


async def own_event(desk: Desk, lease: Lease, event: Any) -> Json | None:
    """The event that Prefect gets for this one; None: it need not hear of it.

    Raises NotLeased, PrefectUnavailable.
    """
    if not isinstance(event, dict) or not _FIELDS.issuperset(event):
        raise NotLeased("This is no event.")
    name, resource = bounds.text(event.get("event"), "names of events"), event.get("resource")
    related = event.get("related") or []
    if not isinstance(resource, dict) or not isinstance(related, list):
        raise NotLeased("This is no event.")
    if not all(isinstance(one, dict) for one in related) or len(related) > RELATED_MOST:
        raise NotLeased("This event is related to too much.")
    about = str(resource.get("prefect.resource.id"))
    if name in _UNHEARD:
        return None
    if name in _OF_WORKER:
        return await _of_worker(desk, lease, event, about, related)
    held = await _own_run(desk, lease, name, about, related)
    now = datetime.now(UTC)
    kept = [one for one in related if _is_of(one, held, lease, desk)]
    if _TASK_RUN.fullmatch(about):
        payload = task_run_payload(event.get("payload"), held.run_id)
        return _made(event, kept, payload, min(bounds.instant(event.get("occurred")), now))
    # Whoever asks for the newest heartbeats goes by this time, so it is ours, and there are few.
    if name == _HEARTBEAT and not desk.is_beat(held.run_id):
        return None
    return _made(event, kept, {}, now)


async def _own_run(desk: Desk, lease: Lease, name: str, about: str, related: list[Json]) -> Held:
    """The run that an event is about, or whose task run it is about."""
    if flow_run := _FLOW_RUN.fullmatch(about):
        if name not in _OF_FLOW_RUN:
            raise NotLeased("A lease gives no right to this event.")
        return await desk.leases.held(lease, flow_run[1])
    task_run = _TASK_RUN.fullmatch(about)
    if not task_run or not _OF_TASK_RUN.fullmatch(name):
        raise NotLeased("A lease gives no right to this event.")
    runs = [one for one in related if one.get("prefect.resource.role") == "flow-run"]
    found = _FLOW_RUN.fullmatch(str(runs[0].get("prefect.resource.id"))) if len(runs) == 1 else None
    if not found:
        raise NotLeased("This task run belongs to no run.")
    held = await desk.leases.held(lease, found[1])
    await desk.task_run(lease, held, task_run[1])
    return held


async def _of_worker(
    desk: Desk, lease: Lease, event: Json, about: str, related: list[Json]
) -> Json:
    if about != f"prefect.worker.process.{lease.worker(desk.installation)}":
        raise NotLeased("The worker of this lease has another name.")
    kept: list[Json] = []
    for one in related:
        if found := _FLOW_RUN.fullmatch(str(one.get("prefect.resource.id"))):
            held = await desk.leases.held(lease, found[1])
            kept += [other for other in related if _is_of(other, held, lease, desk)]
    return _made(event, kept, {}, datetime.now(UTC))


def _made(event: Json, related: list[Json], payload: Json, occurred: datetime) -> Json:
    """The event that Prefect gets."""
    follows = event.get("follows")
    return {
        "id": _id(event.get("id")),
        "occurred": occurred.isoformat(),
        "event": event["event"],
        "resource": _about(event["resource"]),
        "related": [_about(one) for one in related],
        "payload": payload,
        "follows": None if follows is None else _id(follows),
    }


def _is_of(one: Mapping[str, Any], held: Held, lease: Lease, desk: Desk) -> bool:
    """Whether this is what a run is related to by what Prefect knows of it."""
    run = held.run
    ids = {
        f"prefect.flow-run.{held.run_id}",
        f"prefect.flow.{run.get('flow_id')}",
        f"prefect.deployment.{run.get('deployment_id')}",
        f"prefect.work-pool.{run.get('work_pool_id')}",
        f"prefect.work-queue.{run.get('work_queue_id')}",
        f"prefect.worker.process.{lease.worker(desk.installation)}",
        *(f"prefect.tag.{tag}" for tag in run.get("tags") or ()),
    }
    return one.get("prefect.resource.id") in ids


def _about(resource: Mapping[str, Any]) -> Json:
    """What an event says of its resource, and of what it is related to: short texts."""
    if len(resource) > RELATED_MOST:
        raise NotLeased("This event says too much.")
    return {
        bounds.text(name, "names in events"): bounds.cut(value) or ""
        for name, value in resource.items()
    }


def _id(value: Any) -> str:
    try:
        return str(UUID(bounds.text(value, "an id")))
    except ValueError as exc:
        raise NotLeased("This is no id of an event.") from exc
