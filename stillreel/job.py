"""The vocabulary: what a job is, from the order to the finished video (docs/glossary.md)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stillreel.errors import RequestRejected

ModelName = Literal["preview", "wan-2.2", "ltx-2", "ltx-2.3", "ltx-2.5", "remote"]
Codec = Literal["h264", "av1"]
Quality = Literal["standard", "high"]
Priority = Literal["high", "default", "backlog"]
PRIORITIES: tuple[Priority, ...] = ("high", "default", "backlog")
"""Names of the queues of a pool, served in this order (deployments/pools.yaml)."""

PROMPT_LIMIT = 4000
"""Characters. LTX-2 reads 1024 tokens, WAN 2.2 reads 512: more could only be cut silently."""
SEED_LIMIT = 2**32 - 1
DURATION_LIMIT = 30.0
SIDE_LIMIT = 4096
TEASER_WIDTH, TEASER_FPS = 320, 12
"""At most, of the short muted clip that a video has beside it."""
LATER = ("style", "camera")
"""Fields of an order that hosts of an earlier release may not know. A new field belongs here, and
its default has to mean what orders meant without it."""

_JOB_ID = re.compile(r"job_[0-9a-z]{8,64}")


class JobStatus(StrEnum):
    """What a caller is told about a job; the stage is a separate field."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


ENDED = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED})
"""What a job stays in until somebody has it tried again."""


class Stage(StrEnum):
    """The five tasks of a job, in order."""

    FETCH = "fetch"
    INFER = "infer"
    ENCODE = "encode"
    UPLOAD = "upload"
    NOTIFY = "notify"


class Phase(StrEnum):
    """What happens inside a stage on the inference server."""

    QUEUED = "queued"
    LOAD = "load"
    TEXT = "text"
    DENOISE = "denoise"
    DECODE = "decode"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """This value as plain JSON data."""
        return self.model_dump(mode="json")


class _Result(_Value):
    """What a task leaves for later ones, in a file that another release of ours may read.

    A host of the release before may take over from a newer one: what it does not know of a result
    it leaves out. A field that older hosts must not overlook needs a new version of its task
    (`tasks/cache_keys.py`).
    """

    model_config = ConfigDict(extra="ignore")


ImageUrl = Annotated[str, Field(max_length=2048, description="Public http(s) address of the image")]
ImageKey = Annotated[
    str, Field(max_length=512, description="Or the key of an uploaded image (inputs/...)")
]
Prompt = Annotated[str, Field(max_length=PROMPT_LIMIT, description="What should happen")]
NegativePrompt = Annotated[
    str, Field(max_length=PROMPT_LIMIT, description="What should not be seen (AI models only)")
]
StyleName = Annotated[
    str, Field(max_length=40, description="A named look, e.g. cinematic; empty: none")
]
CameraWords = Annotated[
    str,
    Field(
        max_length=100, description="How the camera moves, e.g. slow dolly in; empty: as it comes"
    ),
]
Model = Annotated[ModelName, Field(description="Which model makes the video")]
PresetName = Annotated[str, Field(max_length=40, description="Preset of the model; empty: its own")]
Duration = Annotated[
    float, Field(gt=0, le=DURATION_LIMIT, allow_inf_nan=False, description="Seconds of video")
]
Side = Annotated[
    int, Field(ge=0, le=SIDE_LIMIT, description="Pixels; 0: chosen by model and image")
]
Fps = Annotated[int, Field(ge=0, le=60, description="Frames per second; 0: the model's own")]
Seed = Annotated[int, Field(ge=-1, le=SEED_LIMIT, description="Same seed, same video; -1: any")]
Steps = Annotated[int, Field(ge=0, le=200, description="Denoising steps; 0: the preset's own")]
CodecName = Annotated[Codec, Field(description="h264 plays anywhere, av1 is smaller")]
QualityName = Annotated[Quality, Field(description="high looks better and is larger")]
WithAudio = Annotated[bool, Field(description="With sound, where the model makes it")]
Reuse = Annotated[bool, Field(description="Take the stored latents of an equal earlier job")]
EmbedPrompt = Annotated[bool, Field(description="Write the prompt into the file")]
WebhookUrl = Annotated[
    str, Field(max_length=2048, description="Public address that is told about the end")
]
OwnerName = Annotated[
    str,
    Field(
        max_length=100,
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9_.-]*)?$",
        description="Who the video is for",
    ),
]


class JobSpec(_Value):
    """The validated, self-contained order of one video; its fields are the flow's arguments.

    Empty strings, 0 and -1 mean "not given", because the Prefect form shows those well and
    shows an optional field badly.
    """

    image_url: ImageUrl = ""
    image_key: ImageKey = ""
    prompt: Prompt = ""
    negative_prompt: NegativePrompt = ""
    style: StyleName = ""
    camera: CameraWords = ""
    model: Model = "preview"
    preset: PresetName = ""
    duration: Duration = 5.0
    width: Side = 0
    height: Side = 0
    fps: Fps = 0
    seed: Seed = -1
    steps: Steps = 0
    audio: WithAudio = True
    codec: CodecName = "h264"
    quality: QualityName = "standard"
    reuse: Reuse = False
    embed_prompt: EmbedPrompt = True
    webhook_url: WebhookUrl = ""
    owner: OwnerName = ""

    def to_parameters(self) -> dict[str, Any]:
        """The parameters of the flow run that carries this order out.

        A later field that is not given is left out: the flow of an earlier release fails over a
        parameter that it does not know, and hosts are upgraded last.
        """
        unsaid = {
            name for name in LATER if getattr(self, name) == JobSpec.model_fields[name].default
        }
        return self.model_dump(mode="json", exclude=unsaid)

    @field_validator(
        "prompt",
        "negative_prompt",
        "style",
        "camera",
        "image_url",
        "image_key",
        "webhook_url",
        "preset",
    )
    @classmethod
    def _storable_text(cls, value: str) -> str:
        if "\x00" in value:
            raise ValueError("contains the NUL character, which no database stores; remove it")
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ValueError("contains half of a surrogate pair; send valid Unicode text") from exc
        return value.strip()

    @field_validator("image_key")
    @classmethod
    def _input_key(cls, value: str) -> str:
        if value and (not value.startswith("inputs/") or ".." in value.split("/")):
            raise ValueError("must be a key under inputs/, as the upload gave it")
        return value


