"""The encoder makes exact, correctly coloured, web-ready files, or leaves the folder as it was."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stillreel.encoder import Encoded, convert, encode_video
from stillreel.errors import EncodeFailed, InferenceCancelled
from stillreel.models.base import Decoded

FPS = 24
WIDTH, HEIGHT, FRAMES = 96, 88, 30
COMMENT = ("Ein Zug fährt ab 🚂 日本語 \u202b\u0627 " * 300)[:4000]
BARS = [
    (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0),
    (0, 255, 255), (255, 0, 255), (128, 128, 128), (200, 120, 80), (40, 90, 160), (90, 140, 60),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """A film whose crop cuts 4 red rows off its top and its bottom, with sound that is short."""
    pictures = moving()
    pictures[:, :4] = pictures[:, -4:] = (255, 0, 0)
    noise = np.random.default_rng(1).normal(0, 0.1, (9000, 2)).astype(np.float32)
    decoded = film(pictures, audio=noise, sample_rate=24000)
    folder = tmp_path_factory.mktemp("made")
    about = {"title": "Abfahrt", "comment": COMMENT}
    return encode(decoded, folder, crop=(WIDTH, HEIGHT - 8), metadata=about)


def test_states_what_it_made(made: Encoded) -> None:
    data = made.video.read_bytes()
    assert sorted(path.name for path in made.video.parent.iterdir()) == [
        "clip-teaser.mp4", "clip.jpg", "clip.mp4",
    ]  # fmt: skip
    assert (made.width, made.height, made.frames, made.has_audio) == (96, 80, FRAMES, True)
    assert (made.sha256, made.size) == (hashlib.sha256(data).hexdigest(), len(data))


def test_has_every_frame_at_a_constant_rate_from_zero(made: Encoded) -> None:
    with av.open(made.video) as container:
        stream = container.streams.video[0]
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
        assert times == [Fraction(i, FPS) for i in range(FRAMES)]
        assert stream.duration * stream.time_base == Fraction(FRAMES, FPS)
        assert stream.average_rate == stream.base_rate == FPS
        assert container.start_time == 0
        assert container.duration / av.time_base == pytest.approx(FRAMES / FPS, abs=0.001)


@pytest.mark.parametrize("name", ["video", "teaser"])
def test_is_tagged_as_bt709_limited(made: Encoded, name: str) -> None:
    path: Path = getattr(made, name)
    with av.open(path) as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == "yuv420p"
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1)
        assert context.color_range == 1
    colour = path.read_bytes().partition(b"colr")[2]
    assert colour[:11] == b"nclx" + bytes([0, 1, 0, 1, 0, 1, 0])


@pytest.mark.parametrize("name", ["video", "teaser"])
def test_has_its_index_before_its_data(made: Encoded, name: str) -> None:
    order = boxes(getattr(made, name))
    assert order.index("moov") < order.index("mdat")


def test_starts_a_group_of_pictures_at_least_every_two_seconds(tmp_path: Path) -> None:
    made = encode(film(np.zeros((100, 16, 16, 3), np.uint8)), tmp_path, crop=(16, 16))
    with av.open(made.video) as container:
        keys = [p.pts * p.time_base for p in container.demux(video=0) if p.is_keyframe]
    assert keys == [0, 2, 4]


def test_crops_the_middle_without_scaling(made: Encoded) -> None:
    pictures = pictures_of(made.video)
    assert pictures.shape == (FRAMES, 80, 96, 3)
    wanted = moving()[:, 4:-4].astype(float)
    assert np.abs(pictures - wanted).mean() < 4, "another crop differs by more than 20"


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [
        ((65, 33), (65, 33), (64, 32)),
        ((64, 48), (51, 48), (50, 48)),
        ((70, 50), (64, 44), (64, 44)),
        ((48, 34), (48, 34), (48, 34)),
    ],
    ids=["odd both", "odd crop", "both sides", "height not a multiple of four"],
)
@pytest.mark.parametrize("pixel_format", ["rgb24", "yuv420p"])
def test_has_even_sides(
    tmp_path: Path, size: tuple[int, int], crop: tuple[int, int], expected: tuple[int, int],
    pixel_format: str,
) -> None:  # fmt: skip
    if pixel_format == "yuv420p":
        size = size[0] // 2 * 2, size[1] // 2 * 2
        crop = min(crop[0], size[0]), min(crop[1], size[1])
    pictures = moving(*size, frames=3)
    decoded = film(pictures) if pixel_format == "rgb24" else yuv_film(pictures)
    made = encode(decoded, tmp_path, crop=crop)
    left, top = (size[0] - expected[0]) // 4 * 2, (size[1] - expected[1]) // 4 * 2
    wanted = pictures[:, top : top + expected[1], left : left + expected[0]]
    assert (made.width, made.height) == expected
    assert np.abs(pictures_of(made.video) - wanted.astype(float)).mean() < 4


@pytest.mark.parametrize("quality", ["standard", "high"])
@pytest.mark.parametrize("pixel_format", ["rgb24", "yuv420p"])
def test_colour_bars_come_back_within_two(tmp_path: Path, pixel_format: str, quality: Any) -> None:
    bars = np.repeat(np.array(BARS, np.uint8), 32, axis=0)
    pictures = np.broadcast_to(bars, (4, 64, *bars.shape))
    decoded = film(pictures) if pixel_format == "rgb24" else yuv_film(pictures)
    made = encode(decoded, tmp_path, crop=(384, 64), quality=quality)
    seen = pictures_of(made.video)[:, 16:48, 16::32]
    assert np.abs(seen - np.array(BARS, float)).max() <= 2


@pytest.mark.parametrize("rate", [24000, 44100, 48000])
def test_a_click_is_heard_with_its_flash(tmp_path: Path, rate: int) -> None:
    at = 17
    pictures = np.zeros((FRAMES, 32, 32, 3), np.uint8)
    pictures[at] = 255
    sound = np.zeros((rate * FRAMES // FPS, 2), np.float32)
    sound[round(at / FPS * rate)] = 0.9
    made = encode(film(pictures, audio=sound, sample_rate=rate), tmp_path, crop=(32, 32))
    with av.open(made.video) as container:
        flash = max(container.decode(video=0), key=lambda f: f.to_ndarray()[:32].mean())
        container.seek(0)
        start, heard = sound_of(container)
    assert flash.time == pytest.approx(at / FPS)
    assert start + np.abs(heard).max(axis=0).argmax() / rate == pytest.approx(at / FPS, abs=0.001)


@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.25, 3.0], ids=["none", "short", "exact", "long"])
def test_sound_is_as_long_as_the_frames(tmp_path: Path, seconds: float) -> None:
    rate = 48000
    sound = np.full((int(seconds * rate), 2), 0.5, np.float32)
    made = encode(film(moving(), audio=sound, sample_rate=rate), tmp_path)
    with av.open(made.video) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "aac"
        assert (stream.codec_context.layout.name, stream.rate) == ("stereo", rate)
        length = stream.duration * stream.time_base
        _, heard = sound_of(container)
    assert float(length) == pytest.approx(FRAMES / FPS, abs=0.001)
    loud = np.abs(heard[0, : FRAMES * rate // FPS]) > 0.25
    assert loud.mean() * FRAMES / FPS == pytest.approx(min(seconds, FRAMES / FPS), abs=0.01)


def test_a_film_without_sound_has_no_audio_track(tmp_path: Path) -> None:
    made = encode(film(moving()), tmp_path)
    with av.open(made.video) as container:
        assert not made.has_audio
        assert [stream.type for stream in container.streams] == ["video"]


def test_title_and_a_long_comment_are_read_back_whole(made: Encoded) -> None:
    with av.open(made.video) as container:
        assert container.metadata["title"] == "Abfahrt"
        assert container.metadata["comment"] == COMMENT


def test_the_teaser_is_small_and_silent(tmp_path: Path) -> None:
    sound = np.zeros((1000, 2), np.float32)
    decoded = film(moving(480, 270, frames=12), audio=sound, sample_rate=24000)
    made = encode(decoded, tmp_path, crop=(480, 270))
    with av.open(made.teaser) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (320, 180, 12)
        assert stream.duration * stream.time_base == Fraction(12, FPS)


@pytest.mark.parametrize("fps", [8, 12, 16, 24, 25, 30, 60])
def test_the_teaser_keeps_time(tmp_path: Path, fps: int) -> None:
    made = encode(film(moving(32, 32)), tmp_path, crop=(32, 32), fps=fps)
    rate = min(fps, 12)
    with av.open(made.teaser) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(i, rate) for i in range((FRAMES - 1) * rate // fps + 1)]
    assert (times[-1] + Fraction(1, rate)) == pytest.approx(FRAMES / fps, abs=1 / rate)


def test_the_poster_is_the_first_frame(made: Encoded) -> None:
    with Image.open(made.poster) as poster:
        assert (poster.format, poster.size, poster.mode) == ("JPEG", (96, 80), "RGB")
        seen = np.asarray(poster, float)
    assert np.abs(seen - moving()[0, 4:-4]).mean() < 4


@pytest.mark.parametrize("threads", [1, 8])
def test_av1_is_made_on_demand(tmp_path: Path, threads: int) -> None:
    made = encode(film(moving()), tmp_path, codec="av1", threads=threads)
    with av.open(made.video) as container:
        context = container.streams.video[0].codec_context
        assert context.codec.canonical_name == "av1"
        assert (context.colorspace, context.color_range) == (1, 1)
    assert np.abs(pictures_of(made.video) - moving().astype(float)).mean() < 6
    assert boxes(made.video).index("moov") < boxes(made.video).index("mdat")


def test_high_quality_is_closer_to_the_frames(tmp_path: Path) -> None:
    rough = np.random.default_rng(2).integers(0, 256, (8, HEIGHT, WIDTH, 3), np.uint8)
    errors = [
        np.abs(pictures_of(encode(film(rough), tmp_path, quality=quality).video) - rough).mean()
        for quality in ("standard", "high")
    ]
    assert errors[1] < errors[0]


def test_ready_yuv_gives_the_same_film_as_rgb(tmp_path: Path) -> None:
    pictures = moving(256, 136)
    converted = [packed(f) for f in convert(film(pictures), (256, 136), fps=FPS)]
    ready = Decoded(256, 136, FRAMES, iter([np.array(converted)]), pixel_format="yuv420p")
    rgb = encode(film(pictures), tmp_path, stem="rgb", crop=(256, 128))
    yuv = encode(ready, tmp_path, stem="yuv", crop=(256, 128))
    assert np.abs(pictures_of(rgb.video) - pictures_of(yuv.video)).mean() < 0.5
    with Image.open(rgb.poster) as one, Image.open(yuv.poster) as other:
        assert np.abs(np.asarray(one, float) - np.asarray(other, float)).mean() < 0.5


@pytest.mark.parametrize("make", [lambda: film(moving()), lambda: yuv_film(moving())],
                         ids=["rgb24", "yuv420p"])  # fmt: skip
def test_chunks_may_be_of_any_kind(make: Callable[[], Decoded]) -> None:
    """Compared before x264, whose last bits are not the same each time at this tiny size."""
    pictures = np.concatenate(list(make().chunks))
    reused = np.empty((7, *pictures.shape[1:]), np.uint8)

    def one_buffer() -> Iterator[np.ndarray]:
        for start in range(0, FRAMES, 7):
            part = pictures[start : start + 7]
            reused[: len(part)] = part
            yield reused[: len(part)]

    kinds: dict[str, Iterator[np.ndarray]] = {
        "whole": iter([pictures]),
        "single": (picture[None] for picture in pictures),
        "reused": one_buffer(),
        "strided": iter([np.repeat(pictures, 2, axis=2)[:, :, ::2]]),
        "read-only": iter([np.frombuffer(pictures.tobytes(), np.uint8).reshape(pictures.shape)]),
        "with empty": iter([pictures[:0], pictures]),
    }
    films = dict[str, list[bytes]]()
    for kind, chunks in kinds.items():
        decoded = make()
        decoded.chunks = chunks
        frames = list(convert(decoded, (90, 80), fps=FPS))
        films[kind] = [packed(frame).tobytes() for frame in frames]
    assert [kind for kind, frames in films.items() if frames != films["whole"]] == []


def test_progress_counts_each_frame_once(tmp_path: Path) -> None:
    seen = list[tuple[int, int]]()
    encode(film(moving()), tmp_path, on_frame=lambda done, total: seen.append((done, total)))
    assert seen == [(i, FRAMES) for i in range(1, FRAMES + 1)]


def _broken() -> Iterator[np.ndarray]:
    yield moving()[:12]
    raise InferenceCancelled


def _unreadable() -> Iterator[np.ndarray]:
    yield moving()[:12]
    raise OSError(5, "Input/output error", "/secret/place")


REFUSED: dict[str, tuple[Callable[[], Decoded], str]] = {
    "no frames": (lambda: film(moving(), chunks=iter([])), "0 frames instead of 30"),
    "too few": (lambda: film(moving(), chunks=iter([moving()[:29]])), "29 frames instead of 30"),
    "too many": (lambda: film(moving(), chunks=iter([moving(), moving()])), "more than 30"),
    "none wanted": (lambda: film(moving()[:0]), "at least one"),
    "wrong shape": (lambda: film(moving(), chunks=iter([moving(64, 64)])), r"\(88, 96, 3\)"),
    "one picture": (lambda: film(moving(), chunks=iter([moving()[0]])), r"\(88, 96, 3\)"),
    "wrong type": (lambda: film(moving(), chunks=iter([moving() / 255])), "float64"),
    "wrong late": (lambda: film(moving(), chunks=iter([moving()[:20], moving(8, 8)])), "8, 8"),
    "unknown format": (lambda: film(moving(), pixel_format="nv12"), "nv12"),
    "odd yuv": (lambda: film(moving(33, 34), pixel_format="yuv420p"), "even"),
    "crop too large": (lambda: film(moving(64, 64)), "96x88 cannot be cut"),
    "mono sound": (
        lambda: film(moving(), audio=np.zeros((9, 1), np.float32), sample_rate=24000),
        "samples, 2",
    ),
    "not a number": (
        lambda: film(moving(), audio=np.full((9000, 2), np.nan, np.float32), sample_rate=24000),
        "could not be encoded",
    ),
    "unreadable": (lambda: film(moving(), chunks=_unreadable()), "Input/output error"),
}


@pytest.mark.parametrize("old", [True, False], ids=["old file", "empty folder"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_film_leaves_the_folder_as_it_was(tmp_path: Path, case: str, old: bool) -> None:
    if old:
        for name in ("clip.mp4", "clip.jpg", "clip-teaser.mp4"):
            (tmp_path / name).write_text(f"old {name}")
    before = contents(tmp_path)
    make, reason = REFUSED[case]
    with pytest.raises(EncodeFailed, match=reason) as caught:
        encode(make(), tmp_path)
    assert contents(tmp_path) == before
    assert "/" not in caught.value.message.replace("Input/output", "")


def test_an_error_of_the_decode_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InferenceCancelled):
        encode(film(moving(), chunks=_broken()), tmp_path)
    assert contents(tmp_path) == {}


def test_an_error_of_the_listener_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise InferenceCancelled

    with pytest.raises(InferenceCancelled):
        encode(film(moving()), tmp_path, on_frame=stop)
    assert contents(tmp_path) == {}


def test_a_missing_folder_is_an_encode_failure(tmp_path: Path) -> None:
    with pytest.raises(EncodeFailed, match="No such file") as caught:
        encode(film(moving()), tmp_path / "gone")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert str(tmp_path) not in caught.value.message


def test_a_success_replaces_old_files(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("old")
    made = encode(film(moving()), tmp_path)
    assert len(pictures_of(made.video)) == FRAMES


FULL_DISK = """
import sys
from pathlib import Path
import numpy as np
from stillreel.encoder import encode_video
from stillreel.errors import DiskFull
from stillreel.models.base import Decoded

