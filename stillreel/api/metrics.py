"""`GET /metrics`: what Prometheus reads; a scrape asks Prefect at most every 15 seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from statistics import quantiles
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from stillreel import __version__
from stillreel.api.auth import Admin
from stillreel.api.problems import PROBLEMS
from stillreel.api.services import Services, services_of
from stillreel.errors import PrefectUnavailable, StillreelError
from stillreel.fleet.leases import LOOK_BACK, REAPER, drains_since, lease_of, money_of
from stillreel.job import PRIORITIES, JobStatus, Stage
from stillreel.jobs import marks
from stillreel.jobs.reader import Receipt
from stillreel.jobs.record import EXPIRED_STATE
from stillreel.prefect_api import PAGE
from stillreel.usage import Used, add_up, read_ended

log = logging.getLogger("stillreel.metrics")

router = APIRouter(tags=["service"], responses=PROBLEMS)

FRESH_SECONDS: Final = 15.0
USAGE_FRESH_SECONDS: Final = 60.0
QUANTILES: Final = {"0.5": 49, "0.9": 89, "0.99": 98}

_FROM_ZERO: Mapping[str, Sequence[str]] = {
    "webhook_attempts": ("delivered", "no_receiver"),
    "keeper_actions": ("crashed", "requeued", "gave_up", "deaf"),
}
"""Told before the first one too: Prometheus sees no increase in a series that is born at 1."""

_STATES: Mapping[JobStatus, dict[str, Any]] = {
    JobStatus.QUEUED: {"type": {"any_": ["SCHEDULED", "PENDING", "PAUSED"]}},
    JobStatus.PROCESSING: {"type": {"any_": ["RUNNING", "CANCELLING"]}},
    JobStatus.COMPLETED: {"type": {"any_": ["COMPLETED"]}},
    JobStatus.FAILED: {"type": {"any_": ["FAILED", "CRASHED"]}},
    JobStatus.CANCELLED: {"type": {"any_": ["CANCELLED"]}, "name": {"not_any_": [EXPIRED_STATE]}},
    JobStatus.EXPIRED: {"type": {"any_": ["CANCELLED"]}, "name": {"any_": [EXPIRED_STATE]}},
}


@dataclass(frozen=True)
class Facts:
    """What was read for one scrape; of an unreachable Prefect only that it is."""

    prefect_up: bool = False
    jobs: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """By status and model."""
    waiting: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """By pool and queue."""
    oldest: Mapping[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    hosts: Mapping[str, int] = field(default_factory=dict[str, int])
    used: Mapping[str, Used] = field(default_factory=dict[str, Used])
    """Of today's jobs, by model."""
    fleet_usd: Mapping[str, float] = field(default_factory=dict[str, float])
    """This month's money for rented hosts: spent, promised, budget."""
    reaper_age: float | None = None
    """Seconds since the reaper last came to a good end; None where Prefect knows of no such run."""
    receipts: Sequence[tuple[str, Receipt]] = ()
    storage_up: bool = False


class Metrics(Collector):
    """All metrics of one API process, in a registry of its own."""

    def __init__(self, **counts: Counter[str]) -> None:
        """`counts` are those of other parts: `webhook_attempts`, `keeper_actions`."""
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """Requests by method, route (its template) and status."""
        self._counts = counts
        self._facts = Facts()
        self._read_at = float("-inf")
        self._used: Mapping[str, Used] = {}
        self._fleet_usd: Mapping[str, float] = {}
        self._reaper_age: float | None = None
        self._used_at = float("-inf")
        self._lock = asyncio.Lock()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    async def render(self, services: Services, *, storage_up: bool) -> bytes:
        """The answer to a scrape; what is read from Prefect is at most 15 s old."""
        async with self._lock:
            if time.monotonic() - self._read_at >= FRESH_SECONDS:
                self._facts = await self._read(services)
                self._read_at = time.monotonic()
            self._facts = replace(self._facts, storage_up=storage_up)
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The metrics as Prometheus's client takes them."""
        yield from families(self._facts, self.requests, self._counts)

    async def _read(self, services: Services) -> Facts:
        try:
            jobs, waiting, oldest, hosts, used = await asyncio.gather(
                _jobs(services),
                _waiting(services),
                _oldest(services),
                _hosts(services),
                self._usage(services),
            )
            await services.estimates.refresh()
        except PrefectUnavailable:
            return Facts()
        except StillreelError as exc:
            log.warning("metrics are not complete: %s", exc.message)
            return Facts(prefect_up=True)
        receipts = services.estimates.receipts
        fleet = self._fleet_usd, self._reaper_age
        return Facts(True, jobs, waiting, oldest, hosts, used, *fleet, receipts)

    async def _usage(self, services: Services) -> Mapping[str, Used]:
        if time.monotonic() - self._used_at >= USAGE_FRESH_SECONDS:
            today = datetime.now(UTC).date()
            self._fleet_usd = await _fleet_usd(services)
            self._reaper_age = await _reaper_age(services)
            self._used = by_model(add_up(await read_ended(services, today, today)))
            self._used_at = time.monotonic()
        return self._used


