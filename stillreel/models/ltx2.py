"""LTX-2 through diffusers: from an image, or from a prompt alone, to a video with stereo sound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from stillreel.errors import InferenceFailed, RequestRejected
from stillreel.job import Phase, Shot, frames_for
from stillreel.models.base import Decoded, Generated, LatentArrays, ModelSpec, OnStep
from stillreel.models.decoding import Way, decode_by
from stillreel.models.embeddings import EmbeddingCache
from stillreel.models.ltx2_decode import as_made, frames_of, last_frames, sound_of
from stillreel.models.ltx2_denoise import Denoising
from stillreel.models.ltx2_layouts import LAYOUTS
from stillreel.models.ltx2_plans import plans_for
from stillreel.models.ltx2_segments import (
    OVERLAP,
    frames_of_all,
    join,
    join_sound,
    seams_of,
    segments_of,
)
from stillreel.models.ltx2_stages import STAGES, Stage, steps_of
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
from stillreel.models.weights import find_beside, find_preset, find_weights
from stillreel.settings import InferenceSettings, get_settings

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "av")


class Ltx2Backend:
    """LTX-2 on the GPU or, with networks tiny enough for it, on the CPU; 2.0, 2.3 and 2.5 alike.

    The latents are `video`, float32 (1, 128, t, h, w), and `audio`, float32 (1, 8, t, 16), both
    denormalised, as the pipeline gives them; those of further segments are `video_2`, `audio_2` and
    so on.
    """

    def __init__(self, spec: ModelSpec, settings: InferenceSettings) -> None:
        self.spec = spec
        self._settings = settings
        self._networks: Networks | None = None

    def load(self) -> None:
        """Check that all is there; each network comes when it is first needed, the largest last.

        Raises ModelUnavailable when a package is missing, or the weights are, or are not those of
        this LTX-2.
        """
        require(self.spec, *PACKAGES)
        hide_progress_bars()
        self._networks = self._open(find_preset(self.spec, self._settings))
        shot = usual(self.spec)
        say_plan(self._spec_for(shot), shot, self._networks.device)

    def generate(self, shot: Shot, image: Image.Image | None, on_step: OnStep) -> Generated:
        """The latents of `shot`, by the stages of its preset; its steps are those of all stages.

        A shot longer than the model makes in one piece is made in segments, each with these steps.
        Raises RequestRejected for numbers that the model cannot do, ModelUnavailable when what its
        preset needs is not on this host, MemoryTooSmall before any work, and what `on_step` raises.
        """
        check_shape(self.spec, shot)
        stages = STAGES[shot.preset]
        if min(steps_of(stages, shot.steps)) < 2:
            raise RequestRejected(
                f"The preset {shot.preset} of {self.spec.name} needs more than {shot.steps} steps; "
                "ask for more, or leave steps out."
            )
        networks = self._networks_for(shot.preset)
        networks.check(stages, shot.preset)
        segments = segments_of(shot.frames, self._native_frames(shot))
        longest = shot.model_copy(update={"frames": max(segments)})
        work = partial(self._generate, shot, image, on_step, stages, segments)
        return run_planned(self._spec_for(longest), longest, networks.device, work)

    def decode(self, shot: Shot, arrays: LatentArrays) -> Decoded:
        """The frames, rgb24 in chunks of about 8, and the sound where the shot has it.

        The transformer leaves the GPU where there is no room beside it. Raises InferenceFailed
        when the latents are not those of this shot, and MemoryTooSmall, as do the chunks.
        """
        networks = self._networks_for(shot.preset)
        videos, sounds = _checked(shot, arrays)
        segments = [8 * (video.shape[2] - 1) + 1 for video in videos]
        decoded = Decoded(shot.width, shot.height, shot.frames, iter(()))
        if shot.audio:
            waves = [
                self._sound(networks, sound, frames / shot.fps, decoded.warnings)
                for sound, frames in zip(sounds, segments, strict=True)
            ]
            decoded.sample_rate = waves[0][1]
            decoded.audio = join_sound(
                [wave for wave, _ in waves], segments, shot.fps, decoded.sample_rate
            )
        ways = _ways(networks, lambda: join([_frames(networks, video) for video in videos]))
        decoded.chunks = decode_by(ways, networks.device, decoded.warnings)
        return decoded

    def close(self) -> None:
        """Give all memory back."""
        if self._networks is not None:
            device, self._networks = self._networks.device, None
            empty_cache(device)

    def _spec_for(self, shot: Shot) -> ModelSpec:
        """The facts with the memory plans as this shot needs them."""
        return replace(self.spec, plans=plans_for(self.spec.plans, shot, STAGES[shot.preset]))

    def _networks_for(self, preset: str) -> Networks:
        """Those of the repository that a preset is made with; one repository's at a time."""
        if self._networks is None:
            raise InferenceFailed("the model was used before it was loaded")
        if self._folder_of(preset) != self._networks.folder:
            networks = self._open(preset)
            self.close()
            self._networks = networks
        return self._networks

    def _open(self, preset: str) -> Networks:
        device = pick_device()
        networks = Networks(
            self._folder_of(preset),
            device,
            dtype_on(device),
            LAYOUTS[self.spec.name],
            beside=find_beside(self.spec, self._settings, preset),
        )
        networks.check()
        return networks

    def _folder_of(self, preset: str) -> Path:
        repo_id = self.spec.presets[preset].repo_id
        return find_weights(self.spec, self._settings, repo_id=repo_id)

    def _native_frames(self, shot: Shot) -> int:
        seconds = self.spec.native_seconds or self.spec.max_seconds
        return frames_for(seconds, shot.fps, self.spec.frame_step)

    def _generate(
        self,
        shot: Shot,
        image: Image.Image | None,
        on_step: OnStep,
        stages: Sequence[Stage],
        segments: Sequence[int],
        plan: MemoryPlan,
    ) -> Generated:
        networks, seconds = self._networks_for(shot.preset), dict[str, float]()
        cache = EmbeddingCache(get_settings().host.home / "embeddings")
        steps = shot.steps * len(segments)
        with released(networks.device):
            networks.use(plan.name)
            with _timed(seconds, Phase.TEXT):
                texts = texts_of(shot, stages)
                prompts = encode(texts, networks, cache, self.spec.version, on_step)
            empty_cache(networks.device)  # before the transformer comes
            with _timed(seconds, Phase.LOAD):
                part, lora = networks.layout.core_of(stages)
                core = networks.core(lora, part)
                if any(stage.guided for stage in stages):
                    core.check_block(networks.layout.guided_block)
            with _timed(seconds, Phase.DENOISE):
                on_step(Phase.DENOISE, 0, steps)
                denoising = Denoising(networks, core, shot, image, on_step, steps=steps)
                arrays: LatentArrays = {}
                opening: np.ndarray | None = None
                for number, frames in enumerate(segments, 1):
                    video, audio = denoising.run(stages, prompts, frames, opening)
                    names = names_of(number)
                    arrays |= dict(zip(names, (_array(video), _array(audio)), strict=True))
                    if number < len(segments):
                        opening = last_frames(networks.small("vae"), video, OVERLAP)
        dtype = str(networks.dtype).removeprefix("torch.")
        return Generated(arrays, seconds, dtype, warnings=_warnings(shot, stages, segments))

    @staticmethod
    def _sound(
        networks: Networks, latents: np.ndarray, seconds: float, warnings: list[str]
    ) -> tuple[np.ndarray, int]:
        import torch

        def sound() -> Iterator[tuple[np.ndarray, int]]:
            audio_vae, vocoder = networks.small("audio_vae"), networks.small("vocoder")
            given = torch.from_numpy(latents).to(networks.device)
            yield sound_of(audio_vae, vocoder, given, seconds)

        (made,) = decode_by(_ways(networks, sound), networks.device, warnings)
        return made


