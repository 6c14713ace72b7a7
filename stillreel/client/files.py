"""Files of a client: images on their way to the API, videos on their way to the disk."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import httpx

from stillreel.client.answers import Job, VideoFacts
from stillreel.client.calls import Call
from stillreel.client.failures import DownloadDamaged
from stillreel.errors import (
    DiskFull,
    JobConflict,
    ObjectMissing,
    OutputUnwritable,
    RequestRejected,
    is_disk_full,
)
from stillreel.image_file import reading
from stillreel.job import JobStatus

Variant = Literal["video", "poster", "teaser"]

_URLS = {"video": "result_url", "poster": "poster_url", "teaser": "teaser_url"}
_ENDINGS = {"video": ".mp4", "poster": ".jpg", "teaser": "-teaser.mp4"}
_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)


@dataclass(frozen=True)
class LocalImage:
    """An image of this machine; its bytes are read when they are needed."""

    size: int
    content_type: str
    read: Callable[[], bytes]


def open_image(image: Path | str | bytes) -> LocalImage:
    """An image by its path or its bytes. Raises ImageRejected, which says what is wrong."""
    if isinstance(image, bytes):
        return LocalImage(len(image), _type_of(image[:16]), lambda: image)
    path = Path(image).expanduser()
    with reading(path):
        if not path.is_file():  # a pipe has no size before it was read; a directory cannot be
            return open_image(path.read_bytes())
        with path.open("rb") as file:
            head = file.read(16)
        size = path.stat().st_size
    return LocalImage(size, _type_of(head), lambda: _read(path))


class Saving:
    """A file being downloaded: next to its target first, which it replaces when it is whole.

    Raises, besides what its methods tell, OutputUnwritable and DiskFull.
    """

    def __init__(self, job: Job, variant: Variant, path: Path | str | None) -> None:
        self.target = _target(job, variant, path)
        self._variant: Variant = variant
        self._facts: VideoFacts | None = job.video if variant == "video" else None
        self._part = self.target.with_name(f".{self.target.name}.{secrets.token_hex(4)}.part")
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._done = 0
        self._etag = ""

    def call(self, job: Job) -> Call:
        """The request for what is not here yet. Raises why there is no file."""
        headers = {"Accept-Encoding": "identity"}
        is_short = self._facts is None or self._done < self._facts.size
        if self._done and self._etag and is_short:
            headers |= {"Range": f"bytes={self._done}-", "If-Range": self._etag}
        return Call("GET", self._url(job), headers=headers)

    def begin(self, response: httpx.Response) -> None:
        """Get ready for the body of this response: the rest, or all of it again."""
        with self._writing():
            if self._file is None:
                self._file = self._part.open("xb")
            goes_on = f"bytes {self._done}-"
            is_rest = response.headers.get("content-range", "").startswith(goes_on)
            if response.status_code != httpx.codes.PARTIAL_CONTENT or not is_rest:
                self._restart()
        etag = response.headers.get("etag", "")
        self._etag = "" if etag.startswith("W/") else etag

    def take(self, chunk: bytes) -> None:
        """Write the next bytes."""
        with self._writing() as file:
            file.write(chunk)
        self._hash.update(chunk)
        self._done += len(chunk)

    def finish(self) -> Path:
        """Put the file in its place; its path. Raises DownloadDamaged, and then starts anew."""
        facts = self._facts
        if facts and (self._done != facts.size or self._hash.hexdigest() != facts.sha256):
            done = self._done
            self._etag = ""
            with self._writing():
                self._restart()
            raise DownloadDamaged(
                f"The downloaded video is not what was made ({done:,} bytes of {facts.size:,}); "
                "nothing was kept. Download it again."
            )
        with self._writing() as file:
            file.close()
            self._part.replace(self.target)
        return self.target

    def close(self) -> None:
        """Leave nothing but the finished file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._part.unlink(missing_ok=True)

    def _url(self, job: Job) -> str:
        if job.failure:
            raise job.failure
        if job.status != JobStatus.COMPLETED:
            raise JobConflict(f"The job is {job.status}; only a completed one has a video.")
        url = getattr(job, _URLS[self._variant])
        if not url:
            raise ObjectMissing(f"The job has no {self._variant}.")
        return url

    def _restart(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
        self._hash, self._done = hashlib.sha256(), 0

    @contextmanager
    def _writing(self) -> Iterator[BinaryIO]:
        try:
            yield self._file  # type: ignore[misc]
        except OSError as exc:
            if is_disk_full(exc):
                raise DiskFull(f"There is no room left for {self.target}; free some.") from exc
            raise OutputUnwritable(f"{self.target} cannot be written: {exc.strerror}") from exc


def _target(job: Job, variant: Variant, path: Path | str | None) -> Path:
    if variant not in _URLS:
        raise RequestRejected(f"{variant!r} is no file of a job; take one of {', '.join(_URLS)}")
    name = job.job_id.replace(os.sep, "_") + _ENDINGS[variant]
    target = Path(path).expanduser() if path else Path(name)
    return (target / name if target.is_dir() else target).absolute()


def _type_of(head: bytes) -> str:
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    return "application/octet-stream"  # the API says which it reads


def _read(path: Path) -> bytes:
    with reading(path):
        return path.read_bytes()
