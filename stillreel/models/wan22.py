"""WAN 2.2 TI2V-5B through diffusers: video from an image or from a prompt, without sound.

Settings are those of the model's own repository, Wan-Video/Wan2.2: wan/configs/wan_ti2v_5B.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from stillreel.errors import InferenceFailed
from stillreel.job import Phase, Shot
from stillreel.models.base import Decoded, Generated, LatentArrays, ModelSpec, OnStep
from stillreel.models.decoding import Way, decode_by, held_back
from stillreel.models.dmd import dmd_scheduler
from stillreel.models.embeddings import EmbeddingCache, key_of
from stillreel.models.memory import MemoryPlan, leaner
from stillreel.models.shots import usual
from stillreel.models.torch_backend import (
    check_shape,
    generator_for,
    hide_progress_bars,
    plan_for,
    released,
    require,
    run_planned,
    say_plan,
    step_callback,
)
from stillreel.models.wan22_weights import CHANNELS, Wan22Weights
from stillreel.models.wan_vae import decode_frames, decode_tiled
from stillreel.models.weights import load_part
from stillreel.settings import InferenceSettings, get_settings

if TYPE_CHECKING:
    import torch

GUIDANCE = 5.0
FLOW_SHIFT = 5.0
TEXT_TOKENS = 512
FULL = 3
"""The latent frame from which on decoding takes no more memory: its caches are full."""
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，"
    "毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""For orders that name none; wan/configs/shared_config.py."""


