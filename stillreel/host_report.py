"""What a host is and has loaded: told to Prefect by its worker, read there by the API.

A host's report is a Prefect artifact, so people read it in Prefect's UI; the facts for machines
stand in its metadata. Only reports of hosts whose worker lives count.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.to_thread

from stillreel import __version__
from stillreel.errors import InferenceServerAway, StillreelError
from stillreel.inference.client import InferenceClient, sockets_of
from stillreel.prefect_api import PAGE, Json, PrefectApi, connect
from stillreel.settings import Settings

log = logging.getLogger("stillreel.host")

REPORT_SECONDS = 30.0
"""Between two reports, however much changes."""
LOOK_SECONDS = 5.0
PATIENCE_SECONDS = 10.0
GPU_SECONDS = 20.0
"""For the driver's tool, which wakes a sleeping GPU first."""
RECENT = timedelta(minutes=5)


@dataclass(frozen=True)
class HostReport:
    """What one host says about itself."""

    worker: str
    pool: str
    gpu: str | None = None
    """The name of its GPU without the maker's; None without one."""
    models: tuple[str, ...] = ()
    """Those that are loaded now, one per inference server that has one."""
    usd_per_hour: float = 0.0
    version: str = __version__


async def report_host(
    settings: Settings,
    *,
    worker: str,
    pool: str,
    rest: float = REPORT_SECONDS,
    look: float = LOOK_SECONDS,
) -> None:
    """Report this host at once and at each change, until cancelled; no failure ends it.

    There are `rest` seconds between two reports, and `look` seconds between two looks.
    """
    try:
        api = connect(PATIENCE_SECONDS)
        try:
            await _keep_reporting(api, settings, worker=worker, pool=pool, rest=rest, look=look)
        finally:
            with anyio.CancelScope(shield=True):
                await api.aclose()
    except StillreelError as exc:
        log.warning("this host is not reported: %s", exc.message)
    except Exception:  # a report is worth no worker
        log.exception("this host is not reported any more")


async def tell(api: PrefectApi, report: HostReport) -> None:
    """Write a report. Raises PrefectUnavailable, PrefectRefused."""
    await api.post("/artifacts/", artifact_of(report, at=datetime.now(UTC)))


async def newest_live(api: PrefectApi, pools: Iterable[str]) -> HostReport | None:
    """The newest report of a host whose worker in one of these pools is online; None without one.

    Raises PrefectUnavailable, PrefectRefused.
    """
    names = sorted(set(pools))
    online = await asyncio.gather(*(workers_online(api, pool) for pool in names))
    live = {(pool, worker) for pool, found in zip(names, online, strict=True) for worker in found}
    if not live:
        return None
    keys = sorted({artifact_key(worker) for _, worker in live})
    body = {"artifacts": {"key": {"any_": keys}}, "sort": "UPDATED_DESC", "limit": PAGE}
    for artifact in await api.ask("/artifacts/latest/filter", body):
        report = report_of(artifact)
        if report and (report.pool, report.worker) in live:
            return report
    return None


async def workers_online(api: PrefectApi, pool: str) -> list[str]:
    """The workers of a work pool that are online now. Raises PrefectUnavailable, PrefectRefused."""
    since = datetime.now(UTC) - RECENT  # Prefect keeps the workers of hosts that are long gone
    recent = {"last_heartbeat_time": {"after_": since.isoformat()}}
    body = {"workers": recent, "limit": PAGE}
    workers = await api.ask(f"/work_pools/{pool}/workers/filter", body)
    return [worker["name"] for worker in workers if worker["status"] == "ONLINE"]


async def gpu_name() -> str | None:
    """The name of this machine's GPU, as in "A10G"; None without one that can be used."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        with anyio.fail_after(GPU_SECONDS):
            done = await anyio.run_process(command, check=False)
    except (OSError, TimeoutError):
        return None
    lines = done.stdout.decode(errors="replace").splitlines() if done.returncode == 0 else []
    names = (line.strip().removeprefix("NVIDIA ") for line in lines)
    return ", ".join(dict.fromkeys(filter(None, names))) or None


def artifact_key(worker: str) -> str:
    """The key of a worker's report, as Prefect wants it: lower case, digits and dashes."""
    return f"host-{re.sub(r'[^a-z0-9]+', '-', worker.lower()).strip('-') or 'unnamed'}"


def artifact_of(report: HostReport, *, at: datetime) -> Json:
    """The artifact of a report that is made now; `report_of` reads it again."""
    facts = {
        "worker": report.worker,
        "pool": report.pool,
        "gpu": report.gpu or "",
        "models": ", ".join(report.models),
        "usd_per_hour": f"{report.usd_per_hour:g}",
        "version": report.version,
        "at": at.isoformat(timespec="seconds"),
    }
    shown = {**facts, "gpu": report.gpu or "none", "models": facts["models"] or "none is loaded"}
    rows = (f"| {name} | {value.replace('|', '/')} |" for name, value in shown.items())
    return {
        "key": artifact_key(report.worker),
        "type": "markdown",
        "description": "What this host is, and which models it has loaded",
        "data": "\n".join(("| host | |", "|---|---|", *rows)),
        "metadata_": facts,
    }


def report_of(artifact: Mapping[str, Any]) -> HostReport | None:
    """The report that an artifact of Prefect's API holds; None when it is none of ours."""
    facts = artifact.get("metadata_") or {}
    try:
        return HostReport(
            worker=facts["worker"],
            pool=facts["pool"],
            gpu=facts["gpu"] or None,
            models=tuple(name for name in facts["models"].split(", ") if name),
            usd_per_hour=float(facts["usd_per_hour"]),
            version=facts["version"],
        )
    except (KeyError, ValueError):
        return None


async def _keep_reporting(
    api: PrefectApi, settings: Settings, *, worker: str, pool: str, rest: float, look: float
) -> None:
    gpu, told = await gpu_name(), None
    while True:
        models = await anyio.to_thread.run_sync(_loaded, settings, abandon_on_cancel=True)
        price = settings.host.host_price
        report = HostReport(worker=worker, pool=pool, gpu=gpu, models=models, usd_per_hour=price)
        if report == told:
            await anyio.sleep(look)
            continue
        try:
            await tell(api, report)
            told = report
        except (StillreelError, ValueError) as exc:  # also an answer that is not Prefect's
            log.info("this host is reported later: %s", exc)
        await anyio.sleep(rest)


def _loaded(settings: Settings) -> tuple[str, ...]:
    """The models of this host's inference servers; those that do not answer have none."""
    found: list[str] = []
    for socket in sockets_of(settings):
        client = InferenceClient(socket, wait_for_server=0)
        try:
            health = client.health()
        except (InferenceServerAway, ValueError):  # or one that is not of this version
            continue
        finally:
            client.close()
        if health.loaded:
            found.append(health.model)
    return tuple(found)
