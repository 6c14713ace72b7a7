"""The Prefect server: deployments, work pools and queues, and the workers that are online."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass

from stillreel import prefect_env
from stillreel.doctor.finding import Finding, failed, ok, skipped, warning
from stillreel.errors import PrefectRefused, PrefectUnavailable
from stillreel.host_report import workers_online
from stillreel.job import PRIORITIES
from stillreel.jobs import marks
from stillreel.prefect_api import PAGE, Json, PrefectApi, connect
from stillreel.settings import Settings

PATIENCE, SHORT_PATIENCE = 8.0, 2.0
"""Seconds for one call to a server that is set up, and to one that may be there."""
_DEPLOY = "run `stillreel deploy`"


@dataclass(frozen=True)
class PrefectAddress:
    """Where the Prefect server is, and whether an operator has said so."""

    url: str
    is_set: bool
    secrets: frozenset[str] = frozenset()


def find_address(settings: Settings) -> PrefectAddress:
    """The operator's Prefect server, else where the one of `stillreel up` would be.

    From now on this process's Prefect goes by it.
    """
    given = prefect_env.pin_api()
    secrets = frozenset(
        os.environ.get(name, "") for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING")
    )
    url = given or prefect_env.api_url(settings)
    prefect_env.apply({**prefect_env.common_env(settings), "PREFECT_API_URL": url})
    return PrefectAddress(url, bool(given), secrets)


def look(settings: Settings, address: PrefectAddress) -> Iterator[Finding]:
    """What the Prefect server has; one that nobody has set up is no failure."""
    findings = _look(settings, address)

    async def step() -> Finding | None:
        return await anext(findings, None)

    with asyncio.Runner() as runner:
        while finding := runner.run(step()):
            yield finding


async def _look(settings: Settings, address: PrefectAddress) -> AsyncIterator[Finding]:
    api = _api_of(address)
    try:
        try:
            found = await api.get("/admin/version")
        except PrefectUnavailable:
            yield _away(address)
            return
        except PrefectRefused as exc:
            yield _refused(exc, address)
            return
        yield ok("Prefect server", f"{found} at {address.url}")
        made = await _deployments(api)
        for finding in _look_at_deployments(settings, made):
            yield finding
        for pool in sorted({each["work_pool_name"] for each in made if each["work_pool_name"]}):
            models = {_model_of(each) for each in made if each["work_pool_name"] == pool}
            for finding in await _look_at_pool(api, pool, models, settings):
                yield finding
    except (PrefectUnavailable, PrefectRefused) as exc:
        yield failed("Prefect server", exc.message, "see the log of the Prefect server")
    finally:
        await api.aclose()


def _api_of(address: PrefectAddress) -> PrefectApi:
    """Prefect's settings, read before, know only an address that was set."""
    return connect(PATIENCE) if address.is_set else PrefectApi(address.url, patience=SHORT_PATIENCE)


def _away(address: PrefectAddress) -> Finding:
    note = f"nothing answers at {address.url}"
    if not address.is_set:
        start = "`stillreel up` starts one; for another set PREFECT_API_URL"
        return skipped("Prefect server", f"{note}, and PREFECT_API_URL is not set", start)
    fix = "start it (`stillreel server`), or set PREFECT_API_URL to where it is"
    return failed("Prefect server", note, f"{fix}; it ends with /api")


def _refused(exc: PrefectRefused, address: PrefectAddress) -> Finding:
    fix = "check PREFECT_API_URL: it ends with /api"
    if exc.status in (401, 403):
        fix = "set PREFECT_API_AUTH_STRING (or PREFECT_API_KEY) to what this server asks for"
    return failed("Prefect server", f"{address.url} answers {exc.status}", fix)


async def _deployments(api: PrefectApi) -> list[Json]:
    body = {"flows": {"name": {"any_": [marks.FLOW]}}, "limit": PAGE, "sort": "NAME_ASC"}
    return await api.ask("/deployments/filter", body)


