"""What a lease opens of flow runs: the claim of one that waits, and all that its own go through."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from stillreel.errors import NotLeased
from stillreel.gateway import bounds
from stillreel.gateway.calls import RUNS_MOST, Answered, Asked, Passed, only
from stillreel.gateway.desk import Desk
from stillreel.gateway.lease import CLAIM, Held, Lease
from stillreel.gateway.states import known_data, known_details
from stillreel.jobs import marks
from stillreel.jobs.attempts import HANDED_BACK, is_outage
from stillreel.jobs.record import FINAL_STATES, record_of
from stillreel.prefect_api import PAGE, Json

_STATE = ("type", "name", "message", "data", "state_details")
_SETTABLE = frozenset(
    {"PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED", "SCHEDULED"}
)
_SEEN_LABELS = frozenset(
    {marks.TOKEN, marks.ROUND, marks.SETTLED, marks.END_AT, marks.CANCELLED, marks.DEADLINE}
)
"""Those that a flow reads; the others are the control side's, as its notes on the delivery."""
_WORKER_LABELS = (
    *("prefect.worker.name", "prefect.worker.type"),
    *("prefect.work-pool.name", "prefect.work-pool.id"),
)
_CHANGEABLE = ("name", "infrastructure_pid", "flow_version")
_EMPTY = ("flows", "task_runs", "deployments", "work_pools", "work_pool_queues")
_NO_FILTER = (
    *("name", "tags", "deployment_id", "work_queue_name", "flow_version", "start_time"),
    *("expected_start_time", "next_scheduled_start_time", "end_time", "parent_flow_run_id"),
    *("parent_task_run_id", "idempotency_key", "created_by", "root_flow_run_id"),
)
"""What a filter may not filter by; Prefect's client sends all of them, as null."""


