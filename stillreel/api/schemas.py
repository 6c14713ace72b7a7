"""What clients send, and what they are told; the names are those of the design documents."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from stillreel import job
from stillreel.job import JobStatus, Priority, Stage

_IMAGE_URL = "https://example.com/image.jpg"
_PROMPT = "A cinematic video of the scene"


class Request(BaseModel):
    """A body that a client sends: unknown fields are refused, for they are mistakes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class GenerateRequest(Request):
    """The order of one video; `null` is the same as leaving a field out."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image_url": _IMAGE_URL,
                    "prompt": _PROMPT,
                    "duration": 5,
                    "webhook_url": "https://your-app.com/webhook",
                },
                {
                    "image_url": _IMAGE_URL,
                    "prompt": "The boat drifts towards the shore",
                    "style": "cinematic",
                    "camera": "slow dolly in",
                },
            ]
        }
    )

    image_url: job.ImageUrl | None = None
    image_base64: str | None = Field(
        None,
        description="The image itself, as base64 or as a `data:` URL, instead of an address.",
    )
    job_id: str | None = Field(
        None,
        max_length=80,
        description="Id that `presign/upload` gave, after the image was put there.",
    )
    prompt: job.Prompt | None = None
    negative_prompt: job.NegativePrompt | None = None
    style: job.StyleName | None = None
    camera: job.CameraWords | None = None
    model: Annotated[
        str | None, Field(max_length=40, description="Which model makes the video")
    ] = None
    preset: job.PresetName | None = None
    duration: job.Duration | None = None
    width: job.Side | None = None
    height: job.Side | None = None
    fps: job.Fps | None = None
    seed: job.Seed | None = None
    steps: job.Steps | None = None
    audio: job.WithAudio | None = None
    codec: job.CodecName | None = None
    quality: job.QualityName | None = None
    reuse: job.Reuse | None = None
    embed_prompt: job.EmbedPrompt | None = None
    webhook_url: job.WebhookUrl | None = None
    priority: Priority | None = Field(
        None, description="Which queue the job waits in; at best the one that the key may use."
    )
    deadline: AwareDatetime | None = Field(
        None, description="A job that has not started by then expires; with a time zone."
    )

    @model_validator(mode="after")
    def _one_image(self) -> GenerateRequest:
        given = [n for n in ("image_url", "image_base64", "job_id") if getattr(self, n)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given at once; keep one of them")
        return self


class Queued(BaseModel):
    """The answer to an order."""

    job_id: str = Field(examples=["job_abc123"])
    status: JobStatus = Field(examples=["queued"])
    created_at: str = Field(examples=["2026-01-18T10:00:00.000Z"])
    model: str = Field("", examples=["ltx-2"])
    position: int | None = Field(None, description="Place in the line, 1 is next.")


class Cost(BaseModel):
    """What a job took, as its host measured it."""

    usd: float
    gpu_seconds: float
    usd_per_hour: float
    host: str = ""


class VideoFacts(BaseModel):
    """The finished video."""

    width: int
    height: int
    fps: int
    frames: int
    seconds: float
    size: int
    codec: str
    audio: bool
    sha256: str


class DeliveryAttempt(BaseModel):
    """One attempt to tell the end of a round."""

    round: int
    at: str = Field(description="When it began.")
    seconds: float
    status_code: int | None = Field(None, description="Of the receiver's answer; null: none came.")
    error_code: str | None = Field(None, description="Null where the receiver took it.")


class Delivery(BaseModel):
    """How the notification of the round fares."""

    status: Literal["none", "waiting", "delivered", "failing"]
    attempts: int = 0
    next_attempt_at: str | None = None
    error: str | None = None
    history: list[DeliveryAttempt] = Field(
        [], description="The newest 20 attempts of all rounds, the newest first."
    )


class JobView(BaseModel):
    """A job; fields that are not known yet are null."""

    job_id: str = Field(examples=["job_abc123"])
    status: JobStatus = Field(examples=["completed"])
    progress: int = Field(description="Percent by fixed weights; 100 only when completed.")
    stage: Stage | None = None
    phase: str | None = Field(None, description="What happens inside the stage.")
    step: int | None = Field(None, description="Denoising steps or frames that are done.")
    steps: int | None = None
    eta_seconds: int | None = Field(None, description="Estimated; null where nothing is known.")
    position: int | None = Field(None, description="Place in the line, 1 is next.")
    model: str
    prompt: str
    style: str | None = None
    camera: str | None = None
    duration: float
    seed: int | None = None
    preset: str | None = None
    priority: str | None = None
    batch_id: str | None = None
    owner: str | None = None
    round: int = 1
    attempt: int = Field(1, description="Of this round; three at most.")
    result_url: str | None = Field(None, examples=["https://r2.example.com/outputs/job_abc123/..."])
    poster_url: str | None = None
    teaser_url: str | None = None
    url_expires_at: str | None = Field(None, description="Until when the URLs work.")
    error: str | None = None
    error_code: str | None = None
    warnings: list[str] = []
    video: VideoFacts | None = None
    cost: Cost | None = None
    delivery: Delivery | None = None
    created_at: str
    started_at: str | None = None
    completed_at: str | None = None
    ended_at: str | None = None
    deadline: str | None = None
    expires_at: str | None = Field(None, description="When the video is deleted; null: never.")
    input_expires_at: str | None = None
    latents_expires_at: str | None = None
    heartbeat_age_seconds: int | None = Field(
        None, description="Seconds since the host's last sign of life; tells slow from stuck."
    )
    run_id: str = Field(description="The flow run in Prefect.")


class JobPage(BaseModel):
    """Some jobs, newest first."""

    jobs: list[JobView]
    next_cursor: str | None = Field(None, description="Give it as `cursor` for the next page.")
    scanned: int = Field(description="Jobs that were looked at for this page.")


class StatusView(BaseModel):
    """The second document's answer: the four words only, `failed` for cancelled and expired."""

    job_id: str = Field(examples=["abc123"])
    status: Literal["queued", "processing", "completed", "failed"]
    video_url: str | None = None
    error: str | None = None
    position: int | None = None
    progress: int = 0


class UploadRequest(Request):
    """Where to put an image before the job is ordered."""

    job_id: str | None = Field(
        None,
        max_length=80,
        description="A job of yours that still waits, or an id that was given here before; "
        "left out, a new one is given.",
    )
    content_type: str = Field(max_length=100, examples=["image/jpeg"])
    content_length: int | None = Field(
        None, ge=1, description="Exact size in bytes; then nothing longer can be put there."
    )


class UploadTarget(BaseModel):
    """Where to PUT the image, with the same Content-Type."""

    upload_url: str
    expires_in: int = Field(examples=[3600])
    job_id: str = Field(description="Give it to `generate` instead of an image.")
    expires_at: str = Field(description="Until when `generate` takes the id.")


class DownloadTarget(BaseModel):
    """Where to GET the video."""

    download_url: str
    expires_in: int = Field(examples=[86400])


class CompleteRequest(BaseModel):
    """What a host says at a run's end; only `job_id` matters, the rest is read from state."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"job_id": "job_abc123", "status": "completed"}]},
    )

    job_id: str = Field(max_length=80)
    status: str = ""
    video_url: str | None = None
    error: str | None = None


def iso(at: datetime | None) -> str | None:
    """A time as the documents write it, in UTC with a Z."""
    if at is None:
        return None
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
