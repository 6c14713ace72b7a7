"""The networks of an LTX-2 folder: each loaded when it is needed, and put where the plan says.

The folder of 2.0 is the official repository. It has the dev weights, the upsampler, and the LoRA
that makes the dev weights the distilled ones: one download serves every preset. In those of 2.3 and
2.5 the distilled weights are a transformer of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from stillreel.errors import ModelUnavailable
from stillreel.models.ltx2_layouts import LAYOUTS, Layout, layout_in
from stillreel.models.ltx2_stages import Lora, Stage
from stillreel.models.memory import GB
from stillreel.models.torch_backend import empty_cache
from stillreel.models.weights import load_part, read_config

if TYPE_CHECKING:
    import torch

PARTS = (
    "text_encoder", "tokenizer", "connectors", "transformer", "scheduler", "vae", "audio_vae",
    "vocoder",
)  # fmt: skip
"""What each preset needs."""
UPSAMPLER = "latent_upsampler"
NOT_FOR_TEXT = (
    "transformer", "connectors", "vae", "audio_vae", "vocoder", "scheduler", "processor",
    "prompt_enhancer", "duration_head",
)  # fmt: skip
FP8_SKIPS = (
    "norm", "lora_", "^proj_in", "^proj_out", "audio_proj", "time_embed", "caption_projection",
    "av_cross_attn", "adaln",
)  # fmt: skip
"""Leaves FP8 to the transformer's blocks, as the official ltx_core/quantization/fp8_cast.py."""
ROOM_FOR_TEXT = 70 * GB
"""Memory of a host that has to be free for Gemma to wait in it: the next transformer is loaded
through it, 38 GB."""


@dataclass
class Core:
    """A transformer and its connectors, as one use of the LoRA needs them."""

    part: str
    """The folder of the transformer."""
    lora: Lora
    transformer: Any
    connectors: Any

    def switch(self, distilled: bool) -> None:
        """Turn the LoRA on or off where it is beside the weights."""
        if self.lora != "switched":
            return
        for network in (self.transformer, self.connectors):
            if network._hf_peft_config_loaded:
                network.enable_lora() if distilled else network.disable_lora()

    def check_block(self, block: int) -> None:
        """Raise ModelUnavailable unless there is this block to guide by.

        Guidance of a block that does not exist is none, and would not be noticed.
        """
        blocks = len(self.transformer.transformer_blocks)
        if block >= blocks:
            raise ModelUnavailable(
                f"The dev presets guide by block {block}, and the transformer on this host has "
                f"{blocks} blocks: these are other weights than the official ones."
            )


