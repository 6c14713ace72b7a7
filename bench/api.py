"""The API beside Prefect's own server and beside a bare route, in one run.

`python -m bench.api [--postgres] [--stored 10000]`. One Prefect server and one API process on this
machine; nothing works on the jobs, so only the submits and the reads are measured. Every ratio is
of medians of rounds that alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
from prefect.workers.process import ProcessWorker

from bench.load import Call, Load, run
from tests.services.postgres import running_postgres
from tests.stack import free_port

KEY = "the-key-of-the-bench"
ORDER = {"prompt": "slow zoom in", "duration": 1, "width": 128, "height": 72}
POLLED, CLIENTS = 50, 16
DEPLOYMENT = "generate-video/preview-local"

IDLE_PERCENT = 15.0
"""Of one core; what a Prefect server takes that nobody asks is 3 to 8."""

SUBMIT_BAR, READ_BAR, STORED_BAR, SHIM_BAR = 1.5, 0.7, 1.5, 0.25

Row = dict[str, Any]


def run_all(*, postgres: bool, stored: int, rounds: int) -> list[Row]:
    """All rows on one database."""
    with ExitStack() as stack:
        env = dict(os.environ)
        if postgres:
            env["DATABASE_URL"] = stack.enter_context(running_postgres())
        prefect, api, server = stack.enter_context(servers(env))
        name = "Postgres" if postgres else "SQLite"
        _cold_reads(api)  # warms up
        few = _cold_reads(api)
        rows = _submits(prefect, api, rounds)
        rows += _shim_share(prefect, env)
        rows += _reads(api, rounds)
        rows += _stored(prefect, api, server, stored, few)
        rows += _crowd(prefect)
    return [row | {"size": name} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--stored", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for row in run_all(postgres=options.postgres, stored=options.stored, rounds=options.rounds):
        met = {True: "yes", False: "NO", None: ""}[row["met"]]
        print(f"{row['what']:<58}{row['value']:>9.2f} {row['unit']:<6}{met:<4}{row['detail']}")


# --- submits ------------------------------------------------------------------------------------


def _submits(prefect: str, api: str, rounds: int) -> list[Row]:
    standard, lean = _standard_deployment(prefect), _deployment(prefect)

    def ours(_: int) -> Iterator[Call]:
        for _ in range(12):
            yield _call(api, "POST", "/api/v1/generate", ORDER)

    def batches(_: int) -> Iterator[Call]:
        yield _call(api, "POST", "/api/v1/batches", {"items": [ORDER] * 100})

    bare, bare_lean, one, many = alternate(
        rounds,
        lambda: run(prefect, _creates(prefect, standard, 12), clients=1),
        lambda: run(prefect, _creates(prefect, lean, 12), clients=1),
        lambda: run(api, ours, clients=1),
        lambda: run(api, ours, clients=CLIENTS),
    )
    errors = f"{sum(load.errors for load in (*one, *many))} errors"
    what = f"submit by {CLIENTS} clients / bare create by 1"
    rows = [
        _row("bare create in a standard process pool, 1 client", bare),
        _row("bare create in our pool, 1 client", bare_lean),
        _row("submit, 1 client", one),
        _row(f"submit, {CLIENTS} clients", many),
        _ratio("submit / bare create, 1 client", _speed(one, bare), None),
        _ratio(what, _speed(many, bare), SUBMIT_BAR, errors),
        _ratio(f"{what}, in our pool", _speed(many, bare_lean), None),
    ]
    (loads,) = alternate(rounds, lambda: run(api, batches, clients=1))
    rate = statistics.median(100 / load.wall for load in loads)
    rows.append(_value("submit in batches of 100", rate, "jobs/s"))
    return rows


def _creates(prefect: str, deployment: str, count: int) -> Callable[[int], Iterator[Call]]:
    def calls(_: int) -> Iterator[Call]:
        for _ in range(count):
            body = {"parameters": ORDER, "idempotency_key": uuid4().hex, "name": "bench"}
            path = f"{prefect}/deployments/{deployment}/create_flow_run"
            yield Call.of("POST", path, body=body)

    return calls


def _crowd(prefect: str) -> list[Row]:
    """Last, because on SQLite it leaves the server with much to do."""
    creates = _creates(prefect, _deployment(prefect), 6)
    return [_row(f"bare create, {CLIENTS} clients", [run(prefect, creates, clients=CLIENTS)])]


def _shim_share(prefect: str, env: dict[str, str]) -> list[Row]:
    """The API's own time in a submit, beside what it waits for Prefect."""
    code = "import asyncio, bench.api; bench.api.measure_shim()"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"PREFECT_API_URL": prefect, "STILLREEL_API_KEY": KEY} | _home(env),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    own, waited = json.loads(out.splitlines()[-1])
    detail = f"{own * 1000:.1f} ms own, {waited * 1000:.1f} ms waiting for Prefect"
    share = _ratio("the shim's own time / Prefect's, single submit", own / waited, None, detail)
    return [share | {"bar": SHIM_BAR, "met": own / waited <= SHIM_BAR}]


