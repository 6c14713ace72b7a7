"""Whether a job that broke off is tried again: three attempts a round, counted in its run's states.

Each state by which the keeper schedules a run again says in its message which attempt begins. The
states of a run are only ever added to, so the count survives every process of ours, and two that
count at once come to the same number. Prefect's run_count is another thing: it also counts polite
hand-overs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from stillreel.errors import (
    PrefectUnavailable,
    SafetyUnavailable,
    StillreelError,
    StorageUnavailable,
    error_named,
)

ATTEMPTS = 3
"""In one round; then the job has failed, with the reason of the last one."""
PAUSES = (0.0, 30.0)
"""Seconds before the second attempt and the third."""
OUTAGE_PAUSES = (5.0, 20.0, 80.0, 300.0, 600.0)
"""Seconds before each start of an attempt that an outage of ours broke off; the last goes on."""
LONGEST_OUTAGE = timedelta(hours=24)
"""Since its first start of this kind; after it an outage counts like any other end."""

HANDED_BACK = "handed back by the lease "
"""+ its id: the message of a state by which a rented host has its run scheduled again."""

_OUTAGES = (PrefectUnavailable, StorageUnavailable, SafetyUnavailable)
_MESSAGE = re.compile(r"attempt (\d+) (of \d+|again) in round (\d+)")
_EXCEPTION = re.compile(r"exception: (?:\w+\.)*(\w+): ?(.*)", re.DOTALL)
_REASON_LIMIT = 300


@dataclass(frozen=True)
class Again:
    """Another start of the job."""

    attempt: int
    pause: float
    """Seconds until then."""
    message: str
    """Of the state that schedules it; `number_of` reads it again."""


@dataclass(frozen=True)
class Over:
    """No attempt is left."""

    attempts: int


def decide(
    round_number: int,
    reason: str,
    history: Sequence[Mapping[str, Any]],
    *,
    is_outage: bool,
    now: datetime,
) -> Again | Over:
    """What follows when an execution of this round broke off for this reason.

    `history` are the states of the run as Prefect gives them, the oldest first. Where nothing has
    run since it was scheduled, it is the late word of an old process, or a host that could not
    start a new one: no attempt, either.
    """
    current = number_of(round_number, history)
    outages = _outages(round_number, current, history)
    if (is_outage or not _has_run(history)) and (not outages or now - outages[0] < LONGEST_OUTAGE):
        pause = OUTAGE_PAUSES[min(len(outages), len(OUTAGE_PAUSES) - 1)]
        return Again(current, pause, _message(f"{current} again", round_number, reason))
    if current >= ATTEMPTS:
        return Over(current)
    following = current + 1
    message = _message(f"{following} of {ATTEMPTS}", round_number, reason)
    return Again(following, PAUSES[current - 1], message)


def number_of(round_number: int, history: Sequence[Mapping[str, Any]]) -> int:
    """Which attempt of this round is the latest; the first one is not announced."""
    found = (_parse(state) for state in history)
    return max((n for n, _, in_round in filter(None, found) if in_round == round_number), default=1)


def begins_attempt(state: Mapping[str, Any]) -> bool:
    """Whether this state of a run is one by which the keeper goes on with the same round."""
    return _parse(state) is not None


def was_started_again(history: Sequence[Mapping[str, Any]], ended_at: datetime) -> bool:
    """Whether somebody has had a settled run started again, e.g. by Retry in Prefect's UI.

    Only that schedules it; an orphan's late word, or a process that began too late, does not. What
    the keeper itself scheduled was of the round that has ended, and a rented host opens no round.
    """
    later = (s for s in history if datetime.fromisoformat(s["timestamp"]) > ended_at)
    return any(
        s["type"] == "SCHEDULED"
        and not begins_attempt(s)
        and not str(s.get("message") or "").startswith(HANDED_BACK)
        for s in later
    )


def error_in(message: str) -> StillreelError | None:
    """The error of ours that a failed state tells of; None when it is none of ours."""
    found = _EXCEPTION.search(message)
    return error_named(found[1], found[2].strip()) if found else None


def can_pass(state_type: str, message: str) -> bool:
    """Whether another attempt may end better than in this state.

    A crash may, and an error that is not ours: the engine's own connection may have broken. What
    one of our errors calls final is final, and so is what Prefect refuses before the flow begins.
    """
    if state_type == "CRASHED":
        return True
    if state_type != "FAILED" or not _EXCEPTION.search(message):
        return False
    error = error_in(message)
    return error is None or error.retryable


def is_outage(state_type: str, message: str) -> bool:
    """Whether it was us who were away, so that the attempt does not count."""
    return state_type == "FAILED" and isinstance(error_in(message), _OUTAGES)


def _message(attempt: str, round_number: int, reason: str) -> str:
    return f"attempt {attempt} in round {round_number}, after: {reason[:_REASON_LIMIT]}"


def _parse(state: Mapping[str, Any]) -> tuple[int, bool, int] | None:
    """Attempt, whether it begins once more only, and round."""
    if state.get("type") != "SCHEDULED":
        return None
    found = _MESSAGE.match(state.get("message") or "")
    return (int(found[1]), found[2] == "again", int(found[3])) if found else None


def _has_run(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a process began after the run was scheduled for the last time."""
    types = (state["type"] for state in reversed(history))
    return next((t for t in types if t in ("RUNNING", "SCHEDULED")), "") == "RUNNING"


def _outages(
    round_number: int, attempt: int, history: Sequence[Mapping[str, Any]]
) -> list[datetime]:
    """When this attempt was started once more, the first time first."""
    wanted = (attempt, True, round_number)
    return [datetime.fromisoformat(s["timestamp"]) for s in history if _parse(s) == wanted]
