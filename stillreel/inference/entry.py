"""What the inference server and its client tell each other about one piece of work."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, Field

from stillreel.job import Phase, Shot


class Kind(StrEnum):
    """The two kinds of work; a decode goes before the next inference."""

    INFERENCE = "inferences"
    DECODE = "decodes"


class State(StrEnum):
    """Where a piece of work stands."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_live(self) -> bool:
        return self in (State.QUEUED, State.RUNNING)


class InferenceOrder(BaseModel):
    """An inference to start or attach to; paths are on this host."""

    shot: Shot
    digest: str
    image_path: str = ""
    latents_path: str
    round: int = 1
    execution: int = 1


class DecodeOrder(BaseModel):
    """A decode to start or attach to; frames go to a spool in `spool_dir`."""

    shot: Shot
    """What was ordered, whatever the latents say of themselves."""
    digest: str
    latents_path: str
    spool_dir: str
    round: int = 1
    execution: int = 1


class Problem(BaseModel):
    """An error of stillreel/errors.py, by code."""

    code: str
    message: str


class Entry(BaseModel):
    """One piece of work as the server sees it; `version` grows with each change."""

    kind: Kind
    run_id: str
    digest: str
    model: str
    state: State = State.QUEUED
    phase: Phase = Phase.QUEUED
    step: int = 0
    steps: int = 0
    version: int = 0
    position: int = 0
    seconds: dict[str, float] = Field(default_factory=dict)
    dtype: str = ""
    warnings: list[str] = Field(default_factory=list[str])
    """Of a finished decode; those of an inference are with its latents."""
    attached: bool = False
    problem: Problem | None = None


class Health(BaseModel):
    """What a server says about itself."""

    pid: int
    model: str
    loaded: bool
    gpu: str | None
    queued: int
    running: str | None
    busy_seconds: dict[str, float]
