"""From settings to what a drain works with: provider, limits, and the environment of a host."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta

from stillreel.errors import SettingsInvalid
from stillreel.estimates import guess, work_of
from stillreel.fleet.decision import Rule
from stillreel.fleet.ec2 import Ec2
from stillreel.fleet.labels import Label
from stillreel.fleet.leases import LeaseBook
from stillreel.fleet.limits import Limits, Order
from stillreel.fleet.needs import need_of
from stillreel.fleet.provider import Provider
from stillreel.fleet.ranking import Ranked
from stillreel.fleet.vast import Vast
from stillreel.gateway.lease import grant
from stillreel.job import spec_of
from stillreel.settings import FleetSettings, Settings

PREFECT_VARIABLES = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING")
Granting = Callable[[Label, datetime], str]
"""Gives the lease token of a machine that is about to be asked for."""
_OF_BUCKET = ("S3_", "R2_", "STILLREEL_S3_", "STILLREEL_R2_")
"""Of names that a host without a bucket has no use for; some are passed on by default."""
_LOOPBACK = re.compile(r"http://(localhost|127\.0\.0\.1|\[::1\])(:|/|$)")
UNKNOWN_SECONDS = 120.0
"""Of a job about whose model nothing is known."""


def limits_of(fleet: FleetSettings) -> Limits:
    """What a drain may do."""
    return Limits(
        rule=Rule(
            fleet.drain_threshold,
            timedelta(hours=fleet.drain_oldest_hours),
            timedelta(hours=fleet.drain_deadline_hours),
            fleet.month_budget_usd,
        ),
        usd_per_hour_max=fleet.usd_per_hour_max,
        interruptible=fleet.rent_interruptible,
        boot=timedelta(minutes=fleet.boot_minutes),
        life=timedelta(hours=fleet.host_hours),
        idle=timedelta(minutes=fleet.idle_minutes),
        contact=timedelta(minutes=fleet.contact_minutes),
        progress=timedelta(minutes=fleet.progress_minutes),
        hosts=fleet.hosts_per_pool,
        work_hours=fleet.work_hours_per_host,
    )


def order_of(
    settings: Settings, *, run_id: str, pool: str, model: str, now: bool, grants: Granting
) -> Order:
    """The order of one drain. Raises ModelUnavailable; SettingsInvalid as `host_env`, before."""
    _way_back(settings)
    return Order(
        run_id,
        settings.fleet.installation,
        pool,
        need_of(model),
        seconds_per_job(model),
        env=lambda label, choice, deadline: host_env(settings, label, choice, deadline, grants),
        now=now,
    )


def provider_of(fleet: FleetSettings, model: str) -> str:
    """The name of the provider that machines for this model come from.

    The one that is set, else the one that suits the model best. Raises SettingsInvalid where we
    have no account: the reaper looks at our accounts only.
    """
    wanted = fleet.fleet_provider or need_of(model).provider
    if wanted in fleet.accounts:
        return wanted
    if fleet.accounts and not fleet.fleet_provider:
        return fleet.accounts[0]
    raise SettingsInvalid(
        f"there is no account at {wanted} to rent from; set "
        f"{'VAST_API_KEY' if wanted == 'vast' else 'STILLREEL_EC2=1'}"
    )


@contextmanager
def opened(fleet: FleetSettings, name: str, *, renting: bool) -> Iterator[Provider]:
    """The provider of this name.

    Raises SettingsInvalid when its account or our image is not set, and for renting from
    strangers `direct` unless that is allowed. Looking and destroying always are.
    """
    provider = _make(fleet, name, renting=renting)
    try:
        goes_direct = renting and fleet.rented_via == "direct"
        if goes_direct and not (provider.is_trusted or fleet.allow_untrusted_hosts):
            raise SettingsInvalid(
                f"renting from {name} is refused: the owner of such a machine can read what lies "
                "there, and with STILLREEL_RENTED_VIA=direct a host gets the Prefect server's "
                "password. Take the gateway (STILLREEL_RENTED_VIA=gateway), rent from EC2 "
                "(STILLREEL_EC2=1, STILLREEL_FLEET_PROVIDER=ec2), or accept it with "
                "STILLREEL_ALLOW_UNTRUSTED_HOSTS=1"
            )
        yield provider
    finally:
        provider.close()


def granting(book: LeaseBook) -> Granting:
    """Grants leases: the token's hash stands in Prefect before the machine is asked for."""

    def grant_for(label: Label, until: datetime) -> str:
        made = grant(label.run_id, label.number, expires=until)
        book.note_token(label.run_id, made.labels)
        return made.token

    return grant_for


