"""Progress that is true: stages, and steps and frames that were counted, never elapsed time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast
from uuid import UUID

import httpx

from stillreel.job import Phase, Stage

log = logging.getLogger("stillreel.progress")

WEIGHTS: dict[Stage, int] = {
    Stage.FETCH: 3,
    Stage.INFER: 77,
    Stage.ENCODE: 15,
    Stage.UPLOAD: 4,
    Stage.NOTIFY: 1,
}
"""Percent of a job by stage; fixed and documented, so that 50 always means the same."""

_INFER_PHASES: dict[Phase, tuple[float, float]] = {
    Phase.QUEUED: (0.0, 0.0),
    Phase.LOAD: (0.0, 0.04),
    Phase.TEXT: (0.04, 0.08),
    Phase.DENOISE: (0.08, 1.0),
}


@dataclass(frozen=True)
class Progress:
    """Where a job is."""

    stage: Stage
    phase: Phase | None = None
    step: int = 0
    steps: int = 0

    @property
    def percent(self) -> float:
        """0 to 100 by the fixed weights; 100 is the end of the last stage."""
        before = 0
        for stage, weight in WEIGHTS.items():
            if stage is self.stage:
                return before + weight * self._part()
            before += weight
        return float(before)

    @property
    def text(self) -> str:
        """One line for a person, e.g. `infer: denoise 5/8`."""
        words = [f"{self.stage}:"] if self.phase or self.steps else [str(self.stage)]
        if self.phase:
            words.append(str(self.phase))
        if self.steps:
            words.append(f"{self.step}/{self.steps}")
        return " ".join(words)

    def _part(self) -> float:
        part = min(1.0, self.step / self.steps) if self.steps else 0.0
        if self.stage is not Stage.INFER:
            return part
        start, end = _INFER_PHASES.get(self.phase or Phase.QUEUED, (0.0, 0.0))
        return start + (end - start) * part


Listener = Callable[[Progress], None]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


def report(stage: Stage, phase: Phase | None = None, step: int = 0, steps: int = 0) -> None:
    """Tell everybody who listens where the job is."""
    for listener in _listeners.get():
        listener(Progress(stage, phase, step, steps))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have `listener` called with each report made inside this block."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


class ProgressArtifact:
    """A listener that keeps a Prefect progress artifact up to date, at most once a second.

    A server that does not take an update costs nothing but that update.
    """

    def __init__(self, key: str, *, seconds: float = 1.0) -> None:
        self._key = key
        self._seconds = seconds
        self._id: UUID | None = None
        self._stage: Stage | None = None
        self._sent_at = 0.0

    def __call__(self, progress: Progress) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact
        from prefect.exceptions import PrefectException

        due = time.monotonic() - self._sent_at >= self._seconds
        if progress.stage is self._stage and not due and progress.percent < 100:
            return
        self._stage, self._sent_at = progress.stage, time.monotonic()
        percent = round(progress.percent, 1)
        try:
            if self._id is None:
                self._id = cast(
                    UUID,
                    create_progress_artifact(percent, key=self._key, description=progress.text),
                )
            else:
                update_progress_artifact(self._id, percent, description=progress.text)
        except (httpx.HTTPError, PrefectException) as exc:
            log.info("progress not stored: %s", type(exc).__name__)
