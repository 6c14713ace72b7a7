"""The model that needs no GPU and is no AI: a real camera move over the real image, on the CPU.

It has the same port, steps, latents and decode as the models with weights, so that a laptop runs
the very same pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from stillreel.errors import InferenceFailed
from stillreel.job import Phase, Shot
from stillreel.models import camera
from stillreel.models.base import Decoded, Generated, LatentArrays, ModelSpec, OnStep
from stillreel.models.motions import read_camera
from stillreel.scene import draw_scene
from stillreel.settings import InferenceSettings

CHUNK = 8
"""Frames that are decoded at once."""


class PreviewBackend:
    """Moves a camera over the image, or over a drawn scene; no neural network has a part in it.

    The order's camera chooses the move, else the prompt's words do (see stillreel.models.camera),
    else the seed. The latents are the image, uint8 (height, width, 3), and the path, float64
    (frames, 4).
    """

    def __init__(self, spec: ModelSpec, settings: InferenceSettings) -> None:
        self.spec = spec
        self._seconds_per_step = settings.preview_seconds_per_step

    def load(self) -> None:
        """Nothing: there are no weights."""

    def generate(self, shot: Shot, image: Image.Image | None, on_step: OnStep) -> Generated:
        """The image and the camera's path over it; a prompt alone gets a scene drawn by seed.

        A step computes its share of the path. An image larger than the shot, of the same shape,
        makes moves towards it sharper.
        """
        begin = time.perf_counter()
        still = image or draw_scene(shot.width, shot.height, seed=shot.seed)
        move = _move(shot)
        shares = np.array_split(np.linspace(0.0, 1.0, shot.frames), shot.steps)
        path: list[np.ndarray] = []
        for step, times in enumerate(shares, 1):
            path.append(camera.boxes(move, times, width=still.width, height=still.height))
            time.sleep(self._seconds_per_step)  # stands for the work of a GPU in load tests
            on_step(Phase.DENOISE, step, shot.steps)
        return Generated(
            arrays={"image": np.array(still.convert("RGB")), "boxes": np.concatenate(path)},
            seconds={Phase.DENOISE: time.perf_counter() - begin},
            dtype="uint8",
            warnings=_warnings(shot),
        )

    def decode(self, shot: Shot, arrays: LatentArrays) -> Decoded:
        """The frames that the camera sees, rgb24 in chunks of 8; bit-exact each time.

        Raises InferenceFailed when the latents are not those of this shot.
        """
        path = arrays.get("boxes")
        if path is None or path.shape != (shot.frames, 4) or "image" not in arrays:
            raise InferenceFailed("The stored latents are not of this preview; generate it again.")
        still = Image.fromarray(arrays["image"])
        chunks = _frames(still, path, (shot.width, shot.height))
        return Decoded(shot.width, shot.height, shot.frames, chunks)

    def close(self) -> None:
        """Nothing: an instance keeps no memory between calls."""


def _move(shot: Shot) -> camera.Move:
    if shot.camera:
        return camera.move_of(read_camera(shot.camera))
    return camera.read_move(shot.prompt, seed=shot.seed)


def _warnings(shot: Shot) -> tuple[str, ...]:
    motions = read_camera(shot.camera).motions if shot.camera else ()
    warnings = [
        f"{shot.model} has a flat image, and shows {name} as {camera.FLAT[name]}."
        for name in motions
        if name in camera.FLAT
    ]
    if shot.negative_prompt:
        warnings.append(f"{shot.model} has no use for a negative prompt; the AI models have.")
    return tuple(warnings)


def _frames(still: Image.Image, path: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    for start in range(0, len(path), CHUNK):
        yield np.stack(
            [
                np.asarray(still.resize(size, Image.Resampling.BICUBIC, box=tuple(box)))
                for box in path[start : start + CHUNK]
            ]
        )
