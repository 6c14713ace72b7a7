"""A job as Prefect has it: one flow run, read once and not changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stillreel.job import JobStatus, job_id_of
from stillreel.jobs import marks
from stillreel.jobs.attempts import can_pass, error_in

FINAL_STATES = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
WAITING_STATES = frozenset({"SCHEDULED", "PENDING", "PAUSED"})
EXPIRED_STATE = "Expired"


@dataclass(frozen=True, slots=True)
class Record:
    """One flow run of a video; what storage knows about the job is not in it."""

    job_id: str
    run_id: str
    flow_id: str
    state_type: str
    state_name: str
    state_message: str
    state_at: datetime | None
    parameters: Mapping[str, Any]
    tags: tuple[str, ...]
    labels: Mapping[str, Any]
    created_at: datetime
    expected_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    pool: str
    queue: str
    run_count: int

    @property
    def owner(self) -> str:
        """By the label, which the API gives: a run made in Prefect is nobody's."""
        return str(self.labels.get(marks.OWNER) or "")

    @property
    def model(self) -> str:
        return str(self.labels.get(marks.MODEL) or self.parameters.get("model") or "preview")

    @property
    def round(self) -> int:
        return int(self.labels.get(marks.ROUND) or 1)

    @property
    def batch(self) -> str:
        return str(self.labels.get(marks.BATCH) or "")

    @property
    def deadline(self) -> datetime | None:
        return _time(self.labels.get(marks.DEADLINE))

    @property
    def is_deleted(self) -> bool:
        return marks.DELETED in self.labels

    @property
    def is_final(self) -> bool:
        """Whether Prefect holds the run to have ended."""
        return self.state_type in FINAL_STATES

    @property
    def is_settled(self) -> bool:
        """Whether this round has ended for good; whatever its run does later changes nothing."""
        return self.labels.get(marks.SETTLED) == self.round

    @property
    def is_broken_off(self) -> bool:
        """Whether its execution ended in a way that another attempt may mend."""
        is_kept = marks.UNDELIVERED in self.tags  # by which the keeper finds it
        return is_kept and not self.is_settled and can_pass(self.state_type, self.state_message)

    @property
    def attempt(self) -> int:
        """Which attempt of its round this is, as far as it was written down."""
        number, _, attempt = str(self.labels.get(marks.ATTEMPT) or "").partition("-")
        return int(attempt) if number == str(self.round) and attempt.isdecimal() else 1

    def text(self, name: str) -> str:
        """A text among the flow's parameters; empty when it is not there."""
        return str(self.parameters.get(name) or "")

    def status(self, *, has_receipt: bool) -> JobStatus:
        """What a caller is told: the end that is settled, else what `status_of` says.

        A job whose execution broke off has not ended: the keeper has it tried again, or settles it.
        """
        if self.is_settled and (end := self.labels.get(marks.END)):
            return JobStatus(end)
        asked_to_end = bool(self.labels.get(marks.CANCELLED))
        status = status_of(
            self.state_type, self.state_name, has_receipt=has_receipt, asked_to_end=asked_to_end
        )
        return JobStatus.PROCESSING if status is JobStatus.FAILED and self.is_broken_off else status


def status_of(
    state_type: str, state_name: str, *, has_receipt: bool, asked_to_end: bool = False
) -> JobStatus:
    """A job's status from its run's state; a stored receipt completes a job whatever follows.

    `asked_to_end`: somebody cancelled the job; a run that Prefect lets go on anyway is on its way
    to its end then.
    """
    if has_receipt:
        return JobStatus.COMPLETED
    match state_type:
        case "CANCELLED":
            expired = state_name == EXPIRED_STATE
            return JobStatus.EXPIRED if expired else JobStatus.CANCELLED
        case "FAILED" | "CRASHED" | "COMPLETED":  # completed without a video is none
            return JobStatus.CANCELLED if asked_to_end else JobStatus.FAILED
        case "SCHEDULED" | "PENDING" | "PAUSED":
            return JobStatus.QUEUED
        case _:
            return JobStatus.PROCESSING


def error_of_record(record: Record, status: JobStatus) -> tuple[str, str]:
    """Code and text that tell a caller why a job has no video; empty where it has or may have.

    Only texts of our own errors are passed on: others may hold paths and inner addresses.
    """
    if record.is_settled and marks.END_CODE in record.labels:
        return str(record.labels[marks.END_CODE]), str(record.labels.get(marks.END_ERROR) or "")
    match status:
        case JobStatus.CANCELLED:
            return "cancelled", "The job was cancelled."
        case JobStatus.EXPIRED:
            return "expired", "The job was not started before its deadline."
        case JobStatus.FAILED:
            return _failure(record)
        case _:
            return "", ""


def record_of(run: Mapping[str, Any]) -> Record:
    """The record of a flow run as Prefect's API gives it."""
    state, labels = run.get("state") or {}, run.get("labels") or {}
    is_settled = labels.get(marks.SETTLED) == int(labels.get(marks.ROUND) or 1)
    settled_at = labels.get(marks.END_AT) if is_settled else None
    return Record(
        job_id=job_id_of(run["id"], run.get("idempotency_key")),
        run_id=run["id"],
        flow_id=run["flow_id"],
        state_type=run.get("state_type") or state.get("type") or "SCHEDULED",
        state_name=run.get("state_name") or state.get("name") or "",
        state_message=state.get("message") or "",
        state_at=_time(state.get("timestamp")),
        parameters=run.get("parameters") or {},
        tags=tuple(run.get("tags") or ()),
        labels=labels,
        created_at=_required_time(run["created"]),
        expected_at=_time(run.get("expected_start_time")),
        started_at=_time(run.get("start_time")),
        ended_at=_time(settled_at or run.get("end_time")),
        pool=run.get("work_pool_name") or "",
        queue=run.get("work_queue_name") or "",
        run_count=run.get("run_count") or 0,
    )


def _failure(record: Record) -> tuple[str, str]:
    if record.state_type == "CRASHED":
        return "crashed", "The process that worked on the job died."
    error = error_in(record.state_message)
    if error is None:
        return "internal", "An internal error; the operator finds it in the run's log."
    return error.code, error.message


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _required_time(text: str) -> datetime:
    return datetime.fromisoformat(text)
