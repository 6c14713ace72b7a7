"""Videos longer than LTX-2 makes in one piece: segments, each continuing the one before.

A segment is conditioned on the last frames of the one before, so the two show the same for OVERLAP
frames. There the picture goes over from the one to the other; the sound, of which each segment
makes its own, does so within FADE in the middle. Plain arithmetic on frames and samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

OVERLAP = 17
"""Frames: one and two times eight, of which the model sees how things move."""
FADE = 0.1
"""Seconds."""


def segments_of(frames: int, limit: int) -> list[int]:
    """How many frames each segment has, about equal: as few segments as `limit` allows.

    All numbers are a multiple of 8, plus one. Without the frames that two segments share they are
    `frames` together.
    """
    whole, most, shared = (count // 8 for count in (frames, limit, OVERLAP))
    count = 1 if whole <= most else math.ceil((whole - shared) / (most - shared))
    share, more = divmod(whole + shared * (count - 1), count)
    return [8 * (share + (number < more)) + 1 for number in range(count)]


def frames_of_all(segments: Sequence[int]) -> int:
    """The frames of the video that these segments make."""
    return sum(segments) - OVERLAP * (len(segments) - 1)


def seams_of(segments: Sequence[int]) -> list[int]:
    """The first frame of each segment after the first one, in frames of the video."""
    return [frames_of_all(segments[:number]) - OVERLAP for number in range(1, len(segments))]


def join(segments: Sequence[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """The frames of the video from those of its segments, uint8 (n, h, w, 3) each.

    No more than the shared frames and one chunk are in memory.
    """
    before: np.ndarray | None = None
    for number, chunks in enumerate(segments, 1):
        kept = OVERLAP if number < len(segments) else 0
        held = next(chunks)
        while before is not None and len(held) < OVERLAP:
            held = np.concatenate([held, next(chunks)])
        if before is not None:
            held = np.concatenate([_blend(before, held[:OVERLAP]), held[OVERLAP:]])
        while True:
            ready = len(held) - kept
            if ready > 0:
                yield held[:ready]
                held = held[ready:]
            chunk = next(chunks, None)
            if chunk is None:
                break
            held = np.concatenate([held, chunk]) if len(held) else chunk
        before = held


def join_sound(
    waves: Sequence[np.ndarray], segments: Sequence[int], fps: int, rate: int
) -> np.ndarray:
    """The sound of the video, float32 (samples, 2), from that of its segments."""
    sound = np.zeros((round(frames_of_all(segments) / fps * rate), 2), np.float32)
    starts = [0, *seams_of(segments)]
    middles = [(start + OVERLAP / 2) / fps for start in starts[1:]]
    for number, (wave, start) in enumerate(zip(waves, starts, strict=True)):
        begin = round(start / fps * rate)
        wave = wave[: len(sound) - begin]  # noqa: PLW2901
        seconds = (begin + np.arange(len(wave))) / rate
        gain = np.ones(len(wave), np.float32)
        if number:
            gain *= _rise(seconds - middles[number - 1])
        if number < len(middles):
            gain *= _rise(middles[number] - seconds)
        sound[begin : begin + len(wave)] += wave * gain[:, None]
    return sound.clip(-1, 1)


def _blend(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    part = (np.arange(1, OVERLAP + 1, dtype=np.float32) / (OVERLAP + 1))[:, None, None, None]
    return np.rint(before + (after.astype(np.float32) - before) * part).astype(np.uint8)


def _rise(seconds: np.ndarray) -> np.ndarray:
    """From 0 to 1 within FADE around 0; of two sounds that cross so the loudness stays."""
    return np.sin((seconds / FADE + 0.5).clip(0, 1) * np.pi / 2).astype(np.float32)
