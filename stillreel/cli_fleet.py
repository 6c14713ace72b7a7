"""`stillreel drain` and `stillreel fleet`: renting hosts, and having them gone."""

from __future__ import annotations

import time
from typing import Annotated, Any, NoReturn

import typer

from stillreel.command import home_settings, prefect_settings
from stillreel.errors import (
    FleetError,
    PrefectRefused,
    PrefectUnavailable,
    RequestRejected,
    SettingsInvalid,
)
from stillreel.project import load_flow
from stillreel.terminal import JsonFlag, print_facts, print_json, print_rows, say, say_error

AUTO_SECONDS = 300.0
DRAIN_ENTRYPOINT = "flows/drain_backlog.py:drain_backlog"

fleet = typer.Typer(no_args_is_help=True, help="Rented hosts: see them, and have them gone.")

Pool = Annotated[str, typer.Argument(help="The work pool, as in deployments/pools.yaml.")]


def mount(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("drain")(drain)
    app.add_typer(fleet, name="fleet")


def drain(
    pool: Pool = "a100",
    explain: Annotated[
        bool, typer.Option("--explain", help="Only print the rule and what it says now.")
    ] = False,
    now: Annotated[bool, typer.Option("--now", help="One waiting job is enough.")] = False,
    auto: Annotated[
        bool, typer.Option("--auto", help="Ask the rule every five minutes until Ctrl-C.")
    ] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="A made-up year of several policies; no server.")
    ] = False,
    orders: Annotated[int, typer.Option(min=1, max=20000, help="A month, to simulate.")] = 1000,
    price: Annotated[float, typer.Option(min=0.01, help="US$ an hour, to simulate.")] = 0.66,
    seed: Annotated[int, typer.Option(help="Same seed, same year.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Rent a host when it pays, drain the pool's backlog, and give the host back.

    Needs PREFECT_API_URL. Ctrl-C gives the host back too.

    Example: stillreel drain a100 --explain
    """
    if simulate:
        _simulate(pool, orders=orders, price=price, seed=seed, as_json=as_json)
        return
    settings = prefect_settings()
    from stillreel.fleet import flows

    flows.model_of(pool)
    if explain:
        decision = flows.explain(settings, pool=pool, now=now)
        if as_json:
            lines = [
                {"rule": x.name, "fact": x.fact, "limit": x.limit, "holds": x.holds}
                for x in decision.lines
            ]
            print_json({"rent": decision.rent, "reason": decision.reason, "lines": lines})
            return
        typer.echo(decision.explain())
        return
    if auto:
        _drain_for_ever(pool, now=now)
    done: dict[str, Any] = load_flow(DRAIN_ENTRYPOINT)(pool=pool, now=now)
    if as_json:
        print_json(done)
        return
    print_facts({name: value for name, value in done.items() if name != "hosts"})
    print_rows(done.get("hosts", []), as_json=False)


def _drain_for_ever(pool: str, *, now: bool) -> NoReturn:
    """As the schedule `auto` of a deployment does, without one; what fails is tried again."""
    from httpx import HTTPError

    drain_backlog = load_flow(DRAIN_ENTRYPOINT)
    while True:
        try:
            done: dict[str, Any] = drain_backlog(pool=pool, now=now)
            say(f"{pool}: {done['outcome']}" + (f" ({done['reason']})" if done["reason"] else ""))
        except (FleetError, PrefectUnavailable, PrefectRefused) as exc:
            say_error(exc.code, exc.message)
        except (RuntimeError, HTTPError) as exc:  # Prefect's own, where its server is away
            say_error(PrefectUnavailable.code, str(exc) or type(exc).__name__)
        time.sleep(AUTO_SECONDS)


def _simulate(pool: str, *, orders: int, price: float, seed: int, as_json: bool) -> None:
    settings = home_settings()
    from stillreel.fleet import flows, simulation
    from stillreel.fleet.needs import need_of
    from stillreel.fleet.orders import limits_of, seconds_per_job

    model = flows.model_of(pool)
    year = simulation.make_year(orders_a_month=orders, usd_per_hour=price, seed=seed)
    seconds = seconds_per_job(model)
    outcomes = [
        simulation.simulate(policy, year, need_of(model), seconds_per_job=seconds)
        for policy in simulation.policies(limits_of(settings.fleet).rule)
    ]
    print_rows(simulation.table(outcomes), as_json)
    if not as_json:
        typer.echo(f"\n{simulation.plot(outcomes)}")
    say("made up: orders, prices and interruptions; real: the rule and what a batch costs")


@fleet.command("list")
def list_hosts(as_json: JsonFlag = False) -> None:
    """List rented hosts as their providers see them.

    Example: stillreel fleet list
    """
    settings = home_settings()
    from stillreel.fleet import flows

    if not settings.fleet.accounts:
        say("no account to rent from is set (VAST_API_KEY or STILLREEL_EC2)")
    rows = [
        {
            "label": str(host.label),
            "provider": host.provider,
            "id": host.id,
            "state": str(host.state),
            "usd_per_hour": host.usd_per_hour,
            "since": host.created_at.isoformat(timespec="seconds") if host.created_at else "",
            "note": host.note,
        }
        for host in flows.hosts(settings)
    ]
    print_rows(rows, as_json)


@fleet.command("reap")
def reap(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Destroy hosts and leftovers that no living drain looks after; for a cron elsewhere.

    Needs PREFECT_API_URL. Without a single lease in Prefect nothing is touched.

    Example: stillreel fleet reap --dry-run
    """
    settings = prefect_settings()
    from stillreel.fleet import flows

    print_rows([one.to_json() for one in flows.reap_all(settings, dry_run=dry_run)], as_json)


@fleet.command("destroy")
def destroy(
    label: Annotated[list[str] | None, typer.Argument(help="Labels of hosts.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All rented hosts of this installation.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Destroy rented hosts now, whatever they do; jobs on them wait again.

    Needs no Prefect server.

    Example: stillreel fleet destroy --all
    """
    if bool(label) == everything:
        raise RequestRejected("give the labels of hosts, or --all, and not both")
    settings = home_settings()
    from stillreel.fleet import flows

    gone = flows.destroy(settings, None if everything else set(label or ()))
    print_rows([{"label": str(host.label), "gone": True} for host in gone], as_json)


@fleet.command("resume")
def resume(pool: Pool = "a100", as_json: JsonFlag = False) -> None:
    """Let drains of a pool rent again, after three hosts in a row did not come to work.

    Look first why: at the image, at a host's log, at what the provider says. Needs PREFECT_API_URL.

    Example: stillreel fleet resume a100
    """
    prefect_settings()
    from stillreel.fleet import flows

    failed = flows.resume(pool)
    say(f"drains of {pool} may rent; before, {failed} hosts in a row did not come to work")
    if as_json:
        print_json({"pool": pool, "failed_before": failed})


@fleet.command("quarantine")
def quarantine(as_json: JsonFlag = False) -> None:
    """List machines that are left out for a week, and owners of two or more of them.

    Needs PREFECT_API_URL.

    Example: stillreel fleet quarantine
    """
    prefect_settings()
    from stillreel.fleet import flows

    print_rows(flows.quarantine(), as_json)


@fleet.command("start")
def start(as_json: JsonFlag = False) -> None:
    """Start the EC2 instance that is kept (STILLREEL_EC2_KEPT_INSTANCE).

    Example: stillreel fleet start
    """
    _kept("start", as_json)


@fleet.command("stop")
def stop(as_json: JsonFlag = False) -> None:
    """Stop the EC2 instance that is kept; from then on only its disk costs.

    Example: stillreel fleet stop
    """
    _kept("stop", as_json)


def _kept(action: str, as_json: bool) -> None:
    settings = home_settings().fleet
    from stillreel.fleet.ec2 import Ec2

    if not settings.ec2_kept_instance:
        raise SettingsInvalid(
            "STILLREEL_EC2_KEPT_INSTANCE is not set; set it to the id of your instance (i-...)"
        )
    ec2 = Ec2(settings)
    try:
        (ec2.start if action == "start" else ec2.stop)(settings.ec2_kept_instance)
    finally:
        ec2.close()
    say(f"{settings.ec2_kept_instance}: {action} is under way")
    if as_json:
        print_json({"instance": settings.ec2_kept_instance, "under_way": action})
