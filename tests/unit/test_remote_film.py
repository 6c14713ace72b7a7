"""A film of any size, rate and length becomes what was ordered of it, and nothing is made up."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.errors import RemoteVideoUnusable
from stillreel.job import Shot
from stillreel.models.remote_film import (
    SAMPLE_RATE,
    Film,
    count_frames,
    covering,
    differences,
    inspect,
    picks,
    play,
    read_sound,
)
from tests.fake_backend import make_shot
from tests.video_server import make_film


def shot(width: int = 64, height: int = 48, *, fps: int = 24, frames: int = 24) -> Shot:
    size = {"width": width, "height": height, "crop_width": width, "crop_height": height}
    return make_shot("sea", frames=frames).model_copy(update={**size, "fps": fps})


def looked_at(data: bytes, seconds: float = 60.0) -> Film:
    return inspect(data, seconds, lambda: None)


def film(seconds: float = 1.0, *, fps: float = 24.0, size: tuple[int, int] = (64, 48)) -> Film:
    return Film(*size, np.arange(round(seconds * fps)) / fps, seconds, False)


def greys(data: bytes, size: tuple[int, int], chosen: Any) -> list[int]:
    """Which frame of make_film each picture shows."""
    chunks = list(play(data, size, np.asarray(chosen)))
    assert all(chunk.shape[1:] == (size[1] * 3 // 2, size[0]) for chunk in chunks)
    level = np.concatenate(chunks)[:, : size[1]].mean(axis=(1, 2))
    return [round(((y - 16) * 255 / 219 - 16) / 8) for y in level]


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_a_film_is_looked_through(kind: str) -> None:
    found = looked_at(make_film(fps=16, frames=20, kind=kind))
    assert (found.width, found.height, len(found.times)) == (64, 48, 20)
    assert found.times == pytest.approx(np.arange(20) / 16, abs=0.002)
    assert found.seconds == pytest.approx(20 / 16, abs=0.01)
    assert not found.has_sound


def test_no_more_is_looked_at_than_was_ordered() -> None:
    found = looked_at(make_film(frames=24), 0.5)
    assert len(found.times) == 12
    assert found.seconds == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no MP4"),
        (b"<html>not found</html>", "no MP4"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "no MP4"),
        (b"\0\0\0\x18ftypmp42" + bytes(100), "damaged|no pictures"),
        (make_film()[:700], "damaged|no frames|no pictures|ends"),
        (make_film(320, 16), "320x16"),
    ],
    ids=["empty", "html", "playlist", "head", "cut", "strip"],
)
def test_what_is_no_film_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(RemoteVideoUnusable, match=why):
        looked_at(data)


def test_a_film_that_ends_too_early_is_refused_although_it_says_its_length(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    first = {"movflags": "+faststart"}  # what says the length stands before what is cut off
    with (
        av.open(BytesIO(make_film(frames=48))) as source,
        av.open(path, "w", format="mp4", container_options=first) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = path.read_bytes()
    assert looked_at(data).seconds == pytest.approx(2.0)
    with pytest.raises(RemoteVideoUnusable, match=r"ends after|damaged|no frames"):
        looked_at(data[: len(data) * 7 // 10])


@pytest.mark.parametrize(
    ("source", "fps", "frames", "expected"),
    [
        (24, 24, 5, [0, 1, 2, 3, 4]),
        (12, 24, 6, [0, 0, 1, 1, 2, 2]),
        (16, 24, 6, [0, 0, 1, 2, 2, 3]),
        (48, 24, 4, [0, 2, 4, 6]),
        (30, 24, 5, [0, 1, 2, 3, 5]),
    ],
)
def test_frames_are_repeated_or_left_out(
    source: int, fps: int, frames: int, expected: list[int]
) -> None:
    assert picks(np.arange(48) / source, frames, fps).tolist() == expected
    shown = greys(make_film(fps=source, frames=24), (64, 48), expected)
    assert shown == expected


@given(
    source=st.floats(5, 120),
    count=st.integers(1, 400),
    fps=st.sampled_from([16, 24, 25, 30]),
    wanted=st.integers(1, 721),
)
def test_each_frame_of_the_video_is_one_of_the_film_in_order(
    source: float, count: int, fps: int, wanted: int
) -> None:
    found = Film(64, 48, np.arange(count) / source, count / source, False)
    frames = count_frames(found, shot(fps=fps, frames=wanted))
    chosen = picks(found.times, frames, fps)
    assert 1 <= len(chosen) == frames <= wanted
    assert (np.diff(chosen) >= 0).all()
    assert 0 <= chosen[0] <= chosen[-1] < count
    if abs(source - fps) < 1e-9 and count >= wanted:
        assert chosen.tolist() == list(range(wanted))


@given(
    size=st.tuples(st.integers(16, 8192), st.integers(16, 8192)),
    asked=st.tuples(st.integers(32, 2048), st.integers(32, 2048)),
)
def test_a_covering_size_covers_and_hardly_more(
    size: tuple[int, int], asked: tuple[int, int]
) -> None:
    asked = asked[0] * 2, asked[1] * 2
    wide, high = covering(size, asked)
    assert wide >= asked[0]
    assert high >= asked[1]
    assert wide % 2 == high % 2 == 0
    assert wide == asked[0] or high == asked[1]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (film(), ()),
        (film(23 / 24), ()),
        (film(1.0, size=(128, 96)), ("128x96 instead of 64x48",)),
        (film(1.0, fps=16), ("16 frames per second instead of 24", "repeated")),
        (film(1.0, fps=30), ("30 frames per second instead of 24", "left out")),
        (film(0.5), ("lasts 0.50 s instead of 1.00 s",)),
        (film(2.0), ("lasts 2.00 s; its first 1.00 s",)),
    ],
    ids=["same", "one-frame", "size", "slow", "fast", "short", "long"],
)
def test_what_differs_is_told(made: Film, words: tuple[str, ...]) -> None:
    told = differences(made, shot())
    assert len(told) == bool(words)
    assert all(word in told[0] for word in words)


def test_pictures_keep_their_colours_through_scaling() -> None:
    assert greys(make_film(64, 48), (128, 96), [0, 3, 9]) == [0, 3, 9]


def test_sound_begins_with_the_pictures_and_ends_with_the_order() -> None:
    data = make_film(frames=48, sound=True)
    assert looked_at(data).has_sound
    sound = read_sound(data, 1.0)
    assert sound is not None
    assert (sound.dtype, sound.shape) == (np.float32, (SAMPLE_RATE, 2))
    middle = sound[SAMPLE_RATE // 4 : SAMPLE_RATE * 3 // 4]
    crossings = np.count_nonzero(np.diff(np.signbit(middle[:, 0])))
    assert crossings == pytest.approx(440, abs=3)  # twice 440 Hz in half a second
    assert np.array_equal(sound[:, 0], sound[:, 1])
    assert read_sound(make_film(), 1.0) is None


def test_an_empty_film_of_one_frame_is_a_film() -> None:
    found = looked_at(make_film(frames=1))
    assert len(found.times) == 1
    assert count_frames(replace(found, seconds=0.0), shot()) == 1
