"""Pipeline folders of the real architectures, all of a model but its numbers.

The values are those of diffusers' converters (scripts/convert_ltx2_to_diffusers.py, version 2.0,
and scripts/convert_wan_to_diffusers.py, TI2V-5B), Gemma 3 12B's and UMT5-XXL's own. Most of LTX-2's
are the defaults of its classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillreel.job import ModelName
from stillreel.models import tiny_ltx2, tiny_wan
from stillreel.models.ltx2_layouts import LORA
from stillreel.models.ltx2_stages import STAGES, lora_of
from stillreel.models.random_weights import save_hollow

LORA_RANK = 384


def build_real(model: ModelName, folder: Path, *, preset: str) -> Path:
    """A folder of a real size that takes no disk; the numbers are made when a part is loaded.

    LTX-2's LoRA is a file, of 7.7 GB for a preset that keeps it beside the weights; where it is
    merged, so that its rank takes no time and no memory, of rank 1.
    """
    import torch

    networks = NETWORKS[model]()
    save_hollow(folder, PIPELINES[model](networks), networks)
    if model == "ltx-2":
        rank = LORA_RANK if lora_of(STAGES[preset]) == "switched" else 1
        transformer = networks["transformer"]
        tiny_ltx2.save_lora(
            folder / LORA, transformer, rank=rank, strength=0.01, dtype=torch.bfloat16
        )
    return folder


def build_tiny(model: ModelName, folder: Path) -> Path:
    """A folder of a few MB of the same classes, for a CPU."""
    return {"ltx-2": tiny_ltx2.build, "wan-2.2": tiny_wan.build}[model](folder)


def ltx2_networks() -> dict[str, Any]:
    """The networks of LTX-2 19B without memory, by the names of their folders."""
    import torch
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel, LTX2TextConnectors, LTX2Vocoder

    with torch.device("meta"):
        networks = {
            "transformer": LTX2VideoTransformer3DModel(rope_type="split"),
            "connectors": LTX2TextConnectors(rope_type="split"),
            "vae": AutoencoderKLLTX2Video(
                decoder_causal=False, spatial_compression_ratio=32, temporal_compression_ratio=8
            ),
            "audio_vae": AutoencoderKLLTX2Audio(),
            "vocoder": LTX2Vocoder(),
            "latent_upsampler": LTX2LatentUpsamplerModel(),
            "text_encoder": _gemma3(),
        }
    for name in ("vae", "audio_vae"):  # a deviation of nothing would be divided by
        networks[name].latents_std = torch.ones(networks[name].latents_std.shape)
    return networks


def wan22_networks() -> dict[str, Any]:
    """The networks of WAN 2.2 TI2V-5B without memory, by the names of their folders."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        return {
            "transformer": WanTransformer3DModel(
                **tiny_wan.TRANSFORMER,
                num_attention_heads=24,
                attention_head_dim=128,
                text_dim=4096,
                freq_dim=256,
                ffn_dim=14336,
                num_layers=30,
            ),
            "vae": AutoencoderKLWan(
                **tiny_wan.VAE,
                base_dim=160,
                decoder_base_dim=256,
                dim_mult=[1, 2, 4, 4],
                num_res_blocks=2,
                latents_mean=[0.0] * 48,
                latents_std=[1.0] * 48,
            ),
            "text_encoder": UMT5EncoderModel(
                UMT5Config(
                    vocab_size=256384,
                    d_model=4096,
                    d_kv=64,
                    d_ff=10240,
                    num_layers=24,
                    num_heads=64,
                )
            ),
        }


def _gemma3() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config={
            "vocab_size": 262208,
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "sliding_window": 1024,
        },
        vision_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
        },
        mm_tokens_per_image=256,
    )
    return Gemma3ForConditionalGeneration(config)


def _ltx2_pipeline(networks: dict[str, Any]) -> Any:
    from diffusers import LTX2Pipeline

    parts: dict[str, Any] = {k: v for k, v in networks.items() if k != "latent_upsampler"}
    return LTX2Pipeline(**parts, scheduler=tiny_ltx2.scheduler(), tokenizer=tiny_ltx2.tokenizer())


def _wan22_pipeline(networks: dict[str, Any]) -> Any:
    from diffusers import WanPipeline

    parts: dict[str, Any] = networks
    return WanPipeline(
        **parts,
        scheduler=tiny_wan.scheduler(),
        tokenizer=tiny_wan.tokenizer(),
        expand_timesteps=True,
    )


NETWORKS: dict[ModelName, Callable[[], dict[str, Any]]] = {
    "ltx-2": ltx2_networks,
    "wan-2.2": wan22_networks,
}
PIPELINES: dict[ModelName, Callable[[dict[str, Any]], Any]] = {
    "ltx-2": _ltx2_pipeline,
    "wan-2.2": _wan22_pipeline,
}
