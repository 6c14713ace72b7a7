"""A stranger's film: taken when it is as ordered in every respect, else refused with the reason."""

from __future__ import annotations

import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av import VideoFrame
from PIL import Image

from stillreel.arrival import inspect, ready
from stillreel.arrival.boxes import media_bytes
from stillreel.arrival.film import Film, FilmOrder, Track, differences, film_of, order_of, teaser_of
from stillreel.arrival.inspect import inspect_film, inspect_still
from stillreel.arrival.probe import landlock_version
from stillreel.arrival.ready import PROBE, end_waiting
from stillreel.encoder import Encoded, encode_video, movie
from stillreel.errors import ArrivalUnread, ResultRefused
from stillreel.job import Codec, JobSpec
from stillreel.models.base import Decoded
from stillreel.models.registry import MODELS, get_model

SIZE, FPS, FRAMES = (160, 90), 24, 25
ORDER = FilmOrder("h264", FRAMES, FPS, sizes=(SIZE,), sound=True)
MEDIA = 1000
PICTURE = Track(kind="video", codec="h264", width=160, height=90, pixels="yuv420p", fps=24.0)
SOUND = Track(kind="audio", codec="aac")
FILM = Film(
    seconds=FRAMES / FPS, streams=(PICTURE,), frames=FRAMES, media_bytes=MEDIA, changes_size=False
)


def encoded(folder: Path, *, codec: Codec = "h264", frames: int = FRAMES) -> Encoded:
    """Noise with sound, by our own encoder."""
    random = np.random.default_rng(7)
    shape = (frames, SIZE[1], SIZE[0], 3)
    decoded = Decoded(
        *SIZE,
        frames,
        iter([random.integers(0, 255, shape, dtype=np.uint8)]),
        audio=random.standard_normal((48_000, 2)).astype(np.float32) * 0.1,
        sample_rate=48_000,
    )
    texts = {"title": "a film", "comment": "words " * 800}
    return encode_video(
        decoded, folder, stem=codec, fps=FPS, crop=SIZE, codec=codec, metadata=texts
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    return encoded(tmp_path_factory.mktemp("made"))


# --- what is as ordered -------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_what_our_encoder_makes_is_taken(codec: Codec, made: Encoded, tmp_path: Path) -> None:
    mine = made if codec == "h264" else encoded(tmp_path, codec=codec)
    film = inspect_film(mine.video, replace(ORDER, codec=codec))
    assert (film.frames, film.has_sound) == (FRAMES, True)
    assert (film.picture.width, film.picture.height) == SIZE
    if codec == "h264":  # what lies beside it is the same
        assert inspect_film(mine.teaser, teaser_of(SIZE, FRAMES, FPS)).frames == 13
        inspect_still(mine.poster, SIZE)


# --- the pure core ------------------------------------------------------------------------------


def changed(**values: Any) -> Film:
    return FILM.model_copy(update=values)


def picture(**values: Any) -> Film:
    return changed(streams=(PICTURE.model_copy(update=values),))


OPEN = replace(ORDER, sizes=(), width=160, max_pixels=160 * 100)


@pytest.mark.parametrize(
    ("film", "order", "told"),
    [
        (FILM, ORDER, []),
        (changed(streams=(PICTURE, SOUND)), ORDER, []),
        (changed(streams=(PICTURE, SOUND)), replace(ORDER, sound=False), ["has sound"]),
        (changed(streams=(SOUND,)), ORDER, ["streams audio"]),
        (changed(streams=()), ORDER, ["streams none"]),
        (changed(streams=(PICTURE, PICTURE)), ORDER, ["streams video, video"]),
        (changed(streams=(PICTURE, SOUND, SOUND)), ORDER, ["audio, audio, video"]),
        (changed(streams=(PICTURE, Track(kind="audio", codec="mp3"))), ORDER, ["not AAC"]),
        (picture(codec="hevc"), ORDER, ["hevc instead of h264"]),
        (picture(codec="libdav1d"), replace(ORDER, codec="av1"), []),
        (picture(pixels="yuv444p10le"), ORDER, ["yuv444p10le"]),
        (picture(width=158), ORDER, ["158x90 instead of 160x90"]),
        (picture(width=90, height=160), replace(ORDER, sizes=(SIZE, SIZE[::-1])), []),
        (FILM, OPEN, []),
        (picture(width=158), OPEN, ["158x90 instead of 160x…"]),
        (picture(height=91), OPEN, ["no size of this model"]),
        (picture(height=102), OPEN, ["no size of this model"]),
        (changed(changes_size=True), ORDER, ["size changes"]),
        (changed(frames=24), ORDER, ["24 frames instead of 25"]),
        (changed(frames=24, seconds=1.0), replace(ORDER, fewer=True), []),
        (changed(frames=0, seconds=0.0), replace(ORDER, fewer=True), ["0 frames"]),
        (changed(frames=26), ORDER, ["more than 25 frames"]),
        (picture(fps=25.0), ORDER, ["25 frames per second instead of 24"]),
        (picture(fps=23.98), ORDER, []),
        (changed(seconds=1e6), ORDER, ["1000000.00 s"]),
        (changed(seconds=-1.0), ORDER, ["-1.00 s"]),
        (changed(media_bytes=MEDIA - 5000), ORDER, ["5,000 of its bytes"]),
        (changed(media_bytes=MEDIA + 1), ORDER, ["-1 of its bytes"]),
        (
            picture(codec="vp9", width=2),
            ORDER,
            ["vp9 instead of h264", "2x90 instead of 160x90"],
        ),
    ],
)
def test_each_difference_is_told(film: Film, order: FilmOrder, told: list[str]) -> None:
    found = differences(film, order, media_bytes=MEDIA)
    assert len(found) == len(told), found
    assert all(part in text for part, text in zip(told, found, strict=True)), found


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"fault": "it is damaged"},
        FILM.model_dump() | {"seconds": float("nan")},
        FILM.model_dump() | {"frames": "many"},
        FILM.model_dump() | {"streams": [1]},
    ],
)
def test_what_the_probe_may_not_say_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ResultRefused):
        film_of(told)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_an_order(name: Any) -> None:
    order = order_of(JobSpec(model=name, prompt="any"), get_model(name))
    assert order.frames > 1
    assert order.sizes
    assert order.bytes_max > 1_000_000


