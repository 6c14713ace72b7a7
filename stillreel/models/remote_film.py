"""The film that a remote server made: looked through before it is kept, then played as ordered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.reformatter import Interpolation as By

from stillreel.errors import RemoteVideoUnusable
from stillreel.job import Shot

SAMPLE_RATE = 48000
CHUNK = 8
LARGEST_SIDE, SMALLEST_SIDE, LONGEST_SHAPE = 8192, 16, 8
MOST_FRAMES = 10_000
"""Within what was ordered; 30 s at 240 frames per second have 7200."""

_FORMATS = ((slice(4, 8), b"ftyp", "mp4"), (slice(0, 4), b"\x1aE\xdf\xa3", "matroska"))
"""By content, and no other: libavformat reads playlists too, which name files and addresses."""
_SPACES = {1: Colorspace.ITU709, 5: Colorspace.ITU601, 6: Colorspace.ITU601, 9: Colorspace.BT2020}
_ACCURATE = By.BICUBIC | By.ACCURATE_RND | By.FULL_CHR_H_INT | By.FULL_CHR_H_INP


@dataclass(frozen=True)
class Film:
    """What a film is, as far as it was ordered."""

    width: int
    height: int
    times: np.ndarray
    """When each frame begins, in seconds from the first, float64; none after the order's end."""
    seconds: float
    """How long all of it lasts."""
    has_sound: bool

    @property
    def frame_seconds(self) -> float:
        """How long a frame stands."""
        if len(self.times) > 1:
            return float(np.median(np.diff(self.times)))
        return self.seconds


def inspect(data: bytes, wanted_seconds: float, on_frame: Callable[[], None]) -> Film:
    """The facts of the film in these bytes, every frame of `wanted_seconds` decoded once.

    Raises RemoteVideoUnusable for what is no film, is damaged, or ends before it says that it does.
    """
    with _opened(data) as (container, stream):
        size = stream.codec_context.width, stream.codec_context.height
        _check_size(size)
        stated = stream.duration or 0
        base = stream.time_base
        stated_seconds = float(stated * base) if stated and base else 0.0
        times: list[float] = []
        for frame in container.decode(stream):
            on_frame()
            if frame.time is None or len(times) >= MOST_FRAMES:
                raise RemoteVideoUnusable("The remote server's video has no usable times.")
            _check_size((frame.width, frame.height))
            if times and frame.time - times[0] >= wanted_seconds:
                break
            times.append(frame.time)
        if not times:
            raise RemoteVideoUnusable("The remote server's video has no frames.")
        starts = np.maximum.accumulate(np.array(times, np.float64) - times[0])
        rate = float(stream.average_rate or 0) or 24.0
        step = float(np.median(np.diff(starts))) if len(starts) > 1 else 1 / rate
        seen = float(starts[-1]) + step
        if min(stated_seconds, wanted_seconds) - seen > max(3 * step, 0.2):
            raise RemoteVideoUnusable(
                f"The remote server's video ends after {seen:.2f} of {stated_seconds:.2f} s."
            )
    has_sound = read_sound(data, wanted_seconds) is not None
    return Film(*size, starts, max(seen, stated_seconds), has_sound)


def count_frames(film: Film, shot: Shot) -> int:
    """Frames of the video: as many as were ordered, or as there are; none is made up."""
    return min(shot.frames, max(1, round(film.seconds * shot.fps)))


def differences(film: Film, shot: Shot) -> tuple[str, ...]:
    """What of the film is not as ordered, and what is done about it, for the caller to read."""
    notes: list[str] = []
    asked = shot.crop_width, shot.crop_height
    if (film.width, film.height) != asked:
        notes.append(
            f"The remote server made {film.width}x{film.height} instead of {asked[0]}x{asked[1]}: "
            "scaled, and cropped around the middle."
        )
    rate = 1 / film.frame_seconds if film.frame_seconds else 0.0
    if len(film.times) > 1 and abs(rate - shot.fps) > 0.02 * shot.fps:
        notes.append(
            f"The remote server made {rate:.4g} frames per second instead of {shot.fps}: frames "
            f"are {'repeated' if rate < shot.fps else 'left out'}."
        )
    slack = 1.5 * max(1 / shot.fps, film.frame_seconds if len(film.times) > 1 else 0.0)
    if film.seconds < shot.seconds - slack:
        notes.append(
            f"The remote server's video lasts {film.seconds:.2f} s instead of {shot.seconds:.2f} s."
        )
    elif film.seconds > shot.seconds + slack:
        notes.append(
            f"The remote server's video lasts {film.seconds:.2f} s; its first {shot.seconds:.2f} s "
            "were kept."
        )
    return tuple(notes)


