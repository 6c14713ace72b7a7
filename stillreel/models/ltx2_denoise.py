"""The denoising of LTX-2: a segment's stages one after the other, from noise to latents."""

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

Latents = tuple["Tensor", "Tensor"]
"""Of video (1, c, t, h, w) and of audio (1, c, t, mel), denormalised float32."""


class Denoising:
    """All segments of one shot and all their stages, from one source of noise."""

    def __init__(
        self,
        networks: Networks,
        core: Core,
        shot: Shot,
        image: Image.Image | None,
        on_step: OnStep,
        *,
        steps: int,
    ) -> None:
        """`steps` are those of all segments."""
        self._networks, self._core, self._shot, self._on_step = networks, core, shot, on_step
        crf = networks.layout.image_crf
        self._image = _compressed(image, crf) if image else None
        self._generator = generator_for(shot)
        self._done, self._steps = 0, steps

    def run(
        self,
        stages: Sequence[Stage],
        prompts: Prompts,
        frames: int,
        opening: np.ndarray | None = None,
    ) -> Latents:
        """The latents of a segment of so many frames after its last stage.

        It begins with the frames `opening`, uint8 (n, h, w, 3), if there are any, else with the
        image of the shot. A stage of half the size is enlarged for the next one.
        """
        pipe, given = self._pipe_for(opening)
        made = None
        for stage, steps in zip(stages, steps_of(stages, self._shot.steps), strict=True):
            made = self._run(pipe, given, stage, steps, prompts, frames, made)
            self._done += steps
            if stage.half:
                made = self._enlarged(pipe, made[0], with_image="image" in given), made[1]
        assert made is not None  # noqa: S101 - there is at least one stage
        return made

    def _run(
        self,
        pipe: Any,
        given: dict[str, Any],
        stage: Stage,
        steps: int,
        prompts: Prompts,
        frames: int,
        before: Latents | None,
    ) -> Latents:
        shot, share, layout = self._shot, 2 if stage.half else 1, self._networks.layout
        arguments = dict(given)
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
        pipe.scheduler = self._scheduler(stage)
        return pipe(
            **arguments,
            **stage.guidance(layout.guided_block),
            height=shot.height // share,
            width=shot.width // share,
            num_frames=frames,
            frame_rate=float(shot.fps),
            num_inference_steps=steps,
            sigmas=list(stage.sigmas) or None,
            use_cross_timestep=layout.cross_timestep,
            generator=self._generator,
            callback_on_step_end=step_callback(self._on_step, self._steps, done=self._done),
            output_type="latent",
            return_dict=False,
        )

    def _pipe_for(self, opening: np.ndarray | None) -> tuple[Any, dict[str, Any]]:
        """The pipeline of a segment, and what it is given to begin with."""
        import diffusers
        from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

        kind: Any = diffusers.LTX2Pipeline
        given: dict[str, Any] = {}
        if opening is not None:
            kind = diffusers.LTX2ConditionPipeline
            given = {"conditions": LTX2VideoCondition(opening)}
        elif self._image is not None:
            kind = diffusers.LTX2ImageToVideoPipeline
            given = {"image": self._image, "image_crf": 0}
        pipe = kind(
            transformer=self._core.transformer,
            connectors=self._core.connectors,
            **{name: self._networks.small(name) for name in ("vae", "audio_vae", "scheduler")},
            **dict.fromkeys(("text_encoder", "tokenizer", "vocoder")),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe, given

    def _scheduler(self, stage: Stage) -> Any:
        """That of the dev weights, or one that takes a stage's noise levels as they are."""
        scheduler = self._networks.small("scheduler")
        if not stage.sigmas:
            changes = dict(self._networks.layout.dev_scheduler)
            return scheduler.from_config(scheduler.config, **changes) if changes else scheduler
        return scheduler.from_config(
            scheduler.config, shift=1.0, use_dynamic_shifting=False, shift_terminal=None
        )

    def _enlarged(self, pipe: Any, video: Tensor, *, with_image: bool) -> Tensor:
        """Twice as wide and high; the first frame is that of the image at its full size.

        diffusers would keep the enlarged one; the official distilled.py encodes the image again.
        The pipeline for conditions does so itself.
        """
        import torch
        from diffusers.pipelines.ltx2 import LTX2LatentUpsamplePipeline

        vae, upsampler = (self._networks.small(name) for name in ("vae", "latent_upsampler"))
        upsample = LTX2LatentUpsamplePipeline(vae=vae, latent_upsampler=upsampler)
        large = upsample(latents=video, output_type="latent", return_dict=False)[0].float()
        if with_image:
            pixels = pipe.video_processor.preprocess(
                self._image, height=self._shot.height, width=self._shot.width
            )
            with torch.no_grad():
                still = vae.encode(pixels.unsqueeze(2).to(vae.device, vae.dtype)).latent_dist
            large[:, :, :1] = still.mode()
        return large


def _compressed(image: Image.Image, crf: int) -> Image.Image:
    from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf

    return Image.fromarray(apply_image_conditioning_crf(np.array(image.convert("RGB")), crf))