@pytest.mark.parametrize(
    ("values", "sizes", "sides"),
    [
        ({"width": 320, "height": 180}, {(320, 180)}, (0, 0)),
        ({}, {(1280, 720), (720, 1280)}, (0, 0)),
        ({"width": 321}, set(), (320, 0)),
        ({"height": 180}, set(), (0, 180)),
    ],
)
def test_the_sizes_of_an_order(
    values: dict[str, int], sizes: set[tuple[int, int]], sides: tuple[int, int]
) -> None:
    order = order_of(JobSpec.model_validate({"prompt": "any", **values}), get_model("preview"))
    assert (set(order.sizes), (order.width, order.height)) == (sizes, sides)


# --- hostile files ------------------------------------------------------------------------------


def box(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def parts(data: bytes) -> dict[bytes, bytes]:
    """The outermost boxes of a sound MP4, whole."""
    found, at = dict[bytes, bytes](), 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found[data[at + 4 : at + 8]] = data[at : at + size]
        at += size
    return found


def with_zip(data: bytes) -> bytes:
    """Two files in one: unpackers read from the end."""
    path = Path(f"/proc/self/fd/{os.memfd_create('zip')}")
    path.write_bytes(data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("page.html", "<script>")
    return path.read_bytes()


def doctored(data: bytes, name: bytes, at: int, form: str, *values: int) -> bytes:
    """The film with other numbers `at` bytes after the first box of this name."""
    spot = data.index(name, data.index(b"moov")) + 4 + at
    return data[:spot] + struct.pack(form, *values) + data[spot + struct.calcsize(form) :]


def hostile(data: bytes) -> dict[str, tuple[bytes, str]]:
    """Films that are none, and what is said about each."""
    box_of = parts(data)
    ftyp, moov, mdat = box_of[b"ftyp"], box_of[b"moov"], box_of[b"mdat"]
    return {
        "empty": (b"", "empty"),
        "text": (b"<html><script>alert(1)</script></html>" * 9, "no whole MP4"),
        "playlist": (b"#EXTM3U\n#EXT-X-VERSION:3\nfile:///etc/passwd\n", "no whole MP4"),
        "cut off": (data[: len(data) // 2], "cut off"),
        "zip at its end": (with_zip(data), "no whole MP4"),
        "box at its end": (data + box(b"uuid", b"PK\x03\x04"), "no MP4 of ours has"),
        "bytes nobody reads": (data + box(b"free", bytes(5000)), "no player reads"),
        "many boxes": (data + box(b"free") * 20, "more than 16 parts"),
        "two indexes": (ftyp + moov + moov + mdat, "one `moov`"),
        "index last": (ftyp + mdat + moov, "in this order"),
        "no ftyp": (moov + mdat, "does not begin"),
        "a huge index": (ftyp + box(b"moov", bytes(900_000)) + mdat, "too many for 25 frames"),
        "an empty index": (ftyp + box(b"moov") + mdat, "instead of one video"),
        "a size of nothing": (ftyp + struct.pack(">I4s", 0, b"moov") + mdat, "no whole MP4"),
        "more data than frames": (
            data[: -len(mdat)] + box(b"mdat", mdat[8:] + bytes(9000)),
            "are no frame",
        ),
        "zeros for frames": (data[: -len(mdat)] + box(b"mdat", bytes(len(mdat) - 8)), ""),
        # stsz: version, one size for all, count
        "frames out of nowhere": (doctored(data, b"stsz", 4, ">II", 2**30, 2**31 - 1), ""),
        "another codec": (data.replace(b"stsd", b"stsx", 1), ""),
    }


NAMES = list(hostile(box(b"ftyp") + box(b"moov", b"stsz" + bytes(99)) + box(b"mdat")))


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_film_is_refused(name: str, made: Encoded, tmp_path: Path) -> None:
    data, told = hostile(made.video.read_bytes())[name]
    path = tmp_path / "hostile.mp4"
    path.write_bytes(data)
    with pytest.raises(ResultRefused) as caught:
        inspect_film(path, ORDER)
    assert told in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_film_of_another_order_is_refused(made: Encoded) -> None:
    with pytest.raises(ResultRefused, match=r"160x90 instead of 320x180.*more than 12 frames"):
        inspect_film(made.video, replace(ORDER, sizes=((320, 180),), frames=12))


def test_a_frame_that_is_huge_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.mp4"
    with movie(path, (4096, 4096), fps=FPS) as write:
        frame = VideoFrame(4096, 4096, "yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, FPS)
        write(frame)
    with pytest.raises(ResultRefused, match=r"4096x4096 instead of 160x90.*0 frames instead of 25"):
        inspect_film(path, ORDER)


def test_a_film_that_is_too_large_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:
        file.truncate(10_000_000_000)
    with pytest.raises(ResultRefused, match="10,000,000,000 bytes, more than"):
        inspect_film(path, ORDER)


@pytest.mark.parametrize(
    ("name", "told"), [("png", "no JPEG"), ("cut", "does not end"), ("size", "instead of 160x90")]
)
def test_a_poster_that_is_none_is_refused(
    name: str, told: str, made: Encoded, tmp_path: Path
) -> None:
    path = tmp_path / "poster.jpg"
    jpeg = made.poster.read_bytes()
    path.write_bytes({"png": b"\x89PNG" + bytes(99), "cut": jpeg[:-40], "size": jpeg}[name])
    if name == "size":
        Image.new("RGB", (90, 160)).save(path, "JPEG")
    with pytest.raises(ResultRefused, match=told):
        inspect_still(path, SIZE)


# --- the jail -----------------------------------------------------------------------------------


def test_the_next_look_has_a_probe_ready_that_nobody_has_used(made: Encoded) -> None:
    inspect_film(made.video, ORDER)
    [second] = ready._waiting
    inspect_film(made.video, ORDER)
    [third] = ready._waiting
    assert second.process.poll() == 0
    assert third.process.pid != second.process.pid
    assert third.process.poll() is None


def test_a_probe_that_died_while_it_waited_is_missed_by_nobody(made: Encoded) -> None:
    inspect_film(made.video, ORDER)
    [waiting] = ready._waiting
    waiting.process.kill()
    waiting.process.wait()
    assert inspect_film(made.video, ORDER).frames == FRAMES


def test_a_probe_whose_api_has_ended_ends(made: Encoded) -> None:
    inspect_film(made.video, ORDER)
    waiting = ready._waiting.popleft()
    waiting.line.close()
    assert waiting.process.wait(timeout=60) == 0


@pytest.fixture
def take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Make the probe one that is taken over by the file that it reads, and runs this code."""

    def take(code: str) -> None:
        text = PROBE.read_text()
        head, _, tail = text.partition("def _film(file: Any, frames: int, side: int)")
        body = tail.partition("\n\n\n")[2]
        taken = tmp_path / "probe.py"
        taken.write_text(
            # The decoders are not needed, and take a second.
            head.replace("    _prepare()\n", "")
            + "def _film(file, frames, side):\n"
            + "".join(f"    {line}\n" for line in code.splitlines())
            + f"\n\n{body}"
        )
        monkeypatch.setattr(ready, "PROBE", taken)

    end_waiting()
    yield take
    end_waiting()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("while True: pass", "takes longer than 1 s"),
        ("return {'fault': len(bytearray(4_000_000_000))}", "more memory"),
        ("while True: os.write(1, bytes(9999))", "ends the process"),
        ("os.kill(os.getpid(), 11)", "ends the process"),
        ("os._exit(0)", "ends the process"),
        ("print('{}'); os._exit(1)", "ends the process"),
        ("os.write(1, b'[' * 50_000); os._exit(0)", "ends the process"),
    ],
)
def test_a_probe_that_is_taken_over_ends(
    code: str,
    told: str,
    made: Encoded,
    take_over: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspect, "WALL_SECONDS", 600)
    take_over(code)
    with pytest.raises(ResultRefused, match=told):
        inspect_film(made.video, ORDER, cpu_seconds=0.5)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("os.kill(os.getpid(), 9)", "was killed"),  # as the kernel does when memory is short
        ("os.kill(os.getpid(), 19)", "too busy"),
    ],
)
def test_that_this_machine_is_busy_or_small_is_no_fault_of_the_film(
    code: str,
    told: str,
    made: Encoded,
    take_over: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspect, "WALL_SECONDS", 0 if told == "too busy" else 600)
    take_over(code)
    with pytest.raises(ArrivalUnread, match=told) as caught:
        inspect_film(made.video, ORDER, cpu_seconds=0.5)
    assert caught.value.retryable
    assert not caught.value.ends_attempt


def test_nothing_is_opened_where_the_jail_does_not_close(
    made: Encoded, take_over: Callable[[str], None], has_landlock: bool
) -> None:
    if not has_landlock:
        pytest.skip("this kernel has no Landlock; the limits alone are no wall")
    take_over("return {'fault': 'it was opened'}")
    text = ready.PROBE.read_text()
    assert "444, 446, 38" in text
    ready.PROBE.write_text(text.replace("444, 446, 38", "444, 9999, 38"))
    with pytest.raises(ArrivalUnread):
        inspect.ask(made.video, "film", frames=1, side=1, cpu_seconds=5)


def test_where_there_is_no_landlock_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inspect, "landlock_version", lambda: 0)
    inspect.warn_where_unconfined()
    assert "no Landlock" in caplog.text


TRIES = """
found = {}
os.close(2)  # a free number, for what may be opened
import socket
for name, call in {
    "file": lambda: open("/etc/passwd"),
    "own environment": lambda: open("/proc/self/environ").read(),
    "memory of the API": lambda: open(f"/proc/{os.getppid()}/environ"),
    "write": lambda: open("/tmp/taken", "w"),
    "list": lambda: os.listdir("/"),
    "run": lambda: os.execv("/bin/sh", ["sh", "-c", "true"]),
    "connect": lambda: socket.create_connection(("127.0.0.1", PORT), timeout=2),
    "socket to a path": lambda: socket.socket(socket.AF_UNIX),
    "datagrams": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "pipe": os.pipe,
    "another number": lambda: os.dup(0),
    "signal": lambda: os.kill(os.getppid(), 0),
}.items():
    try:
        call()
        found[name] = "done"
    except OSError as exc:
        found[name] = type(exc).__name__
found["environment"] = sorted(os.environ)
try:
    if os.getuid() == 0:
        os.setuid(65534)  # no limit of processes counts for root
    os.fork() or os._exit(0)
    found["fork"] = "done"
except OSError as exc:
    found["fork"] = type(exc).__name__
return {"fault": json.dumps(found)}
"""


def test_a_probe_that_is_taken_over_reaches_nothing(
    made: Encoded,
    take_over: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    has_landlock: bool,
) -> None:
    if not has_landlock:
        pytest.skip("this kernel has no Landlock; the limits alone are no wall")
    monkeypatch.setenv("WEBHOOK_SECRET", "a-secret-of-the-api")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = TRIES.strip().replace("PORT", str(server.getsockname()[1]))
        take_over(code)
        found = inspect.ask(made.video, "film", frames=1, side=1, cpu_seconds=5)
    tried = json.loads(found["fault"])
    assert tried.pop("environment") in ([], ["LC_CTYPE"])
    assert len(tried) == 13
    assert "done" not in tried.values(), tried


@pytest.fixture(scope="module")
def has_landlock() -> bool:
    return landlock_version() >= 6


def test_a_box_with_a_long_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    long = struct.pack(">I4sQ", 1, b"mdat", 16 + 5) + b"media"
    path.write_bytes(box(b"ftyp", b"isom") + box(b"moov", b"x") + long)
    assert media_bytes(path, 1) == 5