@router.get("/metrics", response_class=Response)
async def metrics(request: Request, caller: Admin) -> Response:  # noqa: ARG001
    """Metrics in Prometheus's text format, for a key with the scope `admin`.

    Prometheus sends it with `authorization: {credentials: <key>}` in its scrape configuration.
    """
    found: Metrics = request.app.state.metrics
    storage_up = await request.app.state.checks.storage.get()
    body = await found.render(services_of(request), storage_up=storage_up)
    return Response(body, media_type=CONTENT_TYPE_PLAIN_0_0_4)


def families(
    facts: Facts,
    requests: Mapping[tuple[str, str, str], int],
    counts: Mapping[str, Mapping[str, int]],
) -> Iterator[Metric]:
    """The metrics of these facts and counts."""
    yield _gauge("stillreel_build", "Always 1.", ["version"], {(__version__,): 1})
    yield GaugeMetricFamily(
        "stillreel_prefect_up", "Whether the Prefect server answers.", value=int(facts.prefect_up)
    )
    yield GaugeMetricFamily(
        "stillreel_storage_up", "Whether storage answers.", value=int(facts.storage_up)
    )
    yield _gauge("stillreel_jobs", "Jobs in Prefect.", ["status", "model"], facts.jobs)
    place = ["pool", "queue"]
    yield _gauge("stillreel_queue_depth", "Jobs that wait for a host.", place, facts.waiting)
    yield _gauge(
        "stillreel_queue_oldest_age_seconds",
        "How long the first of them has been due.",
        place,
        facts.oldest,
    )
    hosts = {(pool,): number for pool, number in facts.hosts.items()}
    yield _gauge("stillreel_hosts_online", "Hosts with a sign of life.", ["pool"], hosts)
    yield _gauge(
        "stillreel_stage_seconds",
        "Seconds of a stage, of the newest 200 completed jobs.",
        ["stage", "model", "quantile"],
        stage_quantiles(facts.receipts),
    )
    today = "of jobs that ended today (UTC; 0 again at midnight)."
    totals = {
        "stillreel_videos": (f"Videos {today}", lambda u: u.videos),
        "stillreel_failures": (f"Failures {today}", lambda u: u.failed),
        "stillreel_gpu_seconds": (f"GPU seconds {today}", lambda u: u.gpu_seconds),
        "stillreel_usd": (f"US$ {today}", lambda u: u.usd),
    }
    for name, (text, value) in totals.items():
        values = {(model,): value(used) for model, used in facts.used.items()}
        yield _counter(name, text, ["model"], values)
    yield _gauge(
        "stillreel_fleet_usd",
        "US$ for rented hosts this month (UTC): spent, promised, and the budget.",
        ["kind"],
        {(kind,): usd for kind, usd in facts.fleet_usd.items()},
    )
    if facts.reaper_age is not None:
        yield _gauge(
            "stillreel_reaper_age_seconds",
            "Seconds since the reaper of rented hosts last came to a good end.",
            [],
            {(): facts.reaper_age},
        )
    texts = {
        "webhook_attempts": ("Notifications by outcome, of this process.", "outcome"),
        "keeper_actions": ("What this process's keeper did.", "action"),
    }
    for name, (text, label) in texts.items():
        seen = dict.fromkeys(_FROM_ZERO[name], 0) | dict(counts.get(name, {}))
        values = {(what,): number for what, number in seen.items()}
        yield _counter(f"stillreel_{name}", text, [label], values)
    yield _counter(
        "stillreel_api_requests",
        "Requests to this process.",
        ["method", "route", "status"],
        dict(requests),
    )