class Networks:
    """The networks of one folder on one device; `dtype` is what the large ones compute in.

    What is not in the folder is taken from those `beside` it.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        layout: Layout = LAYOUTS["ltx-2"],
        beside: Sequence[Path] = (),
    ) -> None:
        self.folder, self.device, self.dtype, self.layout = folder, device, dtype, layout
        self._folders = (folder, *beside)
        self._plan = ""
        self._text: Any = None
        self._core: Core | None = None
        self._small: dict[str, Any] = {}

    def check(self, stages: Sequence[Stage] = (), preset: str = "") -> None:
        """Raise ModelUnavailable unless all that the stages of a preset need is there.

        Also when it is there in the layout of another LTX-2.
        """
        part, lora = self.layout.core_of(stages)
        parts = [*dict.fromkeys((*PARTS, part)), *(UPSAMPLER for s in stages[:1] if s.half)]
        missing = [f"{part}/" for part in parts if not (self._folder_of(part) / part).is_dir()]
        name, lora_file = self.layout.name, self.folder / self.layout.lora
        missing += [] if lora == "none" or lora_file.is_file() else [self.layout.lora]
        option = f" --preset {preset}" if preset else ""
        if missing:
            raise ModelUnavailable(
                f"The weights on this host are not all that {name} needs: {', '.join(missing)} "
                f"are not there. Run: stillreel models pull {name}{option}. Of its presets, "
                "one-stage needs the least."
            )
        found = layout_in(read_config(self.folder, "transformer"))
        if found is not self.layout:
            raise ModelUnavailable(
                f"The weights found for {name} are those of "
                f"{found.name if found else 'another LTX-2'}, by the configuration of their "
                f"transformer. Run: stillreel models pull {name}{option}, or set MODEL_PATH to the "
                "right folder."
            )

    def use(self, plan: str) -> None:
        """Put networks where this plan says from now on; what stands elsewhere is loaded anew."""
        if plan != self._plan:
            self._plan, self._text, self._core = plan, None, None

    def text(self) -> Any:
        """A pipeline that can encode prompts and nothing else."""
        if self._text is None:
            self._text = self._load_text()
        return self._text

    def release_text(self) -> None:
        """Give the text encoder's memory back, unless the GPU or the host has plenty of it."""
        if self._plan != "resident" and psutil.virtual_memory().available < ROOM_FOR_TEXT:
            self._text = None

    def make_room(self) -> None:
        """Drop all that a decode has no use for; what is needed again is loaded again."""
        self._text = self._core = None
        empty_cache(self.device)

    def core(self, lora: Lora, part: str = "transformer") -> Core:
        """The transformer of this folder and the connectors, for this use of the LoRA."""
        if self._core is None or (self._core.part, self._core.lora) != (part, lora):
            self._core = None  # two transformers are more than most hosts hold
            self._core = self._load_core(lora, part)
        return self._core

    def small(self, name: str) -> Any:
        """The vae, audio_vae, vocoder, scheduler or latent_upsampler; it stays where it is."""
        if name not in self._small:
            self._small[name] = self._load_small(name)
        return self._small[name]

    def _load_text(self) -> Any:
        from diffusers import LTX2Pipeline

        absent = dict.fromkeys(NOT_FOR_TEXT)
        pipe = load_part(LTX2Pipeline, self.folder, "", dtype=self.dtype, **absent)
        if self._plan in ("resident", "cpu"):
            pipe.text_encoder.to(self.device)
        else:
            _stream(pipe.text_encoder, self.device, offload_type="leaf_level", use_stream=False)
        return pipe

    def _load_core(self, lora: Lora, part: str) -> Core:
        from diffusers import LTX2VideoTransformer3DModel
        from diffusers.pipelines.ltx2 import LTX2TextConnectors

        transformer = load_part(
            LTX2VideoTransformer3DModel,
            self.folder,
            part,
            dtype=self.dtype,
            perturbed_attn=True,  # else, as 2.0's own configuration says, STG changes nothing
        )
        connectors = load_part(LTX2TextConnectors, self.folder, "connectors", dtype=self.dtype)
        if lora != "none":
            file = self.folder / self.layout.lora
            _add_lora(file, transformer, connectors, merged=lora == "merged")
        place(transformer, self._plan, self.device, self.dtype)
        return Core(part, lora, transformer, connectors.to(self.device))

    def _folder_of(self, part: str) -> Path:
        return next((known for known in self._folders if (known / part).is_dir()), self.folder)

    def _load_small(self, name: str) -> Any:
        import diffusers
        import torch
        from diffusers.pipelines import ltx2

        if name == "scheduler":
            return load_part(diffusers.FlowMatchEulerDiscreteScheduler, self.folder, name)
        kinds = {
            "vae": diffusers.AutoencoderKLLTX2Video,
            UPSAMPLER: ltx2.LTX2LatentUpsamplerModel,
            "audio_vae": diffusers.AutoencoderKLLTX2Audio,
            "LTX2Vocoder": ltx2.LTX2Vocoder,
            "LTX2VocoderWithBWE": ltx2.LTX2VocoderWithBWE,
        }
        kind = name if name in kinds else read_config(self.folder, name).get("_class_name")
        if kind not in kinds:
            raise ModelUnavailable(f"The {name} on this host is a {kind}, which is none of LTX-2.")
        dtype = torch.float32 if name in ("audio_vae", "vocoder") else self.dtype
        return load_part(kinds[kind], self._folder_of(name), name, dtype=dtype).to(self.device)


def place(transformer: Any, plan: str, device: torch.device, dtype: torch.dtype) -> None:
    """Put a transformer that is in the host's memory where `plan` says."""
    import torch

    if plan == "streamed":
        _stream(
            transformer,
            device,
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=device.type == "cuda",  # a block comes while the one before it works
        )
        return
    if plan == "fp8":
        transformer.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn,
            compute_dtype=dtype,
            skip_modules_pattern=FP8_SKIPS,
        )
    transformer.to(device)


def _stream(network: Any, device: torch.device, **how: Any) -> None:
    """Keep the weights in the host's memory, from where each part comes for its own forward."""
    import torch
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        network,
        onload_device=device,
        offload_device=torch.device("cpu"),
        **how,
    )


def _add_lora(file: Path, transformer: Any, connectors: Any, *, merged: bool) -> None:
    from diffusers import LTX2Pipeline

    absent: Any = dict.fromkeys(
        ("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "vocoder")
    )
    pipe = LTX2Pipeline(transformer=transformer, connectors=connectors, **absent)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="distilled")
    for network in (transformer, connectors):
        if merged and network._hf_peft_config_loaded:
            network.fuse_lora()
            network.unload_lora()
