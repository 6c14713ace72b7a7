"""What became of one job that a drill struck, and which invariants of DESIGN 6 it breaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.drills.installation import Installation

BROKEN_OFF = ("CRASHED", "FAILED", "SCHEDULED")
_COLUMNS = (
    *("cell", "status", "attempt", "seconds", "noticed", "resumed", "inferences"),
    *("tasks to their end", "videos", "told", ""),
)
HEAD = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|"


@dataclass
class Outcome:
    """One row of the tables of drills."""

    cell: str
    status: str = ""
    attempt: int = 0
    seconds: float = 0.0
    """From the fault to the end that was told."""
    noticed: float | None = None
    """From the fault to the state that says that the run broke off; None where it did not."""
    resumed: float | None = None
    """From the fault to the next execution of the run, if there was one."""
    inferences: int = 0
    """On the host that has finished most of them."""
    tasks: dict[str, int] = field(default_factory=dict[str, int])
    videos: int = 0
    """Versions of the stored video; the same file may have been stored twice."""
    told: dict[str, int] = field(default_factory=dict[str, int])
    revived: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])
    """The invariants that it breaks; it holds where there are none."""


def look_at(
    found: Outcome, installation: Installation, job: dict[str, Any], *, struck: datetime | None
) -> None:
    """Fill in what became of a job that has ended, struck at this time, and what is wrong."""
    job_id, run_id = job["job_id"], job["run_id"]
    found.status, found.attempt = job["status"], job["attempt"]
    found.inferences, found.tasks = installation.inferences(run_id), installation.tasks(run_id)
    etags = installation.videos(job_id)
    found.videos, found.told = len(etags), installation.told(job_id)
    if struck:
        found.noticed, found.resumed = _seconds(struck, installation.states(run_id))
    found.wrong = list(_mistakes(found, job, etags, hosts=len(installation.hosts)))


def to_row(found: Outcome) -> str:
    """One line of the table."""
    tasks = " ".join(f"{name}:{count}" for name, count in sorted(found.tasks.items()))
    told = sum(found.told.values())
    verdict = "; ".join(found.wrong) or "held"
    return (
        f"| {found.cell} | {found.status} | {found.attempt} | {found.seconds:g} | "
        f"{_or_dash(found.noticed)} | {_or_dash(found.resumed)} | "
        f"{found.inferences} | {tasks} | {found.videos} | {len(found.told)} x {told} | {verdict} |"
    )


def _or_dash(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:g}"


def _mistakes(
    found: Outcome, job: dict[str, Any], etags: Sequence[str], *, hosts: int
) -> Iterable[str]:
    if found.status != "completed":
        yield f"ended as {found.status}: {job['error']}"
    if found.inferences != 1 and hosts == 1:
        yield f"{found.inferences} inferences were computed to their end"
    if found.inferences > 1 and hosts > 1:
        yield f"{found.inferences} inferences were computed to their end on one host"
    # What a host that is lost had encoded, another one may encode again.
    once = {name: n for name, n in found.tasks.items() if hosts == 1 or name != "encode"}
    if again := {name: count for name, count in once.items() if count > 1}:
        yield f"finished tasks ran again: {again}"
    if len(set(etags)) != 1:
        yield f"{len(set(etags))} different videos were stored"
    if set(found.told) != {f"{job['job_id']}-r1"}:
        yield f"told under {sorted(found.told)}"


def _seconds(
    struck: datetime, states: Iterable[dict[str, Any]]
) -> tuple[float | None, float | None]:
    """When the run was seen to have broken off, and when its next execution began."""
    noticed: float | None = None
    for state in states:
        after = (datetime.fromisoformat(state["timestamp"]) - struck).total_seconds()
        if after < 0:
            continue
        if noticed is None and state["type"] in BROKEN_OFF:
            noticed = round(after, 1)
        if noticed is not None and state["type"] == "RUNNING":
            return noticed, round(after, 1)
    return noticed, None