def measure_shim() -> None:
    """Print own and waited seconds of a submit, medians; runs in a process of its own."""
    asyncio.run(_measure_shim())


async def _measure_shim() -> None:
    from stillreel.api.app import create_app
    from stillreel.settings import get_settings

    app = create_app(get_settings())
    own: list[float] = []
    waited: list[float] = []
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app):
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://bench", headers=headers
        ) as client:
            prefect = app.state.services.api
            for _ in range(30):
                before, started = prefect.spent, time.perf_counter()
                answer = await client.post("/api/v1/generate", json=ORDER)
                wall = time.perf_counter() - started
                answer.raise_for_status()
                waited.append(prefect.spent - before)
                own.append(wall - waited[-1])
    print(json.dumps([statistics.median(own[5:]), statistics.median(waited[5:])]))


# --- reads --------------------------------------------------------------------------------------


def _reads(api: str, rounds: int) -> list[Row]:
    ids = _make_jobs(api, POLLED)
    body = httpx.get(f"{api}/api/v1/jobs/{ids[0]}", headers=_AUTH, trust_env=False).json()
    with _bare_route(body) as bare_url:

        def polls(_: int) -> Iterator[Call]:
            for n in range(400):
                yield _call(api, "GET", f"/api/v1/jobs/{ids[n % POLLED]}")

        def bare(_: int) -> Iterator[Call]:
            for n in range(400):
                yield Call.of("GET", f"{bare_url}/jobs/{ids[n % POLLED]}", **_AUTH)

        theirs, mine = alternate(
            rounds,
            lambda: run(bare_url, bare, clients=CLIENTS),
            lambda: run(api, polls, clients=CLIENTS),
        )
    ratio = _speed(mine, theirs)
    what = f"read of {POLLED} polled jobs / bare FastAPI route, {CLIENTS} clients"
    return [
        _row(f"bare FastAPI route, {CLIENTS} clients", theirs),
        _row(f"status read of {POLLED} polled jobs, {CLIENTS} clients", mine),
        _ratio(what, ratio, READ_BAR, f"{sum(load.errors for load in mine)} errors"),
    ]


def _stored(prefect: str, api: str, server: psutil.Process, stored: int, few: float) -> list[Row]:
    """Reads that miss the cache with many jobs stored, beside `few` with less than 100."""
    count = httpx.post(f"{prefect}/flow_runs/count", json={}, trust_env=False, timeout=60).json()
    _fill(prefect, stored - count)
    while server.cpu_percent(interval=1) > IDLE_PERCENT:
        continue  # it writes the events of what was made; reads are slow beside that
    many = _cold_reads(api)
    ratio = many / few
    detail = f"{few * 1000:.1f} ms to {many * 1000:.1f} ms, read from Prefect each time"
    row = _ratio(f"status read with {stored} jobs stored / 100", ratio, None, detail)
    return [row | {"bar": STORED_BAR, "met": ratio <= STORED_BAR}]


def _cold_reads(api: str) -> float:
    """Median seconds of reading a job of which the last answer is older than a second."""
    seconds: list[float] = []
    with httpx.Client(headers=_AUTH, trust_env=False, timeout=30) as client:
        for _ in range(3):
            ids = _make_jobs(api, 20)
            time.sleep(1.2)  # older than the API keeps an answer
            for job_id in ids:
                started = time.perf_counter()
                client.get(f"{api}/api/v1/jobs/{job_id}").raise_for_status()
                seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _fill(prefect: str, count: int) -> None:
    path = f"{prefect}/deployments/{_deployment(prefect)}/create_flow_run/bulk"
    with httpx.Client(trust_env=False, timeout=120) as client:
        while count > 0:
            items = [
                {"parameters": ORDER, "idempotency_key": f"fill-{uuid4().hex}", "name": "fill"}
                for _ in range(min(100, count))
            ]
            answer = client.post(path, json=items)
            if answer.is_success:
                made = [item for item in answer.json()["results"] if item["status"] == "CREATED"]
                count -= len(made)


# --- what is measured ---------------------------------------------------------------------------


