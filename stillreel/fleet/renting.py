"""One host from its create to its verified end; whatever happens, it is made once at most."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from stillreel.errors import (
    CreateUnknown,
    HostUndestroyed,
    ProviderRefused,
    ProviderUnavailable,
    StillreelError,
)
from stillreel.fleet.clock import Clock
from stillreel.fleet.labels import Label, run_prefix
from stillreel.fleet.provider import Boot, Host, Offer, Provider

ADOPT_SECONDS = 90.0
"""A new machine may be missing in the provider's list for 30 s and more."""
DESTROY_SECONDS = 600.0
POLL_SECONDS = 10.0

log = logging.getLogger("stillreel.fleet")


def rent(provider: Provider, offer: Offer, boot: Boot, *, clock: Clock) -> Host | None:
    """The host; None when none was made. Its label must be written down already.

    Raises OfferGone, ProviderUnavailable, ProviderRefused: then none was made either; CreateUnknown
    when one may be there, for the provider could not be asked.
    """
    try:
        return provider.create(offer, boot)
    except CreateUnknown:
        log.warning("no clear answer about %s; looking for it by its label", boot.label)
        try:
            return find(provider, [boot.label], clock=clock).get(boot.label)
        except ProviderUnavailable as exc:
            raise CreateUnknown from exc


def find(provider: Provider, labels: Sequence[Label], *, clock: Clock) -> dict[Label, Host]:
    """The hosts of one drain that have these labels, by label.

    They are looked for until a list that lags would show them. Raises ProviderUnavailable where not
    one list came, ProviderRefused.
    """
    if not labels:
        return {}
    prefix = run_prefix(labels[0].installation, labels[0].run_id)
    deadline = clock.now().timestamp() + ADOPT_SECONDS
    found: dict[Label, Host] | None = None
    while True:
        try:
            found = {host.label: host for host in provider.list(prefix) if host.label in labels}
        except ProviderUnavailable as exc:
            log.warning("looking for %s*: %s", prefix, exc.message)
            if found is None and clock.now().timestamp() >= deadline:
                raise
        is_over = clock.now().timestamp() >= deadline
        if found is not None and (len(found) == len(labels) or is_over):
            return found
        clock.sleep(POLL_SECONDS)


def give_back(
    provider: Provider,
    host: Host,
    *,
    clock: Clock,
    patience: float = DESTROY_SECONDS,
    meanwhile: Callable[[], None] = lambda: None,
    born: datetime | None = None,
) -> None:
    """Destroy a host, and return when the provider shows that it is gone.

    Raises HostUndestroyed when it does not within `patience` seconds. `meanwhile` is done between
    two tries; `born` as in `is_given_back`.
    """
    deadline = clock.now().timestamp() + patience
    while not is_given_back(provider, host, clock=clock, born=born):
        if clock.now().timestamp() >= deadline:
            raise undestroyed(host)
        meanwhile()
        clock.sleep(POLL_SECONDS)


def is_given_back(
    provider: Provider, host: Host, *, clock: Clock, born: datetime | None = None
) -> bool:
    """Destroy a host, once; whether the provider shows that it is gone, in both ways that it has.

    `born`: when it was asked for by us. One that is very young may not be known yet, and is not
    gone when it is not there.
    """
    try:
        provider.destroy(host.id)
        if provider.get(host.id) is not None:
            return False
        if any(there.id == host.id for there in provider.list(str(host.label))):
            log.warning("%s is listed still", host.label)
            return False
    except (ProviderUnavailable, ProviderRefused) as exc:
        log.warning("%s is not destroyed yet: %s", host.label, exc.message)
        return False
    if born and (clock.now() - born).total_seconds() < ADOPT_SECONDS:
        return False
    log.info("%s is gone", host.label)
    return True


def undestroyed(host: Host) -> HostUndestroyed:
    """What is to be said of a host that was to be destroyed and may be there."""
    return HostUndestroyed(
        f"{host.provider} host {host.id} ({host.label}) is not known to be gone and may still "
        "cost money; `stillreel fleet destroy` tries again, else end it by hand"
    )


def sweep(
    provider: Provider,
    prefix: str,
    *,
    clock: Clock,
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Host]:
    """Destroy every host of this prefix that the provider still shows; gives those.

    Raises HostUndestroyed, FleetError where the provider cannot be asked.
    """
    hosts = list(provider.list(prefix))
    failed: list[StillreelError] = []
    for host in hosts:
        try:
            give_back(provider, host, clock=clock, meanwhile=meanwhile)
        except StillreelError as exc:
            failed.append(exc)
    if failed:
        raise failed[0]
    return hosts
