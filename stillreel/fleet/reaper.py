"""The reaper: hosts and leftovers that nobody looks after any more are destroyed.

It goes by the provider's own list, for what we wrote down is what is lost first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from stillreel.errors import FleetError, HostUndestroyed, StillreelError
from stillreel.fleet.clock import Clock
from stillreel.fleet.labels import installation_prefix
from stillreel.fleet.leases import Lease, LeaseBook
from stillreel.fleet.listen import heard_of
from stillreel.fleet.provider import Host, HostState, Leftover, Provider
from stillreel.fleet.renting import give_back

MARGIN = timedelta(minutes=15)
"""Past the longest life of a host, for one whose lease is not to be found."""
PATIENCE_SECONDS = 60.0

log = logging.getLogger("stillreel.fleet")


@dataclass(frozen=True)
class Found:
    """A host or a leftover of ours, and what is done about it."""

    what: Host | Leftover
    reason: str
    """Why it has to go; empty when it stays."""
    done: bool = False

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        is_host = isinstance(self.what, Host)
        return {
            "id": self.what.id,
            "label": str(self.what.label),
            "kind": "host" if isinstance(self.what, Host) else self.what.kind,
            "state": str(self.what.state) if is_host and isinstance(self.what, Host) else "",
            "reason": self.reason or "stays",
            "destroyed": self.done,
        }


def reap(
    provider: Provider,
    book: LeaseBook,
    *,
    installation: str,
    life: timedelta,
    clock: Clock,
    dry_run: bool = False,
) -> list[Found]:
    """Destroy what has no living lease; gives all that is ours, and what became of it.

    Hosts are listed before leases are read: a host that is seen was written down before. Raises
    PrefectUnavailable, and FleetError when not a single lease is found: then nothing is touched.
    Raises HostUndestroyed at the end when something is still there, and what the provider says
    where leftovers cannot be listed: hosts cost more, and go first.
    """
    prefix = installation_prefix(installation)
    hosts, blind = provider.list(prefix), None
    try:
        leftovers = provider.leftovers(prefix)
    except StillreelError as exc:
        log.warning("leftovers cannot be listed: %s", exc.message)
        leftovers, blind = (), exc
    things = [thing for thing in (*hosts, *leftovers) if thing.label.installation == installation]
    leases = dict(book.read({thing.label.run_id for thing in things}))
    if things and not leases:
        raise FleetError(
            f"{len(things)} hosts or leftovers of {prefix}* are there and no lease of any of them "
            "is in Prefect, so nothing is touched: is PREFECT_API_URL the right server? "
            "`stillreel fleet destroy` ends them by hand"
        )
    if not dry_run:
        leases |= heard_of(book, leases.values(), clock)
    found = [Found(thing, verdict(thing, leases, now=clock.now(), life=life)) for thing in things]
    if dry_run:
        return found
    done = [_act(provider, one, clock) if one.reason else one for one in found]
    if blind:
        raise blind
    if left := [str(one.what.label) for one in done if one.reason and not one.done]:
        raise HostUndestroyed(f"not gone yet, the next round tries again: {', '.join(left)}")
    return done


def verdict(
    thing: Host | Leftover, leases: Mapping[str, Lease], *, now: datetime, life: timedelta
) -> str:
    """Why it has to go; empty when it stays."""
    lease = leases.get(thing.label.run_id)
    if isinstance(thing, Leftover):
        return "left behind" if lease and not lease.lives(now) else ""
    if thing.created_at and now - thing.created_at > life + MARGIN:
        return "past the longest life of a host"
    if lease is None:  # one of many that is not there proves nothing; its age will
        return ""
    if lease.is_over:
        return "its drain is over"
    if not lease.lives(now):
        return "its drain has not been heard of"
    return _of_a_living_drain(thing, lease, now)


def _of_a_living_drain(host: Host, lease: Lease, now: datetime) -> str:
    until = {asked.number: asked.until for asked in lease.hosts}.get(host.label.number)
    if until and now > until:
        return "past its deadline"
    if host.label.number not in {asked.number for asked in lease.hosts}:
        return "its drain has given it up"
    if host.state in (HostState.STOPPED, HostState.LOST):
        return f"it is {host.state}"
    return ""


def _act(provider: Provider, found: Found, clock: Clock) -> Found:
    thing = found.what
    log.warning("reaping %s (%s): %s", thing.label, thing.id, found.reason)
    try:
        if isinstance(thing, Host):
            give_back(provider, thing, clock=clock, patience=PATIENCE_SECONDS)
        else:
            provider.remove(thing)
    except StillreelError as exc:
        log.warning("%s", exc.message)
        return found
    return Found(thing, found.reason, done=True)
