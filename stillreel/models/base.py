"""The port that every model implements, and the static facts that are stated about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from stillreel.job import ModelName, Phase, Shot
from stillreel.models.memory import MemoryPlan

LatentArrays = dict[str, np.ndarray]
"""Named arrays; stored as safetensors, so any host reads them without torch."""

OnStep = Callable[[Phase, int, int], None]
"""Called with (phase, step, steps) after each step; raises InferenceCancelled to stop the work."""


@dataclass(frozen=True)
class Preset:
    """A named set of inference settings."""

    steps: int
    description: str
    steps_fixed: bool = False
    repo_id: str = ""
    """Weights of its own; empty: the model's."""
    files: tuple[str, ...] = ()
    """Patterns of what only this preset needs of that repository."""
    beside: tuple[str, ...] = ()
    """Further repositories that it takes parts from, for what is not in its own."""


@dataclass(frozen=True)
class Repository:
    """Weights on the hub: which of its files we need, and under what terms."""

    repo_id: str
    licence: str
    files: tuple[str, ...]
    """Patterns of what is fetched; the rest of a repository is never looked at."""
    revision: str = "main"
    """What is fetched and then looked for: a commit, or the name of a branch or tag."""
    gate: str = ""
    """What the hub asks for before it gives files, in our words; empty: not known."""
    pipelines: tuple[str, ...] = ()
    """What its model_index.json may name as its class; empty: what those of the model may."""


@dataclass(frozen=True)
class ModelSpec:
    """The static facts of a model; all of them can be checked before any weight is loaded."""

    name: ModelName
    title: str
    version: str
    """Enters the digest of every inference: repository revision and our own code's version."""
    repo_id: str
    licence: str
    default_size: tuple[int, int]
    grid: int
    """Generated width and height are multiples of this; the video is cropped to what was asked."""
    frame_step: int
    """Frames are a multiple of this, plus one."""
    fps: tuple[int, ...]
    max_seconds: float
    presets: Mapping[str, Preset]
    text_to_video: bool
    audio: bool
    stall_seconds: float
    """The longest that a step, or a chunk of a decode, may take before it counts as stuck."""
    backend: str
    """`module:Class` of the Backend; imported by the inference server only."""
    sizes: tuple[tuple[int, int], ...] = ()
    """The only sizes that work; empty allows every size on the grid."""
    min_side: int = 64
    native_seconds: float = 0.0
    """How long a video is made in one piece, longer ones being continued; 0: all of max_seconds."""
    suggested: tuple[tuple[int, int], ...] = ()
    """Sizes to choose from where every size on the grid works."""
    oversample: float = 1.0
    """How many times larger than the video an image may be given, e.g. to zoom into it."""
    max_pixels: int = 4096 * 2304
    reads_prompt: bool = True
    """Whether a network reads the prompt; else only the camera of a style is of use."""
    pipelines: tuple[str, ...] = ()
    """What model_index.json of its weights may name as their class."""
    plans: tuple[MemoryPlan, ...] = ()
    """Ways to run it on a GPU, the most preferred first, the leanest last."""
    repositories: tuple[Repository, ...] = ()
    """Where its weights come from: its own repository first, then the others of its presets."""
    elsewhere: bool = False
    """Another machine does the work: it takes no GPU of this host, and that machine may charge."""
    load_seconds: float = 1800.0
    """As `stall_seconds`, for what comes before the first step or chunk and may read the weights.
    Derived, not measured: 38 GB take 760 s from a disk of 50 MB/s."""

    def patience(self, phase: Phase) -> float:
        """Seconds without progress in this phase after which the work counts as stuck."""
        return self.stall_seconds if phase in (Phase.DENOISE, Phase.DECODE) else self.load_seconds

    def repository(self, repo_id: str = "") -> Repository:
        """The facts of a repository of this model, by default its own."""
        return {found.repo_id: found for found in self.repositories}[repo_id or self.repo_id]

    def repositories_of(self, preset: str) -> tuple[Repository, ...]:
        """What a preset is made with: its own repository, with its files, then those beside it."""
        facts = self.presets[preset]
        own = self.repository(facts.repo_id)
        own = replace(own, files=(*own.files, *facts.files))
        return own, *(self.repository(repo_id) for repo_id in facts.beside)

    def presets_of(self, repo_id: str) -> tuple[str, ...]:
        """The presets that take weights from this repository."""
        return tuple(
            name
            for name, preset in self.presets.items()
            if repo_id in (preset.repo_id or self.repo_id, *preset.beside)
        )


@dataclass
class Decoded:
    """A decode under way: exact facts first, then chunks of frames as they are made."""

    width: int
    height: int
    frames: int
    chunks: Iterator[np.ndarray]
    """uint8, (n, height, width, 3) for rgb24 or (n, height * 3 // 2, width) for yuv420p."""
    pixel_format: str = "rgb24"
    audio: np.ndarray | None = None
    """float32, (samples, 2), -1..1."""
    sample_rate: int = 0
    warnings: list[str] = field(default_factory=list[str])
    """What the result says about this decode; complete when the chunks are at their end."""


@dataclass
class Generated:
    """The latents of one inference and what they took."""

    arrays: LatentArrays
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase."""
    dtype: str = "float32"
    plan: str = ""
    """The memory plan that it was made by; empty where there is none to choose."""
    warnings: tuple[str, ...] = ()
    usd: float = 0.0
    """What a server elsewhere charges for it; 0: nothing, or not known."""


class Backend(Protocol):
    """Turns one image and a prompt into latents, and latents into frames.

    Made by `Backend(spec, settings)`, loaded once per process, used by one caller at a time.
    """

    spec: ModelSpec

    def load(self) -> None:
        """Make the model ready; called once."""
        ...

    def generate(self, shot: Shot, image: Image.Image | None, on_step: OnStep) -> Generated:
        """The latents of `shot`; `image` has the shot's shape, None is text-to-video."""
        ...

    def decode(self, shot: Shot, arrays: LatentArrays) -> Decoded:
        """The frames of latents that any instance of this model made; bit-exact each time."""
        ...

    def close(self) -> None:
        """Give all memory back; the instance is not used again."""
        ...


@runtime_checkable
class Resumable(Backend, Protocol):
    """A Backend whose work goes on elsewhere when this process ends (docs/adr/0019)."""

    def resume(
        self, shot: Shot, image: Image.Image | None, on_step: OnStep, note: Path
    ) -> Generated:
        """As `generate`, and what an earlier call began is gone on with, not begun again.

        What that takes is kept at `note`, whose last two names say which job it is, on any host.
        """
        ...