def names_of(segment: int) -> tuple[str, str]:
    """The names of a segment's arrays, of video and of audio; the first one is 1."""
    more = f"_{segment}" if segment > 1 else ""
    return f"video{more}", f"audio{more}"


def _ways(networks: Networks, start: Callable[[], Iterator[T]]) -> tuple[Way[T], ...]:
    """Beside all that is on the GPU, else alone: the same numbers either way."""

    def alone() -> Iterator[T]:
        networks.make_room()
        return start()

    warning = "Decoding ran out of GPU memory; the transformer made room, and it went on."
    return Way(start), Way(alone, warning=warning)


def _frames(networks: Networks, latents: np.ndarray) -> Iterator[np.ndarray]:
    import torch

    with released(networks.device):
        vae = networks.small("vae")
        yield from frames_of(vae, as_made(vae, torch.from_numpy(latents).to(networks.device)))


def _warnings(shot: Shot, stages: Sequence[Stage], segments: Sequence[int]) -> tuple[str, ...]:
    warnings = [
        f"From second {seam / shot.fps:.1f} on, the video continues the last {OVERLAP} frames of "
        "what was made before, with a sound of its own: the model makes no more in one piece."
        for seam in seams_of(segments)
    ]
    if shot.negative_prompt and not any(stage.guided for stage in stages):
        warnings.append(
            f"The preset {shot.preset} has no use for a negative prompt; the preset dev has."
        )
    return tuple(warnings)


def _array(latents: Tensor) -> np.ndarray:
    return np.ascontiguousarray(latents.float().cpu().numpy())


def _checked(shot: Shot, arrays: LatentArrays) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The latents of all segments, of video and of audio."""
    names = [names_of(number) for number in range(1, len(arrays) // 2 + 1)]
    if names and arrays.keys() == {name for pair in names for name in pair}:
        videos, sounds = ([arrays[pair[n]] for pair in names] for n in (0, 1))
        size = shot.height // 32, shot.width // 32
        frames = frames_of_all([8 * (video.shape[2] - 1) + 1 for video in videos])
        if frames == shot.frames and all(video.shape[3:] == size for video in videos):
            return videos, sounds
    raise InferenceFailed("The stored latents are not of this LTX-2 video; generate it again.")


@contextmanager
def _timed(seconds: dict[str, float], phase: Phase) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - begin