folder = Path(sys.argv[1])
(folder / "clip.mp4").write_text("old")
noise = np.random.default_rng(0).integers(0, 256, (90, 96, 128, 3), np.uint8)
try:
    encode_video(Decoded(128, 96, 90, iter([noise])), folder, stem="clip", fps=24, crop=(128, 96))
except DiskFull as exc:
    assert [path.name for path in folder.iterdir()] == ["clip.mp4"], list(folder.iterdir())
    assert (folder / "clip.mp4").read_text() == "old"
    sys.exit(f"DiskFull because of {type(exc.__cause__).__module__} errno {exc.__cause__.errno}")
"""


@pytest.mark.parametrize("size", ["8k", "64k", "600k"], ids=["header", "middle", "end"])
def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path: Path, size: str) -> None:
    """A real one: a tiny tmpfs in a mount namespace of its own, gone with the process."""
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f'mount -t tmpfs -o size={size} tmpfs "$0"'
    try:
        subprocess.run([*namespace, mount, str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"this system gives no private tmpfs to fill: {exc}")
    command = [*namespace, f'{mount} && exec "$1" -c "$2" "$0"', str(tmp_path), sys.executable]
    done = subprocess.run([*command, FULL_DISK], check=False, capture_output=True, text=True)
    assert "DiskFull because of" in done.stderr, done.stderr
    assert "errno 28" in done.stderr


@given(
    frames=st.integers(1, 5), width=st.integers(16, 40), height=st.integers(16, 40),
    fps=st.integers(1, 60), sound=st.one_of(st.none(), st.integers(0, 60000)),
)  # fmt: skip
def test_any_small_film_is_whole(
    tmp_path_factory: pytest.TempPathFactory, frames: int, width: int, height: int, fps: int,
    sound: int | None,
) -> None:  # fmt: skip
    audio = None if sound is None else np.zeros((sound, 2), np.float32)
    decoded = film(moving(width, height, frames=frames), audio=audio, sample_rate=24000)
    made = encode(decoded, tmp_path_factory.mktemp("any"), crop=(width, height), fps=fps)
    with av.open(made.video) as container:
        pts = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert pts == [Fraction(i, fps) for i in range(frames)]


# --- helpers ----------------------------------------------------------------------------------


def moving(width: int = WIDTH, height: int = HEIGHT, *, frames: int = FRAMES) -> np.ndarray:
    """Smooth colours that move, (frames, height, width, 3)."""
    t, y, x = np.ogrid[:frames, :height, :width]
    waves = [(x + 2 * t) / 9, (y - t) / 11, (x + y + t) / 13]
    return np.stack([np.broadcast_to(127 + 90 * np.sin(w), (frames, height, width)) for w in waves],
                    axis=-1).astype(np.uint8)  # fmt: skip


def film(pictures: np.ndarray, chunks: Iterator[np.ndarray] | None = None, **facts: Any) -> Decoded:
    frames, height, width = pictures.shape[:3]
    parts = (pictures[start : start + 8] for start in range(0, frames, 8))
    return Decoded(width, height, frames, parts if chunks is None else chunks, **facts)


def yuv_film(pictures: np.ndarray) -> Decoded:
    """The same film as planar bt709 limited 4:2:0, by the book (ITU-R BT.709, float64)."""
    frames, height, width = pictures.shape[:3]
    red, green, blue = np.moveaxis(pictures / 255, -1, 0)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    planes = [16 + 219 * luma]
    for chroma in ((blue - luma) / 1.8556, (red - luma) / 1.5748):
        quarter = chroma.reshape(frames, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
        planes.append(128 + 224 * quarter)
    flat = np.concatenate([plane.reshape(frames, -1) for plane in planes], axis=1)
    ready = flat.round().astype(np.uint8).reshape(frames, height * 3 // 2, width)
    return Decoded(width, height, frames, iter([ready]), pixel_format="yuv420p")


def encode(decoded: Decoded, folder: Path, **order: Any) -> Encoded:
    return encode_video(
        decoded, folder, **{"stem": "clip", "fps": FPS, "crop": (WIDTH, HEIGHT), **order}
    )


def pictures_of(path: Path) -> np.ndarray:
    """The frames as a player shows them: bt709 limited by the book, not by swscale."""
    pictures = list[np.ndarray]()
    with av.open(path) as container:
        for frame in container.decode(video=0):
            luma, blue, red = (
                np.frombuffer(memoryview(plane), np.uint8)
                .reshape(-1, plane.line_size)[: plane.height, : plane.width].astype(float)
                for plane in frame.planes
            )  # fmt: skip
            y = (luma - 16) / 219
            cb, cr = (np.kron((c - 128) / 224, np.ones((2, 2))) for c in (blue, red))
            r, b = y + 1.5748 * cr, y + 1.8556 * cb
            g = (y - 0.2126 * r - 0.0722 * b) / 0.7152
            pictures.append(np.stack([r, g, b], axis=-1).clip(0, 1) * 255)
    return np.array(pictures)


def packed(frame: av.VideoFrame) -> np.ndarray:
    """The planes of a frame, as a chunk has them."""
    planes = [
        np.frombuffer(memoryview(plane), np.uint8)
        .reshape(-1, plane.line_size)[: plane.height, : plane.width].reshape(-1)
        for plane in frame.planes
    ]  # fmt: skip
    return np.concatenate(planes).reshape(frame.height * 3 // 2, frame.width)


def sound_of(container: av.container.InputContainer) -> tuple[float, np.ndarray]:
    """When the sound starts, in seconds, and its samples (2, n)."""
    blocks = list(container.decode(audio=0))
    return blocks[0].time or 0.0, np.concatenate([block.to_ndarray() for block in blocks], axis=1)


def boxes(path: Path) -> list[str]:
    """The names of the top-level boxes of an MP4, in order (ISO/IEC 14496-12)."""
    data, at, names = path.read_bytes(), 0, list[str]()
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += int.from_bytes(data[at : at + 4])
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} | {
        path.name: b"" for path in folder.rglob("*") if path.is_dir()
    }
