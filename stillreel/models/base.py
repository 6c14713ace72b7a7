"""The port that every model implements, and the static facts that are stated about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

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


@dataclass(frozen=True)
class Repository:
    """Weights on the hub: which of its files we need, and under what terms."""

    repo_id: str
    licence: str
    files: tuple[str, ...]
    """Patterns of what is fetched; the rest of a repository is never looked at."""
    revision: str = "main"
    """A commit, tag or branch: what is fetched, and what is then looked for."""
    gate: str = ""
    """What the hub asks for before it gives files, in our words; empty: not known."""


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
    backend: str
    """`module:Class` of the Backend; imported by the inference server only."""
    sizes: tuple[tuple[int, int], ...] = ()
    """The only sizes that work; empty allows every size on the grid."""
    min_side: int = 64
    oversample: float = 1.0
    """How many times larger than the video an image may be given, e.g. to zoom into it."""
    max_pixels: int = 4096 * 2304
    pipelines: tuple[str, ...] = ()
    """What model_index.json of its weights may name as their class."""
    plans: tuple[MemoryPlan, ...] = ()
    """Ways to run it on a GPU, the most preferred first, the leanest last."""
    repositories: tuple[Repository, ...] = ()
    """Where its weights come from: its own repository first, then those of its presets."""

    def repository(self, repo_id: str = "") -> Repository:
        """The facts of a repository of this model, by default its own."""
        return {found.repo_id: found for found in self.repositories}[repo_id or self.repo_id]

    def presets_of(self, repo_id: str) -> tuple[str, ...]:
        """The presets that run on the weights of this repository."""
        return tuple(n for n, p in self.presets.items() if (p.repo_id or self.repo_id) == repo_id)


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