def host_env(
    settings: Settings, label: Label, choice: Ranked, deadline: datetime, grants: Granting
) -> Mapping[str, str]:
    """The environment of a rented host. Raises SettingsInvalid where it could reach no Prefect.

    Through the gateway it gets a lease token, and raises what granting one raises.
    """
    fleet = settings.fleet
    names = (*fleet.rented_env, *("HF_TOKEN",) * fleet.rented_hf_token)
    passed = {name: os.environ[name] for name in names if os.environ.get(name)}
    api = {"STILLREEL_API_URL": settings.api.api_url} if settings.api.api_url else {}
    if not settings.host.embed_prompt:  # what is kept out of files here is kept out there
        api["STILLREEL_EMBED_PROMPT"] = "0"
    way_back = _way_back(settings)
    if fleet.rented_via == "gateway":
        passed = {n: value for n, value in passed.items() if not n.startswith(_OF_BUCKET)}
        token = grants(label, deadline)
        way_back |= {"PREFECT_API_AUTH_STRING": f"lease:{token}", "STILLREEL_LEASE_TOKEN": token}
    return {
        **passed,
        **api,
        **way_back,
        "STILLREEL_HOST_NAME": str(label),
        "STILLREEL_HOST_PRICE": f"{choice.offer.usd_per_hour:.4f}",
        "STILLREEL_RENTED_UNTIL": str(int(deadline.timestamp())),
        "STILLREEL_HOST_HOURS": f"{fleet.host_hours:g}",
        "STILLREEL_BOOT_MINUTES": f"{fleet.boot_minutes:g}",
        "STILLREEL_IDLE_MINUTES": f"{fleet.idle_minutes:g}",
        "STILLREEL_CONTACT_MINUTES": f"{fleet.contact_minutes:g}",
    }


def seconds_per_job(model: str) -> float:
    """What a job of this model takes with its own settings, by the arithmetic of its GPU."""
    work, _ = work_of(spec_of({"model": model, "prompt": "any"}))
    found = guess(work, ())
    return found.seconds.likely if found else UNKNOWN_SECONDS


def _way_back(settings: Settings) -> dict[str, str]:
    """How a host reaches Prefect; through the gateway the token of its lease is missing yet."""
    if settings.fleet.rented_via == "direct":
        return _direct(settings.fleet)
    base = f"{_gateway_base(settings)}/lease"
    return {"PREFECT_API_URL": f"{base}/api", "STILLREEL_LEASE_URL": base}


def _direct(fleet: FleetSettings) -> dict[str, str]:
    from prefect.settings import get_current_settings

    prefect = get_current_settings().to_environment_variables(exclude_unset=True)
    url = fleet.rented_api_url or prefect.get("PREFECT_API_URL", "")
    if not url:
        raise SettingsInvalid("STILLREEL_RENTED_API_URL: no Prefect API for rented hosts is set")
    secrets = {name: prefect[name] for name in PREFECT_VARIABLES if name in prefect}
    return {"PREFECT_API_URL": url, **secrets}


def _gateway_base(settings: Settings) -> str:
    url = settings.api.api_url
    if not url or (url.startswith("http:") and not _LOOPBACK.match(url)):
        raise SettingsInvalid(
            "STILLREEL_API_URL: rented hosts reach Prefect and storage through the gateway there, "
            "so set it to the API's public https address (STILLREEL_RENTED_VIA=direct: they get "
            "the Prefect server's password)"
        )
    return url


def _make(fleet: FleetSettings, name: str, *, renting: bool) -> Vast | Ec2:
    if renting and not fleet.worker_image:
        raise SettingsInvalid(
            "STILLREEL_WORKER_IMAGE is not set; set it to the image that rented hosts run, "
            "e.g. registry.example/stillreel@sha256:..."
        )
    if name == "ec2":
        return Ec2(fleet)
    key = fleet.vast_api_key.get_secret_value()
    if not key:
        raise SettingsInvalid("VAST_API_KEY is not set; set it to the key of your Vast.ai account")
    return Vast(key, image=fleet.worker_image, url=fleet.vast_url)
