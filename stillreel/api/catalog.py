"""What can be ordered here (`/api/v1/models`, `/styles`), and what it takes (`/estimate`)."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from stillreel.api.auth import authenticate
from stillreel.api.bodies import describe_body, read_body
from stillreel.api.orders import SEED_1_MODEL
from stillreel.api.problems import PROBLEMS
from stillreel.api.schemas import GenerateRequest
from stillreel.api.services import Services, services_of
from stillreel.errors import ModelUnavailable
from stillreel.estimates import (
    Guess,
    Range,
    Source,
    typical_seconds,
    wait_seconds,
    with_image,
    work_of,
)
from stillreel.job import PRIORITIES, PROMPT_LIMIT, SIDE_LIMIT, Codec, JobSpec, Quality, spec_of
from stillreel.jobs.deployments import Deployment
from stillreel.models.base import ModelSpec
from stillreel.models.looks import looks
from stillreel.models.registry import get_model
from stillreel.owners import Caller, lower

router = APIRouter(tags=["models"], responses=PROBLEMS)

AnyKey = Annotated[Caller, Depends(authenticate)]

_NOT_IN_SPEC = {"image_base64", "job_id", "priority", "deadline"}


class Span(BaseModel):
    """Most jobs lie between low and high."""

    low: float
    likely: float
    high: float


class QueueWait(BaseModel):
    """The line that a new job would join."""

    position: int = Field(description="Place that the job would have, 1 is next.")
    hosts_online: int
    seconds: float | None = Field(description="Null while no host is there.")


class Estimate(BaseModel):
    """What one video would take; nothing was ordered."""

    model: str
    preset: str
    width: int
    height: int
    frames: int
    fps: int
    steps: int
    seconds: Span | None = Field(description="From its start to its video; null: not known.")
    gpu_seconds: Span | None
    usd: Span | None = Field(description="Null where no host's price is known.")
    usd_per_hour: float | None
    source: Source | None = Field(
        description="`learned` from finished jobs, or `spec`: arithmetic for the model's GPU."
    )
    samples: int = Field(description="Finished jobs that it was learned from.")
    queue: QueueWait


class Size(BaseModel):
    width: int
    height: int


class Sizes(BaseModel):
    """Which sizes can be asked for; others are refused, or changed with a warning."""

    default: Size
    only: list[Size] = Field(description="Where it is not empty, no other size is made.")
    suggested: list[Size] = Field(
        description="To choose from where others are made too. Whether one fits depends on the GPU."
    )
    grid: int = Field(description="Generated sides are multiples of this; the video is cropped.")
    min_side: int
    max_side: int
    max_pixels: int


class PresetFacts(BaseModel):
    name: str
    description: str
    steps: int
    steps_fixed: bool


class Durations(BaseModel):
    default: float
    max: float
    native: float = Field(description="Up to here in one piece; longer videos are continued.")


class TypicalCost(BaseModel):
    """Of an order that names nothing but the model."""

    seconds: Span | None
    usd: Span | None
    source: Source | None
    samples: int


class ModelFacts(BaseModel):
    """Enough to build a form from; the first preset and frame rate are the defaults."""

    id: str
    title: str
    version: str
    licence: str
    default: bool = Field(description="Made where an order names no model.")
    available: bool = Field(description="A host for it is there now; others wait for one.")
    hosts_online: int
    text_to_video: bool
    image_to_video: bool = True
    audio: bool
    styles: bool = Field(description="Makes the look of a style; else its camera alone.")
    sizes: Sizes
    fps: list[int]
    durations: Durations
    presets: list[PresetFacts]
    codecs: list[str]
    qualities: list[str]
    priorities: list[str] = Field(description="That this key may use.")
    prompt_max_length: int
    typical: TypicalCost


class Models(BaseModel):
    models: list[ModelFacts]


class StyleFacts(BaseModel):
    """A look that `style` may name."""

    name: str = Field(examples=["cinematic"])
    title: str
    description: str
    camera: str = Field(description="Holds where an order says nothing about the camera.")


class MotionFacts(BaseModel):
    """A motion that `camera` may name."""

    name: str = Field(examples=["pan left"])
    title: str
    description: str
    axis: str = Field(description="Motions of one axis exclude each other; `all` goes alone.")


class Looks(BaseModel):
    """What `style` and `camera` may say; several motions are joined by `and`."""

    styles: list[StyleFacts]
    motions: list[MotionFacts]
    speeds: list[str] = Field(description="One of them may stand before the motions.")


@router.get("/api/v1/models")
async def list_models(request: Request, caller: AnyKey) -> Models:
    """The models that are offered here, the default first, with all that a form needs."""
    services = services_of(request)
    offered = list((await services.deployments.offered()).values())
    facts = await asyncio.gather(*(_facts(services, caller, found) for found in offered))
    default = await _default(services)
    return Models(models=[f.model_copy(update={"default": f.id == default}) for f in facts])


@router.get("/api/v1/styles")
async def list_styles(caller: AnyKey) -> Looks:  # noqa: ARG001
    """The styles and the camera's motions that an order may name, for a form."""
    return Looks.model_validate(looks())


