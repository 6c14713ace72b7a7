"""Calls to Prefect through the gateway beside the same calls made directly, in one run.

`python -m bench.gateway [--rounds 5]`. One Prefect server and one API process on this machine; the
ratio is of medians of rounds that alternate.
"""

from __future__ import annotations

import argparse
import os
import statistics
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from bench.api import ORDER, Row, alternate, servers
from bench.load import Call, Load, run
from stillreel.fleet.leases import FLOW, POOL
from stillreel.gateway.lease import grant

CALLS = 40
BAR = 1.5
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
        rows.append(_row("what the gateway adds to a job", seconds, None, detail, unit="s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    for row in run_all(rounds=parser.parse_args().rounds):
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
