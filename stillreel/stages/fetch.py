"""Fetch: from what the caller sent to a checked image on the model's grid, in storage."""

from __future__ import annotations

import hashlib
import time

from stillreel import keys
from stillreel.errors import ImageUnavailable, ObjectMissing, RequestRejected
from stillreel.images import encode_png, fetch_image, fit_picture, open_picture
from stillreel.job import JobSpec, Prepared, Shot, SourceImage, Stage
from stillreel.models.registry import configured, get_model
from stillreel.models.shots import check, resolve
from stillreel.progress import report
from stillreel.settings import Settings
from stillreel.storage import Storage


def prepare(job_id: str, spec: JobSpec, *, storage: Storage, settings: Settings) -> Prepared:
    """The shot of a job and its source image, stored as PNG.

    Raises RequestRejected, ImageError, AddressRefused for what cannot work, and
    ImageFetchFailed or StorageUnavailable for what can pass.
    """
    started = time.monotonic()
    report(Stage.FETCH, step=0, steps=2)
    model = configured(get_model(spec.model), settings.inference)
    check(spec, model)
    data = _read(job_id, spec, storage, settings)
    if data is None:
        shot = resolve(spec, model, job_id=job_id, image_size=None)
        return Prepared(shot=shot, seconds=time.monotonic() - started)
    report(Stage.FETCH, step=1, steps=2)
    picture = open_picture(data, settings.fetch)
    shot = resolve(
        spec,
        model,
        job_id=job_id,
        image_size=picture.image.size,
        original_sha256=picture.original_sha256,
    )
    shot = shot.model_copy(update={"warnings": (*picture.warnings, *shot.warnings)})
    width, height = _source_size(shot, picture.image.size, model.oversample)
    png = encode_png(fit_picture(picture.image, width, height))
    key = keys.source_key(job_id)
    storage.put_bytes(key, png, content_type="image/png")
    report(Stage.FETCH, step=2, steps=2)
    source = SourceImage(
        key=key,
        width=width,
        height=height,
        sha256=hashlib.sha256(png).hexdigest(),
        original_sha256=picture.original_sha256,
    )
    return Prepared(shot=shot, source=source, seconds=time.monotonic() - started)


def _source_size(shot: Shot, size: tuple[int, int], oversample: float) -> tuple[int, int]:
    """The shot's size, or up to `oversample` times that where the image has the pixels for it."""
    factor = min(oversample, max(1.0, min(size[0] / shot.width, size[1] / shot.height)))
    return round(shot.width * factor), round(shot.height * factor)


def _read(job_id: str, spec: JobSpec, storage: Storage, settings: Settings) -> bytes | None:
    if spec.image_url and spec.image_key:
        raise RequestRejected("image_url and image_key are both given; keep one of them")
    if key := spec.image_key or _stored_input(job_id, storage):
        try:
            return storage.get_bytes(key, limit=settings.fetch.image_max_bytes)
        except ObjectMissing as exc:
            raise ImageUnavailable(
                f"there is no uploaded image under {key}; upload it first"
            ) from exc
    if spec.image_url:
        return fetch_image(spec.image_url, settings.fetch)
    return None


def _stored_input(job_id: str, storage: Storage) -> str:
    """The key of what was copied or put there for this job, the newest; empty without any."""
    found = max(
        storage.list(keys.inputs_prefix(job_id)), key=lambda info: info.modified, default=None
    )
    return found.key if found else ""
