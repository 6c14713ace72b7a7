"""Prompt embeddings on disk: a prompt is encoded once, and the text encoder can stay away."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("stillreel.inference")

LIMIT_BYTES = 2_000_000_000
"""About 80 prompts of LTX-2 (60 tokens are 23 MB), or 480 of WAN 2.2 (4 MB)."""


class EmbeddingCache:
    """Named tensors by key in one folder; the least recently used go beyond `limit_bytes`.

    Several processes may share a folder: a file appears whole, and reading one makes it recent.
    """

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def load(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under `key`, on the CPU; None where there are none, or broken ones."""
        from safetensors.torch import load

        path = self._path(key)
        try:
            tensors = load(path.read_bytes())
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as exc:
            log.warning("the stored embeddings %s cannot be read, so are made anew: %s", key, exc)
            return None
        return tensors

    def store(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep the tensors under `key`; a disk that does not take them costs only time later."""
        from safetensors.torch import save

        data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        temporary = self._folder / f".{key}.{os.getpid()}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(self._path(key))
            self._shrink()
        except OSError as exc:
            log.warning("the embeddings %s are not kept: %s", key, exc)
            with suppress(OSError):
                temporary.unlink()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _shrink(self) -> None:
        used = [(path.stat(), path) for path in self._folder.glob("*.safetensors")]
        over = sum(stat.st_size for stat, _ in used) - self._limit_bytes
        for stat, path in sorted(used, key=lambda entry: entry[0].st_mtime_ns):
            if over <= 0:
                return
            path.unlink(missing_ok=True)
            over -= stat.st_size


def key_of(version: str, *texts: str) -> str:
    """The key of these texts as this version of a model reads them: 32 hex digits."""
    return hashlib.sha256(json.dumps([version, *texts]).encode()).hexdigest()[:32]


def real_tokens(embeds: Tensor, mask: Tensor) -> Tensor:
    """The rows (tokens, width) of one padded prompt (1, length, width) that `mask` counts in.

    LTX-2's prompt is 385 MB with its padding and 23 MB without, for 60 of 1024 tokens.
    """
    return embeds[0, mask[0].bool()].contiguous()


def padded(rows: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The prompt of these rows as (1, length, width) and its mask (1, length), padded on the left.

    The padding is zero: the model masks it, so its output is bit for bit that of the full prompt.
    """
    embeds = rows.new_zeros((1, length, rows.shape[1]))
    mask = rows.new_zeros((1, length)).long()
    if len(rows):
        embeds[0, -len(rows) :] = rows
        mask[0, -len(rows) :] = 1
    return embeds, mask
