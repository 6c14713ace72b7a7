"""Tells owners how their jobs ended: from state, signed, tried again for three days.

The tag `undelivered` is the outbox: a job that ended and has it is told. Labels hold how far that
came, so any process can go on with it; each attempt is also a row of the delivery log.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import httpx

from stillreel.errors import AddressRefused, ReceiverError, SettingsInvalid, StillreelError
from stillreel.guard import EVERYWHERE
from stillreel.job import JobStatus, Notification
from stillreel.jobs import delivery_log, marks
from stillreel.jobs.attempts import was_started_again
from stillreel.jobs.delivery_log import DeliveryAttempt
from stillreel.jobs.reader import Snapshot
from stillreel.jobs.record import FINAL_STATES, Record, error_of_record, record_of
from stillreel.prefect_api import PAGE
from stillreel.webhook import ERROR_LIMIT, ReceiverGone, make_notification, post_signed

if TYPE_CHECKING:
    from stillreel.api.services import Services

PAUSES = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds from an attempt to the next; after the tenth nobody tries any more."""
JITTER = 0.1
"""Part of a pause that is added by chance, so that receivers do not get all at once."""
SLOTS, SLOTS_OF_HOST = 8, 2
"""Deliveries at a time, in all and to one host: who hangs delays nobody else."""
PAGES = 5
"""Of undelivered jobs that one look for due ones reads at most."""
CLAIM = timedelta(seconds=30)
"""Added to the time for one delivery, nobody else makes an attempt then."""
TEXT_LIMIT = 200
"""Characters of an error that are kept."""

log = logging.getLogger("stillreel.notifications")


class Deliveries:
    """What this process is delivering now, and how it went so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Attempts by outcome: `delivered`, `no_receiver`, or the code of an error."""
        self.offset = 0
        """Where the next look for due jobs begins, among all that are undelivered."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(SLOTS)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def start(self, services: Services, record: Record) -> None:
        """Conclude the job in the background, unless that is being done."""
        job_id = record.job_id
        if job_id not in self._tasks:
            self._tasks[job_id] = asyncio.create_task(conclude(services, record))
            self._tasks[job_id].add_done_callback(lambda _: self._tasks.pop(job_id))

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """The turn of one delivery to this host."""
        of_host = self._hosts.setdefault(host, asyncio.Semaphore(SLOTS_OF_HOST))
        async with of_host, self._slots:
            yield

    async def aclose(self) -> None:
        """Stop what is being delivered; the keeper of the next process goes on with it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def deliver_due(services: Services) -> None:
    """Start the delivery of what is due among ended jobs, the oldest first; does not wait for it.

    Raises PrefectUnavailable.
    """
    deliveries = services.deliveries
    for _ in range(PAGES):
        records = await _undelivered(services, deliveries.offset)
        for record in records:
            if is_due(record) or _is_lost(record):
                deliveries.start(services, record)
        if len(records) < PAGE:
            deliveries.offset = 0
            return
        deliveries.offset += PAGE


def is_due(record: Record) -> bool:
    """Whether the end of this job is to be told now, if it has ended."""
    if marks.UNDELIVERED not in record.tags or record.is_deleted:
        return False
    at = str(record.labels.get(marks.NEXT_ATTEMPT) or "")
    return not at or datetime.fromisoformat(at) <= datetime.now(UTC)


async def conclude(services: Services, record: Record) -> None:
    """Settle the round and make one attempt to tell it, if the job has ended and is due.

    What goes wrong is logged, and tried again by the keeper.
    """
    try:
        receiver = await _receiver_of(services, record)
        # Those without a receiver only call Prefect, as callers do too: two of them at a time.
        async with services.deliveries.turn(receiver.host if receiver else ""):
            snapshot = await read_ended(services, record.job_id)
            if snapshot.record.is_settled and await is_reopened(services, snapshot.record):
                await services.actions.follow_retry(snapshot.record)
                snapshot = await read_ended(services, record.job_id)
            if _is_lost(snapshot.record):
                await services.actions.tag(snapshot.record.run_id, add=[marks.ERASE])
            elif snapshot.has_ended and is_due(snapshot.record):
                await settle(services, snapshot)
                await deliver(services, snapshot)
    except StillreelError as exc:
        log.warning("the notification of %s is put off: %s", record.job_id, exc.message)
    except Exception:  # the task of it has nobody who waits for it
        log.exception("the notification of %s is put off", record.job_id)


async def read_ended(services: Services, job_id: str) -> Snapshot:
    """The job as it is now; completed once its receipt is stored, whatever its run does.

    Raises JobUnknown, PrefectUnavailable, StorageUnavailable.
    """
    snapshot = await services.reader.get(job_id, fresh=True)
    if snapshot.has_ended or snapshot.record.is_deleted or snapshot.record.is_settled:
        return snapshot
    receipt = await services.reader.receipt(job_id)
    if receipt is None:
        return snapshot
    return replace(snapshot, status=JobStatus.COMPLETED, receipt=receipt)


