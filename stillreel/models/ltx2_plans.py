"""What LTX-2 takes of a GPU's memory: its plans, and what a shot adds to them.

All numbers are derived, none is measured. Sizes in GB, counted on networks without memory (bf16
takes 2 bytes a weight): transformer 37.8, of which 18.6 are saved where its blocks are FP8;
connectors 2.9, video VAE 2.4, audio VAE and vocoder 0.4 (fp32), upsampler 1.0, Gemma 24.4. 1.5 are
left for CUDA itself and for fragments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stillreel.job import Shot
from stillreel.models.ltx2_decode import window_of
from stillreel.models.ltx2_stages import Stage, lora_of
from stillreel.models.memory import GB, MemoryPlan

TOKEN_BYTES = 200_000
"""The transformer is 4096 wide, 8 kB a token and tensor: six for modulation (in image-to-video
each token has its own time), eight for the feed-forward and ten more, some of them double."""
LORA_BYTES = int(7.7 * GB)
"""The LoRA beside the weights: rank 384, bf16."""
TILE_BYTES = 3 * GB
"""Activations of the video VAE in one tile of 512x512 and one window of frames."""
WINDOWS = 5
"""How often a window's frames exist in a decode: as tiles, as rows, whole, and the one before."""


def _plan(name: str, description: str, *, resident: float, text: float) -> MemoryPlan:
    weights = int(resident * GB)
    decode = weights + _decode_bytes(3840, 2176)
    return MemoryPlan(name, description, weights, TOKEN_BYTES, decode, int(text * GB))


def plans_for(
    plans: Sequence[MemoryPlan], shot: Shot, stages: Sequence[Stage]
) -> tuple[MemoryPlan, ...]:
    """The plans as this shot needs them: its own decode, its LoRA, its batch of two."""
    batch = 2 if stages[-1].guided else 1
    lora = LORA_BYTES if lora_of(stages) == "switched" else 0
    decode = _decode_bytes(shot.width, shot.height)
    return tuple(
        replace(
            plan,
            resident_bytes=plan.resident_bytes + lora,
            bytes_per_token=plan.bytes_per_token * batch,
            decode_bytes=plan.resident_bytes + lora + decode,
            text_bytes=plan.text_bytes + lora,
        )
        for plan in plans
    )


def _decode_bytes(width: int, height: int) -> int:
    frames = 8 * window_of(width, height) + 1
    return TILE_BYTES + WINDOWS * frames * width * height * 3 * 2


PLANS = (
    _plan("resident", "all networks on the GPU, bf16", resident=70.4, text=72.4),
    _plan("bf16", "all but the text encoder on the GPU, bf16", resident=46.0, text=50.0),
    _plan(
        "fp8",
        "all but the text encoder on the GPU, the transformer's blocks stored as FP8",
        resident=27.4,
        text=31.4,
    ),
    _plan(
        "streamed",
        "the transformer's blocks and the text encoder come from the host's memory, bf16",
        resident=10.5,
        text=14.5,
    ),
)
"""In order of preference. Encoding a prompt adds up to 4 GB, for a table of words and all layers'
states; a streamed transformer holds two of its 48 blocks and what is outside of them."""
