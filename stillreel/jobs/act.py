"""Acts upon jobs: cancel, retry, fail early, expire; each says no where it makes no sense."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakValueDictionary

from stillreel.errors import JobConflict, JobDeleted, PrefectUnavailable, StillreelError
from stillreel.job import JobStatus
from stillreel.jobs import marks
from stillreel.jobs.attempts import Again
from stillreel.jobs.reader import JobReader, Snapshot
from stillreel.jobs.record import EXPIRED_STATE, Record, record_of
from stillreel.prefect_api import PrefectApi

OPENING = timedelta(seconds=60)
"""Longer than a retry takes; the old end is not told as the new round's in the meantime."""
TAG_TRIES = LABEL_TRIES = 3
"""Another process may write the same at the same time, and the last one wins."""

log = logging.getLogger("stillreel.jobs")


class JobActions:
    """What can be done to a job once it is there."""

    def __init__(self, api: PrefectApi, reader: JobReader) -> None:
        self._api = api
        self._reader = reader
        self._tagging = asyncio.Lock()
        self._retrying: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def cancel(self, snapshot: Snapshot) -> bool:
        """Have the job end; whether there was anything to do. Raises JobConflict.

        A waiting job ends at once, a running one when its host has stopped the work (seconds).
        """
        record = snapshot.record
        if snapshot.status in (JobStatus.CANCELLED, JobStatus.EXPIRED):
            return False
        if snapshot.has_ended:
            raise JobConflict(
                f"The job has {snapshot.status} and cannot be cancelled; delete it instead."
            )
        if record.labels.get(marks.CANCELLED):
            # A call that was broken off may have come no further than the label.
            if record.state_type == "CANCELLING":
                return False
        else:
            # Before the state comes the label: a process that is about to start looks for it
            # (execution.py). Before both, the tag by which the keeper finds what is broken off.
            await self.tag(record.run_id, add=[marks.UNWANTED])
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            await self.label(record.run_id, {marks.CANCELLED: now})
        # A run that waits for its next attempt has had a process, which Prefect would look for.
        waits = record.state_type in ("PENDING", "SCHEDULED")
        kind, name = ("CANCELLED", "Cancelled") if waits else ("CANCELLING", "Cancelling")
        try:
            await self._set(record, kind, name, "cancelled through the API")
        except JobConflict:
            # Somebody else was quicker; what matters is whether the job ends as wanted.
            known = await self._reader.get(record.job_id, fresh=True)
            ends = known.has_ended or known.record.state_type == "CANCELLING"
            if known.status is JobStatus.COMPLETED or not ends:
                raise
            return False
        self._reader.forget(record.job_id)
        return True

    async def retry(self, snapshot: Snapshot) -> int:
        """Open the next round of an ended job; the round's number. Raises JobConflict, JobDeleted.

        The run goes on where it ended: finished tasks are taken from the cache. A retry that is
        broken off leaves an ended job, which can be retried again.
        """
        job_id = snapshot.record.job_id
        async with self._retrying.setdefault(job_id, asyncio.Lock()):
            return await self._retry(await self._reader.get(job_id, fresh=True))

    async def _retry(self, snapshot: Snapshot) -> int:
        record = snapshot.record
        if record.is_deleted:
            raise JobDeleted
        if snapshot.status is JobStatus.COMPLETED:
            raise JobConflict("The job has completed; submit a new one for another video.")
        if not snapshot.has_ended:
            raise JobConflict(f"The job is {snapshot.status}; only an ended one can be retried.")
        # The state comes after all that the new round needs: from then on a host may take it.
        opened = datetime.now(UTC) + OPENING
        number = await self._open(record, next_attempt=opened.isoformat(timespec="milliseconds"))
        await self._set(record, "SCHEDULED", "AwaitingRetry", f"round {number}, by the API")
        self._reader.forget(record.job_id)
        try:
            await self.label(record.run_id, {marks.NEXT_ATTEMPT: ""})
        except StillreelError as exc:  # the round is open, and its end is told, if a little late
            log.warning("an end of %s before %s is told then: %s", record.job_id, opened, exc)
        self._reader.forget(record.job_id)
        return number

    async def follow_retry(self, record: Record) -> int:
        """Open the next round of a job that somebody has started again in Prefect; its number."""
        number = await self._open(record, next_attempt="")
        self._reader.forget(record.job_id)
        return number

    async def _open(self, record: Record, *, next_attempt: str) -> int:
        labels: dict[str, str | int | float | bool] = {
            marks.ROUND: record.round + 1,
            marks.CANCELLED: "",
            marks.DEADLINE: "",
            marks.ATTEMPTS: 0,
            marks.NEXT_ATTEMPT: next_attempt,
            marks.DELIVERY_ERROR: "",
        }
        await self.label(record.run_id, labels)
        await self.tag(record.run_id, add=[marks.UNDELIVERED], remove=[marks.OVER, marks.UNWANTED])
        return record.round + 1

    async def expire(self, record: Record) -> None:
        """End a job that was not started before its deadline."""
        await self._set(record, "CANCELLED", EXPIRED_STATE, "not started before its deadline")
        self._reader.forget(record.job_id)

    async def fail(self, record: Record, error: StillreelError) -> None:
        """End a waiting job early, for a reason that no host could mend."""
        message = f"Ended early by exception: {type(error).__name__}: {error.message}"
        await self._set(record, "FAILED", "Failed", message)
        self._reader.forget(record.job_id)

    async def requeue(self, record: Record, again: Again) -> None:
        """Schedule another start of a run that broke off; what is finished is not done again.

        Raises JobConflict when Prefect does not allow it, or the run has changed meanwhile.
        """
        now = record_of(await self._api.get(f"/flow_runs/{record.run_id}"))
        has_moved = (now.state_type, now.state_at) != (record.state_type, record.state_at)
        is_unwanted = now.is_deleted or now.is_settled or now.labels.get(marks.CANCELLED)
        if has_moved or is_unwanted or now.round != record.round:
            raise JobConflict("The job has gone on in the meantime.")
        await self.label(record.run_id, {marks.ATTEMPT: f"{record.round}-{again.attempt}"})
        at = datetime.now(UTC) + timedelta(seconds=again.pause)
        await self._set(record, "SCHEDULED", "AwaitingRetry", again.message, at=at)
        self._reader.forget(record.job_id)

    async def crash(self, record: Record, message: str) -> None:
        """Say of a run that its process is dead; the keeper goes on from there."""
        await self._set(record, "CRASHED", "Crashed", message)
        self._reader.forget(record.job_id)

    async def end_cancel(self, record: Record) -> None:
        """End a run that was to be cancelled by a host that is dead."""
        await self._set(record, "CANCELLED", "Cancelled", "cancelled; its host is gone")
        self._reader.forget(record.job_id)

    async def label(self, run_id: str, labels: dict[str, str | int | float | bool]) -> None:
        """Write labels on a run; the others stay.

        Prefect merges them by read-then-write, so what two write at once may be lost: they are
        read back. Raises PrefectUnavailable when others write over them all the time.
        """
        for _ in range(LABEL_TRIES):
            await self._api.patch(f"/flow_runs/{run_id}/labels", labels)
            there = (await self._api.get(f"/flow_runs/{run_id}"))["labels"]
            if labels.items() <= there.items():
                return
        raise PrefectUnavailable(
            "Somebody else changes the labels of this run all the time; try again."
        )

    async def tag(
        self, run_id: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()
    ) -> None:
        """Change tags of a run; Prefect takes the whole list, so one at a time does it.

        What is to be deleted keeps, or gets back, the tag by which it is found. Raises
        PrefectUnavailable when others change the tags all the time.
        """
        path, without = f"/flow_runs/{run_id}", set(remove)
        async with self._tagging:
            for _ in range(TAG_TRIES + 1):
                run = await self._api.get(path)
                tags = {*run["tags"], *add}
                if marks.DELETED in run["labels"]:
                    tags.add(marks.ERASE)
                tags -= without
                if tags == set(run["tags"]):
                    return
                await self._api.patch(path, {"tags": sorted(tags)})
        raise PrefectUnavailable(
            "Somebody else changes the tags of this run all the time; try again."
        )

    async def _set(
        self, record: Record, kind: str, name: str, message: str, *, at: datetime | None = None
    ) -> None:
        state: dict[str, Any] = {"type": kind, "name": name, "message": message}
        if at:
            state["state_details"] = {"scheduled_time": at.isoformat()}
        path = f"/flow_runs/{record.run_id}/set_state"
        answer = await self._api.post(path, {"state": state})
        if answer["status"] in ("ACCEPT", "REJECT"):  # rejected: Prefect chose another state
            return
        reason = (answer.get("details") or {}).get("reason") or "no reason given"
        raise JobConflict(f"Prefect does not allow this now ({reason}); read the job again.")
