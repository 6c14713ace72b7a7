"""Calls to Prefect through the gateway, and whole jobs, beside the same made directly, in one run.

`python -m bench.gateway [--rounds 5] [--jobs 4] [--gpu-seconds 60]`. One Prefect server and one API
process on this machine; the ratios are of medians of rounds that alternate. The jobs, five seconds
of 1080p, are done by two hosts of the same make: one has the direct way, the other has a lease, as
if rented. Each waits on its GPU for less than half of the 150 s that the design's price of a video
comes to; what it stores goes through the API process, the longest way that there is.
"""

from __future__ import annotations

import argparse
import os
import statistics
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from bench.api import ORDER, Row, alternate, servers
from bench.load import Call, Load, run
from stillreel.fleet.leases import FLOW, POOL
from stillreel.gateway.lease import grant
from stillreel.models.registry import get_model
from tests.rented import rented_host
from tests.stack import Stack, running_stack

CALLS = 40
BAR, JOB_BAR = 1.5, 1.05
GPU_SECONDS = 60.0
WORKER = "stillreel.host_worker"
JOB = {"duration": 5.0, "width": 1920, "height": 1080, "prompt": "zoom in"}
CALLS_OF_A_JOB = 60
"""Of one short job of `preview`, flow process and worker together (docs/security.md)."""


@dataclass(frozen=True)
class Kind:
    """One kind of call that a flow process makes."""

    name: str
    method: str
    path: str
    body: Any = None


def run_all(*, rounds: int) -> list[Row]:
    """A row per kind of call, and one for a whole job."""
    with servers(os.environ | {"STILLREEL_RENTED_VIA": "gateway"}) as (prefect, api, _):
        token = _lease(prefect)
        base = f"{api}/lease/api"
        auth = {"Authorization": "Basic " + b64encode(f"lease:{token}".encode()).decode()}
        kinds = list(_kinds(prefect, base, auth))
        rows, extra = list[Row](), list[float]()
        for kind in kinds:
            near, far = alternate(
                rounds,
                lambda kind=kind: run(prefect, _calls(prefect, kind, {}), clients=1),
                lambda kind=kind: run(base, _calls(base, kind, auth), clients=1),
            )
            direct, through = _p50(near), _p50(far)
            extra.append(through - direct)
            errors = sum(load.errors for load in (*near, *far))
            rows.append(
                _row(
                    f"{kind.name}: gateway / direct",
                    through / direct,
                    BAR,
                    f"{through * 1000:.1f} ms / {direct * 1000:.1f} ms, {errors} errors",
                )
            )
        seconds = statistics.mean(extra) * CALLS_OF_A_JOB
        detail = f"{CALLS_OF_A_JOB} calls, {statistics.mean(extra) * 1000:.1f} ms each"
        rows.append(_row("what its calls add to a job", seconds, None, detail, unit="s"))
    return rows


def run_jobs(*, jobs: int, gpu_seconds: float = GPU_SECONDS) -> list[Row]:
    """Two rows: the wall time of a job with a lease to that of a direct one, and seconds more."""
    steps = next(iter(get_model("preview").presets.values())).steps
    pace = str(gpu_seconds / steps)
    with (
        TemporaryDirectory(prefix="sr-bench-") as folder,
        running_stack(STILLREEL_PREVIEW_SECONDS_PER_STEP=pace) as stack,
        rented_host(stack, Path(folder), STILLREEL_PREVIEW_SECONDS_PER_STEP=pace) as rented,
    ):
        mine = stack.processes(WORKER)
        _seconds_of_a_job(stack, jobs, waits=mine)  # each host's first one warms it up
        others = rented.parts(WORKER)
        _seconds_of_a_job(stack, jobs, waits=others)
        near, far = list[float](), list[float]()
        for seed in range(jobs):
            pair = [(near, others), (far, mine)]
            for seconds, waits in pair[:: 1 if seed % 2 else -1]:  # who is first takes turns
                seconds.append(_seconds_of_a_job(stack, seed, waits=waits))
    direct, through = statistics.median(near), statistics.median(far)
    detail = f"{through:.2f} s / {direct:.2f} s, medians of {jobs}, {gpu_seconds:g} s of a GPU each"
    return [
        _row("a whole job: leased / direct", through / direct, JOB_BAR, detail),
        _row("what a lease adds to a job", through - direct, None, "", unit="s"),
    ]


