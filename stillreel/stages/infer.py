"""Infer: from a prepared shot to latents in storage, on this host's GPU or from an equal job."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from stillreel import keys
from stillreel.errors import ObjectMissing
from stillreel.inference.client import connect
from stillreel.inference.entry import Entry, InferenceOrder, Kind
from stillreel.inference.latents import read_facts
from stillreel.job import JobSpec, Latents, Phase, Prepared, Stage
from stillreel.progress import report
from stillreel.settings import Settings
from stillreel.storage import Storage
from stillreel.workdir import job_dir


def infer(
    job_id: str,
    run_id: str,
    spec: JobSpec,
    prepared: Prepared,
    *,
    storage: Storage,
    settings: Settings,
    job_round: int = 1,
    execution: int = 1,
) -> Latents:
    """The latents of a job, stored under its own key or, with `reuse`, under an equal job's.

    Starts the inference or attaches to it, so a second call after a crash computes nothing twice.
    """
    digest = prepared.shot.digest(prepared.source.sha256 if prepared.source else "")
    index_key = keys.reuse_key(spec.owner, digest)
    is_lent = settings.storage.kind == "lease"
    # On a rented host no other job's latents are taken, and what it made is given to no other job.
    if spec.reuse and not is_lent and (found := _find_equal(index_key, job_id, storage)):
        return found
    folder = job_dir(job_id, settings=settings)
    path = folder / f"{digest}.safetensors"
    key = (keys.lent_key if is_lent else keys.latents_key)(job_id, digest)
    if not path.exists() and storage.head(key) is not None:
        storage.get_file(key, path)  # another host finished it and died before it could say so
    order = InferenceOrder(
        shot=prepared.shot,
        digest=digest,
        round=job_round,
        execution=execution,
        latents_path=str(path),
        image_path=str(_fetch_source(folder, prepared, storage)) if prepared.source else "",
    )
    with connect(settings, run_id) as client:
        client.infer(run_id, order, on_entry=_report)
    facts = read_facts(path)
    storage.put_file(key, path, content_type="application/octet-stream")
    latents = Latents(
        key=key,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        seconds=facts.seconds,
        dtype=facts.dtype,
        plan=facts.plan,
        warnings=facts.warnings,
        host=settings.host.host_name,
        host_price=settings.host.host_price,
        remote_usd=facts.usd,
    )
    if is_lent:
        return latents
    note = {"job_id": job_id, "latents": latents.to_json()}
    storage.put_bytes(index_key, json.dumps(note).encode(), content_type="application/json")
    return latents


def cancel(run_id: str, *, settings: Settings) -> None:
    """Stop all GPU work of a run on this host."""
    with connect(settings, run_id) as client:
        client.cancel(Kind.INFERENCE, run_id)
        client.cancel(Kind.DECODE, run_id)


def _find_equal(index_key: str, job_id: str, storage: Storage) -> Latents | None:
    try:
        note = json.loads(storage.get_bytes(index_key))
        latents, origin = Latents.model_validate(note["latents"]), str(note["job_id"])
    except (ObjectMissing, ValueError, KeyError, TypeError):
        return None  # none yet, or one that another version of ours wrote
    if storage.head(latents.key) is None:
        return None
    if origin == job_id:
        return latents
    return latents.model_copy(
        update={"reused_from": origin, "seconds": {"gpu": 0.0}, "remote_usd": 0.0}
    )


def _fetch_source(folder: Path, prepared: Prepared, storage: Storage) -> Path:
    assert prepared.source is not None  # noqa: S101 - for the type checker; the caller asked
    path = folder / f"source-{prepared.source.sha256[:16]}.png"
    if not path.exists():
        storage.get_file(prepared.source.key, path)
    return path


def _report(entry: Entry) -> None:
    phase = Phase.QUEUED if entry.state == "queued" else entry.phase
    report(Stage.INFER, phase, entry.step, entry.steps)
