"""Upload: from files on this host to the stored video; the receipt comes last."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from stillreel import keys
from stillreel.errors import ClipMissing
from stillreel.job import Clip, JobSpec, Latents, Prepared, Stage, Video
from stillreel.progress import report
from stillreel.receipt import write_receipt
from stillreel.storage import Storage


def upload(
    job_id: str,
    execution: int,
    spec: JobSpec,
    prepared: Prepared,
    latents: Latents,
    clip: Clip,
    *,
    storage: Storage,
    assert_current: Callable[[], None],
) -> Video:
    """The stored video; repeating it stores the same objects again.

    `assert_current` raises when this execution is stale; it is asked before anything is stored
    and once more before the receipt, which completes the job.
    """
    assert_current()
    started = time.monotonic()
    objects: dict[str, str] = {}
    files = (  # the video first: of a rented host's, the others are compared with it
        ("video", "output.mp4", clip.video_path, "video/mp4"),
        ("poster", "poster.jpg", clip.poster_path, "image/jpeg"),
        ("teaser", "teaser.mp4", clip.teaser_path, "video/mp4"),
    )
    for number, (name, file, path, content_type) in enumerate(files):
        report(Stage.UPLOAD, step=number, steps=len(files) + 1)
        objects[name] = keys.output_key(job_id, file)
        try:
            storage.put_file(objects[name], Path(path), content_type=content_type)
        except FileNotFoundError as exc:
            raise ClipMissing from exc
    assert_current()
    completed_at = datetime.now(UTC)
    receipt = write_receipt(
        job_id,
        spec,
        prepared,
        latents,
        clip,
        upload_seconds=time.monotonic() - started,
        execution=execution,
        completed_at=completed_at,
        objects=objects,
    )
    receipt_key = keys.output_key(job_id, "receipt.json")
    body = json.dumps(receipt, indent=2, ensure_ascii=False).encode()
    storage.put_bytes(receipt_key, body, content_type="application/json")
    report(Stage.UPLOAD, step=1, steps=1)
    return Video(
        key=objects["video"],
        poster_key=objects["poster"],
        teaser_key=objects["teaser"],
        receipt_key=receipt_key,
        sha256=clip.sha256,
        size=clip.size,
        width=clip.width,
        height=clip.height,
        seconds=clip.seconds,
        cost_usd=receipt["cost"]["usd"],
        completed_at=completed_at,
        warnings=tuple(receipt["warnings"]),
    )
