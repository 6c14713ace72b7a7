"""LTX-2 through diffusers: from an image, or from a prompt alone, to a video with stereo sound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from stillreel.errors import InferenceFailed, RequestRejected
from stillreel.job import Phase, Shot
from stillreel.models.base import Decoded, Generated, LatentArrays, ModelSpec, OnStep
from stillreel.models.decoding import Way, decode_by
from stillreel.models.embeddings import EmbeddingCache
from stillreel.models.ltx2_decode import as_made, frames_of, sound_of
from stillreel.models.ltx2_denoise import Denoising
from stillreel.models.ltx2_plans import plans_for
from stillreel.models.ltx2_stages import STAGES, Stage, lora_of, steps_of
from stillreel.models.ltx2_text import encode, texts_of
from stillreel.models.ltx2_weights import Networks
from stillreel.models.memory import MemoryPlan
from stillreel.models.shots import usual
from stillreel.models.torch_backend import (
    check_shape,
    dtype_on,
    empty_cache,
    hide_progress_bars,
    pick_device,
    released,
    require,
    run_planned,
    say_plan,
)
from stillreel.models.weights import find_weights
from stillreel.settings import InferenceSettings, get_settings

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "av")


class Ltx2Backend:
    """LTX-2 on the GPU or, with networks tiny enough for it, on the CPU.

    The latents are `video`, float32 (1, 128, t, h, w), and `audio`, float32 (1, 8, t, 16), both
    denormalised, as the pipeline gives them.
    """

    def __init__(self, spec: ModelSpec, settings: InferenceSettings) -> None:
        self.spec = spec
        self._settings = settings
        self._networks: Networks | None = None

    def load(self) -> None:
        """Check that all is there; each network comes when it is first needed, the largest last.

        Raises ModelUnavailable when a package is missing, or the weights are, or are not LTX-2's.
        """
        require(self.spec, *PACKAGES)
        hide_progress_bars()
        device = pick_device()
        networks = Networks(find_weights(self.spec, self._settings), device, dtype_on(device))
        networks.check()
        self._networks = networks
        shot = usual(self.spec)
        say_plan(self._spec_for(shot), shot, device)

    def generate(self, shot: Shot, image: Image.Image | None, on_step: OnStep) -> Generated:
        """The latents of `shot`, by the stages of its preset; its steps are those of all stages.

        Raises RequestRejected for numbers that the model cannot do, MemoryTooSmall before any
        work, and what `on_step` raises.
        """
        check_shape(self.spec, shot)
        stages = STAGES[shot.preset]
        if min(steps_of(stages, shot.steps)) < 2:
            raise RequestRejected(
                f"The preset {shot.preset} of {self.spec.name} needs more than {shot.steps} steps; "
                "ask for more, or leave steps out."
            )
        work = partial(self._generate, shot, image, on_step, stages)
        return run_planned(self._spec_for(shot), shot, self._loaded.device, work)

    def decode(self, shot: Shot, arrays: LatentArrays) -> Decoded:
        """The frames, rgb24 in chunks of 8, and the sound where the shot has it.

        The transformer leaves the GPU where there is no room beside it. Raises InferenceFailed
        when the latents are not those of this shot, and MemoryTooSmall, as do the chunks.
        """
        import torch

        device = self._loaded.device
        video, audio = (torch.from_numpy(array) for array in _checked(shot, arrays))
        decoded = Decoded(shot.width, shot.height, shot.frames, iter(()))
        if shot.audio:
            ways = self._ways(lambda: iter([self._sound(audio, shot.seconds)]))
            (sound,) = decode_by(ways, device, decoded.warnings)
            decoded.audio, decoded.sample_rate = sound
        ways = self._ways(lambda: self._frames(video))
        decoded.chunks = decode_by(ways, device, decoded.warnings)
        return decoded

    def close(self) -> None:
        """Give all memory back."""
        if self._networks is not None:
            device, self._networks = self._networks.device, None
            empty_cache(device)

    def _spec_for(self, shot: Shot) -> ModelSpec:
        """The facts with the memory plans as this shot needs them."""
        return replace(self.spec, plans=plans_for(self.spec.plans, shot, STAGES[shot.preset]))

    @property
    def _loaded(self) -> Networks:
        if self._networks is None:
            raise InferenceFailed("the model was used before it was loaded")
        return self._networks

    def _ways(self, start: Callable[[], Iterator[T]]) -> tuple[Way[T], ...]:
        """Beside all that is on the GPU, else alone: the same numbers either way."""

        def alone() -> Iterator[T]:
            self._loaded.make_room()
            return start()

        warning = "Decoding ran out of GPU memory; the transformer made room, and it went on."
        return Way(start), Way(alone, warning=warning)

    def _frames(self, video: Tensor) -> Iterator[np.ndarray]:
        networks = self._loaded
        with released(networks.device):
            vae = networks.small("vae")
            yield from frames_of(vae, as_made(vae, video.to(networks.device)))

    def _sound(self, audio: Tensor, seconds: float) -> tuple[np.ndarray, int]:
        networks = self._loaded
        audio_vae, vocoder = networks.small("audio_vae"), networks.small("vocoder")
        return sound_of(audio_vae, vocoder, audio.to(networks.device), seconds)

    def _generate(
        self,
        shot: Shot,
        image: Image.Image | None,
        on_step: OnStep,
        stages: Sequence[Stage],
        plan: MemoryPlan,
    ) -> Generated:
        networks, seconds = self._loaded, dict[str, float]()
        cache = EmbeddingCache(get_settings().host.home / "embeddings")
        with released(networks.device):
            networks.use(plan.name)
            with _timed(seconds, Phase.TEXT):
                texts = texts_of(shot, stages)
                prompts = encode(texts, networks, cache, self.spec.version, on_step)
            empty_cache(networks.device)  # before the transformer comes
            with _timed(seconds, Phase.LOAD):
                core = networks.core(lora_of(stages))
            with _timed(seconds, Phase.DENOISE):
                on_step(Phase.DENOISE, 0, shot.steps)
                video, audio = Denoising(networks, core, shot, image, on_step).run(stages, prompts)
            arrays = {"video": _array(video), "audio": _array(audio)}
        dtype = str(networks.dtype).removeprefix("torch.")
        return Generated(arrays, seconds, dtype, warnings=_warnings(shot, stages))


def _warnings(shot: Shot, stages: Sequence[Stage]) -> tuple[str, ...]:
    if not shot.negative_prompt or any(stage.guided for stage in stages):
        return ()
    return (f"The preset {shot.preset} has no use for a negative prompt; the preset dev has.",)


def _array(latents: Tensor) -> np.ndarray:
    return np.ascontiguousarray(latents.float().cpu().numpy())


def _checked(shot: Shot, arrays: LatentArrays) -> tuple[np.ndarray, np.ndarray]:
    video, audio = arrays.get("video"), arrays.get("audio")
    shape = (shot.frames - 1) // 8 + 1, shot.height // 32, shot.width // 32
    if video is None or audio is None or video.shape[2:] != shape:
        raise InferenceFailed("The stored latents are not of this LTX-2 video; generate it again.")
    return video, audio


@contextmanager
def _timed(seconds: dict[str, float], phase: Phase) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - begin