def _seconds_of_a_job(stack: Stack, seed: int, *, waits: list[psutil.Process]) -> float:
    """From its claim to its end, while these workers stand still."""
    for process in waits:
        process.suspend()
    try:
        run_id = stack.submit({**JOB, "seed": seed})
        run = stack.wait(run_id, timeout=300)
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
    finally:
        for process in waits:
            process.resume()
    states = stack.api.get("/flow_run_states/", params={"flow_run_id": run_id}).json()
    at = [datetime.fromisoformat(s["timestamp"]) for s in states if s["type"] == "PENDING"]
    return (datetime.fromisoformat(run["end_time"]) - min(at)).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--gpu-seconds", type=float, default=GPU_SECONDS)
    options = parser.parse_args()
    rows = run_all(rounds=options.rounds) if options.rounds else []
    for row in [*rows, *run_jobs(jobs=options.jobs, gpu_seconds=options.gpu_seconds)]:
        met = {True: "yes", False: "NO", None: ""}[row["met"]]
        print(f"{row['what']:<58}{row['value']:>9.2f} {row['unit']:<6}{met:<4}{row['detail']}")


def _lease(prefect: str) -> str:
    """The token of a host of a drain that is made here."""
    with httpx.Client(base_url=prefect, trust_env=False, timeout=60) as client:
        flow = client.post("/flows/", json={"name": FLOW}).raise_for_status().json()
        body = {"flow_id": flow["id"], "state": {"type": "RUNNING"}, "labels": {POOL: "local"}}
        drain = client.post("/flow_runs/", json=body).raise_for_status().json()["id"]
        made = grant(drain, 1, expires=datetime.now(UTC) + timedelta(hours=1))
        client.patch(f"/flow_runs/{drain}/labels", json=made.labels).raise_for_status()
    return made.token


def _kinds(prefect: str, base: str, auth: dict[str, str]) -> Iterator[Kind]:
    with httpx.Client(trust_env=False, timeout=60) as client:
        path = f"{prefect}/deployments/name/generate-video/preview-local"
        deployment = client.get(path).raise_for_status().json()["id"]
        path = f"{prefect}/deployments/{deployment}/create_flow_run"
        made = client.post(path, json={"parameters": ORDER}).raise_for_status().json()["id"]
        claim = {"state": {"type": "PENDING"}}
        said = client.post(f"{base}/flow_runs/{made}/set_state", json=claim, headers=auth)
        assert said.raise_for_status().json()["status"] == "ACCEPT", said.text
    line = {"name": "bench", "level": 20, "message": "a line", "flow_run_id": made,
            "timestamp": datetime.now(UTC).isoformat()}  # fmt: skip
    yield Kind("read a run", "GET", f"/flow_runs/{made}")
    yield Kind(
        "set a state", "POST", f"/flow_runs/{made}/set_state", {"state": {"type": "RUNNING"}}
    )
    yield Kind("write 20 lines", "POST", "/logs/", [line] * 20)
    yield Kind("poll a pool", "POST", "/work_pools/local/get_scheduled_flow_runs", {"limit": 3})


def _calls(base: str, kind: Kind, headers: dict[str, str]) -> Callable[[int], Iterator[Call]]:
    def calls(_: int) -> Iterator[Call]:
        for _ in range(CALLS):
            yield Call.of(kind.method, f"{base}{kind.path}", body=kind.body, **headers)

    return calls


def _p50(loads: list[Load]) -> float:
    return statistics.median(load.p50 for load in loads)


def _row(what: str, value: float, bar: float | None, detail: str, *, unit: str = "x") -> Row:
    met = None if bar is None else value <= bar
    return {"what": what, "value": value, "unit": unit, "bar": bar, "met": met, "detail": detail}


if __name__ == "__main__":
    main()