def _look_at_deployments(settings: Settings, made: list[Json]) -> Iterator[Finding]:
    by_model: dict[str, Json] = {}
    for each in made:  # orders go to the first one of a model that has a pool
        if each.get("work_pool_name"):
            by_model.setdefault(_model_of(each), each)
    if not made:
        yield failed("deployments", "none makes videos", f"{_DEPLOY}, which makes them all")
        return
    yield ok("deployments", f"of {', '.join(by_model)}")
    for model in settings.api.models:
        if model not in by_model:
            fix = f"{_DEPLOY}, or take it out of STILLREEL_MODELS"
            yield failed("deployments", f"none for {model}, which STILLREEL_MODELS offers", fix)
    for model, each in by_model.items():
        if each.get("paused"):
            fix = "resume it in the Prefect UI: Deployments"
            yield failed("deployments", f"that of {model} is paused: its jobs wait", fix)


def _model_of(deployment: Json) -> str:
    return (deployment.get("parameters") or {}).get("model", "preview")


async def _look_at_pool(
    api: PrefectApi, pool: str, models: Collection[str], settings: Settings
) -> list[Finding]:
    check = f"pool {pool}"
    try:
        found: Json = await api.get(f"/work_pools/{pool}")
        queues: list[Json] = await api.ask(f"/work_pools/{pool}/queues/filter", {"limit": PAGE})
    except PrefectRefused as exc:
        if exc.status != 404:
            raise
        return [failed(check, "is not there, and deployments name it", _DEPLOY)]
    findings = [_look_at_work_pool(check, found), *_look_at_queues(pool, queues)]
    online = await workers_online(api, pool)
    return [*findings, _look_at_workers(pool, models, online, settings)]


def _look_at_work_pool(check: str, found: Json) -> Finding:
    if found.get("is_paused"):
        return failed(check, "is paused: its jobs wait", "resume it in the Prefect UI: Work Pools")
    if found.get("concurrency_limit") == 0:
        fix = "take the limit away in the Prefect UI: Work Pools"
        return failed(check, "has a limit of 0: its jobs wait", fix)
    return ok(check, "takes jobs")


def _look_at_queues(pool: str, queues: list[Json]) -> Iterator[Finding]:
    known = {queue["name"]: queue for queue in queues}
    for name in PRIORITIES:
        check, queue = f"queue {pool}/{name}", known.get(name)
        if queue is None:
            yield failed(check, "is not there", _DEPLOY)
        elif queue.get("is_paused") or queue.get("concurrency_limit") == 0:
            fix = "resume it in the Prefect UI: Work Pools"
            yield failed(check, "is paused, or has a limit of 0: its jobs wait", fix)
    if not set(PRIORITIES) - set(known):
        yield ok(f"queues of {pool}", ", ".join(PRIORITIES))


def _look_at_workers(
    pool: str, models: Collection[str], online: list[str], settings: Settings
) -> Finding:
    check = f"workers of {pool}"
    if online:
        return ok(check, f"online: {', '.join(sorted(online))}")
    offered = settings.api.models
    if offered and not set(models) & set(offered):
        note = f"none is online, and STILLREEL_MODELS offers no {' or '.join(sorted(models))}"
        return skipped(check, note, "nobody can order it here")
    if settings.fleet.accounts:
        return skipped(check, "none is online; a drain rents a host", f"stillreel drain {pool}")
    fix = f"on a host of it: `stillreel host --pool {pool}`; jobs wait until then"
    return warning(check, "none is online", fix)


def receivers_of(settings: Settings, address: PrefectAddress) -> set[str]:
    """The webhook URLs of the settings and of owners; the settings' alone without Prefect."""
    from stillreel.owner_store import OwnerStore

    async def work() -> set[str]:
        api = _api_of(address)
        try:
            store = OwnerStore(api, settings)
            names = ["", *(owner.name for owner in await store.all())]
            found = [await store.receivers(name) for name in names]
        finally:
            await api.aclose()
        return {receiver.url for some in found for receiver in some}

    try:
        return asyncio.run(work())
    except (PrefectUnavailable, PrefectRefused):
        webhook = settings.webhook
        return set(filter(None, (webhook.webhook_url, *webhook.webhook_plain_urls)))
