"""What a bucket is told about lifetimes and browsers; rules of others in it stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillreel.result_storage import RESULT_FOLDER
from stillreel.settings import StorageSettings

Rule = dict[str, Any]
"""A rule as S3 writes it."""

MARK = "stillreel-"
"""What the names of our rules begin with."""
TEMP_DAYS = 1
"""S3 knows no shorter time than a day."""
PARTS_DAYS = 1
"""Parts of an upload that was killed are paid until they are deleted."""
CORS_NAME = f"{MARK}browsers"

_METHODS = ["GET", "HEAD", "PUT"]
_CARE = ("inputs/", "outputs/")
"""What only the keeper deletes with care: it looks whether the job has ended."""


def lifetimes(settings: StorageSettings) -> dict[str, int]:
    """Days by the prefix whose objects the bucket itself deletes; 0: it does not."""
    return {
        "temp/": TEMP_DAYS,
        "latents/": settings.latents_days,
        f"{RESULT_FOLDER}/": settings.results_days,
        "inputs/": settings.bucket_input_days,
        "outputs/": settings.bucket_output_days,
    }


def with_lifecycle(present: Sequence[Rule], settings: StorageSettings) -> list[Rule]:
    """The lifecycle rules that the bucket shall have: those of others, then ours."""
    made = [_expiry(prefix, days) for prefix, days in lifetimes(settings).items() if days]
    return [*foreign(present), *made, _parts()]


def with_cors(present: Sequence[Rule], settings: StorageSettings) -> list[Rule]:
    """The CORS rules that the bucket shall have: those of others, then ours."""
    ours: Rule = {
        "ID": CORS_NAME,
        "AllowedOrigins": list(settings.upload_origins),
        "AllowedMethods": list(_METHODS),
        "AllowedHeaders": ["content-type", "if-none-match", "range"],
        "ExposeHeaders": ["ETag", "Content-Length", "Content-Range", "Accept-Ranges"],
        "MaxAgeSeconds": 3600,
    }
    rest = {k: v for k, v in ours.items() if k not in ("ID", "AllowedOrigins")}
    others = [r for r in foreign(present) if not _same(_without(r, "ID", "AllowedOrigins"), rest)]
    return [*others, ours] if settings.upload_origins else others


def foreign(rules: Sequence[Rule]) -> list[Rule]:
    """The rules that are not ours, as they were read."""
    return [rule for rule in rules if not str(rule.get("ID", "")).startswith(MARK)]


def equal(one: Sequence[Rule], other: Sequence[Rule]) -> bool:
    """Whether two sets of rules say the same, in whatever order and words a server gives them."""
    left, right = sorted(map(_canonical, one)), sorted(map(_canonical, other))
    return left == right


def dangers(rules: Sequence[Rule]) -> list[str]:
    """What rules of others delete that jobs may still need."""
    found: list[str] = []
    for rule in foreign(rules):
        prefix = prefix_of(rule)
        hit = [p for p in _CARE if p.startswith(prefix) or prefix.startswith(p)]
        if rule.get("Status") == "Enabled" and rule.get("Expiration") and hit:
            days = rule["Expiration"].get("Days")
            when = f"after {days} days" if days else "at its date"
            found.append(
                f"the rule {rule.get('ID') or 'without a name'!r}, which is not ours, deletes "
                f"{' and '.join(hit)} {when}, even of jobs that still wait"
            )
    return found


def prefix_of(rule: Mapping[str, Any]) -> str:
    """What the names begin with that a lifecycle rule is about; empty: all."""
    within: Mapping[str, Any] = rule.get("Filter") or {}
    within = within.get("And") or within
    return str(within.get("Prefix") or rule.get("Prefix") or "")


def _expiry(prefix: str, days: int) -> Rule:
    return {
        "ID": f"{MARK}{prefix.rstrip('/')}",
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "Expiration": {"Days": days},
    }


def _parts() -> Rule:
    return {
        "ID": f"{MARK}parts",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": PARTS_DAYS},
    }


def _canonical(rule: Rule) -> str:
    known = _without(rule, "Prefix", "Filter")
    within = rule.get("Filter") or {}
    known["prefix"] = prefix_of(rule)
    known["filter"] = {k: v for k, v in within.items() if k != "Prefix"}
    return repr(_plain(known))


def _same(one: Rule, other: Rule) -> bool:
    return _plain(one) == _plain(other)


def _plain(value: Any) -> Any:
    """Without order, and without case where servers change it (names of headers)."""
    if isinstance(value, dict):
        return sorted((str(k), _plain(v)) for k, v in value.items() if v not in (None, {}, []))
    if isinstance(value, list):
        return sorted(str(_plain(v)).lower() for v in value)
    return value


def _without(rule: Rule, *names: str) -> Rule:
    return {key: value for key, value in rule.items() if key not in names}
