"""The denoising of LTX-2: a shot's stages one after the other, from noise to latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from stillreel.job import Shot
from stillreel.models.base import OnStep
from stillreel.models.ltx2_stages import Stage, steps_of
from stillreel.models.ltx2_text import Prompts
from stillreel.models.ltx2_weights import Core, Networks
from stillreel.models.torch_backend import generator_for, step_callback

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_CRF = 33
"""The model was trained on images that H.264 had compressed this much (2.5: 18)."""

Latents = tuple["Tensor", "Tensor"]
"""Of video (1, c, t, h, w) and of audio (1, c, t, mel), denormalised float32."""


class Denoising:
    """All stages of one shot, from one source of noise."""

    def __init__(
        self,
        networks: Networks,
        core: Core,
        shot: Shot,
        image: Image.Image | None,
        on_step: OnStep,
    ) -> None:
        self._networks, self._core, self._shot, self._on_step = networks, core, shot, on_step
        self._image = _compressed(image) if image else None
        self._generator = generator_for(shot)
        self._pipe = self._make_pipe()

    def run(self, stages: Sequence[Stage], prompts: Prompts) -> Latents:
        """The latents after the last stage; one of half the size is enlarged for the next."""
        done, made = 0, None
        for stage, steps in zip(stages, steps_of(stages, self._shot.steps), strict=True):
            made = self._run(stage, steps, done, prompts, made)
            done += steps
            if stage.half:
                made = self._enlarged(made[0]), made[1]
        assert made is not None  # noqa: S101 - there is at least one stage
        return made

    def _run(
        self, stage: Stage, steps: int, done: int, prompts: Prompts, before: Latents | None
    ) -> Latents:
        shot, share = self._shot, 2 if stage.half else 1
        arguments: dict[str, Any] = {"image": self._image, "image_crf": 0} if self._image else {}
        if before is not None:
            video, audio = before
            arguments |= {
                "latents": video,
                "audio_latents": audio,
                "noise_scale": stage.sigmas[0],
            }
        arguments |= {
            name: value
            for name, value in prompts.items()
            if stage.guided or not name.startswith("negative")
        }
        self._core.switch(distilled=not stage.guided)
        self._pipe.scheduler = self._scheduler(stage)
        return self._pipe(
            **arguments,
            **stage.guidance,
            height=shot.height // share,
            width=shot.width // share,
            num_frames=shot.frames,
            frame_rate=float(shot.fps),
            num_inference_steps=steps,
            sigmas=list(stage.sigmas) or None,
            generator=self._generator,
            callback_on_step_end=step_callback(self._on_step, shot.steps, done=done),
            output_type="latent",
            return_dict=False,
        )

    def _make_pipe(self) -> Any:
        import diffusers

        kind: Any = diffusers.LTX2ImageToVideoPipeline if self._image else diffusers.LTX2Pipeline
        pipe = kind(
            transformer=self._core.transformer,
            connectors=self._core.connectors,
            **{name: self._networks.small(name) for name in ("vae", "audio_vae", "scheduler")},
            **dict.fromkeys(("text_encoder", "tokenizer", "vocoder")),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _scheduler(self, stage: Stage) -> Any:
        """The folder's own, or one that takes a stage's noise levels as they are."""
        scheduler = self._networks.small("scheduler")
        if not stage.sigmas:
            return scheduler
        return scheduler.from_config(
            scheduler.config, shift=1.0, use_dynamic_shifting=False, shift_terminal=None
        )

    def _enlarged(self, video: Tensor) -> Tensor:
        """Twice as wide and high; the first frame is that of the image at its full size.

        diffusers would keep the enlarged one; the official distilled.py encodes the image again.
        """
        import torch
        from diffusers.pipelines.ltx2 import LTX2LatentUpsamplePipeline

        vae, upsampler = (self._networks.small(name) for name in ("vae", "latent_upsampler"))
        upsample = LTX2LatentUpsamplePipeline(vae=vae, latent_upsampler=upsampler)
        large = upsample(latents=video, output_type="latent", return_dict=False)[0].float()
        if self._image:
            pixels = self._pipe.video_processor.preprocess(
                self._image, height=self._shot.height, width=self._shot.width
            )
            with torch.no_grad():
                still = vae.encode(pixels.unsqueeze(2).to(vae.device, vae.dtype)).latent_dist
            large[:, :, :1] = still.mode()
        return large


def _compressed(image: Image.Image) -> Image.Image:
    from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf

    return Image.fromarray(apply_image_conditioning_crf(np.array(image.convert("RGB")), IMAGE_CRF))
