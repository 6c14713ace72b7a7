"""A whole LTX-2 with tiny random weights, in the layout of the real folder; built, not downloaded.

The classes, the configuration's shape and the file names are the real ones. The frames are noise,
but the same noise each time.
"""

from __future__ import annotations

from pathlib import Path
from string import ascii_letters
from typing import TYPE_CHECKING, Any, Literal

from stillreel.models.ltx2_layouts import LORA

if TYPE_CHECKING:
    import torch

Layout = Literal["2.0", "2.3", "2.5"]

HEADS, HEAD_DIM, AUDIO_HEAD_DIM = 2, 8, 4
CAPTION = 16
LATENT_CHANNELS = 8
TEXT_LAYERS = 2
LORA_RANK = 2


def build(folder: Path, *, layout: Layout = "2.0", layers: int = 2, seed: int = 0) -> Path:
    """The folder of a tiny pipeline; a few MB, some seconds.

    2.0 comes with its upsampler and its LoRA, 2.3 with neither, 2.5 with its upsampler and a dev
    transformer, which then is the one that has so many layers.
    """
    import torch
    from diffusers import LTX2Pipeline

    torch.manual_seed(seed)
    pipeline = LTX2Pipeline(
        scheduler=scheduler(for_dev=layout != "2.5"),
        vae=_vae(),
        audio_vae=_audio_vae(),
        text_encoder=_text_encoder_4() if layout == "2.5" else _text_encoder(),
        tokenizer=tokenizer(),
        connectors=_connectors(layout),
        transformer=_transformer(layout, 2 if layout == "2.5" else layers),
        vocoder=_vocoder(layout),
    )
    pipeline.save_pretrained(folder)
    if layout != "2.3":
        _upsampler().save_pretrained(folder / "latent_upsampler")
    if layout == "2.0":
        save_lora(folder / LORA, pipeline.transformer, rank=LORA_RANK, strength=0.2)
    if layout == "2.5":
        _transformer(layout, layers).save_pretrained(folder / "transformer_full")
    return folder


def build_upsampler(folder: Path) -> Path:
    """The folder that 2.3 takes its upsampler from: a pipeline of that and the VAE."""
    from diffusers.pipelines.ltx2 import LTX2LatentUpsamplePipeline

    LTX2LatentUpsamplePipeline(vae=_vae(), latent_upsampler=_upsampler()).save_pretrained(folder)
    return folder


def _upsampler() -> Any:
    from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel

    return LTX2LatentUpsamplerModel(
        in_channels=LATENT_CHANNELS, mid_channels=32, num_blocks_per_stage=1
    )


def scheduler(*, for_dev: bool = True) -> Any:
    """The official one, for the dev weights or as 2.5 has it for the distilled ones."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    shifting: dict[str, Any] = {"use_dynamic_shifting": True, "shift_terminal": 0.1}
    return FlowMatchEulerDiscreteScheduler(
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        **(shifting if for_dev else {}),
    )


def tokenizer() -> Any:
    """One that knows letters alone."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [*ascii_letters, "▁", ".", ","]
    pieces = special + [f"<0x{byte:02X}>" for byte in range(256)] + letters
    made = GemmaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])
    made.model_max_length = 1024
    return made