async def settle(services: Services, snapshot: Snapshot) -> None:
    """Label the run of an ended job with how its round ended and what it cost, once per round.

    From then on the round has ended so, whatever an orphan or a late change of its state says.
    """
    record, receipt = snapshot.record, snapshot.receipt
    if not snapshot.has_ended or record.is_settled:
        return
    took = timedelta(0)
    if record.started_at:
        took = max(took, _ended_at(snapshot) - record.started_at)
    code, error = error_of_record(record, snapshot.status)
    labels: dict[str, str | int | float | bool] = {
        marks.SETTLED: record.round,
        marks.END: str(snapshot.status),
        marks.END_AT: _ended_at(snapshot).isoformat(),
        marks.END_CODE: code,
        marks.END_ERROR: error[:ERROR_LIMIT],
        marks.USD: float(receipt["cost"]["usd"]) if receipt else 0.0,
        marks.GPU_SECONDS: float(receipt["took"]["gpu_seconds"]) if receipt else 0.0,
        marks.TOOK_SECONDS: round(took.total_seconds(), 3),
    }
    await services.actions.label(record.run_id, labels)
    await services.actions.tag(record.run_id, add=[marks.OVER])
    services.reader.forget(record.job_id)


async def is_reopened(services: Services, record: Record) -> bool:
    """Whether a settled job was started again in Prefect since. Raises PrefectUnavailable.

    One that has completed is not: its run may be handed over between its receipt and its end.
    """
    if (
        record.labels.get(marks.END) == JobStatus.COMPLETED
        or record.ended_at is None
        or (record.state_at and record.state_at <= record.ended_at)
    ):
        return False
    history = await services.api.get(f"/flow_run_states/?flow_run_id={record.run_id}")
    return was_started_again(history, record.ended_at)


async def deliver(services: Services, snapshot: Snapshot) -> None:
    """Make one attempt to tell the end of the round, and write down how it went.

    A round that has been told is not told again. Raises PrefectUnavailable.
    """
    record = snapshot.record
    if record.labels.get(marks.DELIVERED) == record.round:
        await _leave_outbox(services, record)
        return
    receiver = await _receiver_of(services, record)
    if receiver is None:
        _count(services, snapshot, "no_receiver")
        await _mark_delivered(services, record, attempts=0)
        return
    await _claim(services, record)
    made, error = await _attempt(services, snapshot, receiver)
    if error:
        await _mark_failed(services, record, error)
    else:
        await _mark_delivered(services, record, attempts=_attempts(record) + 1)
    try:
        await delivery_log.append(services.api, record.run_id, made)
    except StillreelError as exc:  # what the labels say is what counts
        log.warning("an attempt to tell %s is not in its log: %s", record.job_id, exc.message)


async def reopen(services: Services, record: Record) -> None:
    """Have the round told again, under the same id, with all attempts before it."""
    labels: dict[str, str | int | float | bool] = {
        marks.DELIVERED: 0,
        marks.ATTEMPTS: 0,
        marks.NEXT_ATTEMPT: "",
        marks.DELIVERY_ERROR: "",
    }
    await services.actions.label(record.run_id, labels)
    await services.actions.tag(record.run_id, add=[marks.UNDELIVERED])
    services.reader.forget(record.job_id)


@dataclass(frozen=True)
class _Receiver:
    """Where a notification goes."""

    url: str
    plain: bool
    allow: Sequence[str]

    @property
    def host(self) -> str:
        try:
            return httpx.URL(self.url).host
        except httpx.InvalidURL:
            return ""


async def _receiver_of(services: Services, record: Record) -> _Receiver | None:
    """Whom the run names, else the owner's default; only what is registered may be private."""
    registered = await services.owners.receivers(record.owner)
    url = record.text("webhook_url")
    for receiver in registered:
        if receiver.url == url if url else receiver.default:
            return _Receiver(receiver.url, receiver.plain, EVERYWHERE)
    return _Receiver(url, False, services.settings.fetch.allow_addresses) if url else None


async def _attempt(
    services: Services, snapshot: Snapshot, receiver: _Receiver
) -> tuple[DeliveryAttempt, StillreelError | None]:
    """One attempt, counted, and why the receiver did not take it; None where it did."""
    record, error, status = snapshot.record, None, None
    secrets = await services.owners.webhook_secrets(record.owner)
    at, started = datetime.now(UTC), time.monotonic()
    try:
        status = await post_signed(
            receiver.url,
            _notification(services, snapshot),
            secrets=secrets,
            plain=receiver.plain,
            allow=receiver.allow,
            seconds=services.settings.webhook.webhook_seconds,
        )
    except ReceiverError as exc:
        error, status = exc, exc.answered
    except (AddressRefused, SettingsInvalid) as exc:
        error = exc
    seconds = round(time.monotonic() - started, 3)
    outcome, message = (error.code, error.message) if error else ("delivered", "")
    _count(services, snapshot, outcome, host=receiver.host, error=message)
    made = DeliveryAttempt(record.round, at, seconds, status, error.code if error else None)
    return made, error


