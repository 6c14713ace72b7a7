"""What LTX-2 takes of a GPU's memory: its plans, and what a shot adds to them.

All numbers are derived, none is measured. Sizes in GB, counted on networks without memory (bf16
takes 2 bytes a weight), for 2.0 and for 2.3 and 2.5: transformer 37.8 and 38.0, of which 18.6 are
saved where its blocks are FP8; connectors 2.9 and 6.3, video VAE 2.4 and 1.5, audio VAE and vocoder
(fp32) 0.4 and 0.7, upsampler 1.0, Gemma 24.4 (that of 2.5 is taken to weigh the same). 1.5 are left
for CUDA itself and for fragments.
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
NEWER_TOKEN_BYTES = 225_000
"""2.3 and 2.5 have nine for modulation."""
TEXT = 24.4
ENCODING = 4.0
"""What encoding a prompt adds: a table of words and all layers' states, 2 GB each."""
LORA_BYTES = int(7.7 * GB)
"""The LoRA beside the weights: rank 384, bf16."""
TILE_BYTES = 3 * GB
"""Activations of the video VAE in one tile of 512x512 and one window of frames."""
WINDOWS = 5
"""How often a window's frames exist in a decode: as tiles, as rows, whole, and the one before."""


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


def _plans(
    *, transformer: float, saved: float, streamed: float, beside: float, token_bytes: int
) -> tuple[MemoryPlan, ...]:
    """Of GB; `streamed` is what of the transformer is on the GPU where its blocks come and go."""

    def plan(name: str, description: str, resident: float, text: float) -> MemoryPlan:
        weights = int(resident * GB)
        decode = weights + _decode_bytes(3840, 2176)
        return MemoryPlan(name, description, weights, token_bytes, decode, int(text * GB))

    whole = transformer + beside
    return (
        plan(
            "resident",
            "all networks on the GPU, bf16",
            whole + TEXT,
            whole + TEXT + ENCODING / 2,  # the table of words is there already
        ),
        plan("bf16", "all but the text encoder on the GPU, bf16", whole, whole + ENCODING),
        plan(
            "fp8",
            "all but the text encoder on the GPU, the transformer's blocks stored as FP8",
            whole - saved,
            whole - saved + ENCODING,
        ),
        plan(
            "streamed",
            "the transformer's blocks and the text encoder come from the host's memory, bf16",
            streamed + beside,
            streamed + beside + ENCODING,
        ),
    )


PLANS = _plans(transformer=37.8, saved=18.6, streamed=2.3, beside=8.2, token_bytes=TOKEN_BYTES)
"""Of 2.0, in order of preference. A streamed transformer holds two of its 48 blocks and what is
outside of them."""
NEWER_PLANS = _plans(
    transformer=38.0, saved=18.6, streamed=2.4, beside=11.0, token_bytes=NEWER_TOKEN_BYTES
)
"""Of 2.3 and 2.5."""
