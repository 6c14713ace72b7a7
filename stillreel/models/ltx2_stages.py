"""How each preset of LTX-2 is made: its stages, their noise levels and what guides them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)
"""The noise levels of the distilled weights, from ltx_pipelines/utils/constants.py of LTX-2."""
REFINING = DISTILLED[5:]
"""Those of the second stage: it starts where this much noise covers what the first one made."""

UNGUIDED: Mapping[str, Any] = {
    "guidance_scale": 1.0,
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": 1.0,
    "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
    "spatio_temporal_guidance_blocks": None,
}
"""One forward per step. Each value is needed: diffusers' defaults guide, with four."""

GUIDED: Mapping[str, Any] = {
    "guidance_scale": 3.0,
    "stg_scale": 1.0,
    "modality_scale": 3.0,
    "guidance_rescale": 0.7,
    "audio_guidance_scale": 7.0,
    "audio_stg_scale": 1.0,
    "audio_modality_scale": 3.0,
    "audio_guidance_rescale": 0.7,
}
"""The official settings of the dev weights (as above); the block to guide by is the layout's."""


Lora = Literal["none", "merged", "switched"]
"""How the distilled LoRA is loaded: not at all, into the weights, or beside them."""


@dataclass(frozen=True)
class Stage:
    """One denoising pass."""

    sigmas: tuple[float, ...] = ()
    """Noise levels, exactly; empty takes as many steps as are left from the scheduler's own."""
    half: bool = False
    """At half the width and height; the next stage begins with this one's video, made larger."""
    guided: bool = False
    """With the guidance of the dev weights, else with that of the distilled ones: none."""

    def guidance(self, block: int) -> Mapping[str, Any]:
        """The arguments of the pipeline that say so, for weights that are guided by this block."""
        return {**GUIDED, "spatio_temporal_guidance_blocks": [block]} if self.guided else UNGUIDED


STAGES: Mapping[str, tuple[Stage, ...]] = {
    "standard": (Stage(DISTILLED, half=True), Stage(REFINING)),
    "one-stage": (Stage(DISTILLED),),
    "dev": (Stage(guided=True),),
    "dev-two-stage": (Stage(half=True, guided=True), Stage(REFINING)),
}
"""By preset, in order."""


def steps_of(stages: Sequence[Stage], steps: int) -> list[int]:
    """How many of a shot's `steps` each stage takes."""
    exact = sum(len(stage.sigmas) for stage in stages)
    return [len(stage.sigmas) or steps - exact for stage in stages]


def lora_of(stages: Sequence[Stage]) -> Lora:
    """What these stages need the distilled LoRA for."""
    guided = [stage.guided for stage in stages]
    if all(guided):
        return "none"
    return "switched" if any(guided) else "merged"
