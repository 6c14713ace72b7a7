"""What one Prefect server of the production installation takes: `python -m bench.scaling`.

Starts Postgres, Redis, the server in parts and one API on this machine, as infra/compose.yaml says.
Prints submits, transitions and polls a second, and seconds of CPU and bytes in the database per
job. Run it on a machine that does nothing else; docs/scaling.md says what the numbers come to.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import asyncpg
import httpx
import psutil
import stamina

from bench.load import Call, Load, run
from tests.compose import Compose, running_compose
from tests.s3 import Bucket, running_moto

ORDER = {"prompt": "slow zoom in", "duration": 0.5, "width": 128, "height": 72}
DEPLOYMENT = "generate-video/preview-local"
POOL = "local"
BUCKET = "bench"


@dataclass(frozen=True)
class Row:
    """One number that was measured."""

    what: str
    value: float
    unit: str
    detail: str = ""


def measure(*, count: int, clients: int, jobs: int) -> Iterator[Row]:
    """All rows, each as soon as it is known: `count` calls of each kind, then `jobs` whole jobs."""
    with running_moto() as url:
        env = Bucket(url, BUCKET).create().env
        yield from _measure(env, count=count, clients=clients, jobs=jobs)


def _measure(env: dict[str, str], *, count: int, clients: int, jobs: int) -> Iterator[Row]:
    with running_compose(STILLREEL_MODELS="preview", **env) as compose:
        for name in ("prefect", "services", "api"):
            compose.start(name)
        server = _Server(compose)
        yield _row("submit", _submits(compose, count, clients))
        batches = _batches(compose, count, clients)
        yield _row("submit in batches", batches, times=100, unit="jobs/s")
        yield _row("transition", _transitions(server, count, clients))
        yield _row("poll of a host that finds nothing", _polls(server, count, clients))
        _delete_waiting(server)
        compose.start("host")
        yield from _whole_jobs(compose, server, jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=40)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    for row in measure(count=options.count, clients=options.clients, jobs=options.jobs):
        print(f"{row.what:<44}{row.value:>12.2f} {row.unit:<10}{row.detail}", flush=True)


# --- the four kinds of calls --------------------------------------------------------------------


def _submits(compose: Compose, count: int, clients: int) -> Load:
    def calls(_: int) -> Iterator[Call]:
        for _ in range(count // clients):
            yield _ours(compose, "/api/v1/generate", ORDER)

    return run(_api(compose), calls, clients=clients)


def _batches(compose: Compose, count: int, clients: int) -> Load:
    each = max(1, count // clients // 25)

    def calls(_: int) -> Iterator[Call]:
        for _ in range(each):
            yield _ours(compose, "/api/v1/batches", {"items": [ORDER] * 100})

    return run(_api(compose), calls, clients=max(1, clients // 4))


def _transitions(server: _Server, count: int, clients: int) -> Load:
    """Runs to Running and to Completed, as a host has them."""
    with server.client() as http:
        made = http.get(f"/deployments/name/{DEPLOYMENT}").raise_for_status().json()["id"]
        path, ids = f"/deployments/{made}/create_flow_run", []
        for _ in range(count // 2):
            body = {"parameters": ORDER, "idempotency_key": uuid4().hex, "name": "bench"}
            ids.append(http.post(path, json=body).raise_for_status().json()["id"])

    def calls(n: int) -> Iterator[Call]:
        for run_id in ids[n::clients]:
            for state in ("RUNNING", "COMPLETED"):
                path = f"/flow_runs/{run_id}/set_state"
                yield server.call(path, {"state": {"type": state}})

    return run(server.url, calls, clients=clients)


def _polls(server: _Server, count: int, clients: int) -> Load:
    def calls(_: int) -> Iterator[Call]:
        for _ in range(count // clients):
            yield server.call("/work_pools/control/get_scheduled_flow_runs", {"limit": 3})

    return run(server.url, calls, clients=clients)


# --- whole jobs ---------------------------------------------------------------------------------


def _whole_jobs(compose: Compose, server: _Server, jobs: int) -> list[Row]:
    """What jobs leave behind that were worked on by a real host; some warm up."""
    _work(compose, max(2, jobs // 10))
    before, cpu = _database_bytes(compose), server.cpu_seconds()
    _work(compose, jobs)
    per_job = (_database_bytes(compose) - before) / jobs
    seconds = (server.cpu_seconds() - cpu) / jobs
    return [
        Row("bytes in Postgres", per_job / 1000, "kB/job", f"{jobs} jobs of five tasks"),
        Row("CPU of server and services", seconds, "s/job"),
        Row("jobs a day at one core of theirs", 86_400 / seconds, "jobs/day", "polls not counted"),
    ]


def _work(compose: Compose, jobs: int) -> None:
    with httpx.Client(
        base_url=_api(compose), headers=_auth(compose), trust_env=False, timeout=120
    ) as http:
        made = http.post("/api/v1/batches", json={"items": [ORDER] * jobs}).raise_for_status()
        batch = made.json()["batch_id"]
        for attempt in stamina.retry_context(
            on=AssertionError, attempts=None, timeout=60.0 * jobs + 300, wait_initial=1, wait_max=5
        ):
            with attempt:
                counts = http.get(f"/api/v1/batches/{batch}").raise_for_status().json()["counts"]
                assert counts.get("completed", 0) == jobs, counts


def _database_bytes(compose: Compose) -> int:
    async def ask() -> int:
        env = compose.env
        connection = await asyncpg.connect(
            host="127.0.0.1",
            port=compose.ports["postgres"],
            user="stillreel",
            password=env["POSTGRES_PASSWORD"],
            database="prefect",
        )
        try:
            return await connection.fetchval("SELECT pg_database_size(current_database())")
        finally:
            await connection.close()

    return asyncio.run(ask())


def _delete_waiting(server: _Server) -> None:
    """Nothing that was only submitted is to be worked on."""
    with server.client() as http:
        while True:
            body = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "limit": 200}
            body["work_pools"] = {"name": {"any_": [POOL]}}
            runs = http.post("/flow_runs/filter", json=body).raise_for_status().json()
            if not runs:
                return
            for found in runs:
                http.delete(f"/flow_runs/{found['id']}").raise_for_status()


# --- where it goes ------------------------------------------------------------------------------


class _Server:
    """The Prefect server of the installation, with its password."""

    def __init__(self, compose: Compose) -> None:
        self.url = f"http://127.0.0.1:{compose.ports['prefect']}/api"
        self._auth = compose.env["PREFECT_AUTH"]
        self._processes = [
            psutil.Process(compose.daemons[name].process.pid) for name in ("prefect", "services")
        ]

    def client(self) -> httpx.Client:
        user, _, password = self._auth.partition(":")
        return httpx.Client(base_url=self.url, auth=(user, password), trust_env=False, timeout=120)

    def call(self, path: str, body: object) -> Call:
        basic = base64.b64encode(self._auth.encode()).decode()
        return Call.of("POST", self.url + path, body=body, Authorization=f"Basic {basic}")

    def cpu_seconds(self) -> float:
        found = [p for top in self._processes for p in (top, *top.children(recursive=True))]
        return sum(sum(process.cpu_times()[:2]) for process in found)


def _api(compose: Compose) -> str:
    return f"http://127.0.0.1:{compose.ports['api']}"


def _auth(compose: Compose) -> dict[str, str]:
    return {"Authorization": f"Bearer {compose.env['STILLREEL_API_KEY']}"}


def _ours(compose: Compose, path: str, body: object) -> Call:
    return Call.of("POST", _api(compose) + path, body=body, **_auth(compose))


def _row(what: str, load: Load, *, times: int = 1, unit: str = "/s") -> Row:
    detail = f"p50 {load.p50 * 1000:.0f} ms, p95 {load.p95 * 1000:.0f} ms, {load.errors} errors"
    return Row(what, load.rate * times, unit, detail)


if __name__ == "__main__":
    main()
