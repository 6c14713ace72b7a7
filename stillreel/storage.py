"""Where bytes are kept: the port, and the adapter for a local directory (S3 and R2: storage_s3)."""

from __future__ import annotations

import errno
import hashlib
import mimetypes
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

from stillreel.errors import (
    DiskFull,
    ObjectMissing,
    OutputUnwritable,
    RequestRejected,
    StillreelError,
    StorageError,
    StorageRefused,
    StorageUnavailable,
    is_disk_full,
)
from stillreel.links import Links
from stillreel.settings import StorageSettings

KEY_LIMIT = 512
"""Bytes of UTF-8; S3 and R2 take 1024."""
BYTES_LIMIT = 64 * 1024**2
"""Largest object that `get_bytes` reads into memory."""
FREE_BYTES = 1_000_000_000
"""So much of a disk is left free by what strangers send."""
URL_SECONDS_LIMIT = 7 * 86400
"""The longest that S3 and R2 accept for a signed URL."""


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object: size in bytes, an etag that changes with the content, time in UTC."""

    key: str
    size: int
    etag: str
    content_type: str
    modified: datetime


class Storage(Protocol):
    """The object store.

    Every call raises RequestRejected for a bad key, StorageRefused where the set-up is wrong and
    StorageUnavailable where a later try may succeed. Nothing else escapes but what is named.
    """

    def put_file(self, key: str, path: Path, *, content_type: str) -> ObjectInfo:
        """Store the file under `key`: replaces whole or not at all.

        Raises OSError when the file cannot be read, DiskFull.
        """
        ...

    def put_bytes(self, key: str, data: bytes, *, content_type: str) -> ObjectInfo:
        """Store `data` under `key`: replaces whole or not at all. Raises DiskFull."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Bring the object to `path`: whole or not at all; makes the directory.

        Raises ObjectMissing, DiskFull, OutputUnwritable.
        """
        ...

    def get_bytes(self, key: str, *, limit: int = BYTES_LIMIT) -> bytes:
        """The object's bytes. Raises ObjectMissing, and StorageError for more than `limit`."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """What is known about the object, or None when there is none."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is fine."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin with `prefix`, sorted by key.

        The content type is the one that the key's extension stands for.
        """
        ...

    def upload_url(self, key: str, *, content_type: str, size: int | None, seconds: int) -> str:
        """An address to PUT exactly `size` bytes of this type to, without credentials.

        The client must send the same Content-Type and Content-Length; both are signed. Without a
        `size` any length is taken, and is looked at when the object is used.
        """
        ...

    def download_url(self, key: str, *, seconds: int) -> str:
        """An address to GET the object from, without credentials; the object need not exist."""
        ...


def open_storage(settings: StorageSettings, home: Path, links: Links | None = None) -> Storage:
    """The storage that is configured; opens no connection and creates nothing yet.

    With `links`, the URLs of a local directory are those that the API serves.
    """
    if settings.kind == "local":
        return LocalStorage(settings.storage_dir or home / "storage", links)

    if settings.kind == "lease":
        from prefect.runtime import flow_run

        from stillreel.storage_lease import LeaseStorage

        if not flow_run.id:
            raise StorageRefused("A rented host has storage for its runs only, and this is none.")
        return LeaseStorage(settings.lease_url, settings.lease_token, str(flow_run.id))

    from stillreel.storage_s3 import S3Storage, bucket_of

    return S3Storage(bucket_of(settings))


def checked_key(key: str) -> str:
    """`key` itself, when any storage can hold it. Raises RequestRejected."""
    fault = _key_fault(key)
    if fault:
        raise RequestRejected(
            f"The storage key {key[:80]!r} {fault}; a key is a relative path like "
            "inputs/job_0123/input.png."
        )
    return key


def checked_prefix(prefix: str) -> str:
    """`prefix` itself, when a key can begin with it. Raises RequestRejected."""
    if prefix:
        checked_key(prefix.removesuffix("/"))
    return prefix


def checked_seconds(seconds: int) -> int:
    """`seconds` itself, when a URL can be valid for so long. Raises RequestRejected."""
    if not 1 <= seconds <= URL_SECONDS_LIMIT:
        raise RequestRejected(
            f"A URL cannot be valid for {seconds} seconds; allowed are 1 to {URL_SECONDS_LIMIT}."
        )
    return seconds


def guess_type(key: str) -> str:
    """The content type that the extension of `key` stands for, the same on every machine."""
    return _TYPES.guess_type(key, strict=False)[0] or "application/octet-stream"


@contextmanager
def replacing(
    path: Path,
    *,
    parts: Path | None = None,
    name: str = "",
    refused: type[StillreelError] = OutputUnwritable,
) -> Iterator[BinaryIO]:
    """A new file that becomes `path`, safe on the disk, when the block ends without an error.

    It is written in the directory `parts`, by default beside `path`; under this name only one is
    written at a time. Raises DiskFull, `refused`, StorageUnavailable while another one is.
    """
    part = (parts or path.parent) / f".{name or uuid4().hex}.part"
    try:
        for folder in (path.parent, part.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            file = part.open("xb")
        except FileExistsError as exc:
            raise StorageUnavailable("It is being written already; try again later.") from exc
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as exc:
        raise _disk_error(exc, refused) from exc


class LocalStorage:
    """A directory as storage; the content type of an object is the one of its key's extension.

    Its URLs are `links`, which the API serves; without them `file:` URLs, which only programs on
    this machine can use.
    """

    def __init__(self, root: Path, links: Links | None = None) -> None:
        self.root = root.expanduser().absolute()
        self._links = links

    def __repr__(self) -> str:
        return f"LocalStorage({str(self.root)!r})"

    def put_file(self, key: str, path: Path, *, content_type: str) -> ObjectInfo:  # noqa: ARG002
        with path.open("rb") as source, self.replacing(key) as file:
            shutil.copyfileobj(source, file, 1024**2)
        return self._stored(key)

    def put_bytes(self, key: str, data: bytes, *, content_type: str) -> ObjectInfo:  # noqa: ARG002
        with self.replacing(key) as file:
            file.write(data)
        return self._stored(key)

    def replacing(self, key: str, *, alone: bool = False) -> AbstractContextManager[BinaryIO]:
        """A new file that becomes the object when the block ends without an error.

        `alone`: by no other writer at the same time. Raises DiskFull, StorageUnavailable.
        """
        name = hashlib.sha256(key.encode()).hexdigest() if alone else ""
        return replacing(self.path(key), parts=self._parts, name=name, refused=StorageRefused)

    def get_file(self, key: str, path: Path) -> None:
        with self._open(key) as source, replacing(path) as file:
            shutil.copyfileobj(source, file, 1024**2)

    def get_bytes(self, key: str, *, limit: int = BYTES_LIMIT) -> bytes:
        with self._open(key) as source:
            data = source.read(limit + 1)
        return checked_size(key, data, limit)

    def head(self, key: str) -> ObjectInfo | None:
        path = self.path(key)
        with _refusals():
            try:
                stat = path.stat()
            except _ABSENT:
                return None
        return None if path.is_dir() else _info(key, stat)

    def delete(self, key: str) -> None:
        path = self.path(key)
        if self.head(key) is None:
            return
        with _refusals():
            path.unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self.root / checked_prefix(prefix).rpartition("/")[0]
        keys = (path.relative_to(self.root).as_posix() for path in _files(folder))
        found = sorted(k for k in keys if k.startswith(prefix) and not _key_fault(k))
        return (info for key in found if (info := self.head(key)))

    def upload_url(self, key: str, *, content_type: str, size: int | None, seconds: int) -> str:
        path, seconds = self.path(key), checked_seconds(seconds)
        if self._links is None:
            return path.as_uri()
        return self._links.upload_url(key, content_type, size, seconds)

    def download_url(self, key: str, *, seconds: int) -> str:
        path, seconds = self.path(key), checked_seconds(seconds)
        return path.as_uri() if self._links is None else self._links.download_url(key, seconds)

    def path(self, key: str) -> Path:
        """Where the object lies, if there is one."""
        return self.root / checked_key(key)

    @cached_property
    def _parts(self) -> Path:
        """Where files are written first; what a killed process left there a day ago is removed."""
        parts = self.root / ".parts"
        with _refusals():
            parts.mkdir(parents=True, exist_ok=True)
            for part in parts.iterdir():
                with suppress(FileNotFoundError):  # it has become an object meanwhile
                    if part.stat().st_mtime < time.time() - 86400:
                        part.unlink()
        return parts

    def _stored(self, key: str) -> ObjectInfo:
        info = self.head(key)
        if info is None:
            raise StorageUnavailable(f"{key} was removed while it was stored; store it again.")
        return info

    @contextmanager
    def _open(self, key: str) -> Iterator[BinaryIO]:
        path = self.path(key)
        with _refusals():
            try:
                file = path.open("rb")
            except _ABSENT as exc:
                raise missing(key) from exc
            with file:
                yield file


def check_room(folder: Path, size: int) -> None:
    """Nothing, where the disk has room for so many bytes of others and stays usable.

    Raises DiskFull.
    """
    while not folder.exists():
        folder = folder.parent
    if shutil.disk_usage(folder).free < size + FREE_BYTES:
        raise DiskFull("There is not enough room on this disk now; send it again later.")


def missing(key: str) -> ObjectMissing:
    """The error for a key without an object."""
    return ObjectMissing(f"There is no object {key}; it was never stored, or it has expired.")


def checked_size(key: str, data: bytes, limit: int) -> bytes:
    """`data` itself, when it is no longer than `limit`. Raises StorageError."""
    if len(data) > limit:
        raise StorageError(
            f"{key} has more than {limit} bytes, the limit for reading it into memory; "
            "get it as a file."
        )
    return data


_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_TYPES = mimetypes.MimeTypes()
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EXDEV),
)


def _key_fault(key: str) -> str:
    """What is wrong with a key, or nothing."""
    parts = key.split("/")
    faults = {
        "is empty": not key,
        "holds a character that cannot be printed": not key.isprintable(),
        "holds a backslash": "\\" in key,
        "begins with a dot": key.startswith("."),
        "has an empty part, or `.` or `..` as a part": {"", ".", ".."} & set(parts),
        f"is longer than {KEY_LIMIT} bytes": _length(key) > KEY_LIMIT,
        "has a part longer than 255 bytes": max(map(_length, parts)) > 255,
    }
    return next((fault for fault, found in faults.items() if found), "")


def _length(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def _info(key: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        size=stat.st_size,
        etag=f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}",
        content_type=guess_type(key),
        modified=datetime.fromtimestamp(stat.st_mtime, UTC),
    )


def _files(folder: Path) -> Iterator[Path]:
    with _refusals():
        for path, _, names in os.walk(folder, onerror=_raise_unless_absent):
            yield from (Path(path, name) for name in names)


def _raise_unless_absent(exc: OSError) -> None:
    if not isinstance(exc, _ABSENT):
        raise exc


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _disk_error(exc, StorageRefused) from exc


def _disk_error(exc: OSError, refused: type[StillreelError]) -> StillreelError:
    if is_disk_full(exc):
        return DiskFull()
    reason = os.strerror(exc.errno) if exc.errno else "unknown reason"
    if exc.errno not in _REFUSED:
        return StorageUnavailable(f"The disk does not answer as it should: {reason}.")
    if refused is StorageRefused:
        return StorageRefused(
            f"The storage directory cannot be used: {reason}; set STILLREEL_STORAGE_DIR to a "
            "directory that this user may write."
        )
    return refused(f"The file cannot be written: {reason}; choose a directory that can be.")


def _sync_directory(path: Path) -> None:
    """Makes a new name in a directory survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
