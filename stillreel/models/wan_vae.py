"""Decoding with WAN's VAE one latent frame at a time, in the memory of four frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def decode_tiled(vae: Any, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """Frames of normalised latents, all at once, from tiles of 256x256 pixels that are blended.

    In a fifteenth of the memory, for a picture that is not quite the same.
    """
    import torch

    vae.enable_tiling()
    try:
        with torch.no_grad():
            video = vae.decode(_denormalised(vae, latents), return_dict=False)[0]
        yield _to_bytes(video)
    finally:
        vae.disable_tiling()


def decode_frames(vae: Any, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """Frames of normalised latents (48, n, h, w): uint8 (1, height, width, 3), then four at a time.

    Bit for bit those of `vae.decode` in one piece. Its convolutions look back only, and keep what
    they saw in a cache; diffusers walks the same way, but holds all frames and copies them each
    time (autoencoder_kl_wan.py, `_decode`). What it keeps to itself is used here, so the version
    is pinned and a test compares the two.
    """
    import torch

    vae.clear_cache()
    try:
        with torch.no_grad():
            inner = vae.post_quant_conv(_denormalised(vae, latents))
        for index in range(inner.shape[2]):
            # Not around the yield: it would hold for the caller, too.
            with torch.no_grad():
                frames = _decode_one(vae, inner[:, :, index : index + 1], first=index == 0)
            yield frames
    finally:
        vae.clear_cache()


def _denormalised(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """As the pipeline does it, down to the order of operations."""
    import torch

    def of_config(name: str) -> torch.Tensor:
        values = torch.tensor(getattr(vae.config, name))
        return values.view(1, vae.config.z_dim, 1, 1, 1)

    batch = latents[None].to(vae.device, vae.dtype)
    mean = of_config("latents_mean").to(batch.device, batch.dtype)
    inverse = 1.0 / of_config("latents_std").to(batch.device, batch.dtype)
    return batch / inverse + mean


def _decode_one(vae: Any, latent: torch.Tensor, *, first: bool) -> torch.Tensor:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae._conv_idx = [0]
    video = vae.decoder(latent, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=first)
    video = unpatchify(video, patch_size=vae.config.patch_size)
    return _to_bytes(torch.clamp(video, min=-1.0, max=1.0))


def _to_bytes(video: torch.Tensor) -> torch.Tensor:
    import torch

    shares = (video[0] * 0.5 + 0.5).clamp(0, 1)
    return (shares * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
