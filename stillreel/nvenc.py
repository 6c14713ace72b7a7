"""NVENC, the H.264 encoder that some GPUs have beside what computes: whether it works here.

An A10G has it, an A100 has not. That it is compiled into the library proves nothing, so one is
opened and given a frame.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType

import av
from av import VideoFrame
from av.error import FFmpegError

from stillreel.job import Codec

log = logging.getLogger("stillreel.nvenc")

NVENC = "h264_nvenc"
ENCODERS: Mapping[Codec, str] = MappingProxyType({"h264": "libx264", "av1": "libsvtav1"})
"""What encodes where the GPU does not."""
SIDES = range(146, 4097)
"""Pixels of a side that the chip takes as H.264: 145 at least on Turing to Blackwell, and even."""

_known: dict[str, bool] = {}


def encoder_for(
    codec: Codec,
    size: tuple[int, int],
    *,
    wanted: bool,
    works: Callable[[], bool] | None = None,
) -> str:
    """The encoder of a video of this size: the GPU's where it is wanted, fits and works."""
    fits = codec == "h264" and all(side in SIDES for side in size)
    return NVENC if wanted and fits and (works or has_nvenc)() else ENCODERS[codec]


def nvenc_options(quality: int) -> dict[str, str]:
    """The settings of NVENC for a constant quality, on the scale of x264's crf.

    Not compared on a real GPU yet: that equal numbers look alike is the assumption.
    """
    return {
        "preset": "p5",
        "tune": "hq",
        "profile": "high",
        "rc": "vbr",
        "cq": str(quality),
        "b": "0",  # else a default bit rate caps the quality
        "spatial-aq": "1",
        "temporal-aq": "1",
        "rc-lookahead": "24",
    }


def has_nvenc() -> bool:
    """Whether NVENC encodes a frame in this process; tried once."""
    if NVENC not in _known:
        _known[NVENC] = _try_one()
    return _known[NVENC]


def distrust_nvenc() -> None:
    """Leave it alone from now on: it has failed in the middle of a video."""
    _known[NVENC] = False


def _try_one() -> bool:
    try:
        context = av.VideoCodecContext.create(NVENC, "w")
        context.width, context.height, context.pix_fmt = 256, 256, "yuv420p"
        context.time_base, context.framerate = Fraction(1, 24), Fraction(24)
        context.options = nvenc_options(23)
        frame = VideoFrame(256, 256, "yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 24)
        packets = [*context.encode(frame), *context.encode(None)]
    except (OSError, FFmpegError, ValueError) as exc:  # ValueError: not compiled in
        reason = getattr(exc, "strerror", None) or type(exc).__name__
        log.warning("NVENC does not work here (%s); x264 encodes instead", reason)
        return False
    return bool(packets)