@router.post("/api/v1/estimate", openapi_extra=describe_body(GenerateRequest))
async def estimate(request: Request, caller: AnyKey) -> Estimate:
    """Seconds and US$ of an order, and its wait; takes the same body, and makes no job.

    The image is not fetched: where neither width nor height is given, the model's size counts.
    """
    services = services_of(request)
    order, _ = await read_body(request, GenerateRequest)
    deployment = await services.deployments.choose(order.model, SEED_1_MODEL)
    given = order.model_dump(exclude_none=True, exclude=_NOT_IN_SPEC)
    spec = spec_of(given | {"model": deployment.model, "owner": caller.owner})
    if order.image_base64 or order.job_id:
        spec = spec.model_copy(update={"image_key": "inputs/x"})
    work, shot = work_of(with_image(spec))
    guess = await services.estimates.guess(work)
    return Estimate(
        model=shot.model,
        preset=shot.preset,
        width=shot.crop_width,
        height=shot.crop_height,
        frames=shot.frames,
        fps=shot.fps,
        steps=shot.steps,
        gpu_seconds=_span(guess.gpu_seconds) if guess else None,
        usd_per_hour=guess.usd_per_hour if guess else None,
        queue=await _wait(
            services, deployment, lower(order.priority or "default", caller.ceiling), guess
        ),
        **_typical(guess),
    )


async def _facts(services: Services, caller: Caller, deployment: Deployment) -> ModelFacts:
    model = get_model(deployment.model)
    hosts = await services.estimates.hosts(deployment.pool)
    work, _ = work_of(JobSpec(model=model.name, image_key="inputs/x", duration=_duration(model)))
    width, height = model.default_size
    return ModelFacts(
        id=model.name,
        title=model.title,
        version=model.version,
        licence=model.licence,
        default=False,
        available=hosts > 0,
        hosts_online=hosts,
        text_to_video=model.text_to_video,
        audio=model.audio,
        styles=model.reads_prompt,
        sizes=Sizes(
            default=Size(width=width, height=height),
            only=[Size(width=w, height=h) for w, h in model.sizes],
            suggested=[Size(width=w, height=h) for w, h in model.suggested],
            grid=model.grid,
            min_side=model.min_side,
            max_side=SIDE_LIMIT,
            max_pixels=model.max_pixels,
        ),
        fps=list(model.fps),
        durations=Durations(
            default=_duration(model),
            max=model.max_seconds,
            native=model.native_seconds or model.max_seconds,
        ),
        presets=[
            PresetFacts(
                name=name,
                description=preset.description,
                steps=preset.steps,
                steps_fixed=preset.steps_fixed,
            )
            for name, preset in model.presets.items()
        ],
        codecs=list(get_args(Codec)),
        qualities=list(get_args(Quality)),
        priorities=[name for name in PRIORITIES if caller.may_use(name)],
        prompt_max_length=PROMPT_LIMIT,
        typical=TypicalCost(**_typical(await services.estimates.guess(work))),
    )


async def _default(services: Services) -> str:
    try:
        return (await services.deployments.choose(None, SEED_1_MODEL)).model
    except ModelUnavailable:
        return ""


async def _wait(
    services: Services, deployment: Deployment, queue: str, guess: Guess | None
) -> QueueWait:
    ahead, hosts = await asyncio.gather(
        services.estimates.waiting(deployment.pool, queue),
        services.estimates.hosts(deployment.pool),
    )
    seconds = wait_seconds(ahead, typical_seconds(guess), hosts) if guess else None
    return QueueWait(
        position=ahead + 1,
        hosts_online=hosts,
        seconds=None if seconds is None else round(seconds, 1),
    )


def _typical(guess: Guess | None) -> dict[str, Any]:
    if guess is None:
        return {"seconds": None, "usd": None, "source": None, "samples": 0}
    return {
        "seconds": _span(guess.seconds),
        "usd": _span(guess.usd, digits=6) if guess.usd else None,
        "source": guess.source,
        "samples": guess.samples,
    }


def _span(found: Range, *, digits: int = 2) -> Span:
    low, likely, high = (round(v, digits) for v in (found.low, found.likely, found.high))
    return Span(low=low, likely=likely, high=high)


def _duration(model: ModelSpec) -> float:
    return min(JobSpec.model_fields["duration"].default, model.max_seconds)
