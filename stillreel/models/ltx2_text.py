"""The prompts of LTX-2 as embeddings: from the disk where they were made before, else encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stillreel.job import Phase, Shot
from stillreel.models.base import OnStep
from stillreel.models.embeddings import EmbeddingCache, key_of, padded, real_tokens
from stillreel.models.ltx2_stages import Stage
from stillreel.models.ltx2_weights import Networks

if TYPE_CHECKING:
    import torch

TOKENS = 1024
"""What a prompt is padded to, and cut at."""

Prompts = dict[str, "torch.Tensor"]
"""Embeddings (1, 1024, width) and masks (1, 1024), by the names of the pipeline's arguments."""


def texts_of(shot: Shot, stages: Sequence[Stage]) -> dict[str, str]:
    """The texts that the stages read; only guided ones read a negative prompt, and always do."""
    from diffusers.pipelines.ltx2.utils import DEFAULT_NEGATIVE_PROMPT

    texts = {"prompt": shot.prompt}
    if any(stage.guided for stage in stages):
        texts["negative_prompt"] = shot.negative_text(DEFAULT_NEGATIVE_PROMPT)
    return texts


def encode(
    texts: dict[str, str], networks: Networks, cache: EmbeddingCache, version: str, on_step: OnStep
) -> Prompts:
    """The embeddings of each text; the text encoder is loaded for new ones only, and then leaves.

    They are the same from the disk as from the encoder: padding is dropped from both.
    """
    prompts: Prompts = {}
    on_step(Phase.TEXT, 0, len(texts))
    for done, (name, text) in enumerate(texts.items(), 1):
        key = key_of(version, networks.folder.name, str(networks.dtype), text)
        stored = cache.load(key)
        if stored is None:
            stored = {"rows": _rows(networks.text(), text)}
            cache.store(key, stored)
        embeds, mask = padded(stored["rows"].to(networks.device), TOKENS)
        prompts |= {f"{name}_embeds": embeds, f"{name}_attention_mask": mask}
        on_step(Phase.TEXT, done, len(texts))
    networks.release_text()
    return prompts


def _rows(pipe: Any, text: str) -> torch.Tensor:
    import torch

    with torch.no_grad():
        embeds, mask, _, _ = pipe.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
    return real_tokens(embeds, mask)
