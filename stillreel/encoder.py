"""Frames to a video for the web: MP4, poster and teaser, in one pass and in flat memory."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from av import AudioFrame, VideoFrame
from av.error import FFmpegError
from av.video import VideoStream
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.reformatter import Interpolation as By
from PIL import Image

from stillreel.errors import DiskFull, EncodeFailed, is_disk_full
from stillreel.job import TEASER_FPS, TEASER_WIDTH, Codec, Quality
from stillreel.models.base import Decoded
from stillreel.nvenc import ENCODERS, NVENC, distrust_nvenc, nvenc_options

Write = Callable[[VideoFrame], None]

CRF: Mapping[Codec, Mapping[Quality, int]] = {
    "h264": {"standard": 23, "high": 20},
    "av1": {"standard": 36, "high": 30},
}
TEASER_CRF = 28
POSTER_QUALITY = 82

_KEYFRAMES = 48
"""At least one key frame in this many, for seeking; x264 looks half as far ahead (preset medium:
40 frames): on synthetic film equal PSNR and 1 % fewer bytes, with some 100 MB less at 1080p."""
_BACKLOG = 4
"""Frames that may wait for the encoder, 3 MB each at 1080p."""
_ACCURATE = By.BICUBIC | By.ACCURATE_RND | By.FULL_CHR_H_INT | By.FULL_CHR_H_INP
_RANGE = {"rgb24": ColorRange.JPEG, "yuv420p": ColorRange.MPEG}


@dataclass(frozen=True)
class Encoded:
    """The finished files; `sha256` and `size` (bytes) are the video's."""

    video: Path
    poster: Path
    teaser: Path
    sha256: str
    size: int
    width: int
    height: int
    frames: int
    has_audio: bool
    encoder: str
    """What made the video, e.g. `libx264`."""


def encode_video(
    decoded: Decoded,
    folder: Path,
    *,
    stem: str,
    fps: int,
    crop: tuple[int, int],
    codec: Codec = "h264",
    encoder: str = "",
    quality: Quality = "standard",
    threads: int = 1,
    metadata: Mapping[str, str] = {},
    on_frame: Callable[[int, int], None] | None = None,
    sign: Callable[[Path], None] | None = None,
) -> Encoded:
    """`{stem}.mp4`, `{stem}.jpg` and `{stem}-teaser.mp4`, moved into `folder` when all are done.

    `crop` is the (width, height) cut from the middle, never scaled; an odd side loses one pixel
    more, as 4:2:0 needs. `metadata` takes `title` and `comment`. Sound is padded or cut to the
    length of the frames. `on_frame(done, frames)` is called in the caller's thread; a
    StillreelError of its own or of `decoded.chunks` passes through and stops the encode.
    A failed encode leaves the folder as it was. `encoder` is another one of this codec than its
    usual one, see `nvenc.encoder_for`; poster and teaser are always made on the CPU. `sign` may
    change the finished MP4 before it is hashed.
    Raises DiskFull, and EncodeFailed for unfit frames or a failing encoder.
    """
    size = crop[0] // 2 * 2, crop[1] // 2 * 2
    encoder = encoder or ENCODERS[codec]
    frames = convert(decoded, size, fps=fps)
    width = min(TEASER_WIDTH, size[0])
    small, small_fps = (
        (width, max(2, round(size[1] * width / size[0] / 2) * 2)),
        min(TEASER_FPS, fps),
    )
    scaler = VideoReformatter()

    def write(frame: VideoFrame) -> None:
        if frame.pts == 0:
            still = _redraw(VideoReformatter(), frame, "rgb24", size)
            Image.fromarray(still.to_ndarray()).save(poster, "JPEG", quality=POSTER_QUALITY)
        write_video(frame)
        index = frame.pts or 0
        tick = index * small_fps // fps
        if tick > (index - 1) * small_fps // fps:
            frame = _redraw(scaler, frame, "yuv420p", small)
            frame.pts, frame.time_base = tick, Fraction(1, small_fps)
            write_teaser(frame)

    try:
        with TemporaryDirectory(prefix=f".{stem}-", dir=folder) as temp:
            names = f"{stem}.jpg", f"{stem}-teaser.mp4", f"{stem}.mp4"
            poster, teaser, video = made = [Path(temp, name) for name in names]
            with (
                movie(
                    video,
                    size,
                    fps=fps,
                    encoder=encoder,
                    crf=CRF[codec][quality],
                    threads=threads,
                    metadata=metadata,
                    sound=decoded,
                ) as write_video,
                movie(teaser, small, fps=small_fps, crf=TEASER_CRF) as write_teaser,
            ):
                write_all(frames, write, total=decoded.frames, on_frame=on_frame)
            if sign:
                sign(video)
            *_, sha256 = [_sync(path) for path in made]
            length = video.stat().st_size
            poster, teaser, video = [path.replace(folder / path.name) for path in made]
    except (OSError, FFmpegError) as exc:
        if is_disk_full(exc):
            raise DiskFull from exc
        if encoder == NVENC:
            distrust_nvenc()
        reason = exc.strerror or type(exc).__name__
        raise EncodeFailed(f"The video could not be encoded ({reason}); start it again.") from exc
    has_audio = decoded.audio is not None
    return Encoded(video, poster, teaser, sha256, length, *size, decoded.frames, has_audio, encoder)