def stage_quantiles(
    receipts: Iterable[tuple[str, Receipt]],
) -> dict[tuple[str, str, str], float]:
    """Seconds by stage, model and quantile; empty without receipts."""
    found: dict[tuple[str, str], list[float]] = {}
    for model, receipt in receipts:
        for stage, seconds in _stages(receipt).items():
            found.setdefault((stage, model), []).append(seconds)
    made: dict[tuple[str, str, str], float] = {}
    for (stage, model), values in found.items():
        # quantiles() of one value is an error; of twice the same value it is the value.
        cuts = quantiles(values * 2 if len(values) == 1 else values, n=100, method="inclusive")
        made |= {(stage, model, name): cuts[index] for name, index in QUANTILES.items()}
    return made


def by_model(sums: Mapping[Any, Used]) -> dict[str, Used]:
    """Sums of usage by model alone."""
    found: dict[str, Used] = {}
    for line, used in sums.items():
        found[line.model] = found.get(line.model, Used()) + used
    return found


def _stages(receipt: Receipt) -> dict[str, float]:
    took = receipt["took"]
    infer = took["infer_seconds"]
    return {
        Stage.FETCH: took["fetch_seconds"],
        Stage.INFER: infer.get("gpu", sum(infer.values())),
        Stage.ENCODE: took["encode_seconds"],
        Stage.UPLOAD: took["upload_seconds"],
    }


async def _jobs(services: Services) -> dict[tuple[str, str], int]:
    models = list(await services.deployments.offered())
    names = [(status, model) for status in _STATES for model in models]
    counts = await asyncio.gather(
        *(
            services.queues.count(tags=(marks.model_tag(model),), state=_STATES[status])
            for status, model in names
        )
    )
    return {(str(s), m): n for (s, m), n in zip(names, counts, strict=True)}


async def _waiting(services: Services) -> dict[tuple[str, str], int]:
    places = await _places(services)
    counts = await asyncio.gather(
        *(services.api.ask("/flow_runs/count", _due(*place)) for place in places)
    )
    return dict(zip(places, counts, strict=True))


async def _oldest(services: Services) -> dict[tuple[str, str], float]:
    places = await _places(services)
    more = {"sort": "EXPECTED_START_TIME_ASC", "limit": 1}
    found = await asyncio.gather(
        *(services.api.ask("/flow_runs/filter", _due(*place) | more) for place in places)
    )
    now = datetime.now(UTC)
    return {
        place: max(0.0, (now - _expected(runs[0])).total_seconds()) if runs else 0.0
        for place, runs in zip(places, found, strict=True)
    }


async def _hosts(services: Services) -> dict[str, int]:
    pools = sorted({found.pool for found in (await services.deployments.offered()).values()})
    counts = await asyncio.gather(*map(services.estimates.hosts, pools))
    return dict(zip(pools, counts, strict=True))


async def _fleet_usd(services: Services) -> dict[str, float]:
    now, runs = datetime.now(UTC), list[dict[str, Any]]()
    body = drains_since(now - LOOK_BACK)
    while True:
        page = await services.api.ask(
            "/flow_runs/filter", body | {"limit": PAGE, "offset": len(runs)}
        )
        runs += page
        if len(page) < PAGE:
            break
    money = money_of([lease_of(run) for run in runs], but="", now=now)
    return {
        "spent": money.spent_usd,
        "promised": money.reserved_usd,
        "budget": services.settings.fleet.month_budget_usd,
    }


async def _reaper_age(services: Services) -> float | None:
    body: dict[str, Any] = {
        "flows": {"name": {"any_": [REAPER]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        "sort": "END_TIME_DESC",
        "limit": 1,
    }
    runs = await services.api.ask("/flow_runs/filter", body)
    ended = runs[0].get("end_time") if runs else None
    if not ended:
        return None
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(ended)).total_seconds())


async def _places(services: Services) -> list[tuple[str, str]]:
    offered = await services.deployments.offered()
    pools = sorted({found.pool for found in offered.values()})
    return [(pool, queue) for pool in pools for queue in PRIORITIES]


def _due(pool: str, queue: str) -> dict[str, Any]:
    return {
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "flows": {"name": {"any_": [marks.FLOW]}},
        "work_pools": {"name": {"any_": [pool]}},
        "work_pool_queues": {"name": {"any_": [queue]}},
    }


def _expected(run: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(run["expected_start_time"])


def _family(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    text: str,
    labels: Sequence[str],
    values: Mapping[tuple[str, ...], float],
) -> Metric:
    family = kind(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(list(key), value)
    return family


_gauge = partial(_family, GaugeMetricFamily)
_counter = partial(_family, CounterMetricFamily)
