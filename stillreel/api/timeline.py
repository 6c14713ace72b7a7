"""When the stages of a job ran: its task runs in Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from stillreel.job import Stage
from stillreel.jobs.record import Record
from stillreel.prefect_api import PAGE, PrefectApi

_STAGES = {
    "fetch-image": Stage.FETCH,
    "infer": Stage.INFER,
    "encode": Stage.ENCODE,
    "upload": Stage.UPLOAD,
    "notify": Stage.NOTIFY,
}
_ENDS: Mapping[str, Literal["done", "failed", "cancelled"]] = {
    "COMPLETED": "done",
    "FAILED": "failed",
    "CRASHED": "failed",
    "CANCELLED": "cancelled",
}


class Span(BaseModel):
    """One run of a stage; a job that was tried again has several of the same."""

    stage: Stage
    started_at: str
    ended_at: str | None = Field(description="Null while it runs.")
    state: Literal["running", "done", "found", "failed", "cancelled"] = Field(
        description="`found`: its result was there from before, and nothing was repeated."
    )


async def read_timeline(api: PrefectApi, record: Record) -> list[Span]:
    """The stages of a job that began, in the order of their start. Raises PrefectUnavailable."""
    runs = await api.ask(
        "/task_runs/filter",
        {
            "flow_runs": {"id": {"any_": [record.run_id]}},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": PAGE,
        },
    )
    spans = [span for run in runs if (span := span_of(run))]
    if record.is_final:  # a stage that its dead process left open has ended by then
        ended = record.ended_at.isoformat() if record.ended_at else None
        for span in spans:
            if span.state == "running":
                span.state, span.ended_at = "failed", ended
    return sorted(spans, key=lambda span: span.started_at)


def span_of(run: Mapping[str, Any]) -> Span | None:
    """The span of a task run; None for one that has not begun or is no stage."""
    stage = _STAGES.get(str(run.get("name") or "").rpartition("-")[0])
    started_at = run.get("start_time")
    if stage is None or not started_at:
        return None
    end = _ENDS.get(run.get("state_type") or "")
    if end is None:
        return Span(stage=stage, started_at=started_at, ended_at=None, state="running")
    state = "found" if run.get("state_name") == "Cached" else end
    return Span(stage=stage, started_at=started_at, ended_at=run.get("end_time"), state=state)
