"""This machine: Python, the libraries, what PyAV can encode, the home's disk, the GPU."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from stillreel import __version__
from stillreel.doctor.finding import Finding, failed, ok, skipped, warning
from stillreel.doctor.gpu import look_at_gpu
from stillreel.errors import DiskFull, EncodeFailed, SettingsInvalid
from stillreel.host import check_signing
from stillreel.job import Codec
from stillreel.project import project_dir
from stillreel.settings import Settings

FEW_BYTES, MANY_BYTES = 1_000_000_000, 10_000_000_000
_SIDE, _FRAMES, _RATE = 128, 4, 48_000


def look(settings: Settings | None) -> Iterator[Finding]:
    """What this machine has of what stillreel runs on; without settings, all but the disk."""
    yield _python()
    yield _prefect()
    yield from _codecs()
    if settings is not None:
        yield _disk(settings)
        yield _credentials(settings)
    yield from look_at_gpu()


def _credentials(settings: Settings) -> Finding:
    if not settings.host.c2pa_cert:
        return skipped("Content Credentials", "no certificate is configured; videos are unsigned")
    try:
        check_signing(settings.host)
    except SettingsInvalid as exc:
        return failed("Content Credentials", exc.message, "docs/provenance.md, Content Credentials")
    return ok("Content Credentials", f"signed with {settings.host.c2pa_cert}")


def _python() -> Finding:
    text = f"{platform.python_version()}, stillreel {__version__}, {platform.platform(terse=True)}"
    return ok("Python", text)  # an older one than 3.11 does not come as far as this


def _prefect() -> Finding:
    fix = "pip install -c constraints.txt stillreel"
    try:
        found = version("prefect")
    except PackageNotFoundError:
        return failed("Prefect's package", "is not installed", fix)
    if found != (wanted := prefect_wanted()):
        return warning("Prefect's package", f"{found}; stillreel is tested with {wanted}", fix)
    return ok("Prefect's package", found)


def prefect_wanted() -> str:
    """The version of Prefect that stillreel leans on (docs/adr/0011)."""
    plan = yaml.safe_load((project_dir() / "prefect.yaml").read_text())
    return str(plan["prefect-version"])


def _codecs() -> Iterator[Finding]:
    """A short film is encoded with each: that an encoder is compiled in proves nothing."""
    import av

    where = f"PyAV {av.__version__}, ffmpeg {av.ffmpeg_version_info}"
    fix = "pip install --force-reinstall --only-binary :all: av; PyAV's wheels have all encoders"
    h264, av1 = _try("h264"), _try("av1")
    if h264:
        yield failed("H.264 and AAC", f"{h264} ({where})", fix)
    else:
        yield ok("H.264 and AAC", where)
    if av1:
        yield warning("AV1", f"{av1}; orders of codec av1 will fail here ({where})", fix)
    else:
        yield ok("AV1", where)


def _try(codec: Codec) -> str:
    """What is wrong with encoding a few frames and their sound."""
    import numpy as np
    from av.error import FFmpegError

    from stillreel.encoder import encode_video
    from stillreel.models.base import Decoded

    os.environ.setdefault("SVT_LOG", "1")  # else it tells its whole set-up on stderr
    film = Decoded(
        width=_SIDE,
        height=_SIDE,
        frames=_FRAMES,
        chunks=iter([np.zeros((_FRAMES, _SIDE, _SIDE, 3), np.uint8)]),
        audio=np.zeros((_RATE, 2), np.float32),
        sample_rate=_RATE,
    )
    try:
        with TemporaryDirectory(prefix="stillreel-doctor-") as folder:
            encode_video(film, Path(folder), stem="film", fps=24, crop=(_SIDE, _SIDE), codec=codec)
    except (EncodeFailed, DiskFull, FFmpegError, ValueError) as exc:  # ValueError: not compiled in
        return f"does not encode: {exc}"
    return ""


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.host.home).free
    text = f"{free / 1e9:.1f} GB are free at {settings.host.home}"
    fix = "free some space, or set STILLREEL_HOME to a larger disk"
    if free < FEW_BYTES:
        return failed("disk", text, fix)
    if free < MANY_BYTES:
        return warning("disk", f"{text}; a job of 1080p takes a few GB while it runs", fix)
    return ok("disk", text)
