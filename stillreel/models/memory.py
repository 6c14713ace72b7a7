"""Which way of running a model fits into the memory of this host's GPU; plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stillreel.errors import MemoryTooSmall

GB = 10**9
PIXELS_PER_TOKEN = 32 * 32
"""Of one latent frame. WAN 2.2: a VAE of 16 and patches of 2; LTX-2: a VAE of 32."""


@dataclass(frozen=True)
class MemoryPlan:
    """A way to run a model, and the GPU memory it takes, in bytes."""

    name: str
    description: str
    resident_bytes: int
    """Weights on the GPU while denoising."""
    bytes_per_token: int
    """What one forward adds for each token."""
    decode_bytes: int
    """All that is on the GPU while decoding, weights included, at the model's largest size."""
    text_bytes: int = 0
    """All that is on the GPU while a prompt is encoded."""


def tokens_of(width: int, height: int, frames: int, *, frame_step: int) -> int:
    """How many tokens the transformer sees: one per 32x32 pixels of a latent frame."""
    return width * height // PIXELS_PER_TOKEN * ((frames - 1) // frame_step + 1)


def peak(plan: MemoryPlan, tokens: int) -> int:
    """The most GPU memory that this plan takes at any time, in bytes."""
    denoising = plan.resident_bytes + plan.bytes_per_token * tokens
    return max(plan.text_bytes, denoising, plan.decode_bytes)


def choose(plans: Sequence[MemoryPlan], free_bytes: int, tokens: int) -> MemoryPlan:
    """The first plan that fits; plans stand in the order of preference, the leanest last.

    Raises MemoryTooSmall when none does, saying how much smaller a video would fit.
    """
    for plan in plans:
        if peak(plan, tokens) <= free_bytes:
            return plan
    needed = min(peak(plan, tokens) for plan in plans)
    raise MemoryTooSmall(
        f"This video needs {needed / GB:.1f} GB of GPU memory, and this host has "
        f"{free_bytes / GB:.1f} GB for it. {_advice(plans, free_bytes, tokens)}"
    )


def leaner(plans: Sequence[MemoryPlan], plan: MemoryPlan) -> MemoryPlan | None:
    """The plan after `plan`; None when it is the last, or none of them."""
    after = plans.index(plan) + 1 if plan in plans else len(plans)
    return plans[after] if after < len(plans) else None


def _advice(plans: Sequence[MemoryPlan], free_bytes: int, tokens: int) -> str:
    share = max(_tokens_that_fit(plan, free_bytes) for plan in plans) / tokens
    if share <= 0:
        return "No video of this model fits; use a host with a larger GPU."
    return (
        f"One of {share:.0%} of its length or of its pixels would fit: ask for a shorter or a "
        "smaller one, or use a host with a larger GPU."
    )


def _tokens_that_fit(plan: MemoryPlan, free_bytes: int) -> int:
    if max(plan.text_bytes, plan.decode_bytes) > free_bytes:
        return 0
    return (free_bytes - plan.resident_bytes) // plan.bytes_per_token