@contextmanager
def servers(env: dict[str, str]) -> Iterator[tuple[str, str, psutil.Process]]:
    """A Prefect server with our deployments, and an API on it; their addresses."""
    with tempfile.TemporaryDirectory(prefix="sr-bench-") as home:
        prefect_port, api_port = free_port(), free_port()
        url = f"http://127.0.0.1:{prefect_port}/api"
        env |= {
            "STILLREEL_HOME": home,
            "STILLREEL_PREFECT_PORT": str(prefect_port),
            "STILLREEL_API_PORT": str(api_port),
            "STILLREEL_API_KEY": KEY,
            "STILLREEL_REQUESTS_PER_MINUTE": "100000000",
            "PREFECT_API_URL": url,
        }
        code = (
            "import os, sys; from stillreel.settings import get_settings as g; "
            "from stillreel.prefect_env import server_env as e; os.environ.update(e(g())); "
            "os.execv(sys.executable, [sys.executable, '-m', 'prefect', 'server', 'start', "
            f"'--port', '{prefect_port}', '--log-level', 'WARNING'])"
        )
        with _process([sys.executable, "-c", code], env, f"{url}/health") as server:
            subprocess.run(
                [str(Path(sys.executable).with_name("stillreel")), "deploy"],
                env=env,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            argv = [sys.executable, "-m", "stillreel.api.server"]
            api = f"http://127.0.0.1:{api_port}"
            with _process(argv, env, f"{api}/health"):
                yield url, api, server


@contextmanager
def _bare_route(body: Any) -> Iterator[str]:
    """A FastAPI app with one route that returns this JSON, and nothing else."""
    port = free_port()
    code = (
        "import sys, json, uvicorn; from fastapi import FastAPI; app = FastAPI()\n"
        "body = json.loads(sys.argv[1])\n"
        "@app.get('/jobs/{job_id}')\n"
        "async def read(job_id: str): return body\n"
        "uvicorn.run(app, port=int(sys.argv[2]), access_log=False, log_level='warning')"
    )
    argv = [sys.executable, "-c", code, json.dumps(body), str(port)]
    url = f"http://127.0.0.1:{port}"
    with _process(argv, dict(os.environ), f"{url}/jobs/x"):
        yield url


@contextmanager
def _process(argv: list[str], env: dict[str, str], ready: str) -> Iterator[psutil.Process]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 180
            while not _answers(ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{argv[:4]} did not start:\n{log.read()[-3000:].decode()}")
                time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _home(env: dict[str, str]) -> dict[str, str]:
    return {"STILLREEL_HOME": env["STILLREEL_HOME"]}


_AUTH = {"Authorization": f"Bearer {KEY}"}


def _call(api: str, method: str, path: str, body: Any = None) -> Call:
    return Call.of(method, api + path, body=body, **_AUTH)


def _deployment(prefect: str) -> str:
    found = httpx.get(f"{prefect}/deployments/name/{DEPLOYMENT}", trust_env=False)
    return found.raise_for_status().json()["id"]


def _standard_deployment(prefect: str) -> str:
    """Our flow in a pool as Prefect makes it: what a submit would cost without us."""
    ours = httpx.get(f"{prefect}/deployments/{_deployment(prefect)}", trust_env=False).json()
    kept = ("flow_id", "entrypoint", "path", "parameter_openapi_schema", "enforce_parameter_schema")
    template = ProcessWorker.get_default_base_job_template()
    pool = {"name": "standard", "type": "process", "base_job_template": template}
    body = {key: ours[key] for key in kept} | {"name": "standard", "work_pool_name": "standard"}
    with httpx.Client(base_url=prefect, trust_env=False) as client:
        client.post("/work_pools/", json=pool).raise_for_status()
        return client.post("/deployments/", json=body).raise_for_status().json()["id"]


def _make_jobs(api: str, count: int) -> list[str]:
    body = {"items": [ORDER] * count}
    answer = httpx.post(
        f"{api}/api/v1/batches", json=body, headers=_AUTH, timeout=60, trust_env=False
    )
    return [item["job_id"] for item in answer.raise_for_status().json()["results"]]


def alternate(rounds: int, *measures: Callable[[], Load]) -> list[list[Load]]:
    """The loads of each measure, in the order of the measures; the first round warms up."""
    seen = [[measure() for measure in measures] for _ in range(rounds + 1)][1:]
    return [list(loads) for loads in zip(*seen, strict=True)]


def _median(loads: list[Load], name: str) -> float:
    return statistics.median(getattr(load, name) for load in loads)


def _speed(mine: list[Load], theirs: list[Load]) -> float:
    return _median(mine, "rate") / _median(theirs, "rate")


def _row(what: str, loads: list[Load]) -> Row:
    detail = (
        f"p50 {_median(loads, 'p50') * 1000:.1f} ms, p95 {_median(loads, 'p95') * 1000:.1f} ms, "
        f"{sum(load.errors for load in loads)} errors, "
        f"{sum(load.refused for load in loads)} times 503 or cut off"
    )
    return _value(what, _median(loads, "rate"), "/s", detail)


def _value(what: str, value: float, unit: str, detail: str = "") -> Row:
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "bar": None,
        "met": None,
        "detail": detail,
    }


def _ratio(what: str, value: float, bar: float | None, detail: str = "") -> Row:
    """A ratio of speeds; its bar is the least that it may be."""
    met = None if bar is None else value >= bar
    return _value(what, value, "x", detail) | {"bar": None, "least": bar, "met": met}


if __name__ == "__main__":
    main()
