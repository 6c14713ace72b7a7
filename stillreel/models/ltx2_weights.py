"""The networks of an LTX-2 folder: each loaded when it is needed, and put where the plan says.

The folder is the official repository. It has the dev weights, the upsampler, and the LoRA that
makes the dev weights the distilled ones: one download serves every preset.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from stillreel.errors import ModelUnavailable
from stillreel.models.ltx2_stages import GUIDED, Lora
from stillreel.models.memory import GB
from stillreel.models.torch_backend import empty_cache
from stillreel.models.weights import load_part, read_config

if TYPE_CHECKING:
    import torch

LORA = "ltx-2-19b-distilled-lora-384.safetensors"
PARTS = (
    "text_encoder", "tokenizer", "connectors", "transformer", "scheduler", "vae", "audio_vae",
    "vocoder", "latent_upsampler",
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
    """The transformer and its connectors, as one use of the LoRA needs them."""

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


class Networks:
    """The networks of one folder on one device; `dtype` is what the large ones compute in."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self._plan = ""
        self._text: Any = None
        self._core: Core | None = None
        self._small: dict[str, Any] = {}

    def check(self) -> None:
        """Raise ModelUnavailable unless every part of the folder is there."""
        missing = [f"{part}/" for part in PARTS if not (self.folder / part).is_dir()]
        missing += [] if (self.folder / LORA).is_file() else [LORA]
        if missing:
            raise ModelUnavailable(
                f"The weights on this host are not all of LTX-2, {', '.join(missing)} are not "
                "there. Run: stillreel models pull ltx-2"
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

    def core(self, lora: Lora) -> Core:
        """The transformer and the connectors for this use of the LoRA."""
        if self._core is None or self._core.lora != lora:
            self._core = None  # two transformers are more than most hosts hold
            self._core = self._load_core(lora)
        return self._core

    def small(self, name: str) -> Any:
        """The vae, audio_vae, vocoder, scheduler or latent_upsampler; it stays where it is."""
        if name not in self._small:
            self._small[name] = self._load_small(name)
        return self._small[name]

    def _load_text(self) -> Any:
        from diffusers import LTX2Pipeline

        absent = dict.fromkeys(
            ("transformer", "connectors", "vae", "audio_vae", "vocoder", "scheduler")
        )
        pipe = load_part(LTX2Pipeline, self.folder, "", dtype=self.dtype, **absent)
        if self._plan in ("resident", "cpu"):
            pipe.text_encoder.to(self.device)
        else:
            _stream(pipe.text_encoder, self.device, offload_type="leaf_level", use_stream=False)
        return pipe

    def _load_core(self, lora: Lora) -> Core:
        from diffusers import LTX2VideoTransformer3DModel
        from diffusers.pipelines.ltx2 import LTX2TextConnectors

        transformer = load_part(
            LTX2VideoTransformer3DModel,
            self.folder,
            "transformer",
            dtype=self.dtype,
            perturbed_attn=True,  # else, as 2.0's own configuration says, STG changes nothing
        )
        if lora != "merged":
            _check_guided_block(transformer)
        connectors = load_part(LTX2TextConnectors, self.folder, "connectors", dtype=self.dtype)
        if lora != "none":
            _add_lora(self.folder, transformer, connectors, merged=lora == "merged")
        place(transformer, self._plan, self.device, self.dtype)
        return Core(lora, transformer, connectors.to(self.device))

    def _load_small(self, name: str) -> Any:
        import diffusers
        import torch
        from diffusers.pipelines import ltx2

        if name == "scheduler":
            return load_part(diffusers.FlowMatchEulerDiscreteScheduler, self.folder, name)
        kinds = {
            "vae": diffusers.AutoencoderKLLTX2Video,
            "latent_upsampler": ltx2.LTX2LatentUpsamplerModel,
            "audio_vae": diffusers.AutoencoderKLLTX2Audio,
            "LTX2Vocoder": ltx2.LTX2Vocoder,
            "LTX2VocoderWithBWE": ltx2.LTX2VocoderWithBWE,
        }
        kind = name if name in kinds else read_config(self.folder, name).get("_class_name")
        if kind not in kinds:
            raise ModelUnavailable(f"The {name} on this host is a {kind}, which is none of LTX-2.")
        dtype = torch.float32 if name in ("audio_vae", "vocoder") else self.dtype
        return load_part(kinds[kind], self.folder, name, dtype=dtype).to(self.device)


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


def _add_lora(folder: Path, transformer: Any, connectors: Any, *, merged: bool) -> None:
    from diffusers import LTX2Pipeline

    absent: Any = dict.fromkeys(
        ("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "vocoder")
    )
    pipe = LTX2Pipeline(transformer=transformer, connectors=connectors, **absent)
    pipe.load_lora_weights(str(folder), weight_name=LORA, adapter_name="distilled")
    for network in (transformer, connectors):
        if merged and network._hf_peft_config_loaded:
            network.fuse_lora()
            network.unload_lora()


def _check_guided_block(transformer: Any) -> None:
    """Guidance of a block that does not exist is none, and would not be noticed."""
    blocks, block = (
        len(transformer.transformer_blocks),
        GUIDED["spatio_temporal_guidance_blocks"][0],
    )
    if block >= blocks:
        raise ModelUnavailable(
            f"The dev presets of ltx-2 guide by block {block}, and the transformer on this host "
            f"has {blocks} blocks: these are other weights than Lightricks/LTX-2."
        )
