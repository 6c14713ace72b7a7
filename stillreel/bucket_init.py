"""Gets a bucket ready: makes it, sets lifetimes and CORS, and looks what its endpoint can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from stillreel.bucket_checks import Check, all_checks, read_checks
from stillreel.bucket_rules import Rule, dangers, equal, foreign, with_cors, with_lifecycle
from stillreel.settings import StorageSettings
from stillreel.storage_s3 import S3Storage, bucket_of

ORIGIN = "https://stillreel.invalid"
"""The page that the question is asked for where every site is allowed."""
_NO_RULES = ("NoSuchLifecycleConfiguration", "NoSuchCORSConfiguration")
_NO_CALL = ("NotImplemented", "MethodNotAllowed", "XNotImplemented")
_MAY_NOT = ("AccessDenied", "403", "Forbidden")


@dataclass(frozen=True)
class Change:
    """One thing about the bucket: as it was, and what was done or would be."""

    what: str
    outcome: str
    """`kept`, `set`, `would be set`, or why it could not be."""
    kept_foreign: int = 0
    ok: bool = True


@dataclass
class Report:
    """What `init_bucket` did and saw."""

    bucket: str
    endpoint: str
    dry_run: bool
    changes: list[Change] = field(default_factory=list[Change])
    checks: list[Check] = field(default_factory=list[Check])
    warnings: list[str] = field(default_factory=list[str])

    @property
    def is_usable(self) -> bool:
        """Whether everything works that storage cannot do without."""
        return all(check.works for check in self.checks if check.needed)


def init_bucket(settings: StorageSettings, *, location: str = "", dry_run: bool = False) -> Report:
    """Get the configured bucket ready; again and again with the same result.

    `location` is for a bucket that is made now. With `dry_run` nothing is changed or stored.
    Raises StorageRefused where the bucket cannot be used at all, StorageUnavailable.
    """
    storage = S3Storage(bucket_of(settings))
    report = Report(storage.bucket.name, storage.bucket.endpoint or "AWS", dry_run)
    with storage.errors(""):
        there = _make(storage, report, location or settings.r2_location)
    if not there:
        return report
    _rules(
        storage,
        report,
        "lifecycle",
        lambda found: with_lifecycle(found, settings),
        without="nothing deletes what lies under temp/ and results/; inputs, latents and videos "
        "are the keeper's all the same",
    )
    _rules(
        storage,
        report,
        "CORS",
        lambda found: with_cors(found, settings),
        without="browsers can upload only where pages and bucket have one address",
    )
    named = [origin for origin in settings.upload_origins if origin != "*"]
    report.checks = (
        read_checks(storage) if dry_run else all_checks(storage, origin=[*named, ORIGIN][0])
    )
    return report


def _make(storage: S3Storage, report: Report, location: str) -> bool:
    """Make the bucket where there is none; whether there is one now."""
    name, client = storage.bucket.name, storage.client
    try:
        client.head_bucket(Bucket=name)
    except ClientError as exc:
        if _code(exc) not in ("404", "NoSuchBucket", "NotFound"):
            raise
    else:
        report.changes.append(Change("bucket", "kept"))
        return True
    region = storage.bucket.region
    if not location and not storage.bucket.endpoint and region != "us-east-1":
        location = region
    where = f" in {location}" if location else ""
    if report.dry_run:
        report.changes.append(Change("bucket", f"would be made{where}"))
        return False
    at = {"CreateBucketConfiguration": {"LocationConstraint": location}} if location else {}
    client.create_bucket(Bucket=name, **at)
    report.changes.append(Change("bucket", f"made{where}"))
    return True


def _rules(
    storage: S3Storage,
    report: Report,
    what: str,
    wanted_of: Callable[[Sequence[Rule]], list[Rule]],
    *,
    without: str,
) -> None:
    """Bring rules of one kind to what is wanted; `without` is said where that is not possible."""
    read, write, extra = _CALLS[what]
    try:
        present, more = read(storage)
        wanted = wanted_of(present)
        others = len(foreign(wanted))
        report.warnings += dangers(present) if what == "lifecycle" else []
        if equal(present, wanted):
            report.changes.append(Change(what, "kept", others))
        elif report.dry_run:
            report.changes.append(Change(what, "would be set", others))
        else:
            write(storage, wanted, {k: more[k] for k in extra if k in more})
            now, _ = read(storage)
            kept = equal(now, wanted)
            outcome = "set" if kept else "set, but the endpoint gives back something else"
            report.changes.append(Change(what, outcome, others, ok=kept))
    except ClientError as exc:
        reason = _reason(exc)
        if not reason:
            with storage.errors(what):
                raise
        report.changes.append(Change(what, f"{reason}: {without}", ok=False))


def _reason(exc: ClientError) -> str:
    """Why rules cannot be read or set; empty where that is not the rules' own matter."""
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if _code(exc) in _NO_CALL or status in (405, 501):
        return "this endpoint has no such call"
    if _code(exc) in _MAY_NOT or status == 403:
        return (
            "the key may not do this (R2: a token with Admin Read & Write; run this once with it)"
        )
    if status == 400:
        return f"the endpoint does not take it ({_code(exc)})"
    return ""


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


_Read = Callable[[S3Storage], tuple[list[Rule], dict[str, Any]]]
_Write = Callable[[S3Storage, list[Rule], dict[str, Any]], None]


def _read_lifecycle(storage: S3Storage) -> tuple[list[Rule], dict[str, Any]]:
    return _read(storage.client.get_bucket_lifecycle_configuration, storage, "Rules")


def _write_lifecycle(storage: S3Storage, rules: list[Rule], more: dict[str, Any]) -> None:
    storage.client.put_bucket_lifecycle_configuration(
        Bucket=storage.bucket.name, LifecycleConfiguration={"Rules": rules}, **more
    )


def _read_cors(storage: S3Storage) -> tuple[list[Rule], dict[str, Any]]:
    return _read(storage.client.get_bucket_cors, storage, "CORSRules")


def _write_cors(storage: S3Storage, rules: list[Rule], more: dict[str, Any]) -> None:
    storage.client.put_bucket_cors(
        Bucket=storage.bucket.name, CORSConfiguration={"CORSRules": rules}, **more
    )


def _read(call: Any, storage: S3Storage, field: str) -> tuple[list[Rule], dict[str, Any]]:
    try:
        answer = call(Bucket=storage.bucket.name)
    except ClientError as exc:
        if _code(exc) in _NO_RULES:
            return [], {}
        raise
    return answer.get(field, []), answer


_CALLS: dict[str, tuple[_Read, _Write, tuple[str, ...]]] = {
    "lifecycle": (_read_lifecycle, _write_lifecycle, ("TransitionDefaultMinimumObjectSize",)),
    "CORS": (_read_cors, _write_cors, ()),
}
