"""The calls of Prefect's API that a rented host may make, and how each is checked.

A body is never passed on as it came: the one that Prefect gets is made of the fields that the
checks name, so that a field of a later Prefect is refused until somebody has looked at it.
"""

from __future__ import annotations

from stillreel.gateway import pools, reports, runs
from stillreel.gateway.calls import Call

CALLS: tuple[Call, ...] = (
    Call("GET", "/health", pools.health, "whether the server answers"),
    Call("GET", "/admin/version", pools.version, "its version"),
    Call("GET", "/csrf-token", pools.no_csrf, "answered with 404: there are none",
         query=("client",)),
    Call("GET", "/admin/storage", pools.no_storage, "answered here: the server names none"),
    Call("POST", "/v2/concurrency_limits/increment-with-lease", pools.no_limit,
         "answered here: there are no such limits"),
    Call("GET", "/work_pools/{pool}", pools.read_pool, "its own pool"),
    Call("POST", "/work_pools/{pool}/workers/heartbeat", pools.heartbeat,
         "its own pool, under its own name"),
    Call("POST", "/work_pools/{pool}/get_scheduled_flow_runs", pools.scheduled,
         "its own pool; of a run that is not claimed what a worker needs to claim it"),
    Call("GET", "/deployments/{id}", pools.read_deployment, "video deployments of its own pool"),
    Call("GET", "/work_queues/{id}", pools.read_queue, "of its own pool"),
    Call("GET", "/flows/{id}", pools.read_flow, "the flow of those"),
    Call("GET", "/flow_runs/{id}", runs.read_run,
         "runs that were handed to it, without `webhook_url` and our notes"),
    Call("GET", "/flow_run_states/", runs.read_states, "of runs that were handed to it",
         query=("flow_run_id",)),
    Call("PATCH", "/flow_runs/{id}", runs.change_run, "name and process id of its own runs"),
    Call("PATCH", "/flow_runs/{id}/labels", runs.no_labels, "answered here: they are not written"),
    Call("POST", "/flow_runs/{id}/set_state", runs.set_state,
         "a claim of a run that waits for its pool; states of its own runs, "
         "and none but a final one once its job has ended"),
    Call("POST", "/flow_runs/filter", runs.find_runs, "by ids of runs that were handed to it"),
    Call("POST", "/flow_runs/count", runs.count_runs, "how many jobs wait for its own pool"),
    Call("POST", "/logs/", reports.write_logs, "of runs that were handed to it",
         max_bytes=reports.LOG_BYTES),
    Call("POST", "/artifacts/", reports.make_artifact,
         "of its own runs under keys of that job; the report of this host, made anew of its facts"),
    Call("PATCH", "/artifacts/{id}", reports.change_artifact, "of its own runs"),
)  # fmt: skip
"""Everything over HTTP; `events` has what comes over a socket."""
