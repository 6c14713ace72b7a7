"""A video longer than the model makes in one piece: its segments, and how they are joined."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillreel.models.ltx2_segments import (
    FADE,
    OVERLAP,
    frames_of_all,
    join,
    join_sound,
    seams_of,
    segments_of,
)

LIMIT = 481


@pytest.mark.parametrize(
    ("frames", "limit", "segments"),
    [
        (121, LIMIT, [121]),
        (481, LIMIT, [481]),
        (489, LIMIT, [257, 249]),
        (721, LIMIT, [369, 369]),  # 30 s at 24
        (753, 505, [385, 385]),  # 30 s at 25 frames, of which 20 s are 505
        (905, 601, [465, 457]),  # 30 s at 30
        (945, LIMIT, [481, 481]),
        (953, LIMIT, [329, 329, 329]),
        (33, 25, [25, 25]),
        (49, 25, [25, 25, 25, 25]),
    ],
)
def test_a_video_is_made_in_as_few_and_equal_segments_as_the_limit_allows(
    frames: int, limit: int, segments: list[int]
) -> None:
    assert segments_of(frames, limit) == segments


@given(eighths=st.integers(1, 400), limit=st.integers(3, 100))
def test_segments_are_whole_fit_and_make_exactly_the_video(eighths: int, limit: int) -> None:
    frames, most = 8 * eighths + 1, 8 * limit + 1
    segments = segments_of(frames, most)
    assert frames_of_all(segments) == frames
    assert all(count % 8 == 1 and count <= most for count in segments)
    assert max(segments) - min(segments) in (0, 8)
    assert len(segments) == 1 or min(segments) > OVERLAP
    fewer = len(segments) - 1
    assert fewer == 0 or frames_of_all([most] * fewer) < frames


def test_each_seam_is_where_the_next_segment_begins() -> None:
    assert seams_of([369]) == []
    assert seams_of([369, 369]) == [352]
    assert seams_of([25, 25, 33]) == [8, 16]


def chunks_of(frames: np.ndarray, size: int = 8) -> Iterator[np.ndarray]:
    for start in range(0, len(frames), size):
        yield frames[start : start + size]


def flat(values: np.ndarray) -> np.ndarray:
    """Frames of one grey each."""
    return np.broadcast_to(values.astype(np.uint8)[:, None, None, None], (len(values), 2, 4, 3))


@pytest.mark.parametrize("size", [1, 8, 64])
def test_the_frames_of_a_segment_stand_where_they_belong_and_shared_ones_go_over(size: int) -> None:
    first, second, third = flat(np.full(41, 50)), flat(np.full(33, 150)), flat(np.full(25, 200))
    parts = [chunks_of(part, size) for part in (first, second, third)]
    found = np.concatenate(list(join(parts)))[:, 0, 0, 0].astype(int)
    assert len(found) == frames_of_all([41, 33, 25]) == 65
    assert found[:24].tolist() == [50] * 24
    assert (np.diff(found[23:42]) > 0).all()
    assert (np.diff(found) >= 0).all()
    assert found[-8:].tolist() == [200] * 8
    rise = np.arange(1, OVERLAP + 1) / (OVERLAP + 1)
    assert np.abs(found[24:40] - (50 + 100 * rise)[:16]).max() <= 0.5


@given(st.lists(st.integers(3, 9), min_size=1, max_size=4))
def test_segments_that_agree_where_they_overlap_are_joined_without_a_trace(
    eighths: list[int],
) -> None:
    segments = [8 * count + 1 for count in eighths]
    video = flat(np.arange(frames_of_all(segments)) % 251)
    starts = [0, *seams_of(segments)]
    parts = [chunks_of(video[s : s + n]) for s, n in zip(starts, segments, strict=True)]
    assert np.array_equal(np.concatenate(list(join(parts))), video)


def test_one_segment_is_handed_on_as_it_comes() -> None:
    video = flat(np.arange(17))
    assert [len(chunk) for chunk in join([chunks_of(video)])] == [8, 8, 1]


def sine(seconds: float, rate: int, hertz: float) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave, wave], axis=1).astype(np.float32)


def test_sound_is_as_long_as_the_picture_and_changes_within_the_fade() -> None:
    segments, fps, rate = [369, 369], 24, 24000
    waves = [sine(369 / 24, rate, hertz) for hertz in (440.0, 300.0)]
    sound = join_sound(waves, segments, fps, rate)
    assert (sound.shape, sound.dtype) == ((round(721 / 24 * rate), 2), np.float32)
    start = round(352 / 24 * rate)
    middle = start + round(OVERLAP / 2 / 24 * rate)
    half = round(FADE / 2 * rate) + 2
    assert np.array_equal(sound[: middle - half], waves[0][: middle - half])
    assert np.array_equal(sound[middle + half :], waves[1][middle + half - start :])
    step = np.abs(np.diff(sound[:, 0])).max()
    assert step <= 1.5 * max(np.abs(np.diff(wave[:, 0])).max() for wave in waves), "a click"


def test_the_loudness_of_two_different_sounds_stays_where_they_cross() -> None:
    rng = np.random.default_rng(0)
    waves = [rng.normal(0, 0.1, (round(33 / 24 * 24000), 2)).astype(np.float32) for _ in range(2)]
    sound = join_sound(waves, [33, 33], 24, 24000)
    middle = round((16 + OVERLAP / 2) / 24 * 24000)
    assert sound[middle - 600 : middle + 600].std() == pytest.approx(0.1, rel=0.1)


@settings(deadline=None)
@given(
    eighths=st.lists(st.integers(3, 30), min_size=1, max_size=4),
    fps=st.sampled_from([24, 25, 30]),
    rate=st.sampled_from([24000, 48000]),
)
def test_a_constant_sound_never_falls_silent(eighths: list[int], fps: int, rate: int) -> None:
    segments = [8 * count + 1 for count in eighths]
    waves = [np.full((round(n / fps * rate), 2), 0.5, np.float32) for n in segments]
    sound = join_sound(waves, segments, fps, rate)
    assert len(sound) == round(frames_of_all(segments) / fps * rate)
    assert sound[:-2].min() >= 0.5 - 1e-6
    assert sound.max() <= 0.5 * 2**0.5 + 1e-6
