"""Decoded frames on disk: read while they are written, whole or told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.errors import DiskFull, InferenceCancelled, InferenceFailed
from stillreel.inference.spool import read_spool, write_spool
from stillreel.models.base import Decoded

WIDTH, HEIGHT = 8, 4
SECONDS = 20.0


def decoded_of(
    chunks: Iterator[np.ndarray],
    *,
    frames: int,
    pixel_format: str = "rgb24",
    audio: np.ndarray | None = None,
) -> Decoded:
    return Decoded(
        width=WIDTH,
        height=HEIGHT,
        frames=frames,
        chunks=chunks,
        pixel_format=pixel_format,
        audio=audio,
        sample_rate=0 if audio is None else 48000,
    )


def numbered(count: int, *, chunk: int = 3, shape: tuple[int, ...] = (HEIGHT, WIDTH, 3)):
    """Frames that are filled with their number."""
    for start in range(0, count, chunk):
        numbers = range(start, min(count, start + chunk))
        yield np.stack([np.full(shape, n % 256, np.uint8) for n in numbers])


def ignore(_done: int, _frames: int) -> None:
    """For tests that do not look at progress."""


@given(frames=st.integers(1, 40), chunk=st.integers(1, 17))
def test_every_frame_comes_back_however_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, frames: int, chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("spool") / "spool"
    calls: list[tuple[int, int]] = []
    write_spool(
        folder,
        decoded_of(numbered(frames, chunk=chunk), frames=frames),
        lambda done, of: calls.append((done, of)),
    )
    assert calls[-1] == (frames, frames)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    asked: list[int] = []
    decoded = read_spool(folder, asked.append)
    read = np.concatenate(list(decoded.chunks))
    assert read[:, 0, 0, 0].tolist() == list(range(frames))
    assert read.shape == (frames, HEIGHT, WIDTH, 3)
    assert (decoded.width, decoded.height, decoded.frames) == (WIDTH, HEIGHT, frames)
    assert asked[0] == 0
    assert asked[-1] == frames


def test_planar_frames_and_sound_come_back(tmp_path: Path) -> None:
    sound = np.linspace(-1, 1, 2000, dtype=np.float32).reshape(-1, 2)
    shape = (HEIGHT * 3 // 2, WIDTH)
    frames = numbered(5, shape=shape)
    write_spool(
        tmp_path / "spool",
        decoded_of(frames, frames=5, pixel_format="yuv420p", audio=sound),
        ignore,
    )
    decoded = read_spool(tmp_path / "spool", lambda _: None)
    assert decoded.pixel_format == "yuv420p"
    assert np.concatenate(list(decoded.chunks)).shape == (5, *shape)
    assert decoded.sample_rate == 48000
    assert decoded.audio is not None
    np.testing.assert_array_equal(decoded.audio, sound)


def test_a_reader_follows_a_writer(tmp_path: Path) -> None:
    """Each chunk is read when it is on disk, before the writer goes on to the next."""
    folder, on_disk, read = tmp_path / "spool", SimpleQueue[int](), Event()

    def slowly() -> Iterator[np.ndarray]:
        for number, chunk in enumerate(numbered(24, chunk=8)):
            if number:
                assert read.wait(SECONDS), "the reader did not read what was there"
                read.clear()
            yield chunk

    def wait_for(frames: int) -> None:
        nonlocal known
        while known < max(1, frames):
            known = on_disk.get(timeout=SECONDS)

    known = 0
    writer = Thread(
        target=write_spool,
        args=(folder, decoded_of(slowly(), frames=24), lambda done, _: on_disk.put(done)),
    )
    writer.start()
    seen: list[int] = []
    for chunk in read_spool(folder, wait_for).chunks:
        seen += chunk[:, 0, 0, 0].tolist()
        assert writer.is_alive() or len(seen) == 24
        read.set()
    writer.join(SECONDS)
    assert not writer.is_alive()
    assert seen == list(range(24))


@pytest.mark.parametrize("made", [0, 4, 6], ids=["none", "one too few", "one too many"])
def test_a_wrong_number_of_frames_is_told(tmp_path: Path, made: int) -> None:
    with pytest.raises(InferenceFailed, match=f"made {made} frames instead of 5"):
        write_spool(tmp_path / "spool", decoded_of(numbered(made), frames=5), ignore)


@pytest.mark.parametrize(
    "chunk",
    [
        np.zeros((1, HEIGHT, WIDTH + 2, 3), np.uint8),
        np.zeros((1, HEIGHT, WIDTH), np.uint8),
        np.zeros((1, HEIGHT, WIDTH, 3), np.float32),
    ],
    ids=["another width", "another layout", "another type"],
)
def test_frames_of_another_shape_are_told(tmp_path: Path, chunk: np.ndarray) -> None:
    with pytest.raises(InferenceFailed, match="another shape"):
        write_spool(tmp_path / "spool", decoded_of(iter([chunk]), frames=1), ignore)


def test_a_spool_that_ends_early_is_told(tmp_path: Path) -> None:
    write_spool(tmp_path / "spool", decoded_of(numbered(20), frames=20), ignore)
    frames = tmp_path / "spool" / "frames.raw"
    frames.write_bytes(frames.read_bytes()[:-1])
    chunks = read_spool(tmp_path / "spool", lambda _: None).chunks
    with pytest.raises(InferenceFailed, match="ends before its last frame"):
        list(chunks)


def test_a_disk_that_is_too_small_is_told_before_a_frame_is_made(tmp_path: Path) -> None:
    def never() -> Iterator[np.ndarray]:
        raise AssertionError("a frame was made")
        yield

    with pytest.raises(DiskFull, match="MB of disk"):
        write_spool(tmp_path / "spool", decoded_of(never(), frames=10**15), ignore)


def test_the_writer_is_stopped_by_who_is_told_of_progress(tmp_path: Path) -> None:
    def cancel(_done: int, _frames: int) -> None:
        raise InferenceCancelled

    with pytest.raises(InferenceCancelled):
        write_spool(tmp_path / "spool", decoded_of(numbered(9), frames=9), cancel)


def test_a_new_decode_replaces_what_lies_there(tmp_path: Path) -> None:
    for frames in (20, 2):
        write_spool(tmp_path / "spool", decoded_of(numbered(frames), frames=frames), ignore)
    assert read_spool(tmp_path / "spool", lambda _: None).frames == 2
    assert (tmp_path / "spool" / "frames.raw").stat().st_size == 2 * HEIGHT * WIDTH * 3


def test_who_waits_for_a_failed_decode_is_told(tmp_path: Path) -> None:
    def wait_for(_frames: int) -> None:
        raise InferenceFailed("the model failed")

    with pytest.raises(InferenceFailed, match="the model failed"):
        read_spool(tmp_path / "spool", wait_for)
