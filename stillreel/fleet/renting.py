"""One host from its create to its verified end; whatever happens, it is made once at most."""

from __future__ import annotations

import logging
from collections.abc import Callable

from stillreel.errors import (
    CreateUnknown,
    FleetError,
    HostUndestroyed,
    ProviderRefused,
    ProviderUnavailable,
)
from stillreel.fleet.clock import Clock
from stillreel.fleet.labels import Label
from stillreel.fleet.provider import Boot, Host, Offer, Provider

ADOPT_SECONDS = 90.0
"""A new machine may be missing in the provider's list for 30 s and more."""
DESTROY_SECONDS = 600.0
POLL_SECONDS = 10.0

log = logging.getLogger("stillreel.fleet")


def rent(provider: Provider, offer: Offer, boot: Boot, *, clock: Clock) -> Host | None:
    """The host; None when none was made. Its label must be written down already.

    Raises OfferGone, ProviderUnavailable, ProviderRefused: then none was made either.
    """
    try:
        return provider.create(offer, boot)
    except CreateUnknown:
        log.warning("no clear answer about %s; looking for it by its label", boot.label)
        return find(provider, boot.label, clock=clock)


def find(provider: Provider, label: Label, *, clock: Clock) -> Host | None:
    """The host of this label, looked for until a list that lags would show it."""
    deadline = clock.now().timestamp() + ADOPT_SECONDS
    while True:
        try:
            found = [host for host in provider.list(str(label)) if host.label == label]
        except ProviderUnavailable as exc:
            log.warning("looking for %s: %s", label, exc.message)
        else:
            if found:
                return found[0]
        if clock.now().timestamp() >= deadline:
            return None
        clock.sleep(POLL_SECONDS)


def give_back(
    provider: Provider,
    host: Host,
    *,
    clock: Clock,
    patience: float = DESTROY_SECONDS,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Destroy a host, and return when the provider shows that it is gone.

    Raises HostUndestroyed when it does not within `patience` seconds. `meanwhile` is done between
    two tries.
    """
    deadline = clock.now().timestamp() + patience
    while True:
        try:
            provider.destroy(host.id)
            if provider.get(host.id) is None:
                log.info("%s is gone", host.label)
                return
        except (ProviderUnavailable, ProviderRefused) as exc:
            log.warning("%s is not destroyed yet: %s", host.label, exc.message)
        if clock.now().timestamp() >= deadline:
            raise HostUndestroyed(
                f"{host.provider} host {host.id} ({host.label}) is not known to be gone and may "
                "still cost money; `stillreel fleet destroy` tries again, else end it by hand"
            )
        meanwhile()
        clock.sleep(POLL_SECONDS)


def sweep(provider: Provider, prefix: str, *, clock: Clock) -> list[Host]:
    """Destroy every host of this prefix that the provider still shows; gives those.

    Raises HostUndestroyed, FleetError where the provider cannot be asked.
    """
    hosts = list(provider.list(prefix))
    failed: list[FleetError] = []
    for host in hosts:
        try:
            give_back(provider, host, clock=clock)
        except HostUndestroyed as exc:
            failed.append(exc)
    if failed:
        raise failed[0]
    return hosts
