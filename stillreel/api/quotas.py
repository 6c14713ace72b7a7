"""How many jobs an owner may have waiting, and in a day."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from stillreel.errors import QuotaExceeded
from stillreel.jobs import marks
from stillreel.jobs.queues import Queues
from stillreel.owners import Owner
from stillreel.recent import Recent
from stillreel.settings import ApiSettings

FRESH_SECONDS = 2.0
LATE = timedelta(minutes=1)
"""What was stored in Prefect may be found this long after its own time."""


@dataclass
class _Counts:
    """An owner's jobs: read from Prefect, and those that came since."""

    waiting: int
    today: int


@dataclass
class _Deleted:
    """Jobs of one day that were deleted on it; only what was deleted lately is read again."""

    day: datetime
    read_until: datetime
    job_ids: set[str] = field(default_factory=set[str])


class Quotas:
    """Counts the jobs of owners in Prefect, each count at most 2 s old plus what came since."""

    def __init__(self, queues: Queues, settings: ApiSettings) -> None:
        self._queues = queues
        self._settings = settings
        self._counts: dict[tuple[str, bool], Recent[_Counts]] = {}
        self._deleted: dict[str, _Deleted] = {}

    async def take(self, owner: Owner, jobs: int = 1) -> None:
        """Count so many new jobs of this owner.

        Raises QuotaExceeded, and then counts none; PrefectUnavailable.
        """
        waiting_max = owner.quota.jobs_waiting or self._settings.jobs_waiting_max
        day_max = owner.quota.jobs_per_day or self._settings.jobs_per_day_max
        counts = await self._recent(owner.name, has_daily=day_max > 0).get()
        # From here on nothing is awaited: of two orders at one moment the second sees the first.
        if counts.waiting + jobs > waiting_max:
            exc = QuotaExceeded(
                f"{counts.waiting} jobs of {owner.name} wait already and {waiting_max} may; "
                "submit again when some have ended, or ask the operator for more."
            )
            exc.retry_after = 60.0
            raise exc
        if day_max and counts.today + jobs > day_max:
            exc = QuotaExceeded(
                f"{owner.name} may submit {day_max} jobs a day (UTC), and has submitted "
                f"{counts.today}; submit again tomorrow, or ask the operator for more."
            )
            exc.retry_after = _until_tomorrow()
            raise exc
        counts.waiting += jobs
        counts.today += jobs

    def _recent(self, owner: str, *, has_daily: bool) -> Recent[_Counts]:
        if (owner, has_daily) not in self._counts:
            read = partial(self._read, owner, has_daily=has_daily)
            self._counts[owner, has_daily] = Recent(read, seconds=FRESH_SECONDS)
        return self._counts[owner, has_daily]

    async def _read(self, owner: str, *, has_daily: bool) -> _Counts:
        tags = (marks.owner_tag(owner),)
        waiting = await self._queues.count("SCHEDULED", "PENDING", tags=tags)
        return _Counts(waiting, await self._read_today(owner, tags) if has_daily else 0)

    async def _read_today(self, owner: str, tags: tuple[str, ...]) -> int:
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        since = {"expected_start_time": {"after_": midnight.isoformat()}}
        submitted = await self._queues.count(tags=tags, **since)
        deleted = self._deleted.get(owner)
        if deleted is None or deleted.day != midnight:
            deleted = self._deleted[owner] = _Deleted(midnight, midnight)
        for tombstone in await self._queues.deleted(deleted.read_until - LATE, tags=tags):
            created = tombstone.labels.get(marks.CREATED)
            if created and datetime.fromisoformat(str(created)) >= midnight:
                deleted.job_ids.add(tombstone.job_id)
        deleted.read_until = now
        return submitted + len(deleted.job_ids)


def _until_tomorrow() -> float:
    now = datetime.now(UTC)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight - now).total_seconds()
