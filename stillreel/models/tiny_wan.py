"""WAN 2.2 TI2V-5B's layout with tiny random weights: every class real, every layer small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

VOCABULARY = 98
VAE: Final[dict[str, Any]] = {
    "z_dim": 48,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
}
TRANSFORMER: Final[dict[str, Any]] = {
    "patch_size": (1, 2, 2),
    "in_channels": 48,
    "out_channels": 48,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}
"""What the networks of every size have in common; see `architectures`."""


def build(folder: Path, *, seed: int = 0) -> Path:
    """Write a pipeline folder of about half a megabyte to `folder`; the seed makes the weights."""
    import torch
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(seed)
    text_encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    ).eval()
    vae = AutoencoderKLWan(
        **VAE,
        base_dim=3,
        decoder_base_dim=3,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.01 * (index - 24) for index in range(48)],
        latents_std=[0.5 + 0.02 * index for index in range(48)],
    )
    transformer = WanTransformer3DModel(
        **TRANSFORMER,
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=64,
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        scheduler=scheduler(),
        transformer=transformer,
        expand_timesteps=True,
    )
    pipeline.save_pretrained(folder)
    _tie_as_the_hub_has_it(folder / "text_encoder")
    return folder


def scheduler() -> Any:
    """The official one."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=1000,
        flow_shift=5.0,
    )


def tokenizer() -> Any:
    """One that knows the characters of ASCII alone."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    pieces += [(chr(code), -2.0) for code in range(ord("!"), ord("~") + 1)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _tie_as_the_hub_has_it(folder: Path) -> None:
    """One embedding in the file, and a configuration that denies that two places share it."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("encoder.embed_tokens.weight", None)
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
