"""Decoding that runs out of memory goes on in a leaner way, from where it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from stillreel.errors import MemoryTooSmall
from stillreel.models.torch_backend import empty_cache

if TYPE_CHECKING:
    import torch

log = logging.getLogger("stillreel.inference")

T = TypeVar("T")


@dataclass(frozen=True)
class Way(Generic[T]):
    """One way to decode the same latents, chunk by chunk."""

    start: Callable[[], Iterator[T]]
    exact: bool = True
    """Whether its chunks are those of the way before it, byte for byte."""
    warning: str = ""
    """What the result says when it came to this one."""


def decode_by(ways: Sequence[Way[T]], device: torch.device, warnings: list[str]) -> Iterator[T]:
    """The chunks of the first way; where it runs out of memory, the rest of them by the next.

    Chunks that were handed on stay as they are, so one that is not exact can only begin. Adds to
    `warnings` what was done. Raises MemoryTooSmall when there is no way to go on.
    """
    import torch

    made = 0
    for way, after in zip(ways, (*ways[1:], None), strict=True):
        try:
            for chunk in islice(way.start(), made, None):
                made += 1
                yield chunk
        except torch.OutOfMemoryError as exc:
            if after is None or (made and not after.exact):
                raise _too_small(made) from exc
        else:
            return
        # Outside of the handler: the error holds the frames, and they hold what filled the memory.
        empty_cache(device)
        log.warning("%s", after.warning)
        warnings.append(after.warning)


def held_back(chunks: Iterator[T], count: int) -> Iterator[T]:
    """The same chunks, the first of them only once `count` are made."""
    yield from list(islice(chunks, count))
    yield from chunks


def _too_small(made: int) -> MemoryTooSmall:
    where = "in the middle of decoding" if made else "while decoding"
    return MemoryTooSmall(
        f"The GPU ran out of memory {where}, and no leaner way is left that would give the same "
        "frames. The latents are kept: a retry on a host with a larger GPU only decodes."
    )
