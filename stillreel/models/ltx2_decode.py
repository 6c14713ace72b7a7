"""From the latents of LTX-2 to frames and sound: the same bytes on each call, window by window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 8
"""Frames that are handed on at once."""
OVERLAP = 3
"""Latent frames that two windows share and blend; a latent frame is 8 frames. As the official
decoder does (ltx_core/model/video_vae/tiling.py: 24 frames)."""
TILE = 16
"""Width and height, in latents of 32 pixels, from which a frame is decoded in tiles."""


def window_of(width: int, height: int) -> int:
    """How many latent frames are decoded at once; up to 5 s of 1080p are one window.

    It depends on the size alone, so that a video is decoded alike on every host.
    """
    return 16 if width * height <= 1920 * 1088 else 8


def frames_of(vae: Any, latents: Tensor) -> Iterator[np.ndarray]:
    """The frames of latents (1, c, t, h, w), uint8 (n, 32h, 32w, 3): 8(t - 1) + 1 in all.

    A video longer than a window is decoded in several that overlap, since the decoder looks ahead
    as well as back; no more than two of them are in memory. diffusers' own windows shift by one
    frame at each seam (AutoencoderKLLTX2Video._temporal_tiled_decode), these do not.
    """
    import torch

    count = latents.shape[2]
    window = window_of(32 * latents.shape[4], 32 * latents.shape[3])
    start, before = 0, None
    while True:
        last = start + window + 1 >= count
        with torch.no_grad():
            frames = _decode(vae, latents[:, :, start : start + window + 1])
            if before is not None:
                frames = vae.blend_t(before, frames[:, :, 1:], 8 * OVERLAP)
        kept = frames if last else frames[:, :, : -8 * OVERLAP]
        before = frames[:, :, -8 * OVERLAP :].clone()
        del frames
        for chunk in kept[0].split(CHUNK, dim=1):
            yield _as_bytes(chunk)
        if last:
            return
        start += window - OVERLAP


def last_frames(vae: Any, latents: Tensor, count: int) -> np.ndarray:
    """The last frames of latents, as their last window shows them, uint8 (count, 32h, 32w, 3)."""
    window = window_of(32 * latents.shape[4], 32 * latents.shape[3])
    chunks = frames_of(vae, as_made(vae, latents[:, :, -window - 1 :]))
    return np.concatenate(list(chunks))[-count:]


def sound_of(
    audio_vae: Any, vocoder: Any, latents: Tensor, seconds: float
) -> tuple[np.ndarray, int]:
    """The sound of audio latents (1, c, t, mel) as float32 (samples, 2), and its sample rate.

    The model's own sound ends some milliseconds before the picture; silence fills the rest.
    """
    import torch

    rate = int(vocoder.config.output_sampling_rate)
    with torch.no_grad():
        mel = audio_vae.decode(latents.to(audio_vae.dtype), return_dict=False)[0]
        wave = vocoder(mel)[0].float().clamp(-1, 1).cpu().numpy().T
    samples = np.zeros((round(seconds * rate), 2), np.float32)
    samples[: len(wave)] = wave[: len(samples)]
    return samples, rate


def as_made(vae: Any, latents: Tensor) -> Tensor:
    """Stored latents as they entered the decoder of the pipeline that made them, in its dtype.

    The pipeline casts before it undoes the normalisation; in bf16 the other order, which is that
    of a plain cast, gives other pixels.
    """
    if latents.dtype == vae.dtype:
        return latents
    from diffusers import LTX2Pipeline

    facts = vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    normalised = LTX2Pipeline._normalize_latents(latents, *facts).to(vae.dtype)
    return LTX2Pipeline._denormalize_latents(normalised, *facts)


def _decode(vae: Any, latents: Tensor) -> Tensor:
    """Frames (1, 3, 8(t - 1) + 1, 32h, 32w), about -1..1."""
    if max(latents.shape[3:]) > TILE:
        return vae.tiled_decode(latents, None).sample
    return vae.decode(latents, None, return_dict=False)[0]


def _as_bytes(frames: Tensor) -> np.ndarray:
    """Of (3, n, h, w), -1..1; in float32, since bf16 has too few levels for a smooth sky."""
    import torch

    light = (frames.float() / 2 + 0.5).clamp(0, 1) * 255
    return light.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()
