"""The spool: decoded frames on this host's disk, written at decoder speed, read while it grows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from stillreel.errors import DiskFull, InferenceFailed, is_disk_full
from stillreel.models.base import Decoded

CHUNK_FRAMES = 8


class SpoolHeader(BaseModel):
    """What a reader must know before the first frame."""

    width: int
    height: int
    frames: int
    pixel_format: str
    audio_samples: int = 0
    sample_rate: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one frame as uint8."""
        if self.pixel_format == "yuv420p":
            return (self.height * 3 // 2, self.width)
        return (self.height, self.width, 3)


def write_spool(folder: Path, decoded: Decoded, on_frames: Callable[[int, int], None]) -> None:
    """Write a decode into `folder`, calling `on_frames(done, frames)` after each chunk on disk.

    Raises DiskFull, or InferenceFailed when the decode has another number of frames, or frames
    of another shape, than it said.
    """
    shutil.rmtree(folder, ignore_errors=True)
    header = SpoolHeader(
        width=decoded.width,
        height=decoded.height,
        frames=decoded.frames,
        pixel_format=decoded.pixel_format,
        sample_rate=decoded.sample_rate,
        audio_samples=0 if decoded.audio is None else len(decoded.audio),
    )
    try:
        folder.mkdir(parents=True)
        need = header.frames * int(np.prod(header.shape))
        if shutil.disk_usage(folder).free < need:
            raise DiskFull(
                f"decoding needs {need // 1_000_000} MB of disk for its frames; free "
                "some space, or set STILLREEL_HOME to a larger disk"
            )
        if decoded.audio is not None:
            decoded.audio.astype(np.float32).tofile(folder / "audio.f32")
        done = 0
        with (folder / "frames.raw").open("wb") as file:
            (folder / "header.json").write_text(header.model_dump_json())
            for chunk in decoded.chunks:
                if chunk.dtype != np.uint8 or chunk.shape[1:] != header.shape:
                    raise InferenceFailed("the decoder made frames of another shape than it said")
                file.write(np.ascontiguousarray(chunk).data.cast("B"))
                file.flush()
                done += len(chunk)
                on_frames(done, header.frames)
    except OSError as exc:
        if is_disk_full(exc):
            raise DiskFull from exc
        raise
    if done != header.frames:
        raise InferenceFailed(f"the decoder made {done} frames instead of {header.frames}")


def read_spool(folder: Path, wait_for: Callable[[int], None]) -> Decoded:
    """A decode as it grows; `wait_for(n)` returns when n frames are on disk, and raises if never.

    `wait_for(0)` is called first and returns when the header is there.
    """
    wait_for(0)
    header = SpoolHeader.model_validate_json((folder / "header.json").read_text())
    audio = None
    if header.audio_samples:
        audio = np.fromfile(folder / "audio.f32", np.float32).reshape(-1, 2)
    return Decoded(
        width=header.width,
        height=header.height,
        frames=header.frames,
        pixel_format=header.pixel_format,
        audio=audio,
        sample_rate=header.sample_rate,
        chunks=_read_chunks(folder / "frames.raw", header, wait_for),
    )


def is_whole(folder: Path) -> bool:
    """Whether a decode has all its frames on disk, so that nobody is needed to go on with it."""
    try:
        header = SpoolHeader.model_validate_json((folder / "header.json").read_text())
        size = (folder / "frames.raw").stat().st_size
    except (OSError, ValidationError):
        return False
    return size == header.frames * int(np.prod(header.shape))


def _read_chunks(
    path: Path, header: SpoolHeader, wait_for: Callable[[int], None]
) -> Iterator[np.ndarray]:
    size = int(np.prod(header.shape))
    with path.open("rb", buffering=0) as file:
        for start in range(0, header.frames, CHUNK_FRAMES):
            count = min(CHUNK_FRAMES, header.frames - start)
            wait_for(start + count)
            chunk = np.empty((count, *header.shape), np.uint8)
            if file.readinto(chunk.data.cast("B")) != count * size:
                raise InferenceFailed("the spool ends before its last frame")
            yield chunk