def _text_encoder() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config={
            "vocab_size": 512,
            "hidden_size": CAPTION,
            "intermediate_size": 32,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "sliding_window": 64,
            "max_position_embeddings": 1024,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    return Gemma3ForConditionalGeneration(config).eval()


def _text_encoder_4() -> Any:
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

    config = Gemma4UnifiedConfig(
        text_config={
            "vocab_size": 512,
            "hidden_size": CAPTION,
            "intermediate_size": 32,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "global_head_dim": 16,  # other than head_dim, as in the real one
            "sliding_window": 64,
            "max_position_embeddings": 1024,
        },
        vision_config=None,
        audio_config=None,
    )
    return Gemma4UnifiedForConditionalGeneration(config).eval()


def _connectors(layout: Layout) -> Any:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    newer: dict[str, Any] = {}
    if layout != "2.0":
        newer = {
            "audio_connector_attention_head_dim": AUDIO_HEAD_DIM,
            "video_gated_attn": True,
            "audio_gated_attn": True,
            "per_modality_projections": True,
            "video_hidden_dim": HEADS * HEAD_DIM,
            "audio_hidden_dim": HEADS * AUDIO_HEAD_DIM,
            "proj_bias": True,
        }
    common = {
        "caption_channels": CAPTION,
        "text_proj_in_factor": TEXT_LAYERS + 1,
        "video_connector_num_attention_heads": HEADS,
        "video_connector_attention_head_dim": HEAD_DIM,
        "video_connector_num_layers": 1,
        "video_connector_num_learnable_registers": 8,
        "audio_connector_num_attention_heads": HEADS,
        "audio_connector_attention_head_dim": HEAD_DIM,
        "audio_connector_num_layers": 1,
        "audio_connector_num_learnable_registers": 8,
        "rope_double_precision": False,
        "rope_type": "split",
    }
    return LTX2TextConnectors(**{**common, **newer}).eval()


def _transformer(layout: Layout, layers: int) -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    newer: dict[str, Any] = {}
    if layout != "2.0":
        newer = {
            "gated_attn": True,
            "cross_attn_mod": True,
            "audio_gated_attn": True,
            "audio_cross_attn_mod": True,
            "use_prompt_embeddings": False,
            "perturbed_attn": True,
        }
    if layout == "2.5":
        newer |= {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
    common = {
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_DIM,
        "cross_attention_dim": HEADS * HEAD_DIM,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": HEADS,
        "audio_attention_head_dim": AUDIO_HEAD_DIM,
        "audio_cross_attention_dim": HEADS * AUDIO_HEAD_DIM,
        "num_layers": layers,
        "caption_channels": CAPTION,
        "rope_double_precision": False,
        "rope_type": "split",
    }
    return LTX2VideoTransformer3DModel(**{**common, **newer}).eval()


def _vae() -> Any:
    import torch
    from diffusers import AutoencoderKLLTX2Video

    vae = AutoencoderKLLTX2Video(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(8, 16, 32, 64),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_causal=False,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    # With mean 0 and deviation 1 the order of a cast and of the scaling would not matter.
    vae.latents_mean.copy_(torch.linspace(-0.7, 0.9, LATENT_CHANNELS))
    vae.latents_std.copy_(torch.linspace(0.3, 2.1, LATENT_CHANNELS))
    return vae.eval()


def _audio_vae() -> Any:
    import torch
    from diffusers import AutoencoderKLLTX2Audio

    vae = AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=8
    )
    vae.latents_mean.copy_(torch.linspace(-0.2, 0.4, len(vae.latents_mean)))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, len(vae.latents_std)))
    return vae.eval()


def _vocoder(layout: Layout) -> Any:
    from diffusers.pipelines.ltx2 import LTX2Vocoder
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

    if layout == "2.0":
        return LTX2Vocoder(in_channels=16, hidden_channels=32, output_sampling_rate=24000).eval()
    return LTX2VocoderWithBWE(
        in_channels=16, hidden_channels=64, bwe_in_channels=16, bwe_hidden_channels=32,
        num_mel_channels=8,
    ).eval()  # fmt: skip


def save_lora(
    path: Path, transformer: Any, *, rank: int, strength: float, dtype: torch.dtype | None = None
) -> None:
    """Write a LoRA in the names of the official files; at 0.2 it is seen in each latent."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, module in transformer.named_modules():
        if name.startswith("transformer_blocks") and isinstance(module, torch.nn.Linear):
            down = torch.randn(rank, module.in_features) * strength
            up = torch.randn(module.out_features, rank) * strength
            tensors[f"diffusion_model.{name}.lora_A.weight"] = down.to(dtype)
            tensors[f"diffusion_model.{name}.lora_B.weight"] = up.to(dtype)
    save_file(tensors, path)
