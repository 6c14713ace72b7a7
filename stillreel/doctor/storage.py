"""The object store: each call that stillreel leans on, tried on a small object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

from stillreel.doctor.finding import Finding, failed, ok, warning
from stillreel.errors import StillreelError, StorageError
from stillreel.settings import Settings
from stillreel.storage import LocalStorage, open_storage

_BODY = b"stillreel doctor looks whether this storage works"
_INIT = "run `stillreel storage init`"


def look(settings: Settings) -> Iterator[Finding]:
    """What storage does when it is asked; what is stored for it is deleted again."""
    if settings.storage.kind == "local":
        yield from _look_at_directory(settings)
    else:
        yield from _look_at_bucket(settings)


def _look_at_directory(settings: Settings) -> Iterator[Finding]:
    storage = open_storage(settings.storage, settings.host.home)
    assert isinstance(storage, LocalStorage)  # noqa: S101 - for the type
    key = f"temp/check-{uuid4().hex}"
    fix = "set STILLREEL_STORAGE_DIR to a directory that this user may write, or free some space"
    yield ok("storage", f"the directory {storage.root}; the keeper deletes what is old")
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: storage.put_bytes(key, _BODY, content_type="application/octet-stream"),
        "get": lambda: _same(storage.get_bytes(key)),
        "list": lambda: _found(any(info.key == key for info in storage.list("temp/"))),
        "signed address": lambda: storage.download_url(key, seconds=60),
        "delete": lambda: storage.delete(key),
    }
    for name, call in calls.items():
        try:
            call()
        except StillreelError as exc:
            yield failed(name, exc.message, fix)
            return
        yield ok(name, "works")


def _look_at_bucket(settings: Settings) -> Iterator[Finding]:
    from stillreel.bucket_checks import all_checks
    from stillreel.bucket_init import ORIGIN, init_bucket
    from stillreel.storage_s3 import S3Storage, bucket_of

    bucket = bucket_of(settings.storage)
    at = f"the bucket {bucket.name} at {bucket.endpoint or 'AWS'}"
    try:
        report = init_bucket(settings.storage, dry_run=True)
    except StillreelError as exc:
        fix = f"look at {bucket.hint}, and whether this machine reaches that address"
        yield failed("storage", f"{at}: {exc.message}", fix)
        return
    if not report.checks:  # a dry run looks into no bucket that is not there
        yield failed("storage", f"{at} is not there", f"{_INIT}, which makes it")
        return
    yield ok("storage", at)
    named = [origin for origin in settings.storage.upload_origins if origin != "*"]
    for check in all_checks(S3Storage(bucket, attempts=1), origin=[*named, ORIGIN][0]):
        if check.works:
            yield ok(check.name, "works")
        elif check.needed:
            fix = "the key has to list, read, write and delete in this bucket; docs/r2.md"
            yield failed(check.name, check.note or "does not work", fix)
        else:
            yield warning(check.name, check.note or "does not work", f"{_INIT}; docs/operations.md")
    for change in report.changes[1:]:
        if change.outcome == "kept":
            yield ok(change.what, "as it should be")
        else:
            yield warning(change.what, change.outcome, _INIT)
    for text in report.warnings:
        yield warning(
            "lifecycle", text, "take that rule out, or set its days above the longest wait"
        )


def _same(data: bytes) -> None:
    if data != _BODY:
        raise StorageError("other bytes came back")


def _found(there: bool) -> None:
    if not there:
        raise StorageError("a new object is not listed")
