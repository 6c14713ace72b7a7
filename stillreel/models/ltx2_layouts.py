"""What differs between LTX-2 2.0, 2.3 and 2.5, as data: the same classes serve all three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillreel.job import ModelName
from stillreel.models.ltx2_stages import Lora, Stage, lora_of

LORA = "ltx-2-19b-distilled-lora-384.safetensors"


@dataclass(frozen=True)
class Layout:
    """One generation of the weights: how its folder is laid out, and what it was trained with."""

    name: ModelName
    gated: bool
    """Whether attention is gated; with `ff_bias`, what tells a transformer from the others."""
    ff_bias: bool
    guided_block: int
    """The block that the official guidance of its dev weights perturbs."""
    image_crf: int
    """It was trained on images that H.264 had compressed this much."""
    cross_timestep: bool
    """Whether picture and sound attend to each other by the noise level of the other one, else by
    their own. Where an image is held, which has none, the two differ."""
    lora: str = ""
    """The file that makes its dev weights the distilled ones; empty where these are a folder."""
    dev: str = "transformer"
    """The folder of the dev weights."""
    dev_scheduler: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the dev weights want of the scheduler, where the folder's is for the distilled ones."""

    def core_of(self, stages: Sequence[Stage]) -> tuple[str, Lora]:
        """The folder of the transformer for these stages, and how the LoRA is loaded into it."""
        if self.lora:
            return self.dev, lora_of(stages)
        return (self.dev if any(stage.guided for stage in stages) else "transformer"), "none"


LAYOUTS: Mapping[ModelName, Layout] = {
    "ltx-2": Layout(
        "ltx-2",
        gated=False,
        ff_bias=True,
        guided_block=29,
        image_crf=33,
        cross_timestep=False,
        lora=LORA,
    ),
    "ltx-2.3": Layout(
        "ltx-2.3",
        gated=True,
        ff_bias=True,
        guided_block=28,
        image_crf=33,
        cross_timestep=True,
    ),
    "ltx-2.5": Layout(
        "ltx-2.5",
        gated=True,
        ff_bias=False,
        guided_block=28,
        image_crf=18,
        cross_timestep=True,
        dev="transformer_full",
        dev_scheduler={"use_dynamic_shifting": True, "shift_terminal": 0.1},
    ),
}
"""By model. Blocks, compression and noise levels as diffusers documents them for each, with the
arguments of LTX2ImageToVideoPipeline and LTX2VideoTransformer3DModel."""


def layout_in(config: Mapping[str, Any]) -> Layout | None:
    """The layout whose transformer has this configuration; None for one that is not known."""
    found = bool(config.get("gated_attn", False)), bool(config.get("ff_bias", True))
    return next((k for k in LAYOUTS.values() if (k.gated, k.ff_bias) == found), None)
