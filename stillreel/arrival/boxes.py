"""The outermost boxes of an MP4: whether a file is one, from its first byte to its last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from stillreel.errors import ResultRefused

MOST_BOXES = 16
"""Ours have four: ftyp, moov, free and mdat."""
SPARE_BYTES = 64
"""Of boxes that players skip, and in which anything may hide."""
INDEX_BYTES, INDEX_BYTES_A_FRAME = 200_000, 64
"""Most that an index needs: a page of texts, and the tables of its frames and their sound."""
_KNOWN = (b"ftyp", b"moov", b"free", b"skip", b"mdat")


def media_bytes(path: Path, frames: int) -> int:
    """Bytes of the media data of an MP4 with so many frames; raises ResultRefused for others.

    The boxes have to fill the file: what is another format at the same time, or carries something
    at its end, does not pass. The index comes first, so that the video plays while it is loaded.
    """
    with path.open("rb") as file:
        boxes = _boxes(file)
    names = [name for name, _ in boxes]
    if names[0] != b"ftyp":
        raise ResultRefused("it is no MP4: it does not begin with `ftyp`")
    if any(name not in _KNOWN for name in names):
        odd = next(name for name in names if name not in _KNOWN)
        raise ResultRefused(f"it has a part {odd!r} that no MP4 of ours has")
    if [name for name in names if name in (b"moov", b"mdat", b"ftyp")] != [
        b"ftyp",
        b"moov",
        b"mdat",
    ]:
        raise ResultRefused("it has to be one `ftyp`, one `moov` and one `mdat`, in this order")
    size = dict(boxes)
    if size[b"moov"] > INDEX_BYTES + INDEX_BYTES_A_FRAME * frames:
        raise ResultRefused(f"its index has {size[b'moov']:,} bytes, too many for {frames} frames")
    if sum(n for name, n in boxes if name in (b"free", b"skip")) > SPARE_BYTES:
        raise ResultRefused(f"it has more than {SPARE_BYTES} bytes that no player reads")
    return size[b"mdat"]


def _boxes(file: BinaryIO) -> list[tuple[bytes, int]]:
    """Name and bytes of the content of each, in order; at least one."""
    end = os.fstat(file.fileno()).st_size
    at, found = 0, list[tuple[bytes, int]]()
    while at < end:
        file.seek(at)
        head = file.read(16)
        size, header = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(head[8:16], "big"), 16
        if len(head) < header or size < header or at + size > end:
            raise ResultRefused("it is no whole MP4: a part of it is cut off, or no part at all")
        found.append((head[4:8], size - header))
        at += size
        if len(found) > MOST_BOXES:
            raise ResultRefused(f"it has more than {MOST_BOXES} parts")
    if not found:
        raise ResultRefused("it is empty")
    return found
