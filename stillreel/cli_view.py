"""Jobs and estimates in the words of the command line."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillreel.client import Estimate, Job, Span

PROMPT_SHOWN = 40
"""Characters of a prompt in a list."""


def job_facts(job: Job) -> dict[str, Any]:
    """What there is to tell about a job, for `print_facts`."""
    video, cost = job.video, job.cost
    running = f"{where_is(job)}, {job.progress} %" if not job.has_ended else job.status
    return {
        "job": job.job_id,
        "status": f"{running} {time_left(job)}".rstrip(),
        "round": job.round if job.round > 1 else None,
        "model": job.model,
        "prompt": _short(job.prompt, 200),
        "style": _short(job.style, 40),
        "camera": _short(job.camera, 100),
        "batch": job.batch_id,
        "ordered": _time(job.created_at),
        "ended": _time(job.ended_at),
        "deadline": _time(job.deadline),
        "error": f"{_short(job.error, 400)} ({job.error_code})" if job.error else None,
        "warnings": "; ".join(job.warnings),
        "size": f"{video.width}x{video.height}, {video.seconds:.2f} s, {video.size / 1e6:.1f} MB"
        if video
        else None,
        "cost": f"{cost.gpu_seconds:.1f} GPU seconds, US$ {cost.usd:.4f}" if cost else None,
        "webhook": job.delivery.status if job.delivery and job.delivery.status != "none" else None,
        "video": job.result_url,
        "poster": job.poster_url,
        "teaser": job.teaser_url,
    }


def job_row(job: Job) -> dict[str, Any]:
    """A job in a list, for `print_rows`."""
    return {
        "job": job.job_id,
        "status": str(job.status),
        "progress": f"{job.progress} %",
        "model": job.model,
        "ordered": _time(job.created_at),
        "prompt": _short(job.prompt, PROMPT_SHOWN),
    }


def estimate_facts(found: Estimate) -> dict[str, Any]:
    """What there is to tell about an estimate, for `print_facts`."""
    basis = {"learned": f"{found.samples} finished jobs", "spec": "the model's arithmetic"}
    queue = found.queue
    return {
        "model": f"{found.model} {found.preset}".strip(),
        "video": f"{found.width}x{found.height}, {found.frames} frames at {found.fps} fps",
        "seconds": _span(found.seconds, "{:.0f}"),
        "GPU seconds": _span(found.gpu_seconds, "{:.0f}"),
        "US$": _span(found.usd, "{:.4f}"),
        "known from": basis.get(found.source or "", found.source),
        "place": queue.position if queue else None,
        "wait": f"{queue.seconds:.0f} s" if queue and queue.seconds is not None else "not known",
    }


def where_is(job: Job) -> str:
    """Where a job is, e.g. `infer: denoise 3/8` or `queued, place 2`."""
    if job.status == "queued" and job.position:
        return f"queued, place {job.position}"
    if job.status != "processing" or not job.stage:
        return str(job.status)
    counted = f"{job.step}/{job.steps}" if job.steps else ""
    inside = " ".join(word for word in (job.phase, counted) if word)
    return f"{job.stage}: {inside}" if inside else str(job.stage)


def time_left(job: Job) -> str:
    """How long a job will still take, e.g. `about 40 s left`; "" where nothing is known."""
    if job.eta_seconds is None or job.has_ended:
        return ""
    seconds = round(job.eta_seconds)
    return f"about {seconds} s left" if seconds < 120 else f"about {round(seconds / 60)} min left"


def _span(span: Span | None, form: str) -> str:
    if span is None:
        return "not known"
    low, likely, high = (form.format(value) for value in (span.low, span.likely, span.high))
    return likely if low == high else f"{likely} ({low} to {high})"


def _short(text: str | None, limit: int) -> str:
    """One line of at most so many characters, and nothing that a terminal would obey."""
    line = "".join(c if c.isprintable() else " " for c in text or "")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _time(at: datetime | None) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}" if at else ""
