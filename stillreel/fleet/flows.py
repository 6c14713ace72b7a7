"""What the flows and commands of the fleet do, with everything that they need opened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from stillreel.deploy import read_plan
from stillreel.errors import (
    PrefectRefused,
    PrefectUnavailable,
    RequestRejected,
    StillreelError,
)
from stillreel.fleet import alerts
from stillreel.fleet.backlog import Backlog, read_videos
from stillreel.fleet.calls import prefect_calls
from stillreel.fleet.circuit import failed_boots
from stillreel.fleet.clock import RealClock
from stillreel.fleet.costs import Cost, costs_of
from stillreel.fleet.decision import Decision, Money, decide
from stillreel.fleet.drain import Drain
from stillreel.fleet.labels import installation_prefix
from stillreel.fleet.leases import LOOK_BACK, QUARANTINE, Leases, money_of, month_start
from stillreel.fleet.needs import need_of
from stillreel.fleet.offers import quarantined, rank_now, usd_at_most
from stillreel.fleet.orders import (
    granting,
    limits_of,
    opened,
    order_of,
    provider_of,
    seconds_per_job,
)
from stillreel.fleet.provider import Host, Provider
from stillreel.fleet.reaper import Found, reap
from stillreel.fleet.renting import give_back
from stillreel.fleet.report import Report
from stillreel.process import is_engine_child
from stillreel.project import project_dir
from stillreel.settings import FleetSettings, Settings

T = TypeVar("T")

log = logging.getLogger("stillreel.fleet")


def drain(settings: Settings, *, run_id: str, pool: str, now: bool) -> tuple[Report, datetime]:
    """Drain a pool under this flow run; the report, and when it was over.

    Raises RequestRejected, ModelUnavailable, SettingsInvalid, FleetError, PrefectUnavailable.
    """
    model, clock = model_of(pool), RealClock()
    fleet = settings.fleet
    with prefect_calls() as calls:
        jobs, book = Backlog(calls, pool), Leases(calls)
        lease = book.read([run_id]).get(run_id)
        if not (lease and lease.number) and not jobs.waiting(clock.now()).count:
            return Report(pool, clock.now(), outcome="nothing waits"), clock.now()
        with opened(fleet, provider_of(fleet, model), renting=True) as provider:
            report = Drain(
                order_of(
                    settings,
                    run_id=run_id,
                    pool=pool,
                    model=model,
                    now=now,
                    grants=granting(book),
                ),
                limits_of(fleet),
                provider=provider,
                jobs=jobs,
                book=book,
                clock=clock,
                is_handed_over=_is_handed_over,
            ).run()
    return report, clock.now()


def explain(settings: Settings, *, pool: str, now: bool) -> Decision:
    """What a drain would decide at this moment; nothing is rented. Raises as `drain` does."""
    model, clock, fleet = model_of(pool), RealClock(), settings.fleet
    limits, need = limits_of(fleet), need_of(model)
    with prefect_calls() as calls:
        at, book = clock.now(), Leases(calls)
        waiting = Backlog(calls, pool).waiting(at)
        with opened(fleet, provider_of(fleet, model), renting=False) as provider:
            ranked = rank_now(
                provider,
                need,
                limits,
                jobs=max(1, waiting.count),
                seconds_per_job=seconds_per_job(model),
                quarantined=quarantined(book, at),
                interruptible=limits.interruptible,
            )
        best, leases = ranked[0] if ranked else None, book.since(at - LOOK_BACK)
        return decide(
            waiting,
            limits.rule,
            best=best,
            reserve_usd=usd_at_most(best, limits.life) if best else 0.0,
            money=money_of(leases, but="", now=at),
            now=now,
            failed_boots=failed_boots(leases, pool, closed_at=book.circuit_closed_at(pool)),
            pool=pool,
        )


def reap_all(settings: Settings, *, dry_run: bool) -> list[Found]:
    """Reap at every provider that we have an account at.

    What one of them refuses keeps no host of the other alive; it is raised at the end. Raises
    FleetError, SettingsInvalid, PrefectUnavailable.
    """
    fleet = settings.fleet
    with prefect_calls() as calls:

        def reap_at(provider: Provider) -> list[Found]:
            return reap(
                provider,
                Leases(calls),
                installation=fleet.installation,
                life=timedelta(hours=fleet.host_hours),
                clock=RealClock(),
                dry_run=dry_run,
            )

        found, failed = at_every_provider(fleet, reap_at)
    if failed:
        raise failed[0]
    return found


def costs(*, months: int) -> tuple[list[Cost], Money]:
    """What videos on rented hosts cost in the last months, and this month's money.

    Raises PrefectUnavailable, PrefectRefused.
    """
    now = RealClock().now()
    first = month_start(now)
    for _ in range(months - 1):
        first = month_start(first - timedelta(days=1))
    with prefect_calls() as calls:
        book = Leases(calls)
        leases = book.since(first)
        jobs = read_videos(calls, first) if leases else []
        rows = costs_of(leases, jobs, models_of_pools(), now=now)
        return rows, money_of(book.since(now - LOOK_BACK), but="", now=now)


def tell_budget(settings: Settings, *, is_used_up: bool = False) -> list[int]:
    """Say how much of the month's budget is spent, each level once a month; gives those said now.

    Where Prefect does not answer only the log says so: a later call says the rest.
    """
    fleet, now = settings.fleet, RealClock().now()
    try:
        with prefect_calls() as calls:
            return alerts.tell_budget(
                alerts.PrefectBell(calls),
                money_of(Leases(calls).since(now - LOOK_BACK), but="", now=now),
                budget_usd=fleet.month_budget_usd,
                installation=fleet.installation,
                now=now,
                is_used_up=is_used_up,
            )
    except (PrefectUnavailable, PrefectRefused) as exc:
        log.warning("the month's budget was not looked at: %s", exc.message)
        return []


def resume(pool: str) -> int:
    """Let drains of this pool rent again; gives how many hosts in a row had failed.

    Raises RequestRejected, PrefectUnavailable, PrefectRefused.
    """
    model_of(pool)
    now = RealClock().now()
    with prefect_calls() as calls:
        book = Leases(calls)
        closed_at = book.circuit_closed_at(pool)
        failed = failed_boots(book.since(now - LOOK_BACK), pool, closed_at=closed_at)
        book.close_circuit(pool, now)
    return failed


def quarantine() -> list[dict[str, Any]]:
    """The machines and owners that are left out now. Raises PrefectUnavailable, PrefectRefused."""
    now = RealClock().now()
    with prefect_calls() as calls:
        book = Leases(calls)
        out = quarantined(book, now)
        rows: dict[str, dict[str, Any]] = {}
        for lease in book.since(now - QUARANTINE):
            until = (lease.started_at or now) + QUARANTINE
            told = {"pool": lease.pool, "until": until.isoformat(timespec="minutes")}
            names = {*lease.bad_machines, *(owner for _, owner in lease.bad_owners)}
            rows |= {name: {"what": name, **told} for name in sorted(names & out)}
    return list(rows.values())


def hosts(settings: Settings) -> list[Host]:
    """All rented hosts of this installation. Raises FleetError, SettingsInvalid."""
    prefix = installation_prefix(settings.fleet.installation)
    found, failed = at_every_provider(settings.fleet, lambda provider: provider.list(prefix))
    if failed:
        raise failed[0]
    return found


def destroy(settings: Settings, labels: set[str] | None) -> list[Host]:
    """Destroy the hosts of these labels, or all of this installation; gives those.

    What cannot be listed or destroyed keeps no other alive; it is raised at the end. Raises
    RequestRejected for a label that no host has, HostUndestroyed, FleetError, SettingsInvalid.
    """
    prefix = installation_prefix(settings.fleet.installation)
    undestroyed: list[StillreelError] = []

    def destroy_at(provider: Provider) -> list[Host]:
        there = [x for x in provider.list(prefix) if labels is None or str(x.label) in labels]
        for host in there:
            try:
                give_back(provider, host, clock=RealClock())
            except StillreelError as exc:
                undestroyed.append(exc)
        return there

    there, failed = at_every_provider(settings.fleet, destroy_at)
    if failed or undestroyed:
        raise [*undestroyed, *failed][0]
    if unknown := (labels or set()) - {str(host.label) for host in there}:
        raise RequestRejected(
            f"no rented host is called {', '.join(sorted(unknown))}; `stillreel fleet list` "
            "shows those that there are"
        )
    return there


def at_every_provider(
    fleet: FleetSettings, act: Callable[[Provider], Sequence[T]]
) -> tuple[list[T], list[StillreelError]]:
    """What this gives at each provider that we have an account at, and what went wrong there.

    One that fails stops no other: its hosts cost money as well.
    """
    found, failed = list[T](), list[StillreelError]()
    for name in fleet.accounts:
        try:
            with opened(fleet, name, renting=False) as provider:
                found += act(provider)
        except StillreelError as exc:
            failed.append(exc)
    return found, failed


def models_of_pools() -> dict[str, str]:
    """The model of each pool that has one."""
    return {name: model for name, model in read_plan(project_dir()).models.items() if model}


def model_of(pool: str) -> str:
    """The model that hosts of this pool have. Raises RequestRejected for a pool without one."""
    models = models_of_pools()
    if pool not in models:
        raise RequestRejected(f"no host serves the pool {pool!r}; choose one of {sorted(models)}")
    return models[pool]


def _is_handed_over(error: BaseException) -> bool:
    """Whether another execution of this run goes on with its hosts.

    A worker that stops gives the run back to the queue; in a terminal nobody would go on.
    """
    return is_engine_child() and type(error).__name__ == "TerminationSignal"
