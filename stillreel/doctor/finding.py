"""What a check found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    outcome: Outcome
    note: str
    """What was seen, for a person."""
    fix: str = ""
    """What to do about it; every failure and every warning has one."""


def ok(check: str, note: str) -> Finding:
    """It is as it should be."""
    return Finding(check, "ok", note)


def warning(check: str, note: str, fix: str) -> Finding:
    """Something works less well than it could, or not at all and nobody may need it here."""
    return Finding(check, "warning", note, fix)


def failed(check: str, note: str, fix: str) -> Finding:
    """Something that is set up here does not work."""
    return Finding(check, "failed", note, fix)


def skipped(check: str, note: str, fix: str = "") -> Finding:
    """It is not set up on this machine, so there is nothing to look at."""
    return Finding(check, "skipped", note, fix)


def has_failed(findings: Iterable[Finding]) -> bool:
    """Whether anything failed."""
    return any(finding.outcome == "failed" for finding in findings)
