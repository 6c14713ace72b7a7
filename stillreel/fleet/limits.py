"""What a drain may do, and which drain it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from stillreel.fleet.decision import Rule
from stillreel.fleet.labels import Label
from stillreel.fleet.provider import Boot, Need
from stillreel.fleet.ranking import Ranked


@dataclass(frozen=True)
class Limits:
    """What a drain may do; see the settings of the fleet."""

    rule: Rule
    usd_per_hour_max: float
    interruptible: bool
    boot: timedelta
    life: timedelta
    idle: timedelta
    contact: timedelta
    progress: timedelta
    hosts: int = 1
    """At once."""
    work_hours: float = 2.0
    """Of what is open, for each host: with more, another is rented."""


@dataclass(frozen=True)
class Order:
    """Which drain this is."""

    run_id: str
    installation: str
    pool: str
    need: Need
    seconds_per_job: float
    env: Callable[[Label, Ranked, datetime], Mapping[str, str]] = field(repr=False)
    """The environment of a host by its label, its price and its deadline."""
    now: bool = False
    """A person asks: one job is enough."""

    def boot(self, label: Label, choice: Ranked, deadline: datetime) -> Boot:
        """What the host of this label is started with. Raises SettingsInvalid, PrefectUnavailable.

        Through the gateway its lease is granted by this.
        """
        return Boot(
            label=label,
            pool=self.pool,
            model=self.need.model,
            deadline=deadline,
            env=self.env(label, choice, deadline),
            disk_gb=self.need.disk_gb,
        )
