"""What a lease opens of the server, and of work pools and deployments."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from stillreel.errors import NotLeased
from stillreel.gateway import bounds
from stillreel.gateway.calls import Answered, Asked, Passed, only
from stillreel.gateway.desk import Desk
from stillreel.gateway.lease import Lease
from stillreel.prefect_api import Json

RUNS_AT_ONCE = 10
"""Most runs that one poll is offered."""
QUEUES_MOST = 20

_WAITING = frozenset(
    {
        *("id", "created", "updated", "flow_id", "deployment_id", "deployment_version"),
        *("work_queue_id", "work_queue_name", "work_pool_id", "work_pool_name", "job_variables"),
        *("expected_start_time", "next_scheduled_start_time", "auto_scheduled", "run_count"),
        *("state_id", "state_type", "state_name", "infrastructure_document_id"),
    }
)
"""What a worker needs of a run that it may claim; neither order nor marks are among it."""
_STATE = frozenset({"id", "type", "name", "timestamp"})


async def health(_desk: Desk, _lease: Lease, _asked: Asked) -> Passed:
    return Passed("/health")


async def version(_desk: Desk, _lease: Lease, _asked: Asked) -> Passed:
    return Passed("/admin/version")


async def no_csrf(_desk: Desk, _lease: Lease, _asked: Asked) -> Answered:
    """As a server that has no such tokens; the gateway sends none."""
    return Answered({"detail": "Not Found"}, 404)


async def no_storage(_desk: Desk, _lease: Lease, _asked: Asked) -> Answered:
    """As a server that names no storage for results: a host has its own."""
    return Answered({"default_result_storage_block_id": None})


async def no_limit(_desk: Desk, _lease: Lease, asked: Asked) -> Answered:
    """As a server that has no limit of these names; none is taken from others."""
    fields = ("slots", "mode", "lease_duration", "holder", "occupancy_seconds")
    if not isinstance(only(asked.body, "names", *fields).get("names"), list):
        raise NotLeased("This call names limits.")
    return Answered({"lease_id": str(uuid4()), "limits": []})


async def read_pool(_desk: Desk, lease: Lease, asked: Asked) -> Passed:
    _own_pool(lease, asked)
    return Passed(f"/work_pools/{lease.pool}")


async def heartbeat(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    _own_pool(lease, asked)
    body = only(asked.body, "name", "heartbeat_interval_seconds", "metadata")
    _own_worker(desk, lease, body.get("name"))
    seconds = body.get("heartbeat_interval_seconds")
    if not isinstance(seconds, int | float) or not 1 <= seconds <= 300:
        raise NotLeased("This is no interval of a worker.")
    sent = {"name": body["name"], "heartbeat_interval_seconds": int(seconds)}
    return Passed(f"/work_pools/{lease.pool}/workers/heartbeat", sent)


async def scheduled(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    _own_pool(lease, asked)
    body = only(asked.body, "work_queue_names", "scheduled_before", "scheduled_after", "limit")
    queues = body.get("work_queue_names") or []
    if not isinstance(queues, list) or len(queues) > QUEUES_MOST:
        raise NotLeased("These are no names of queues.")
    limit = body.get("limit")
    limit = limit if isinstance(limit, int) and 0 < limit < RUNS_AT_ONCE else RUNS_AT_ONCE
    deployments = await desk.flows_of(lease)
    return Passed(
        f"/work_pools/{lease.pool}/get_scheduled_flow_runs",
        {
            "work_queue_names": [bounds.text(name, "names of queues") for name in queues],
            "scheduled_before": datetime.now(UTC).isoformat(),
            "limit": limit,
        },
        show=lambda found: [
            {**entry, "flow_run": unclaimed(entry["flow_run"])}
            for entry in found
            if entry["flow_run"].get("deployment_id") in deployments
        ],
    )


async def read_deployment(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    if asked.names["id"] not in await desk.flows_of(lease):
        raise NotLeased("This deployment is not of this lease's pool.")
    return Passed(f"/deployments/{asked.names['id']}")


async def read_queue(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    if asked.names["id"] not in await desk.queues_of(lease):
        raise NotLeased("This queue is not of this lease's pool.")
    return Passed(f"/work_queues/{asked.names['id']}")


async def read_flow(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    if asked.names["id"] not in (await desk.flows_of(lease)).values():
        raise NotLeased("This flow is not of this lease's pool.")
    return Passed(f"/flows/{asked.names['id']}")


def _own_pool(lease: Lease, asked: Asked) -> None:
    if asked.names["pool"] != lease.pool:
        raise NotLeased("This is another pool than this lease's.")


def _own_worker(desk: Desk, lease: Lease, name: Any) -> None:
    if name != lease.worker(desk.installation):
        raise NotLeased("The worker of this lease has another name.")


def unclaimed(run: Mapping[str, Any]) -> Json:
    """What a host sees of a run that it has not claimed; a real name begins with the prompt."""
    kept = {name: value for name, value in run.items() if name in _WAITING}
    kept["name"] = "a job that waits"
    if state := run.get("state"):  # Prefect's poll leaves it out
        kept["state"] = {name: value for name, value in state.items() if name in _STATE}
    return kept