def _notification(services: Services, snapshot: Snapshot) -> Notification:
    record = snapshot.record
    code, error = error_of_record(record, snapshot.status)
    seconds = services.settings.storage.download_url_seconds
    return make_notification(
        record.job_id,
        record.round,
        snapshot.status,
        at=_ended_at(snapshot),
        receipt=snapshot.receipt,
        error=error,
        more={
            "model": record.model,
            "batch_id": record.batch or None,
            "error": error[:ERROR_LIMIT] or None,
            "error_code": code or None,
        },
        url=lambda key: services.download_url(key, seconds=seconds),
    )


def _ended_at(snapshot: Snapshot) -> datetime:
    """When the round ended, the same each time it is asked."""
    record, receipt = snapshot.record, snapshot.receipt
    if receipt:
        return datetime.fromisoformat(receipt["completed_at"])
    return record.ended_at or record.state_at or record.created_at


async def _undelivered(services: Services, offset: int) -> list[Record]:
    body: dict[str, Any] = {
        "flows": {"name": {"any_": [marks.FLOW]}},
        "flow_runs": {
            "state": {"type": {"any_": sorted(FINAL_STATES)}},
            "tags": {"all_": [marks.UNDELIVERED]},
        },
        "sort": "EXPECTED_START_TIME_ASC",
        "limit": PAGE,
        "offset": offset,
    }
    return [record_of(run) for run in await services.api.ask("/flow_runs/filter", body)]


async def _claim(services: Services, record: Record) -> None:
    """Keep other processes from telling the same now, and this one if it cannot write later."""
    pause = timedelta(seconds=services.settings.webhook.webhook_seconds) + CLAIM
    until = (datetime.now(UTC) + pause).isoformat(timespec="milliseconds")
    await services.actions.label(record.run_id, {marks.NEXT_ATTEMPT: until, marks.TRIED: True})


async def _mark_delivered(services: Services, record: Record, *, attempts: int) -> None:
    now = (await services.reader.get(record.job_id, fresh=True)).record
    labels: dict[str, str | int | float | bool] = {marks.DELIVERED: record.round}
    if now.round == record.round:  # else the others are the next round's
        labels |= {marks.ATTEMPTS: attempts, marks.NEXT_ATTEMPT: "", marks.DELIVERY_ERROR: ""}
    await services.actions.label(record.run_id, labels)
    await _leave_outbox(services, record)


async def _mark_failed(services: Services, record: Record, error: StillreelError) -> None:
    now = (await services.reader.get(record.job_id, fresh=True)).record
    if now.round != record.round:
        return  # the job was retried meanwhile, and the labels are the next round's
    attempts = _attempts(now) + 1
    is_last = isinstance(error, ReceiverGone) or attempts > len(PAUSES)
    labels: dict[str, str | int | float | bool] = {
        marks.ATTEMPTS: attempts,
        marks.NEXT_ATTEMPT: "" if is_last else _next_attempt(attempts, error),
        marks.DELIVERY_ERROR: error.message[:TEXT_LIMIT],
    }
    await services.actions.label(record.run_id, labels)
    services.reader.forget(record.job_id)
    if is_last:
        await _leave_outbox(services, record)


def _next_attempt(attempts: int, error: StillreelError) -> str:
    pause = PAUSES[attempts - 1] * (1 + random.uniform(0, JITTER))  # noqa: S311 - jitter
    asked = getattr(error, "retry_after", None) or 0.0
    at = datetime.now(UTC) + timedelta(seconds=max(pause, asked))
    return at.isoformat(timespec="milliseconds")


async def _leave_outbox(services: Services, record: Record) -> None:
    """Drop the tag, unless it is the next round's: a retry labels the round, then adds the tag."""
    await services.actions.tag(record.run_id, remove=[marks.UNDELIVERED])
    now = (await services.reader.get(record.job_id, fresh=True)).record
    if now.round != record.round:
        await services.actions.tag(record.run_id, add=[marks.UNDELIVERED])
        services.reader.forget(record.job_id)


def _is_lost(record: Record) -> bool:
    """Whether it is to be deleted and nobody finds it: another process overwrote its tags."""
    return record.is_deleted and marks.UNDELIVERED in record.tags and marks.ERASE not in record.tags


def _attempts(record: Record) -> int:
    return int(record.labels.get(marks.ATTEMPTS) or 0)


def _count(
    services: Services, snapshot: Snapshot, outcome: str, *, host: str = "", error: str = ""
) -> None:
    services.deliveries.counts[outcome] += 1
    record = snapshot.record
    facts = {
        "job_id": record.job_id,
        "round": record.round,
        "job_status": str(snapshot.status),
        "outcome": outcome,
        "receiver": host or None,
        "error": error or None,
    }
    log.info("notification", extra=facts)
