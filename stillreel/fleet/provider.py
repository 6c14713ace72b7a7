"""The port to those who rent machines out, and its words: Need, Offer, Boot, Host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from stillreel.fleet.labels import Label


class HostState(StrEnum):
    """What the provider says of a host; anything but `running` and `booting` will not work."""

    BOOTING = "booting"
    RUNNING = "running"
    STOPPED = "stopped"
    """It does not run and still costs: outbid, or stopped by somebody."""
    LOST = "lost"
    """It will never run again: exited, offline, or broken at its start."""


@dataclass(frozen=True)
class Need:
    """What a machine must have to serve one model; memory in GB, network in Mb/s."""

    model: str
    provider: str
    """Who rents such machines, unless STILLREEL_FLEET_PROVIDER says otherwise."""
    gpu_names: tuple[str, ...] = ()
    """As the provider shows them; empty: any."""
    gpu_gb: tuple[float, float] = (0.0, 1000.0)
    """At least and at most: the same name is sold with 40 and with 80 GB."""
    ram_gb: tuple[float, float] = (0.0, 10_000.0)
    disk_gb: int = 20
    cuda: float = 0.0
    inet_down: float = 0.0
    reliability: float = 0.0
    weights_gb: float = 0.0
    """What a new host downloads before it is ready."""
    instance_type: str = ""
    """What it is called at EC2."""


@dataclass(frozen=True)
class Offer:
    """A machine that could be rented now."""

    id: str
    provider: str
    usd_per_hour: float
    """All that is paid by the hour: the machine, and its disk as large as was asked for."""
    machine: str = ""
    """Which machine it is, for the quarantine; empty where the provider does not say."""
    owner: str = ""
    """Whose machine it is; likewise."""
    gpu_name: str = ""
    gpu_count: int = 1
    gpu_gb: float = 0.0
    ram_gb: float = 0.0
    disk_gb: float = 0.0
    cuda: float = 0.0
    inet_down: float = 0.0
    reliability: float = 1.0
    usd_per_gb_down: float = 0.0
    usd_per_gb_up: float = 0.0
    is_interruptible: bool = False
    usd_per_hour_at_most: float = 0.0
    """Where its price moves while it is ours: the most that it may come to; else 0."""
    bid: float = 0.0
    """What to bid for an interruptible machine, in US$ per hour without its disk."""
    hours_left: float = 1e6
    """How long the provider still has it."""


@dataclass(frozen=True)
class Boot:
    """What a machine is to start as."""

    label: Label
    pool: str
    """The work pool that it serves."""
    model: str
    deadline: datetime
    """When it has to be gone, whatever it is doing then."""
    env: Mapping[str, str] = field(repr=False)
    """The environment of `stillreel host`; the machine's owner can read it."""
    disk_gb: int


@dataclass(frozen=True)
class Host:
    """A machine that we pay for."""

    id: str
    provider: str
    label: Label
    state: HostState
    usd_per_hour: float = 0.0
    machine: str = ""
    created_at: datetime | None = None
    owner: str = ""
    note: str = ""
    """The provider's own words about its state."""


@dataclass(frozen=True)
class Leftover:
    """What a host that is gone has left behind and still costs, or may come back."""

    id: str
    kind: str
    """`volume` or `spot request`."""
    label: Label


class Provider(Protocol):
    """Who rents machines out. Calls block, are bounded in time, and never log a secret.

    Every method raises ProviderUnavailable where a later try may succeed, and ProviderRefused
    where none will.
    """

    name: str
    is_trusted: bool
    """Whether nobody but us can read what lies on its machines."""

    def offers(self, need: Need, *, interruptible: bool = False) -> Sequence[Offer]:
        """What could be rented for this need; more than fits may come."""
        ...

    def create(self, offer: Offer, boot: Boot) -> Host:
        """Rent it, once: a create is never sent twice.

        Raises OfferGone when somebody else was quicker, and CreateUnknown when it is not known
        whether a machine was made: then look for the label, and never create again under it.
        """
        ...

    def get(self, host_id: str) -> Host | None:
        """The host now; None when it is gone, and costs nothing any more."""
        ...

    def list(self, prefix: str) -> Sequence[Host]:
        """All hosts whose labels begin with this, in whatever state they still cost."""
        ...

    def destroy(self, host_id: str) -> None:
        """Give the host back; fine for one that is gone."""
        ...

    def leftovers(self, prefix: str) -> Sequence[Leftover]:
        """What hosts that are gone have left behind."""
        ...

    def remove(self, leftover: Leftover) -> None:
        """Remove it; fine when it is gone."""
        ...

    def close(self) -> None:
        """Give the connections back."""
        ...
