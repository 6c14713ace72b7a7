"""Deletes jobs with all that they made; a tombstone keeps what must stay true.

What goes: the objects of the job, its note for reuse, its files on this machine, the results of its
tasks, its artifacts, its run with task runs, states and logs. What stays: the tombstone (id, owner,
model, key, times, status, seconds, US$, and the hash of the request that tells a replay from
another order), the sums of usage, and Prefect's own event log, which nobody can delete from: it
names the run, so 50 characters of the prompt, for 7 days (PREFECT_EVENTS_RETENTION_PERIOD).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillreel import keys
from stillreel.audit import audit
from stillreel.errors import (
    JobConflict,
    ObjectMissing,
    PrefectRefused,
    PrefectUnavailable,
    StillreelError,
)
from stillreel.jobs import marks
from stillreel.jobs.record import Record, record_of
from stillreel.prefect_api import PAGE
from stillreel.result_storage import RESULT_FOLDER, RESULT_VERSIONS, is_result_of
from stillreel.usage import ended_job
from stillreel.workdir import clean

if TYPE_CHECKING:
    from stillreel.api.services import Services
    from stillreel.jobs.reader import Snapshot
    from stillreel.owners import Caller
    from stillreel.storage import Storage

log = logging.getLogger("stillreel.erase")

PATIENCE = timedelta(minutes=15)
"""A run that has not ended so long after its deletion was asked for is held to be dead."""
AFTERMATH = timedelta(minutes=10)
"""A process that was cut off may still write; so long after the deletion is looked once more."""

TASKS = ("fetch-image", "infer", "encode", "upload", "notify")


async def erase(services: Services, snapshot: Snapshot, *, caller: Caller) -> bool:
    """Have the job and all that it made deleted; whether that is done.

    From now on the job is gone for its callers, and whoever sends its order again is told so. A
    running job is cancelled first, and `erase_due` deletes it when its process has ended. Raises
    PrefectUnavailable, StorageError; what was begun then is finished by `erase_due`.
    """
    record = snapshot.record
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    remove = (marks.UNDELIVERED, marks.UNCOPIED)
    labels: dict[str, str | int | float | bool] = {
        marks.DELETED: now,
        marks.DELETED_BY: caller.key_id,
    }
    try:
        await services.actions.tag(record.run_id, add=[marks.ERASE], remove=remove)
        await services.actions.label(record.run_id, labels)
        # From here on the keeper deletes it, whatever becomes of this request.
        audit("delete", owner=caller.owner, key_id=caller.key_id, job_id=record.job_id)
        services.reader.forget(record.job_id)
        with suppress(JobConflict):  # it has ended in the meantime
            await services.actions.cancel(snapshot)
        record = record_of(await services.api.get(f"/flow_runs/{record.run_id}"))
        if marks.ERASE not in record.tags:  # another process wrote the tags that it had read before
            await services.actions.tag(record.run_id, add=[marks.ERASE])
    except PrefectRefused as exc:
        if exc.status != 404:
            raise
        services.reader.forget(record.job_id)
        return True  # another request was quicker
    if not record.is_final:
        return False
    await _erase(services, record)
    return True


async def erase_due(services: Services) -> None:
    """Delete what is to be deleted and has ended; look once more after what was deleted.

    Raises PrefectUnavailable; what goes wrong with one job is logged and tried again.
    """
    now = datetime.now(UTC)
    for record in await _tagged(services, marks.FLOW):
        with logging_trouble(record):
            if record.is_final:
                await _erase(services, record)
                if not record.is_deleted:  # who asked was cut off, and has not been audited
                    audit("delete", owner=record.owner, job_id=record.job_id)
            elif _asked_at(record) < now - PATIENCE:
                await _end(services, record)
    for tombstone in await _tagged(services, marks.TOMBSTONE_FLOW, made_before=now - AFTERMATH):
        with logging_trouble(tombstone):
            await _look_after(services, tombstone)


async def _erase(services: Services, record: Record) -> None:
    """The tombstone comes first and the run goes last: a crash in between loses nothing."""
    tombstone = await _bury(services, record)
    services.reader.know(tombstone)
    services.reader.forget(record.job_id)
    results = await _results(services, record)
    owner = record.text("owner")  # as the flow had it: a run made in Prefect may name anybody
    await asyncio.to_thread(_delete_objects, services, record.job_id, owner)
    await asyncio.to_thread(delete_results, services, record.run_id, results)
    await _delete_artifacts(services, record.run_id)
    await _delete(services, f"/flow_runs/{record.run_id}")
    services.reader.forget(record.job_id)
    log.info("job %s deleted", record.job_id, extra={"job_id": record.job_id})


async def _look_after(services: Services, tombstone: Record) -> None:
    run_id = str(tombstone.labels[marks.ERASED_RUN])
    await asyncio.to_thread(_delete_objects, services, tombstone.job_id, tombstone.owner)
    await asyncio.to_thread(delete_results, services, run_id, ())
    await _delete_artifacts(services, run_id)
    # Prefect deletes logs itself, in the background, and offers no other way.
    if await services.api.ask("/logs/filter", _of_run("logs", run_id) | {"limit": 1}):
        log.warning(
            "logs of the deleted job %s are still in Prefect; its vacuum of `orphans` deletes them",
            tombstone.job_id,
        )
    await services.actions.tag(tombstone.run_id, remove=[marks.ERASE])


async def _bury(services: Services, record: Record) -> Record:
    """The tombstone of an ended job: a run of another flow with the same key; made once."""
    ended = ended_job(record, await services.reader.receipt(record.job_id))
    at = ended.at if ended else record.state_at or record.created_at
    flow = await services.api.post("/flows/", {"name": marks.TOMBSTONE_FLOW})
    labels: dict[str, str | int | float | bool] = {
        marks.DELETED: str(record.labels.get(marks.DELETED) or datetime.now(UTC).isoformat()),
        marks.DELETED_BY: str(record.labels.get(marks.DELETED_BY) or ""),
        marks.ERASED_RUN: record.run_id,
        marks.OWNER: record.owner,
        marks.MODEL: record.model,
        marks.KEY_ID: str(record.labels.get(marks.KEY_ID) or ""),
        marks.REQUEST: str(record.labels.get(marks.REQUEST) or ""),
        marks.ROUND: record.round,
        marks.CREATED: record.created_at.isoformat(),
        marks.ENDED: at.isoformat(),
        marks.STATUS: str(ended.status if ended else record.status(has_receipt=False)),
        marks.TOOK_SECONDS: ended.took_seconds if ended else 0.0,
        marks.GPU_SECONDS: ended.gpu_seconds if ended else 0.0,
        marks.USD: ended.usd if ended else 0.0,
    }
    known = (marks.owner_tag(record.owner), marks.model_tag(record.model))
    run = {
        "flow_id": flow["id"],
        "name": record.job_id,
        "idempotency_key": record.job_id,
        "state": {"type": "COMPLETED", "name": "Deleted"},
        "tags": [*(tag for tag in known if tag in record.tags), marks.ERASE],
        "labels": labels,
    }
    return record_of(await services.api.post("/flow_runs/", run))


async def _results(services: Services, record: Record) -> set[str]:
    """Names of the files in which Prefect keeps what tasks and flow returned or raised."""
    body = {"flow_runs": {"id": {"any_": [record.run_id]}}, "limit": PAGE}
    tasks = await services.api.ask("/task_runs/filter", body)
    paths = [f"/flow_run_states/?flow_run_id={record.run_id}"]
    paths += [f"/task_run_states/?task_run_id={task['id']}" for task in tasks]
    states = [state for path in paths for state in await services.api.get(path)]
    return result_names(states, record.run_id)


def result_names(states: Iterable[Mapping[str, Any]], run_id: str) -> set[str]:
    """Names of the results that these states of a run and its tasks say they have.

    Whoever can write a state must not choose what is deleted here, so only names are taken that
    Prefect and our cache keys give.
    """
    found = (state.get("data") for state in states)
    stored = [str(data.get("storage_key") or "") for data in found if isinstance(data, dict)]
    names = {key.rpartition("/")[2] for key in stored}
    return {name for name in names if is_result_of(name, run_id)}


def delete_results(services: Services, run_id: str, names: Iterable[str]) -> None:
    """Delete Prefect's results: those of these names, and those with the run's id in theirs."""
    storage, settings = services.storage, services.settings
    prefixes = (
        f"{RESULT_FOLDER}/{task}-{version}-{run_id}-"
        for task in TASKS
        for version in RESULT_VERSIONS
    )
    own = {info.key for prefix in prefixes for info in storage.list(prefix)}
    if settings.storage.kind != "local":  # in a directory only rented hosts have any
        _delete_all(storage, own | {f"{RESULT_FOLDER}/{name}" for name in names})
        return
    _delete_all(storage, own)
    from prefect.settings import get_current_settings

    folder = get_current_settings().results.local_storage_path
    if folder is None or not folder.is_dir():
        return
    for path in (*folder.glob(f"*-{run_id}-*"), *(folder / name for name in names)):
        path.unlink(missing_ok=True)


def _delete_objects(services: Services, job_id: str, owner: str) -> None:
    storage = services.storage
    latents = list(storage.list(f"latents/{job_id}/"))
    # The note first: without the latents nobody could tell which note it is.
    for info in latents:
        _delete_note(storage, keys.reuse_key(owner, Path(info.key).stem), job_id)
    for folder in ("inputs", "outputs", "temp"):
        _delete_all(storage, (info.key for info in storage.list(f"{folder}/{job_id}/")))
    _delete_all(storage, (info.key for info in latents))
    clean(job_id, settings=services.settings)


def _delete_note(storage: Storage, key: str, job_id: str) -> None:
    """Delete the note that says where latents are found, unless it is another job's by now."""
    with suppress(ObjectMissing, ValueError, TypeError, KeyError):
        if json.loads(storage.get_bytes(key))["job_id"] == job_id:
            storage.delete(key)


