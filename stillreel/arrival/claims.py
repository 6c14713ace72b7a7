"""What a rented host says in words and numbers: results of tasks, and the receipt.

Nothing of it is stored as it came. Prefect's results are more than data: whoever reads one back
imports and calls what it names. So each is read as the value that it has to be, compared with the
order, and written anew.
"""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from stillreel.errors import RequestRejected, ResultRefused
from stillreel.gateway.visit import Terms
from stillreel.job import JobSpec, Latents, Prepared, Shot
from stillreel.keys import lent_key, source_key
from stillreel.models.base import ModelSpec
from stillreel.models.shots import resolve
from stillreel.receipt import cost_usd, texts

WARNINGS = 20
MOST_USD = 1000.0
CLOCK_SECONDS = 5.0
"""By which the clocks of Prefect's server and of the API may differ."""

_DIGEST = "[0-9a-f]{32}"

Long = Annotated[float, Field(ge=0, le=7 * 86400, allow_inf_nan=False)]
Usd = Annotated[float, Field(ge=0, le=MOST_USD, allow_inf_nan=False)]
Word = Annotated[str, StringConstraints(max_length=100)]
Text = Annotated[str, StringConstraints(max_length=500)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Warnings = Annotated[list[Text], Field(max_length=WARNINGS)]
Seconds = Annotated[dict[Word, Long], Field(max_length=20)]

_Claim = TypeVar("_Claim", bound=BaseModel)


class FilmNote(BaseModel):
    """What was found in the video of a job when it arrived; only the control side writes it."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    size: int
    width: int
    height: int
    fps: int
    frames: int
    has_sound: bool
    codec: str


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Model(_Part):
    dtype: Word
    plan: Word = ""


class _Input(_Part):
    image_sha256: Hash | None = None


class _Video(_Part):
    sha256: Hash
    encoder: Word = ""


class _Took(_Part):
    fetch_seconds: Long
    infer_seconds: Seconds
    encode_seconds: Long
    upload_seconds: Long
    gpu_seconds: Long
    execution: Annotated[int, Field(ge=1, le=1_000_000)]


class _Cost(_Part):
    remote_usd: Usd = 0.0


class _Receipt(_Part):
    stillreel: Word
    model: _Model
    input: _Input
    video: _Video
    warnings: Warnings
    took: _Took
    cost: _Cost


def checked_receipt(
    data: bytes, *, job_id: str, spec: JobSpec, model: ModelSpec, note: FilmNote,
    objects: dict[str, str], terms: Terms, at: datetime,
) -> bytes:  # fmt: skip
    """The receipt of a video that has arrived: what was seen here, and what only its host knows.

    What it was made by is what the order comes to. Which host that is and what it costs the terms
    say; so many seconds of its GPU it may name as hosts have had the run.

    Raises ResultRefused, RequestRejected.
    """
    said = _read(_Receipt, _json(data))
    if said.video.sha256 != note.sha256:
        raise ResultRefused("the receipt is of another video than the one that has arrived")
    gpu = said.took.gpu_seconds
    _check_gpu(gpu, most=terms.seconds(at))
    remote_usd = said.cost.remote_usd if spec.model == "remote" else 0.0
    image = said.input.image_sha256
    size = note.width, note.height
    shot = resolve(spec, model, job_id=job_id, image_size=size, original_sha256=image or "")
    receipt = {
        "job_id": job_id,
        "completed_at": at.isoformat(timespec="milliseconds"),
        "stillreel": said.stillreel,
        "model": {
            "name": shot.model,
            "version": shot.model_version,
            "preset": shot.preset,
            "steps": shot.steps,
            "seed": shot.seed,
            **said.model.model_dump(),
        },
        "input": {**texts(spec, shot), "image_sha256": image},
        "video": {
            **objects,
            "sha256": note.sha256,
            "size": note.size,
            "width": note.width,
            "height": note.height,
            "fps": note.fps,
            "frames": note.frames,
            "seconds": note.frames / note.fps,
            "codec": note.codec,
            "encoder": said.video.encoder,
            "audio": note.has_sound,
        },
        "warnings": said.warnings,
        "took": said.took.model_dump(),
        "cost": {
            "host": terms.host,
            "usd_per_hour": terms.usd_per_hour,
            "remote_usd": remote_usd,
            "usd": round(cost_usd(gpu, terms.usd_per_hour) + remote_usd, 6),
            "reused_from": "",
        },
    }
    return json.dumps(receipt, indent=2, ensure_ascii=False).encode()


def checked_result(
    data: bytes, task: str, name: str, *, job_id: str, spec: JobSpec, model: ModelSpec,
    terms: Terms, at: datetime,
) -> bytes:  # fmt: skip
    """Prefect's record of the result of `fetch-image` or `infer`, made anew; `name` is its own.

    Raises ResultRefused.
    """
    kind = Prepared if task == "fetch-image" else Latents
    record = _json(data)
    value = _json(str(record.get("result")))
    if value.get("__class__") != f"stillreel.job.{kind.__name__}":
        raise ResultRefused(f"the result of {task} has to be a {kind.__name__}")
    found = _read(kind, value.get("data"))
    if isinstance(found, Prepared):
        _check_prepared(found, job_id, spec, model)
    else:
        _check_latents(found, job_id)
        _check_gpu(found.seconds.get("gpu", 0.0), most=terms.seconds(at))
        remote_usd = found.remote_usd if spec.model == "remote" else 0.0
        ours = {"host": terms.host, "host_price": terms.usd_per_hour, "remote_usd": remote_usd}
        found = found.model_copy(update=ours)
    told = record.get("metadata")
    version = str(told.get("prefect_version"))[:40] if isinstance(told, dict) else ""
    metadata = {
        "storage_key": name,
        "expiration": None,
        "serializer": {"type": "json"},
        "prefect_version": version,
        "storage_block_id": None,
    }
    result = {"__class__": f"stillreel.job.{kind.__name__}", "data": found.to_json()}
    return json.dumps({"metadata": metadata, "result": json.dumps(result)}).encode()


def _check_prepared(found: Prepared, job_id: str, spec: JobSpec, model: ModelSpec) -> None:
    """Raises ResultRefused where the shot is not the one that this order comes to."""
    shot, source = found.shot, found.source
    size = (shot.crop_width, shot.crop_height) if source else None
    try:
        due = resolve(
            spec,
            model,
            job_id=job_id,
            image_size=size,
            original_sha256=source.original_sha256 if source else "",
        )
    except (RequestRejected, ZeroDivisionError) as exc:
        raise ResultRefused("the shot is not the one that was ordered") from exc
    if _without_warnings(shot) != _without_warnings(due):
        raise ResultRefused("the shot is not the one that was ordered")
    if source and source.key != source_key(job_id):
        raise ResultRefused("the source image is another job's")
    _check_numbers(found.seconds)
    _check_texts(shot.warnings)


def _check_latents(found: Latents, job_id: str) -> None:
    """Raises ResultRefused for latents that name another job's object, or odd numbers."""
    if not re.fullmatch(re.escape(lent_key(job_id, "X")).replace("X", _DIGEST), found.key):
        raise ResultRefused("the latents are another job's")
    if found.reused_from:
        raise ResultRefused("a rented host takes no other job's latents")
    _check_numbers(*found.seconds.values(), found.host_price, found.remote_usd)
    texts = (found.dtype, found.plan, found.host, found.sha256, *found.seconds, *found.warnings)
    _check_texts(texts)


def _check_gpu(seconds: float, *, most: float) -> None:
    """Raises ResultRefused for more than can have passed; clocks may differ a little."""
    if seconds > most + CLOCK_SECONDS:
        raise ResultRefused(f"it says {seconds:.0f} s of the GPU, and has had the job {most:.0f} s")


def _check_numbers(*numbers: float) -> None:
    if not all(math.isfinite(n) and 0 <= n <= 7 * 86400 for n in numbers):
        raise ResultRefused("its seconds or prices are none")


def _check_texts(texts: tuple[str, ...]) -> None:
    if len(texts) > 2 * WARNINGS or any(len(text) > 500 for text in texts):
        raise ResultRefused("its texts are too long")


def _without_warnings(shot: Shot) -> dict[str, Any]:
    return shot.model_dump(exclude={"warnings"})


def _read(kind: type[_Claim], value: Any) -> _Claim:
    try:
        return kind.model_validate(value)
    except ValidationError as exc:
        where = ".".join(str(part) for part in exc.errors()[0]["loc"])[:80]
        raise ResultRefused(f"it is not what it has to be, at {where or 'its start'}") from exc


def _json(data: bytes | str) -> dict[str, Any]:
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as exc:
        raise ResultRefused("it is no JSON") from exc
    if not isinstance(found, dict):
        raise ResultRefused("it is no JSON object")
    return found
