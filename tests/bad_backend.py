"""The preview, but some prompts make it hang, or end its server, without a word."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
from PIL import Image

from stillreel.job import Phase, Shot
from stillreel.models.base import Decoded, Generated, LatentArrays, OnStep
from stillreel.models.preview import PreviewBackend
from stillreel.models.registry import MODELS
from stillreel.settings import get_settings

STALL_SECONDS = 3.0
"""The limit of this model in every phase; its steps take milliseconds."""

HANG, KILL, EXIT, FREEZE = "hang", "kill", "exit", "freeze"
LATE = " in the decode"
"""Behind one of these words: there, and not after the first step of the inference."""


class BadBackend(PreviewBackend):
    """What a prompt says it does; the load hangs while `hang-at-load` lies in the home."""

    def load(self) -> None:
        if hang_at_load(get_settings().host.home).exists():
            _misbehave(HANG)

    def generate(self, shot: Shot, image: Image.Image | None, on_step: OnStep) -> Generated:
        on_step(Phase.DENOISE, 1, shot.steps)
        _misbehave(shot.prompt)
        return super().generate(shot, image, on_step)

    def decode(self, shot: Shot, arrays: LatentArrays) -> Decoded:
        decoded = super().decode(shot, arrays)
        decoded.chunks = _chunks(decoded.chunks, shot.prompt)
        return decoded


def hang_at_load(home: Path) -> Path:
    """The file that makes loading hang."""
    return home / "hang-at-load"


def install() -> None:
    """Put it in the place of the preview, in this process."""
    MODELS["preview"] = replace(
        MODELS["preview"],
        backend=f"{__name__}:{BadBackend.__name__}",
        stall_seconds=STALL_SECONDS,
        load_seconds=STALL_SECONDS,
    )


def _chunks(chunks: Iterator[np.ndarray], prompt: str) -> Iterator[np.ndarray]:
    yield next(chunks)
    if prompt.endswith(LATE):
        _misbehave(prompt.removesuffix(LATE))
    yield from chunks


def _misbehave(what: str) -> None:
    if what == HANG:
        Event().wait()
    elif what == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == EXIT:
        os._exit(1)
    elif what == FREEZE:
        os.kill(os.getpid(), signal.SIGSTOP)