def _delete_all(storage: Storage, found: Iterable[str]) -> None:
    for key in list(found):
        storage.delete(key)


async def _delete_artifacts(services: Services, run_id: str) -> None:
    body = _of_run("artifacts", run_id) | {"limit": PAGE}
    while found := await services.api.ask("/artifacts/filter", body):
        for artifact in found:
            await _delete(services, f"/artifacts/{artifact['id']}")


async def _delete(services: Services, path: str) -> None:
    try:
        await services.api.delete(path)
    except PrefectRefused as exc:
        if exc.status != 404:  # what is gone already is as it should be
            raise


async def _end(services: Services, record: Record) -> None:
    """End a run whose process does not answer; should it wake up, it finds no run any more."""
    state = {"type": "CANCELLED", "name": "Cancelled", "message": "deleted; its host is silent"}
    body = {"state": state, "force": True}
    await services.api.post(f"/flow_runs/{record.run_id}/set_state", body)


async def _tagged(
    services: Services, flow: str, *, made_before: datetime | None = None
) -> list[Record]:
    runs: dict[str, Any] = {"tags": {"all_": [marks.ERASE]}}
    if made_before:
        runs["end_time"] = {"before_": made_before.isoformat()}
    body = {
        "flow_runs": runs,
        "flows": {"name": {"any_": [flow]}},
        "sort": "EXPECTED_START_TIME_ASC",
        "limit": PAGE,
    }
    return [record_of(run) for run in await services.api.ask("/flow_runs/filter", body)]


def _asked_at(record: Record) -> datetime:
    at = record.labels.get(marks.DELETED)
    return datetime.fromisoformat(at) if at else record.created_at


def _of_run(what: str, run_id: str) -> dict[str, Any]:
    return {what: {"flow_run_id": {"any_": [run_id]}}}


@contextmanager
def logging_trouble(record: Record) -> Iterator[None]:
    """One job that cannot be deleted now holds up no other; the tag stays on it."""
    try:
        yield
    except PrefectUnavailable:
        raise
    except StillreelError as exc:
        log.warning("job %s is not deleted yet: %s", record.job_id, exc.message)
    except OSError as exc:
        log.warning("job %s is not deleted yet: %s", record.job_id, type(exc).__name__)
