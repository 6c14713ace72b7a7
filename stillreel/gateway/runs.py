"""What a lease opens of flow runs: the claim of one that waits, and all that its own go through."""

from __future__ import annotations

from functools import partial
from typing import Any

from stillreel.errors import NotLeased
from stillreel.gateway.calls import RUNS_MOST, Answered, Asked, Passed, only
from stillreel.gateway.desk import Desk
from stillreel.gateway.events import known_data, known_details
from stillreel.gateway.lease import CLAIM, Lease
from stillreel.jobs import marks
from stillreel.prefect_api import PAGE, Json

_STATE = ("type", "name", "message", "data", "state_details")
_SETTABLE = frozenset(
    {"PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED", "SCHEDULED"}
)
_WORKER_LABELS = (
    *("prefect.worker.name", "prefect.worker.type"),
    *("prefect.work-pool.name", "prefect.work-pool.id"),
)
_EMPTY = ("flows", "task_runs", "deployments", "work_pools", "work_pool_queues")
_NO_FILTER = (
    *("name", "tags", "deployment_id", "work_queue_name", "flow_version", "start_time"),
    *("expected_start_time", "next_scheduled_start_time", "end_time", "parent_flow_run_id"),
    *("parent_task_run_id", "idempotency_key", "created_by", "root_flow_run_id"),
)
"""What a filter may not filter by; Prefect's client sends all of them, as null."""


async def read_run(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    held = await desk.leases.held(lease, asked.names["id"])
    return Passed(f"/flow_runs/{held.run_id}")


async def read_states(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    held = await desk.leases.held(lease, asked.query.get("flow_run_id", ""))
    return Passed(f"/flow_run_states/?flow_run_id={held.run_id}")


async def change_run(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    held = await desk.leases.held(lease, asked.names["id"], writes=True)
    body = only(asked.body, "name", "infrastructure_pid", "flow_version", "empirical_policy")
    # By the policy Prefect would try a failed run again, on other hosts as well.
    sent = {name: value for name, value in body.items() if name != "empirical_policy"}
    return Passed(f"/flow_runs/{held.run_id}", sent)


async def no_labels(desk: Desk, lease: Lease, asked: Asked) -> Answered:
    """A worker's name and pool on a run, which are not written: the claim says both."""
    await desk.leases.held(lease, asked.names["id"])
    only(asked.body, *_WORKER_LABELS)
    return Answered(None, 204)


async def set_state(desk: Desk, lease: Lease, asked: Asked) -> Passed | Answered:
    """A claim of a run that waits, or the next state of one that was claimed."""
    run_id = asked.names["id"]
    desk.leases.forget(run_id)  # a state is set by who has the run now
    body = only(asked.body, "state", "force")
    state = only(body.get("state"), *_STATE, "id", "timestamp")
    kind = state.get("type")
    if kind not in _SETTABLE:
        raise NotLeased("A lease gives no right to this state.")
    force = bool(body.get("force")) and kind == "CRASHED"  # as the engine does it
    if kind == "PENDING":
        if not await _is_free(desk, lease, run_id):
            return _aborted("This run does not wait any more.")
    else:
        await desk.leases.held(lease, run_id, writes=True)
    sent: Json = {name: state[name] for name in _STATE if name in state}
    if details := sent.get("state_details"):
        sent["state_details"] = _details(details, run_id)
    if "data" in sent:
        sent["data"] = known_data(sent["data"])
    if kind == "PENDING":
        # Prefect lets a Pending run be Pending once more under any other name than this one.
        sent |= {"name": "Pending", "message": CLAIM + lease.id}
    elif kind == "SCHEDULED":  # in such a message the keeper reads which attempt begins
        sent["message"] = None
    return Passed(
        f"/flow_runs/{run_id}/set_state",
        {"state": sent, "force": force},
        done=partial(desk.leases.forget, run_id),
    )


async def find_runs(desk: Desk, lease: Lease, asked: Asked) -> Passed | Answered:
    """Which of these runs are in such a state; only by ids, and only the lease's own."""
    body = only(asked.body, "flow_runs", "limit", "offset", "sort", *_EMPTY)
    if any(body.get(name) for name in _EMPTY):
        raise NotLeased("A lease finds runs by their ids only.")
    runs = only(body.get("flow_runs"), "id", "state", "operator", *_NO_FILTER)
    if any(runs.get(name) for name in _NO_FILTER) or runs.get("operator", "and_") != "and_":
        raise NotLeased("A lease finds runs by their ids and states only.")
    wanted = only(runs.get("id"), "any_", "not_any_")
    ids = wanted.get("any_")
    if not isinstance(ids, list) or wanted.get("not_any_") or len(ids) > RUNS_MOST:
        raise NotLeased("A lease finds runs by their ids only.")
    own = [found for run_id in ids if (found := await _own_id(desk, lease, run_id))]
    if not own:
        return Answered([])
    narrowed: Json = {"id": {"any_": own}}
    if runs.get("state"):
        narrowed["state"] = _state_filter(runs["state"])
    sent: Json = {"flow_runs": narrowed, "limit": PAGE}
    if body.get("sort"):
        sent["sort"] = body["sort"]
    return Passed("/flow_runs/filter", sent)


async def count_runs(_desk: Desk, lease: Lease, asked: Asked) -> Passed:
    """How many jobs wait for the lease's pool: by this an idle host knows that it may go."""
    body = only(asked.body, "flow_runs", "flows", "work_pools")
    runs = only(body.get("flow_runs"), "state", "expected_start_time")
    if body.get("work_pools") != {"name": {"any_": [lease.pool]}}:
        raise NotLeased("A lease counts runs of its own pool only.")
    if body.get("flows") != {"name": {"any_": [marks.FLOW]}}:
        raise NotLeased("A lease counts jobs only.")
    if runs.get("state") != {"type": {"any_": ["SCHEDULED"]}}:
        raise NotLeased("A lease counts jobs that wait only.")
    return Passed("/flow_runs/count", body)


async def _is_free(desk: Desk, lease: Lease, run_id: str) -> bool:
    """Whether a run of the lease's pool waits; one that somebody has claimed does not."""
    run = await desk.waiting_run(lease, run_id)
    return run.get("state_type") == "SCHEDULED"


def _aborted(reason: str) -> Answered:
    """As Prefect answers a worker that came too late."""
    details = {"type": "abort_details", "reason": reason}
    return Answered({"state": None, "status": "ABORT", "details": details})


def _details(details: Any, run_id: str) -> Json:
    if not isinstance(details, dict) or details.get("flow_run_id") not in (None, run_id):
        raise NotLeased("This state is another run's.")
    return known_details(details)


def _state_filter(state: Any) -> Json:
    found = only(state, "type", "name", "operator")
    kept: Json = {}
    for name in ("type", "name"):
        if found.get(name) is not None:
            kept[name] = _texts(found[name])
    return kept


def _texts(wanted: Any) -> Json:
    known = only(wanted, "any_", "not_any_")
    kept = {name: value for name, value in known.items() if value is not None}
    if not all(isinstance(value, list) and len(value) < 50 for value in kept.values()):
        raise NotLeased("This is no filter by states.")
    return kept


async def _own_id(desk: Desk, lease: Lease, run_id: Any) -> str:
    try:
        return (await desk.leases.held(lease, str(run_id))).run_id
    except NotLeased:
        return ""