class Shot(_Result):
    """A JobSpec resolved against its model: the exact numbers that the backend is given."""

    model: ModelName
    model_version: str
    preset: str
    prompt: str
    """All that the model reads: the caller's words, with those of the style and the camera."""
    negative_prompt: str
    """The caller's own; see negative_text for what is read."""
    width: int
    height: int
    crop_width: int
    crop_height: int
    fps: int
    frames: int
    steps: int
    seed: int
    audio: bool
    style_negative: str = ""
    """What the style adds to the negative prompt."""
    camera: str = ""
    """The motions in their canonical words; `prompt` says them too where a network reads it."""
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long the video lasts, in seconds."""
        return self.frames / self.fps

    def negative_text(self, default: str = "") -> str:
        """What should not be seen: the caller's words, else `default`, and what the style adds."""
        own = self.negative_prompt or default
        return ", ".join(text for text in (own, self.style_negative) if text)

    def digest(self, image_sha256: str = "") -> str:
        """What inference depends on, as 32 hex digits: equal digests give equal latents.

        Fields that came later count where they are given, so that stored latents are still found.
        """
        later = {name for name in ("style_negative", "camera") if not getattr(self, name)}
        data = self.model_dump(
            exclude={"warnings", "crop_width", "crop_height"} | later, mode="json"
        )
        text = repr(sorted(data.items())) + image_sha256
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class SourceImage(_Result):
    """The decoded, oriented, size-checked input, fitted to the model's grid and stored as PNG."""

    key: str
    width: int
    height: int
    sha256: str
    original_sha256: str


class Prepared(_Result):
    """What inference starts from: the shot, and the image unless there is only a prompt."""

    shot: Shot
    source: SourceImage | None = None
    seconds: float = 0.0


class Latents(_Result):
    """The durable outcome of inference: enough to decode again on any host."""

    key: str
    sha256: str
    size: int
    seconds: dict[str, float]
    """By phase; `gpu` is all the time that the GPU was taken."""
    dtype: str = ""
    plan: str = ""
    """The memory plan that made them, where there was one to choose."""
    warnings: tuple[str, ...] = ()
    host: str = ""
    host_price: float = 0.0
    remote_usd: float = 0.0
    """What a server elsewhere charges for them; 0: nothing, or not known."""
    reused_from: str = ""


class Clip(_Result):
    """The encoded files on this host, ready for upload."""

    host: str
    video_path: str
    poster_path: str
    teaser_path: str
    sha256: str
    size: int
    width: int
    height: int
    fps: int
    frames: int
    codec: Codec
    has_audio: bool
    decode_gpu_seconds: float
    encode_seconds: float
    encoder: str = ""
    """What made it, e.g. `libx264`; empty in results of earlier releases."""
    warnings: tuple[str, ...] = ()
    """Of the decode."""

    @property
    def seconds(self) -> float:
        """How long the video lasts, in seconds."""
        return self.frames / self.fps


class Video(_Result):
    """The stored result."""

    key: str
    poster_key: str
    teaser_key: str
    receipt_key: str
    sha256: str
    size: int
    width: int
    height: int
    seconds: float
    cost_usd: float
    completed_at: datetime
    warnings: tuple[str, ...] = ()


class Notification(_Value):
    """The message about an ended round; its id is the same at each delivery."""

    id: str
    job_id: str
    at: datetime
    """When the round ended; the same at each delivery."""
    status: JobStatus
    video_url: str = ""
    error: str = ""
    data: dict[str, Any] = Field(default_factory=dict[str, Any])


def run_name(model: str, prompt: str) -> str:
    """The name of a job's run, by which a person recognises it: model and start of the prompt."""
    words = " ".join(prompt.split())[:50]
    return f"{model}: {words or 'from image'}"


def spec_of(values: Mapping[str, Any]) -> JobSpec:
    """The order that these values make; RequestRejected names every value that cannot be."""
    try:
        return JobSpec.model_validate(dict(values))
    except ValidationError as exc:
        mistakes = [
            f"{'.'.join(str(part) for part in error['loc']) or 'order'}: "
            f"{error['msg'].removeprefix('Value error, ')}"
            for error in exc.errors()
        ]
        raise RequestRejected("; ".join(mistakes)) from exc


def job_id_of(flow_run_id: UUID | str, idempotency_key: str | None = None) -> str:
    """The job's id: the idempotency key where the API made the run, else `job_` + the run's id.

    Other idempotency keys (a schedule sets its own) are not job ids.
    """
    if idempotency_key and _JOB_ID.fullmatch(idempotency_key):
        return idempotency_key
    return f"job_{UUID(str(flow_run_id)).hex}"


def seed_of(text: str) -> int:
    """A seed that only depends on `text`, so that every attempt of a job has the same."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def frames_for(duration: float, fps: int, step: int = 1) -> int:
    """Frames for `duration` seconds, rounded up to a multiple of `step` plus the first frame."""
    return math.ceil(round(duration * fps, 6) / step) * step + 1