def picks(times: np.ndarray, frames: int, fps: int) -> np.ndarray:
    """Which frame of the film stands at each frame of the video: the last that has begun by then.

    Times are rounded in files; a tenth of a frame early counts as begun.
    """
    early = 0.1 * (float(np.median(np.diff(times))) if len(times) > 1 else 0.0)
    at = np.arange(frames) / fps
    return np.maximum(np.searchsorted(times, at + early, side="right") - 1, 0)


def covering(size: tuple[int, int], asked: tuple[int, int]) -> tuple[int, int]:
    """`size` scaled so that it just covers `asked`, with even sides."""
    scale = max(asked[0] / size[0], asked[1] / size[1])
    wide, high = (max(a, 2 * round(s * scale / 2)) for s, a in zip(size, asked, strict=True))
    return wide, high


def play(data: bytes, size: tuple[int, int], chosen: np.ndarray) -> Iterator[np.ndarray]:
    """The chosen frames (rising indices) at `size`, bt709 limited yuv420p, in chunks of 8."""
    scaler = VideoReformatter()
    counts = np.bincount(chosen)
    waiting: list[np.ndarray] = []
    with _opened(data) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if index >= len(counts):
                break
            if not counts[index]:
                continue
            picture = _redrawn(scaler, frame, size)
            for _ in range(counts[index]):
                waiting.append(picture)
                if len(waiting) == CHUNK:
                    yield np.stack(waiting)
                    waiting = []
    if waiting:
        yield np.stack(waiting)


def read_sound(data: bytes, seconds: float) -> np.ndarray | None:
    """The sound of the film from its first frame on, float32 (samples, 2) at 48 kHz.

    None where there is none, or none that can be read: the pictures are worth more.
    """
    try:
        with _opened(data) as (container, stream):
            if not container.streams.audio:
                return None
            start = float((stream.start_time or 0) * (stream.time_base or 0))
            return _heard(container, start, math.ceil(seconds * SAMPLE_RATE))
    except RemoteVideoUnusable:
        return None


def _heard(container: Any, start: float, most: int) -> np.ndarray | None:
    resampler = AudioResampler("fltp", "stereo", SAMPLE_RATE)
    parts: list[np.ndarray] = []
    offset, have = None, 0
    for frame in container.decode(audio=0):
        if offset is None:
            offset = round(((frame.time or 0.0) - start) * SAMPLE_RATE)
        for piece in resampler.resample(frame):
            parts.append(piece.to_ndarray().T)
            have += piece.samples
        if have + offset >= most:
            break
    if offset is None or not parts:
        return None
    sound = np.concatenate(parts).astype(np.float32)
    if offset < 0:
        sound = sound[-offset:]
    elif offset:
        sound = np.concatenate([np.zeros((min(offset, most), 2), np.float32), sound])
    return np.ascontiguousarray(np.clip(np.nan_to_num(sound[:most]), -1.0, 1.0))


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Any, Any]]:
    kind = next((name for at, magic, name in _FORMATS if data[at] == magic), "")
    if not kind:
        raise RemoteVideoUnusable("What the remote server made is no MP4 and no WebM.")
    try:
        with av.open(BytesIO(data), format=kind) as container:
            if not container.streams.video:
                raise RemoteVideoUnusable("What the remote server made has no pictures.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (FFmpegError, ValueError, OSError) as exc:
        raise RemoteVideoUnusable("The remote server's video is damaged or cut off.") from exc


def _check_size(size: tuple[int, int]) -> None:
    short, long = min(size), max(size)
    if short < SMALLEST_SIDE or long > LARGEST_SIDE or long > LONGEST_SHAPE * short:
        raise RemoteVideoUnusable(
            f"The remote server's video is {size[0]}x{size[1]}; sides of {SMALLEST_SIDE} to "
            f"{LARGEST_SIDE} are read, none {LONGEST_SHAPE} times as long as the other."
        )


def _redrawn(scaler: VideoReformatter, frame: Any, size: tuple[int, int]) -> np.ndarray:
    """Untagged pictures are taken as players do: BT.709 from 720 lines on, else BT.601."""
    usual = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
    drawn = scaler.reformat(
        frame,
        *size,
        "yuv420p",
        src_colorspace=_SPACES.get(frame.colorspace, usual),
        dst_colorspace=Colorspace.ITU709,
        interpolation=_ACCURATE,
        src_color_range=ColorRange.JPEG if frame.color_range == 2 else ColorRange.MPEG,
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )
    return drawn.to_ndarray()
