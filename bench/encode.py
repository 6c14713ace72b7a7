"""What a video costs to encode, against bare x264 given ready frames.

`python -m bench.encode [--rounds 3] [--json FILE]`. Each run is a fresh process; kinds alternate
and each second round goes backwards. CPU is user + system seconds, the median of the rounds, less
those of a process that only generates the frames (for bare: only generates and converts them).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

THREADS, FPS, FRAMES, LONG = 2, 24, 121, 721
SIZES = {"1920x1080": ((1920, 1088), (1920, 1080)), "1280x704": ((1280, 704), (1280, 704))}
"""The generated size and the cropped size."""
CPU_BARS = {"1920x1080": 1.10, "1280x704": 1.15}
RSS_BAR, GROWTH_BAR, COLOUR_BAR = 500.0, 10.0, 2.0
BARS = [
    (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0),
    (0, 255, 255), (255, 0, 255), (128, 128, 128), (200, 120, 80), (40, 90, 160), (90, 140, 60),
]  # fmt: skip


def run(rounds: int) -> list[dict[str, Any]]:
    """One row per measure: what, size, value, unit, bar (None where there is none), met, detail."""
    rows = [row for size in SIZES for row in _measure_size(size, rounds)]
    error = _in_new_process("bars", "1280x704", 2)["error"]
    return [*rows, _row("worst colour bar", "384x64", error, "of 255", COLOUR_BAR)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs=3, metavar=("KIND", "SIZE", "FRAMES"), help="one run, here")
    options = parser.parse_args()
    if options.only:
        kind, size, frames = options.only
        print(json.dumps(_run_here(kind, size, int(frames))))
        return
    rows = run(options.rounds)
    print(f"{'what':<34}{'size':<11}{'value':>8}  {'unit':<8}{'bar':>8}  detail")
    for row in rows:
        bar = "" if row["bar"] is None else f"<= {row['bar']:g}"
        verdict = {True: "met", False: "MISSED", None: "-"}[row["met"]]
        print(f"{row['what']:<34}{row['size']:<11}{row['value']:>8.2f}  {row['unit']:<8}{bar:>8}"
              f"  {verdict}  {row['detail']}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _measure_size(size: str, rounds: int) -> Iterator[dict[str, Any]]:
    kinds = ["generate", "convert", "bare", "equal", "video", "product"]
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        for kind in kinds if number % 2 == 0 else reversed(kinds):
            results[kind].append(_in_new_process(kind, size, FRAMES))
    cpu = {kind: median(result["cpu"] for result in results[kind]) for kind in kinds}
    rss = {kind: median(result["rss"] for result in results[kind]) for kind in kinds}
    kib = {kind: median(result["kib"] for result in results[kind]) for kind in kinds}
    bare = {kind: cpu[kind] - cpu["convert"] for kind in ("bare", "equal")}
    for kind, base, what, bar in (
        ("video", "bare", "CPU of the video alone", CPU_BARS[size]),
        ("video", "equal", "the same, with equal lookahead", CPU_BARS[size]),
        ("product", "bare", "CPU with poster and teaser", None),
    ):
        own = cpu[kind] - cpu["generate"]
        runs = [result["cpu"] - cpu["generate"] for result in results[kind]]
        detail = f"{own:.2f} s ({min(runs):.2f}-{max(runs):.2f}) to {bare[base]:.2f} s"
        yield _row(what, size, own / bare[base], "x bare", bar, detail)
    detail = f"{kib['video']:.0f} KiB to {kib['bare']:.0f} KiB"
    yield _row("bytes of the video", size, kib["video"] / kib["bare"], "x bare", 1.03, detail)
    detail = f"bare {rss['bare']:.0f} MB, generator {rss['generate']:.0f} MB"
    yield _row("peak RSS, product", size, rss["product"], "MB", RSS_BAR, detail)
    long = _in_new_process("product", size, LONG)["rss"]
    growth, detail = long - rss["product"], f"{long:.0f} MB at {LONG} frames"
    yield _row(f"RSS growth {FRAMES} to {LONG} frames", size, growth, "MB", GROWTH_BAR, detail)


def _row(
    what: str, size: str, value: float, unit: str, bar: float | None, detail: str = ""
) -> dict[str, Any]:
    met = None if bar is None else value <= bar
    return {"what": what, "size": size, "value": value, "unit": unit, "bar": bar, "met": met,
            "detail": detail}  # fmt: skip


def _in_new_process(kind: str, size: str, frames: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.encode", "--only", kind, size, str(frames)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def _run_here(kind: str, size: str, frames: int) -> dict[str, float]:
    """CPU seconds, peak RSS in MB and KiB written of this process, for one kind of work."""
    kinds: dict[str, Callable[..., None]] = {
        "generate": _generate, "convert": _convert, "bare": _encode_bare, "equal": _encode_equal,
        "video": _encode_video_alone, "product": _encode_product,
    }  # fmt: skip
    with TemporaryDirectory() as temp:
        if kind == "bars":
            return {"error": _colour_error(Path(temp))}
        kinds[kind](Path(temp), *SIZES[size], frames)
        film = Path(temp, "clip.mp4")
        kib = film.stat().st_size / 1024 if film.exists() else 0.0
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss / (1024 if sys.platform == "linux" else 1024 * 1024)
    return {"cpu": used.ru_utime + used.ru_stime, "rss": peak, "kib": kib}


# --- the kinds of work, each in a process of its own; only these import numpy and PyAV ----------


def _generate(_folder: Path, whole: Any, _crop: Any, frames: int) -> None:
    for _ in _decoded(whole, frames).chunks:
        pass


def _convert(_folder: Path, whole: Any, crop: Any, frames: int) -> None:
    from stillreel.encoder import convert

    for _ in convert(_decoded(whole, frames), crop, fps=FPS):
        pass


def _encode_equal(folder: Path, whole: Any, crop: Any, frames: int) -> None:
    """The bare encode that looks as far ahead as the product: 24 frames."""
    _encode_bare(folder, whole, crop, frames, lookahead=24)


def _encode_bare(folder: Path, whole: Any, crop: Any, frames: int, *, lookahead: int = 40) -> None:
    """As little as PyAV allows: libx264, preset medium as it comes, in a plain loop.

    That preset looks 40 frames ahead, the product 24, which saves CPU and memory.
    """
    import av

    from stillreel.encoder import convert

    with av.open(folder / "clip.mp4", "w") as container:
        options = {"preset": "medium", "crf": "23", "rc-lookahead": str(lookahead)}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        context = stream.codec_context
        context.width, context.height = crop
        context.pix_fmt, context.time_base = "yuv420p", Fraction(1, FPS)
        context.gop_size, context.thread_count, context.thread_type = 48, THREADS, "SLICE"
        for frame in convert(_decoded(whole, frames), crop, fps=FPS):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _encode_video_alone(folder: Path, whole: Any, crop: Any, frames: int) -> None:
    from stillreel.encoder import convert, movie, write_all

    decoded = _decoded(whole, frames)
    with movie(folder / "clip.mp4", crop, fps=FPS, threads=THREADS, sound=decoded) as write:
        write_all(convert(decoded, crop, fps=FPS), write, total=frames)


def _encode_product(folder: Path, whole: Any, crop: Any, frames: int) -> None:
    from stillreel.encoder import encode_video

    decoded = _decoded(whole, frames)
    encode_video(decoded, folder, stem="clip", fps=FPS, crop=crop, threads=THREADS)


def _decoded(whole: tuple[int, int], frames: int) -> Any:
    """A textured pan under changing grain, with three textures on curved paths, in chunks of 8."""
    import numpy as np

    from stillreel.models.base import Decoded

    rng = np.random.default_rng(7)
    width, height = whole
    side = width // 4
    backdrop = _texture(rng, width + 2 * 192, height + 2 * 48)
    sprites = [_texture(rng, side, side) for _ in range(3)]
    grain = rng.integers(0, 8, (height + 64, width + 64, 1), np.uint8).repeat(3, axis=2)

    def paint(at: int, picture: Any) -> None:
        x, y = _sway(at, 192, 0), _sway(at, 48, 1)
        picture[:] = backdrop[y : y + height, x : x + width]
        for number, sprite in enumerate(sprites, 1):
            x, y = _sway(at, (width - side) // 2, number), _sway(at, (height - side) // 2, -number)
            picture[y : y + side, x : x + side] = sprite
        x, y = rng.integers(0, 64, 2)
        picture += grain[y : y + height, x : x + width]

    def chunk(start: int) -> Any:
        pictures = np.empty((min(8, frames - start), height, width, 3), np.uint8)
        for at, picture in enumerate(pictures, start):
            paint(at, picture)
        return pictures

    return Decoded(width, height, frames, map(chunk, range(0, frames, 8)))


def _sway(at: int, reach: int, seed: int) -> int:
    """An offset from 0 to twice the reach that moves back and forth."""
    from math import sin

    return int(reach * (1 + sin(at / (17 + 3 * seed) + seed)))


def _texture(rng: Any, width: int, height: int) -> Any:
    """Detail at every scale, as in a photograph: noise of falling strength, 8 to 240."""
    import numpy as np
    from PIL import Image

    texture = np.empty((height, width, 3), np.uint8)
    for channel in range(3):  # one after the other, to stay small beside the encoder
        total = np.zeros((height, width), np.float32)
        for octave in range(2, 9):
            small = rng.integers(0, 256, (height >> octave or 1, width >> octave or 1), np.uint8)
            large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            total += (np.asarray(large, np.float32) - 128) * np.float32(0.7 ** (9 - octave))
        texture[:, :, channel] = (124 + total * (60 / total.std())).clip(8, 240)
    return texture


def _colour_error(folder: Path) -> float:
    """The worst difference of 12 flat colours after a decode as bt709 limited."""
    import av
    import numpy as np
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    from stillreel.encoder import encode_video
    from stillreel.models.base import Decoded

    wide = np.repeat(np.array(BARS, np.uint8), 32, axis=0)
    chunk = np.broadcast_to(wide, (8, 64, *wide.shape))
    decoded = Decoded(384, 64, 8, iter([chunk]))
    made = encode_video(decoded, folder, stem="clip", fps=FPS, crop=(384, 64))
    worst = 0
    with av.open(made.video) as container:
        for frame in container.decode(video=0):
            seen = frame.reformat(
                format="rgb24", src_colorspace=Colorspace.ITU709, src_color_range=ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
                interpolation=Interpolation.BICUBIC
                | Interpolation.ACCURATE_RND
                | Interpolation.FULL_CHR_H_INT,
            ).to_ndarray()  # fmt: skip
            middle = seen[16:48, 16::32].astype(int)
            worst = max(worst, int(np.abs(middle - np.array(BARS)).max()))
    return float(worst)


if __name__ == "__main__":
    main()