class Wan22Backend:
    """The official 50 steps with guidance, or three with distilled weights of their own.

    The latents are one array `video`, float32 (48, (frames - 1) / 4 + 1, height / 16, width / 16),
    normalised as the transformer makes them.
    """

    def __init__(self, spec: ModelSpec, settings: InferenceSettings) -> None:
        self.spec = spec
        self._settings = settings

    def load(self) -> None:
        """Load the weights of the first preset that is on this host.

        Raises ModelUnavailable when there is none, when they are another model's, or when a
        package is missing.
        """
        require(self.spec, "torch", "diffusers", "transformers", "accelerate", "ftfy")
        hide_progress_bars()
        self._embeddings = EmbeddingCache(get_settings().host.home / "embeddings")
        self._weights = Wan22Weights(self.spec, self._settings)
        self._weights.use(self._weights.find_any())
        say_plan(self.spec, usual(self.spec), self._weights.device)

    def generate(self, shot: Shot, image: Image.Image | None, on_step: OnStep) -> Generated:
        """The latents of `shot`; two forwards per step with guidance, one with distilled weights.

        Before any work raises ModelUnavailable when the weights of its preset are not on this
        host, RequestRejected for a size that the model does not make, MemoryTooSmall when no plan
        fits.
        """
        check_shape(self.spec, shot)
        self._weights.use(shot.preset)
        return run_planned(
            self.spec,
            shot,
            self._weights.device,
            lambda plan: self.generate_with(plan, shot, image, on_step),
        )

    def generate_with(
        self, plan: MemoryPlan, shot: Shot, image: Image.Image | None, on_step: OnStep
    ) -> Generated:
        """The latents of `shot` by this plan, on which they do not depend."""
        begin = time.perf_counter()
        prompts = [shot.prompt]
        if not self._distilled(shot):
            prompts.append(shot.negative_text(NEGATIVE_PROMPT))
        with released(self._weights.device):
            on_step(Phase.TEXT, 0, 1)
            texts = [self._embed(prompt, plan) for prompt in prompts]
            self._weights.place("denoise", plan)
            on_step(Phase.TEXT, 1, 1)
            encoded = time.perf_counter()
            latents = self._denoise(shot, image, [text["embed"] for text in texts], on_step)
        return Generated(
            arrays={"video": latents},
            seconds={Phase.TEXT: encoded - begin, Phase.DENOISE: time.perf_counter() - encoded},
            dtype=str(self._weights.dtype).removeprefix("torch."),
            warnings=self._warnings(shot, [int(text["tokens"]) for text in texts]),
        )

    def decode(self, shot: Shot, arrays: LatentArrays) -> Decoded:
        """The frames, rgb24: one, then four at a time, bit for bit those of a decode in one piece.

        Only the plan for the smallest GPUs decodes in tiles, whose edges can differ a little.
        Raises InferenceFailed when the latents are not those of this shot; the chunks raise
        MemoryTooSmall.
        """
        latents = arrays.get("video")
        if latents is None or latents.shape != _latent_shape(shot):
            raise InferenceFailed("The stored latents are not of this video; generate it again.")
        return self.decode_with(plan_for(self.spec, shot, self._weights.device), shot, latents)

    def decode_with(self, plan: MemoryPlan, shot: Shot, latents: np.ndarray) -> Decoded:
        """The frames by this plan, or the next leaner one; all but `tiled` give the same."""
        decoded = Decoded(shot.width, shot.height, shot.frames, iter(()))
        ways = [Way(lambda: self._frames(plan, latents))]
        if after := leaner(self.spec.plans, plan):
            warning = (
                f"The plan {plan.name} ran out of GPU memory while decoding; the frames were "
                f"decoded with {after.name}."
            )
            exact = after.name != "tiled"
            ways.append(Way(lambda: self._frames(after, latents), exact, warning))
        decoded.chunks = decode_by(ways, self._weights.device, decoded.warnings)
        return decoded

    def close(self) -> None:
        """Give all memory back."""
        self._weights.close()

    def _distilled(self, shot: Shot) -> bool:
        return self.spec.presets[shot.preset].steps_fixed

    def _warnings(self, shot: Shot, tokens: list[int]) -> tuple[str, ...]:
        warnings = [
            f"The {name} has {count} tokens, and {self.spec.name} read the first {TEXT_TOKENS}."
            for name, count in zip(("prompt", "negative prompt"), tokens, strict=False)
            if count > TEXT_TOKENS
        ]
        if shot.negative_prompt and self._distilled(shot):
            warnings.append(
                f"The preset {shot.preset} has no use for a negative prompt; standard has."
            )
        return tuple(warnings)

    def _embed(self, prompt: str, plan: MemoryPlan) -> dict[str, torch.Tensor]:
        """The `embed` (1, 512, width) of one prompt, on the CPU, and of how many `tokens` it is.

        One at a time: in a batch, its numbers would depend on the others.
        """
        import torch
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        key = key_of(f"{self.spec.version} {self._weights.dtype}", prompt)
        if stored := self._embeddings.load(key):
            return stored
        self._weights.place("text", plan)
        encoder = self._weights.use_text_encoder()
        with torch.no_grad():
            embed, _ = encoder.encode_prompt(
                prompt,
                do_classifier_free_guidance=False,
                max_sequence_length=TEXT_TOKENS,
                device=self._weights.device,
            )
        tokens = len(encoder.tokenizer(prompt_clean(prompt)).input_ids)
        made = {"embed": embed.cpu(), "tokens": torch.tensor(tokens)}
        self._embeddings.store(key, made)
        return made

    def _denoise(
        self, shot: Shot, image: Image.Image | None, embeds: list[torch.Tensor], on_step: OnStep
    ) -> np.ndarray:
        generator = generator_for(shot)
        pipe = self._pipeline(shot, image, generator)
        prompt, *negative = (embed.to(self._weights.device) for embed in embeds)
        latents = pipe(
            **({} if image is None else {"image": image}),
            prompt_embeds=prompt,
            negative_prompt_embeds=negative[0] if negative else None,
            height=shot.height,
            width=shot.width,
            num_frames=shot.frames,
            num_inference_steps=shot.steps,
            guidance_scale=GUIDANCE if negative else 1.0,
            generator=generator,
            output_type="latent",
            callback_on_step_end=step_callback(on_step, shot.steps),
        ).frames
        return latents[0].float().cpu().contiguous().numpy()

    def _pipeline(self, shot: Shot, image: Image.Image | None, generator: torch.Generator) -> Any:
        from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline

        if self._distilled(shot):
            scheduler = dmd_scheduler(generator)
        else:
            folder = self._weights.folder_of(shot.preset)
            scheduler = load_part(
                UniPCMultistepScheduler, folder, "scheduler", flow_shift=FLOW_SHIFT
            )
        pipeline: Any = WanPipeline if image is None else WanImageToVideoPipeline
        pipe = pipeline(
            tokenizer=None,
            text_encoder=None,
            vae=self._weights["vae"],
            scheduler=scheduler,
            transformer=self._weights["transformer"],
            expand_timesteps=True,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _frames(self, plan: MemoryPlan, latents: np.ndarray) -> Iterator[np.ndarray]:
        import torch

        decode = decode_tiled if plan.name == "tiled" else decode_frames
        with released(self._weights.device):
            self._weights.place("decode", plan)
            chunks = decode(self._weights["vae"], torch.from_numpy(latents))
            # Tiles cannot follow whole frames, so what memory it takes must be seen before.
            yield from held_back((frames.cpu().numpy() for frames in chunks), FULL)


def _latent_shape(shot: Shot) -> tuple[int, ...]:
    return CHANNELS, (shot.frames - 1) // 4 + 1, shot.height // 16, shot.width // 16