async def read_run(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    held = await desk.leases.held(lease, asked.names["id"])
    return Passed(f"/flow_runs/{held.run_id}", show=seen_run)


async def read_states(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    held = await desk.leases.held(lease, asked.query.get("flow_run_id", ""))
    return Passed(f"/flow_run_states/?flow_run_id={held.run_id}")


async def change_run(desk: Desk, lease: Lease, asked: Asked) -> Passed:
    held = await desk.leases.held(lease, asked.names["id"], writes=True)
    body = only(asked.body, *_CHANGEABLE, "empirical_policy")
    # By the policy Prefect would try a failed run again, on other hosts as well.
    given = {name: body[name] for name in _CHANGEABLE if body.get(name) is not None}
    sent = {name: bounds.plain(bounds.text(value, name)) for name, value in given.items()}
    return Passed(f"/flow_runs/{held.run_id}", sent)


async def no_labels(desk: Desk, lease: Lease, asked: Asked) -> Answered:
    """A worker's name and pool on a run, which are not written: the claim says both."""
    await desk.leases.held(lease, asked.names["id"])
    only(asked.body, *_WORKER_LABELS)
    return Answered(None, 204)


async def set_state(desk: Desk, lease: Lease, asked: Asked) -> Passed | Answered:
    """A claim of a run that waits, or the next state of one that was claimed."""
    run_id = asked.names["id"]
    body = only(asked.body, "state", "force")
    state = only(body.get("state"), *_STATE, "id", "timestamp")
    kind = bounds.text(state.get("type"), "a type of state")
    if kind not in _SETTABLE:
        raise NotLeased("A lease gives no right to this state.")
    if kind == "PENDING":
        return await _claim(desk, lease, run_id)
    held, run = await desk.leases.held_now(lease, run_id)
    if kind not in FINAL_STATES and (_is_cancelled(run) or await desk.is_over(run)):
        return _aborted("This run has ended.")
    if kind == "CANCELLED" and not (_is_cancelled(run) or _is_late(run)):
        raise NotLeased("Nobody has cancelled this run, and it is not too late for it.")
    sent: Json = {"type": kind, "name": bounds.text_or_none(state.get("name"), "names of states")}
    sent["message"] = bounds.plain(state.get("message"))
    sent["data"] = known_data(state.get("data"), run_id)
    sent["state_details"] = _details(state.get("state_details") or {}, run_id)
    # Of nothing else it is asked: that storage is away is what many a failed run has to tell.
    has_video = kind == "COMPLETED" and await desk.has_video(held.job_id)
    if kind == "COMPLETED" and not has_video:
        sent = {"type": "CRASHED", "name": "Crashed", "message": "it ended without a video"}
    if kind == "SCHEDULED":
        # In other messages the keeper reads which attempt begins; and nobody parks a run.
        sent["message"] = HANDED_BACK + lease.id
        sent["state_details"]["scheduled_time"] = datetime.now(UTC).isoformat()
    return Passed(
        f"/flow_runs/{held.run_id}/set_state",
        # As the engine does it.
        {"state": sent, "force": bool(body.get("force")) and kind == "CRASHED"},
        done=partial(_note_state, desk, lease, held, sent, has_video),
    )


def _note_state(
    desk: Desk, lease: Lease, held: Held, state: Json, has_video: bool, answer: Any
) -> None:
    if answer.get("status") == "ACCEPT" and answer.get("state"):
        desk.leases.moved(lease, held, answer["state"])
    else:
        desk.leases.forget(held.run_id)
    is_end = state["type"] in FINAL_STATES - {"CANCELLED"} and answer.get("status") == "ACCEPT"
    if is_end and not is_outage(state["type"], state["message"] or ""):
        desk.claims.ended(lease, has_video=has_video)


async def _claim(desk: Desk, lease: Lease, run_id: str) -> Passed | Answered:
    """A claim of a run that waits: always the same one, whatever the host's state says else."""
    run = await desk.waiting_run(lease, run_id)
    due = run.get("next_scheduled_start_time") or run.get("expected_start_time")
    if run.get("state_type") != "SCHEDULED" or await desk.is_over(run):
        return _aborted("This run does not wait any more.")
    if due and datetime.fromisoformat(due) > datetime.now(UTC):
        return _aborted("This run is not due yet.")
    if reason := await desk.claims.begin(lease, run_id):
        return _aborted(reason)
    # Prefect lets a Pending run be Pending once more under any other name than this one.
    state = {"type": "PENDING", "name": "Pending", "message": CLAIM + lease.id}
    return Passed(
        f"/flow_runs/{run_id}/set_state",
        {"state": state, "force": False},
        done=partial(_note_claim, desk, lease, run_id),
    )


def _is_cancelled(run: Json) -> bool:
    return run.get("state_type") == "CANCELLING" or bool(record_of(run).labels.get(marks.CANCELLED))


def _is_late(run: Json) -> bool:
    deadline = record_of(run).deadline
    return deadline is not None and deadline <= datetime.now(UTC)


def _note_claim(desk: Desk, lease: Lease, run_id: str, answer: Any) -> None:
    desk.leases.forget(run_id)
    desk.claims.end(lease, run_id, is_taken=answer.get("status") == "ACCEPT")


def seen_run(run: Mapping[str, Any]) -> Json:
    """What a host sees of a run that it has: neither who is told of its end, nor our notes."""
    parameters, labels = dict(run.get("parameters") or {}), run.get("labels") or {}
    parameters.pop("webhook_url", None)
    kept = {n: v for n, v in labels.items() if n in _SEEN_LABELS or n.startswith("prefect.")}
    return {**run, "parameters": parameters, "labels": kept}


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
        sent["sort"] = bounds.text(body["sort"], "an order")
    return Passed("/flow_runs/filter", sent, show=lambda found: [seen_run(run) for run in found])


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
    due = runs.get("expected_start_time")
    if due is not None:
        times = only(due, "before_", "after_")
        runs = {**runs, "expected_start_time": {
            name: bounds.instant(at).isoformat() for name, at in times.items() if at is not None
        }}  # fmt: skip
    return Passed("/flow_runs/count", {**body, "flow_runs": runs})


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
    return {n: [bounds.text(one, "names of states") for one in v] for n, v in kept.items()}


async def _own_id(desk: Desk, lease: Lease, run_id: Any) -> str:
    try:
        return (await desk.leases.held(lease, str(run_id))).run_id
    except NotLeased:
        return ""
