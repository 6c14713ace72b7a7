"""A whole Backend that does what its script says: waits at a gate, fails, makes odd frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from threading import Event

import numpy as np
from PIL import Image

from stillreel.job import ModelName, Phase, Shot
from stillreel.models.base import Decoded, Generated, LatentArrays, ModelSpec, OnStep
from stillreel.models.registry import MODELS

GATE_SECONDS = 20.0
"""A gate that a test forgot is a failed test, not a hanging one."""


@dataclass
class Gate:
    """Where the backend waits until the test lets it go on."""

    reached: Event = field(default_factory=Event)
    opened: Event = field(default_factory=Event)

    def stop_here(self) -> None:
        """Called by the backend."""
        self.reached.set()
        if not self.opened.wait(GATE_SECONDS):
            raise AssertionError("the test never opened this gate")

    def wait(self) -> None:
        """Called by the test: the backend stands here now."""
        assert self.reached.wait(GATE_SECONDS), "the backend never came to this gate"

    def open(self) -> None:
        """Called by the test: go on."""
        self.opened.set()


@dataclass
class Script:
    """What all backends of one test do; keys of the gates are prompts."""

    gates: dict[str, Gate] = field(default_factory=dict)
    """Before the first step of an inference with this prompt."""
    decode_gates: dict[str, Gate] = field(default_factory=dict)
    """Before the second chunk of a decode."""
    errors: dict[str, Exception] = field(default_factory=dict)
    load_error: Exception | None = None
    frames_made: int | None = None
    """How many frames a decode makes; None makes as many as it says."""
    chunk: int = 2
    pixel_format: str = "rgb24"
    frame_dtype: type = np.uint8
    audio: np.ndarray | None = None
    log: list[str] = field(default_factory=list)
    """Everything that was asked of the backends, in order."""

    def load_backend(self, name: ModelName) -> FakeBackend:
        """What a Runner is given to make backends."""
        return FakeBackend(replace(MODELS["preview"], name=name), self)

    def gate(self, prompt: str, *, decode: bool = False) -> Gate:
        """A new gate for the inference, or the decode, with this prompt."""
        gate = Gate()
        (self.decode_gates if decode else self.gates)[prompt] = gate
        return gate

    def open_all(self) -> None:
        """Let everything go on that still waits."""
        for gate in (*self.gates.values(), *self.decode_gates.values()):
            gate.open()


class FakeBackend:
    """The port of stillreel/models/base.py over a Script; a frame is filled with its number."""

    def __init__(self, spec: ModelSpec, script: Script) -> None:
        self.spec = spec
        self._script = script

    def load(self) -> None:
        self._script.log.append(f"load {self.spec.name}")
        if self._script.load_error:
            raise self._script.load_error

    def generate(self, shot: Shot, image: Image.Image | None, on_step: OnStep) -> Generated:
        self._script.log.append(f"generate {shot.prompt}")
        _pass(self._script.gates, shot.prompt)
        for step in range(1, shot.steps + 1):
            on_step(Phase.DENOISE, step, shot.steps)
            if step == 1 and (error := self._script.errors.get(shot.prompt)):
                raise error
        value = 0 if image is None else np.asarray(image)[0, 0, 0]
        arrays = {"value": np.array([value], np.uint8)}
        return Generated(arrays, {"denoise": 0.25}, "uint8", "rich", ("Not quite.",))

    def decode(self, shot: Shot, arrays: LatentArrays) -> Decoded:
        assert arrays
        self._script.log.append(f"decode {shot.prompt}")
        audio = self._script.audio
        return Decoded(
            width=shot.width,
            height=shot.height,
            frames=shot.frames,
            chunks=self._chunks(shot),
            pixel_format=self._script.pixel_format,
            audio=audio,
            sample_rate=0 if audio is None else 48000,
        )

    def close(self) -> None:
        self._script.log.append(f"close {self.spec.name}")

    def _chunks(self, shot: Shot) -> Iterator[np.ndarray]:
        script = self._script
        made = shot.frames if script.frames_made is None else script.frames_made
        yuv = script.pixel_format == "yuv420p"
        shape = (shot.height * 3 // 2, shot.width) if yuv else (shot.height, shot.width, 3)
        for start in range(0, made, script.chunk):
            if start == script.chunk:
                _pass(script.decode_gates, shot.prompt)
            frames = range(start, min(made, start + script.chunk))
            yield np.stack([np.full(shape, n, script.frame_dtype) for n in frames])


def _pass(gates: Mapping[str, Gate], prompt: str) -> None:
    if gate := gates.get(prompt):
        gate.stop_here()


def make_shot(prompt: str = "", *, model: ModelName = "preview", frames: int = 5) -> Shot:
    """A small shot; the prompt is its name in a Script."""
    return Shot(
        model=model,
        model_version="fake-1",
        preset="standard",
        prompt=prompt,
        negative_prompt="",
        width=32,
        height=16,
        crop_width=32,
        crop_height=16,
        fps=24,
        frames=frames,
        steps=3,
        seed=1,
        audio=False,
    )
