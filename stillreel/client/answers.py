"""What the API answers, typed; fields that a newer server adds are kept and do no harm."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from stillreel.client.failures import ApiFailure
from stillreel.errors import (
    JobCancelled,
    JobExpired,
    JobFailed,
    RequestRejected,
    StillreelError,
    error_of,
)
from stillreel.job import ENDED, JobStatus, Stage

Status = Annotated[JobStatus | str, Field(union_mode="left_to_right")]
"""A JobStatus; plain text where a newer server has a word that this client does not know."""
StageName = Annotated[Stage | str, Field(union_mode="left_to_right")]


class Answer(BaseModel):
    """An answer of the API; `answer.model_extra` has what this client has no field for."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


A = TypeVar("A", bound=Answer)


class VideoFacts(Answer):
    """The finished video; sides in pixels, size in bytes."""

    width: int
    height: int
    fps: float
    frames: int
    seconds: float
    size: int
    codec: str
    audio: bool
    sha256: str


class Cost(Answer):
    """What a job took, as its host measured it; money in US$."""

    usd: float
    gpu_seconds: float
    usd_per_hour: float
    host: str = ""


class DeliveryAttempt(Answer):
    """One attempt to tell the end of a round; `error_code` is None where it was taken."""

    round: int
    at: AwareDatetime
    seconds: float
    status_code: int | None = None
    error_code: str | None = None


class Delivery(Answer):
    """How the notification of the round fares: none, waiting, delivered or failing."""

    status: str
    attempts: int = 0
    next_attempt_at: AwareDatetime | None = None
    error: str | None = None
    history: tuple[DeliveryAttempt, ...] = ()
    """The newest attempts of all rounds, the newest first."""


class Job(Answer):
    """A job as the API told it; what is not known, or was not told this time, is None."""

    job_id: str
    status: Status
    progress: int = 0
    stage: StageName | None = None
    phase: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None
    position: int | None = None
    model: str = ""
    prompt: str = ""
    style: str | None = None
    camera: str | None = None
    duration: float | None = None
    seed: int | None = None
    preset: str | None = None
    priority: str | None = None
    batch_id: str | None = None
    owner: str | None = None
    round: int = 1
    attempt: int = 1
    result_url: str | None = None
    poster_url: str | None = None
    teaser_url: str | None = None
    url_expires_at: AwareDatetime | None = None
    error: str | None = None
    error_code: str | None = None
    warnings: tuple[str, ...] = ()
    video: VideoFacts | None = None
    cost: Cost | None = None
    delivery: Delivery | None = None
    created_at: AwareDatetime | None = None
    started_at: AwareDatetime | None = None
    completed_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    deadline: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    heartbeat_age_seconds: float | None = None
    run_id: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens in this round."""
        return self.status in ENDED

    @property
    def failure(self) -> StillreelError | None:
        """Why the job ended without a video, to be raised; None while it may still have one."""
        match self.status:
            case JobStatus.FAILED:
                found = error_of(self.error_code or "", self.error or "")
                return JobFailed(self.error or "") if found.code == "internal" else found
            case JobStatus.CANCELLED:
                return JobCancelled(self.error or "")
            case JobStatus.EXPIRED:
                return JobExpired(self.error or "")
            case _:
                return None


class JobPage(Answer):
    """Some jobs, newest first; give `next_cursor` as `cursor` for the next ones."""

    jobs: tuple[Job, ...]
    next_cursor: str | None = None
    scanned: int = 0


class Upload(Answer):
    """An image that was put into storage; `submit(image=upload)` makes a video of it."""

    job_id: str
    expires_at: AwareDatetime | None = None


class BatchResult(Answer):
    """What became of one item of a batch: a job, or an error (a problem of RFC 9457)."""

    index: int
    job_id: str | None = None
    status: Status | None = None
    error: Mapping[str, Any] | None = None


class BatchAnswer(Answer):
    """What became of the items, in their order."""

    batch_id: str
    created: int
    failed: int
    results: tuple[BatchResult, ...]


class Batch(Answer):
    """A batch as it is now: jobs by status, and the first of the jobs themselves."""

    batch_id: str
    total: int
    counts: Mapping[str, int]
    jobs: tuple[Job, ...]
    next_cursor: str | None = None


class Redelivery(Answer):
    """A notification that is being sent again, with the id that it had."""

    job_id: str
    status: Status
    notification_id: str
    delivery: Delivery


class UsageRow(Answer):
    """Sums of jobs; `day`, `model` and `key` are None where it was not grouped by them."""

    day: date | None = None
    model: str | None = None
    key: str | None = None
    videos: int = 0
    failed: int = 0
    cancelled: int = 0
    gpu_seconds: float = 0.0
    usd: float = 0.0


class Usage(Answer):
    """What an owner used from `first` to `last`, both days included."""

    owner: str
    first: date = Field(alias="from")
    last: date = Field(alias="to")
    rows: tuple[UsageRow, ...]
    total: UsageRow


class Span(Answer):
    """Most jobs lie between low and high."""

    low: float
    likely: float
    high: float


class QueueWait(Answer):
    """The line that a new job would join; `seconds` is None while no host is there."""

    position: int
    hosts_online: int = 0
    seconds: float | None = None


class Estimate(Answer):
    """What a video would take; money in US$, None where nothing is known."""

    model: str
    preset: str = ""
    width: int = 0
    height: int = 0
    frames: int = 0
    fps: int = 0
    steps: int = 0
    seconds: Span | None = None
    gpu_seconds: Span | None = None
    usd: Span | None = None
    usd_per_hour: float | None = None
    source: str | None = None
    """`learned` from finished jobs, or `spec`: arithmetic."""
    samples: int = 0
    queue: QueueWait | None = None


class ModelInfo(Answer):
    """A model of the installation; what is said about sizes and presets is in `model_extra`."""

    id: str
    title: str = ""
    version: str = ""
    licence: str = ""
    default: bool = False
    available: bool = False
    """Whether a host for it is there now."""
    text_to_video: bool = False
    image_to_video: bool = True
    audio: bool = False
    styles: bool = True
    """Whether it makes the look of a style; else its camera alone."""
    fps: tuple[int, ...] = ()
    priorities: tuple[str, ...] = ()


class StyleInfo(Answer):
    """A look that `style` may name."""

    name: str
    title: str = ""
    description: str = ""
    camera: str = ""
    """Holds where an order says nothing about the camera."""


class MotionInfo(Answer):
    """A motion that `camera` may name; those of one axis exclude each other."""

    name: str
    title: str = ""
    description: str = ""
    axis: str = ""


class Looks(Answer):
    """What `style` and `camera` may say; several motions are joined by `and`."""

    styles: tuple[StyleInfo, ...]
    motions: tuple[MotionInfo, ...] = ()
    speeds: tuple[str, ...] = ()


class ModelList(Answer):
    """The models of the installation, the default first."""

    models: tuple[ModelInfo, ...]


def parse(model: type[A], data: Any) -> A:
    """`data` as a `model`. Raises ApiFailure for what no API of ours answers."""
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        fields = ", ".join(".".join(map(str, error["loc"])) or "all" for error in exc.errors()[:3])
        raise ApiFailure.about(
            f"The answer is not understood (as {model.__name__}: {fields}); is the address that "
            "of a stillreel API, and is this client not older than it?"
        ) from exc


def path_of(name: str, noun: str = "jobs") -> str:
    """Where the job, or another noun, of this id is. Raises RequestRejected for what is no id."""
    if not name.strip("./ "):
        raise RequestRejected(f"{name!r} is no id; a job's begins with job_")
    return f"/api/v1/{noun}/{quote(name, safe='')}"
