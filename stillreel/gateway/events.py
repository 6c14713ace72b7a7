"""Which events a rented host may send, and what of each reaches Prefect.

Prefect's server makes task runs of events, and takes every column that an event's payload names,
the id and the flow run included; automations go by whatever an event says it is related to. So an
event is made anew: about an own run, with the columns that a task run of it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stillreel.errors import NotLeased
from stillreel.gateway.desk import Desk
from stillreel.gateway.lease import Held, Lease
from stillreel.prefect_api import Json

EVENT_BYTES = 1_000_000
RELATED_MOST = 50

_ID = r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_FLOW_RUN = re.compile(r"prefect\.flow-run\." + _ID)
_TASK_RUN = re.compile(r"prefect\.task-run\." + _ID)
_OF_TASK_RUN = re.compile(r"prefect\.task-run\.[A-Za-z]{1,40}")
_OF_FLOW_RUN = frozenset({"prefect.flow-run.heartbeat", "prefect.flow-run.pull-step.executed"})
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
_TASK_RUN_COLUMNS = frozenset(
    {
        "name",
        "task_key",
        "dynamic_key",
        "cache_key",
        "cache_expiration",
        "task_version",
        "empirical_policy",
        "tags",
        "labels",
        "task_inputs",
        "run_count",
        "flow_run_run_count",
        "expected_start_time",
        "next_scheduled_start_time",
        "start_time",
        "end_time",
        "total_run_time",
        "state_type",
        "state_name",
        "estimated_run_time",
    }
)
_STATE_COLUMNS = frozenset({"type", "name", "message", "state_details", "data"})


_STATE_DETAILS = frozenset(
    {"scheduled_time", "retriable", "transition_id", "refresh_cache", "untrackable_result"}
)


async def own_event(desk: Desk, lease: Lease, event: Any) -> Json | None:
    """The event that Prefect gets for this one; None: it need not hear of it.

    Raises NotLeased, PrefectUnavailable.
    """
    if not isinstance(event, dict) or not _FIELDS.issuperset(event):
        raise NotLeased("This is no event.")
    name, resource = event.get("event"), event.get("resource")
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
    made: Json = {**event, "related": [one for one in related if _is_of(one, held, lease, desk)]}
    if _TASK_RUN.fullmatch(about):
        made["payload"] = _task_run(event.get("payload"))
    else:
        made["payload"] = {}
    return made


def known_details(details: Mapping[str, Any]) -> Json:
    """What of a state's details reaches Prefect; the rest is another run's, or a pause's."""
    return {
        name: value
        for name, value in details.items()
        if name in _STATE_DETAILS and value is not None
    }


def known_data(data: Any) -> Any:
    """Where a result lies, if whoever reads it runs no code: as JSON, in no block."""
    if not isinstance(data, dict) or data.get("storage_block_id") is not None:
        return None
    serializer = data.get("serializer")
    is_json = isinstance(serializer, dict) and serializer.get("type") == "json"
    kept = ("storage_key", "expiration", "prefect_version")
    return {n: data.get(n) for n in kept} | {"serializer": {"type": "json"}} if is_json else None


async def _own_run(desk: Desk, lease: Lease, name: Any, about: str, related: list[Json]) -> Held:
    """The run that an event is about, or whose task run it is about."""
    if flow_run := _FLOW_RUN.fullmatch(about):
        if name not in _OF_FLOW_RUN:
            raise NotLeased("A lease gives no right to this event.")
        return await desk.leases.held(lease, flow_run[1])
    task_run = _TASK_RUN.fullmatch(about)
    if not task_run or not _OF_TASK_RUN.fullmatch(str(name)):
        raise NotLeased("A lease gives no right to this event.")
    runs = [one for one in related if one.get("prefect.resource.role") == "flow-run"]
    found = _FLOW_RUN.fullmatch(str(runs[0].get("prefect.resource.id"))) if len(runs) == 1 else None
    if not found:
        raise NotLeased("This task run belongs to no run.")
    held = await desk.leases.held(lease, found[1])
    await desk.task_run(held, task_run[1])
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
    return {**event, "related": kept, "payload": {}}


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


def _task_run(payload: Any) -> Json:
    """What Prefect's server makes a task run and its state of."""
    if not isinstance(payload, dict):
        raise NotLeased("This is no event of a task run.")
    kept: Json = {}
    for name, columns in (("task_run", _TASK_RUN_COLUMNS), ("validated_state", _STATE_COLUMNS),
                          ("initial_state", _STATE_COLUMNS)):  # fmt: skip
        given = payload.get(name)
        if isinstance(given, dict):
            kept[name] = {key: value for key, value in given.items() if key in columns}
            if isinstance(details := kept[name].get("state_details"), dict):
                kept[name]["state_details"] = known_details(details)
            if "data" in kept[name]:
                kept[name]["data"] = known_data(kept[name]["data"])
        elif name in payload:
            kept[name] = None
    if payload.get("intended") is not None:
        kept["intended"] = payload["intended"]
    return kept