def convert(decoded: Decoded, size: tuple[int, int], *, fps: int) -> Iterator[VideoFrame]:
    """The frames of `decoded`, cropped to `size` (even), as bt709 limited yuv420p, timed from 0.

    Raises EncodeFailed for a crop, a chunk or a number of frames that does not fit.
    """
    _check(decoded, size)
    rgb = decoded.pixel_format == "rgb24"
    width, height, total = decoded.width, decoded.height, decoded.frames
    expected = (height, width, 3) if rgb else (height * 3 // 2, width)
    # In the middle, and on an even pixel, so that chroma fits.
    left, top = (width - size[0]) // 4 * 2, (height - size[1]) // 4 * 2
    box = slice(top, top + size[1]), slice(left, left + size[0])
    scaler = VideoReformatter()

    def checked(chunk: np.ndarray) -> np.ndarray:
        if chunk.dtype != np.uint8 or chunk.shape[1:] != expected:
            found = f"{chunk.dtype} {chunk.shape[1:]}"
            raise EncodeFailed(f"The model gave frames of {found}; they must be uint8 {expected}.")
        return np.ascontiguousarray(chunk)

    def drawn(picture: np.ndarray) -> VideoFrame:
        if not rgb:
            return _cut(picture, (width, height), (left, top), size)
        view = VideoFrame.from_numpy_buffer(picture[box], "rgb24")
        return _redraw(scaler, view, "yuv420p", size)

    count = 0
    # No loop variable here holds a chunk, so that only one is in memory while the next is made.
    pictures = chain.from_iterable(map(checked, decoded.chunks))
    for count, frame in enumerate(map(drawn, pictures), 1):
        if count > total:
            raise EncodeFailed(f"The model gave more than {total} frames; start it again.")
        frame.pts, frame.time_base = count - 1, Fraction(1, fps)
        yield frame
    if count < total:
        raise EncodeFailed(f"The model gave {count} frames instead of {total}; start it again.")


@contextmanager
def movie(
    path: Path,
    size: tuple[int, int],
    *,
    fps: int,
    encoder: str = ENCODERS["h264"],
    crf: int = CRF["h264"]["standard"],
    threads: int = 1,
    metadata: Mapping[str, str] = {},
    sound: Decoded | None = None,
) -> Iterator[Write]:
    """A function that takes the frames of one MP4, which is complete when the context ends.

    Constant frame rate, tags bt709 limited, index before the data, the audio of `sound` as AAC.
    """
    container = av.open(path, "w", format="mp4", container_options={"movflags": "+faststart"})
    try:
        container.metadata.update(metadata)
        stream = container.add_stream(encoder, rate=fps, options=_options(encoder, crf, threads))
        assert isinstance(stream, VideoStream)  # noqa: S101 - for the type checker
        context = stream.codec_context
        context.width, context.height = size
        context.pix_fmt, context.time_base = "yuv420p", Fraction(1, fps)
        context.gop_size, context.thread_count = _KEYFRAMES, threads
        context.thread_type = "SLICE"  # "FRAME" takes 25 MB more per thread at 1080p
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        audio = None
        if sound and sound.audio is not None:
            rate = sound.sample_rate
            audio = container.add_stream("aac", rate=rate, layout="stereo", bit_rate=192_000)

        def write(frame: VideoFrame) -> None:
            container.mux(stream.encode(frame))
            if sound and audio:
                container.mux(audio.encode(_heard(sound, frame.pts or 0, fps)))

        yield write
        container.mux(stream.encode(None))
        if audio:
            container.mux(audio.encode(None))
    except BaseException:
        with suppress(OSError, FFmpegError):  # closing writes too; the first error says more
            container.close()
        raise
    container.close()


def _options(encoder: str, crf: int, threads: int) -> dict[str, str]:
    if encoder == NVENC:
        return nvenc_options(crf)
    if encoder == ENCODERS["av1"]:  # it knows no threads, only a level of parallelism from 1 to 6
        return {"crf": str(crf), "preset": "8", "svtav1-params": f"lp={min(threads, 6)}"}
    return {"crf": str(crf), "preset": "medium", "rc-lookahead": str(_KEYFRAMES // 2)}


def write_all(
    frames: Iterable[VideoFrame],
    write: Write,
    *,
    total: int,
    on_frame: Callable[[int, int], None] | None = None,
) -> None:
    """Hand each frame to `write` in a second thread, while the next ones are being made."""
    pending: deque[Future[None]] = deque()
    last: Future[None] | None = None
    done = 0

    def wait_until(left: int) -> None:
        nonlocal done
        while len(pending) > left:
            pending.popleft().result()
            done += 1
            if on_frame:
                on_frame(done, total)

    def write_after(previous: Future[None] | None, frame: VideoFrame) -> None:
        if previous:
            previous.result()  # after a failure nothing may be muxed any more: libavformat crashes
        write(frame)

    with ThreadPoolExecutor(1, "encode") as thread:
        for frame in frames:
            last = thread.submit(write_after, last, frame)
            pending.append(last)
            wait_until(_BACKLOG)
        wait_until(0)


def _check(decoded: Decoded, size: tuple[int, int]) -> None:
    width, height, kind, audio = decoded.width, decoded.height, decoded.pixel_format, decoded.audio
    if kind not in _RANGE or (kind == "yuv420p" and (width % 2 or height % 2)):
        raise EncodeFailed(f"Frames are {kind} {width}x{height}; allowed: rgb24, or even yuv420p.")
    if not (2 <= size[0] <= width and 2 <= size[1] <= height):
        raise EncodeFailed(f"{size[0]}x{size[1]} cannot be cut from frames of {width}x{height}.")
    if decoded.frames < 1:
        raise EncodeFailed("The model gave no frames; a video needs at least one.")
    if audio is not None and (audio.ndim != 2 or audio.shape[1] != 2):
        raise EncodeFailed(f"Sound has the shape {audio.shape}; it must be (samples, 2).")


def _redraw(
    scaler: VideoReformatter, frame: VideoFrame, pixel_format: str, size: tuple[int, int]
) -> VideoFrame:
    return scaler.reformat(
        frame,
        *size,
        pixel_format,
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        interpolation=_ACCURATE,
        src_color_range=_RANGE[frame.format.name],
        dst_color_range=_RANGE[pixel_format],
        threads=1,
    )


def _cut(
    picture: np.ndarray, whole: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]
) -> VideoFrame:
    """A cropped copy of planar yuv420p: it outlives its chunk, which a source may use again."""
    frame = VideoFrame(*size, "yuv420p")
    frame.colorspace, frame.color_range = Colorspace.ITU709, ColorRange.MPEG
    rest = picture.reshape(-1)
    for plane, part in zip(frame.planes, (1, 2, 2), strict=True):
        wide, high, left, top = (n // part for n in (*whole, *corner))
        source, rest = rest[: wide * high].reshape(high, wide), rest[wide * high :]
        target = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        box = slice(top, top + plane.height), slice(left, left + plane.width)
        target[: plane.height, : plane.width] = source[box]
    return frame


def _heard(sound: Decoded, index: int, fps: int) -> AudioFrame:
    """The sound during frame `index`; silence where there is none left."""
    rate, audio = sound.sample_rate, np.asarray(sound.audio, np.float32)
    start, end = (round(Fraction(at * rate, fps)) for at in (index, index + 1))
    samples = np.zeros((2, end - start), np.float32)
    samples[:, : len(audio[start:end])] = audio[start:end].T
    frame = AudioFrame.from_ndarray(samples, "fltp", "stereo")
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    return frame


def _sync(path: Path) -> str:
    """The SHA-256 of a file that is now on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
