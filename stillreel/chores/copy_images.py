"""Copies the images of waiting jobs to storage: a weekly drain comes when their URLs are dead."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count

from stillreel import guard, keys
from stillreel.api.services import Services
from stillreel.chores.scan import Scan
from stillreel.chores.tally import Tally
from stillreel.errors import AddressRefused, ImageError, PrefectRefused, StillreelError
from stillreel.images import probe_picture
from stillreel.jobs import marks
from stillreel.jobs.record import Record, record_of
from stillreel.storage import guess_type

AT_ONCE = 4
"""Images in memory at one time."""
LINE_LIMIT = 1000
"""Jobs that stand in line in memory; the others are found by their tag later on."""
GRACE = timedelta(seconds=10)
"""A job this young is copied by the process that took the order; others leave it alone."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
PATIENCE_SECONDS = 600.0
"""After this time a source that does not answer is left to the host."""

log = logging.getLogger("stillreel.keeper")


@dataclass
class _Trouble:
    """A source that could not be fetched, and may be later on."""

    since: float
    tries: int
    next_at: float


class CopyImages:
    """`take` a new job at once, `look` for those that nobody took, and `work` through the line.

    A source that is finally bad ends its job early. One that fails for now is tried again with
    growing pauses; in the end its job just loses the tag, and the host tries for itself.
    """

    def __init__(
        self, services: Services, tally: Tally, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._services = services
        self._tally = tally
        self._clock = clock
        self._scan = Scan(marks.UNCOPIED)
        self._line: asyncio.PriorityQueue[tuple[int, int, Record]] = asyncio.PriorityQueue()
        self._numbers = count()
        self._taken: set[str] = set()
        self._troubles: dict[str, _Trouble] = {}

    def take(self, record: Record) -> None:
        """Put a job in line unless it stands there; those that were tried before come last."""
        if record.job_id in self._taken or len(self._taken) >= LINE_LIMIT:
            return
        self._taken.add(record.job_id)
        trouble = self._troubles.get(record.job_id)
        self._line.put_nowait((trouble.tries if trouble else 0, next(self._numbers), record))

    async def look(self) -> None:
        """Take the jobs whose next try is due, and those that their own process has forgotten."""
        now, young = self._clock(), datetime.now(UTC) - GRACE
        stale = now - 2 * PATIENCE_SECONDS  # of jobs that ended on another way
        self._troubles = {k: t for k, t in self._troubles.items() if t.since > stale}
        for record in await self._scan.read(self._services.api):
            trouble = self._troubles.get(record.job_id)
            if now >= trouble.next_at if trouble else record.created_at < young:
                self.take(record)

    async def work(self) -> None:
        """Copy one image after the other, until cancelled; several may do so at once."""
        while True:
            _, _, record = await self._line.get()
            try:
                await self.copy(record)
            finally:
                self._taken.discard(record.job_id)

    async def copy(self, record: Record) -> None:
        """Copy the image of one job, or say in the log why not."""
        try:
            copied = await self._copy(record)
        except (ImageError, AddressRefused) as exc:
            await self._guarded(record, self._end(record, exc))
        except StillreelError as exc:
            await self._guarded(record, self._try_later(record, exc))
        except Exception as exc:
            log.exception("the image of %s was not copied", record.job_id)
            reason = StillreelError(f"an internal error ({type(exc).__name__})")
            await self._guarded(record, self._try_later(record, reason))
        else:
            self._troubles.pop(record.job_id, None)
            if copied:
                self._tally.note("image_copied", record.job_id, "from its caller's address")

    async def _copy(self, record: Record) -> bool:
        """Whether it was copied; not where the caller has PUT an image, for that one wins."""
        if record.is_deleted:
            await self._untag(record)
            return False
        copied = False
        if not await self._is_stored(record):
            fetch = self._services.settings.fetch
            data, _ = await guard.fetch_bytes(
                record.text("image_url"),
                limit=fetch.image_max_bytes,
                seconds=fetch.fetch_seconds,
                allow=fetch.allow_addresses,
            )
            extension = await asyncio.to_thread(probe_picture, data, fetch)
            if not await self._is_stored(record):
                await self._store(record, extension, data)
                copied = True
        await self._untag(record)
        return copied

    async def _store(self, record: Record, extension: str, data: bytes) -> None:
        key, storage = keys.input_key(record.job_id, extension), self._services.storage
        await asyncio.to_thread(storage.put_bytes, key, data, content_type=guess_type(key))
        now = await self._read(record)
        if now is None or now.is_deleted:  # in the meantime; nothing of it may stay
            await asyncio.to_thread(storage.delete, key)

    async def _end(self, record: Record, error: StillreelError) -> None:
        """Fail the job, unless it has got an image or a host by now."""
        self._troubles.pop(record.job_id, None)
        now = await self._read(record)
        if now is None or now.state_type != "SCHEDULED" or marks.UNCOPIED not in now.tags:
            return
        if await self._is_stored(now):
            await self._untag(now)
            return
        await self._services.actions.fail(now, error)
        self._tally.note("image_refused", now.job_id, f"{error.code}: {error.message}")

    async def _try_later(self, record: Record, error: StillreelError) -> None:
        now = self._clock()
        trouble = self._troubles.setdefault(record.job_id, _Trouble(now, 0, now))
        if now - trouble.since >= PATIENCE_SECONDS:
            await self._untag(record)
            del self._troubles[record.job_id]
            self._tally.note("image_left_to_host", record.job_id, error.message)
            return
        trouble.next_at = now + min(FIRST_WAIT * 2**trouble.tries, LONGEST_WAIT)
        trouble.tries += 1
        self._tally.note("image_delayed", record.job_id, error.message)

    async def _guarded(self, record: Record, ending: Awaitable[None]) -> None:
        """Carry it out; where Prefect is in the way, the tag has the job looked at again."""
        try:
            await ending
        except StillreelError as exc:
            log.info("%s is looked at again: %s", record.job_id, exc.message)

    async def _is_stored(self, record: Record) -> bool:
        prefix, storage = keys.inputs_prefix(record.job_id), self._services.storage
        return await asyncio.to_thread(lambda: next(iter(storage.list(prefix)), None)) is not None

    async def _untag(self, record: Record) -> None:
        """Drop the tag; a job that is to be deleted gets the one back by which it is found."""
        try:
            await self._services.actions.tag(record.run_id, remove=[marks.UNCOPIED])
        except PrefectRefused as exc:
            if exc.status != 404:  # a job that was deleted needs no tag
                raise

    async def _read(self, record: Record) -> Record | None:
        """The job as it is now; None when its run is gone."""
        try:
            return record_of(await self._services.api.get(f"/flow_runs/{record.run_id}"))
        except PrefectRefused as exc:
            if exc.status == 404:
                return None
            raise
