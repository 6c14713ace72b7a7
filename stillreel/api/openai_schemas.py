"""What OpenAI's clients send, and what they are told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from stillreel import job
from stillreel.api.schemas import Cost, GenerateRequest, Request

_ONE_OF = (
    ("seconds", "num_frames", "duration"),
    ("size", "width"),
    ("size", "height"),
    ("num_inference_steps", "steps"),
    ("input_reference", "image_reference", "image_url", "image_base64", "job_id"),
)
"""Names of the same thing, in OpenAI's words, in those of open servers, and in ours."""


class Reference(Request):
    """An image by its address or by an id."""

    image_url: str | None = None
    file_id: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Reference:
        if bool(self.image_url) is bool(self.file_id):
            raise ValueError("needs either image_url or file_id")
        return self


ReferenceField = Annotated[
    Reference | None,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"image_url": {"type": "string"}, "file_id": {"type": "string"}},
            "additionalProperties": False,
        }
    ),
]


class VideoRequest(GenerateRequest):
    """The order of one video in OpenAI's words; ours are understood beside them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "slow zoom in", "seconds": "4", "size": "1280x720"}]
        }
    )

    prompt: job.Prompt | None = Field(min_length=1)
    seconds: Annotated[
        job.Duration | None,
        WithJsonSchema(
            {
                "anyOf": [{"type": "string"}, {"type": "number"}],
                "description": "Seconds of video, as a text or a number.",
                "examples": ["4"],
            }
        ),
    ] = None
    size: str | None = Field(
        None,
        pattern=r"^[1-9]\d{0,3}x[1-9]\d{0,3}$",
        description="Width and height in pixels; left out, model and image choose.",
        examples=["1280x720"],
    )
    input_reference: ReferenceField = Field(
        None,
        description="The image: its http(s) or `data:` URL as `image_url`, or as `file_id` the "
        "job_id of `/api/v1/presign/upload`. In multipart also the file itself.",
    )
    image_reference: ReferenceField = Field(None, description="Another name of input_reference.")
    num_frames: int | None = Field(None, ge=2, le=10_000, description="Instead of `seconds`.")
    num_inference_steps: job.Steps | None = None
    guidance_scale: float | None = Field(
        None, ge=0, le=100, description="Has no effect: every preset has its own."
    )

    @model_validator(mode="after")
    def _one_name(self) -> VideoRequest:
        for names in _ONE_OF:
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} are given at once; keep one of them")
        return self


class VideoError(BaseModel):
    """Why there is no video."""

    code: str = Field(examples=["cancelled"])
    message: str


class VideoUsage(BaseModel):
    """What was made."""

    duration_seconds: float


class VideoView(BaseModel):
    """A job in OpenAI's words; `usage`, `cost` and `warnings` are ours."""

    id: str
    object: Literal["video"]
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int = Field(description="Unix time, as are all times here.")
    completed_at: int | None = None
    expires_at: int | None = Field(None, description="When the video is deleted; null: never.")
    seconds: str
    size: str = Field(description="`auto` until it is known.", examples=["1280x720"])
    prompt: str
    remixed_from_video_id: None = None
    error: VideoError | None = None
    usage: VideoUsage | None = None
    cost: Cost | None = None
    warnings: list[str] = []


class VideoPage(BaseModel):
    """Some videos, in the order that was asked for."""

    object: Literal["list"]
    data: list[VideoView]
    first_id: str | None
    last_id: str | None = Field(description="Give it as `after` for the next page.")
    has_more: bool


class VideoDeleted(BaseModel):
    """The video is gone."""

    id: str
    deleted: Literal[True]
    object: Literal["video.deleted"]


class ModelView(BaseModel):
    """A model that is offered here."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "stillreel"


class ModelPage(BaseModel):
    """The models that are offered here, the default first."""

    object: Literal["list"] = "list"
    data: list[ModelView]
