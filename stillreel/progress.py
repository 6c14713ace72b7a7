"""Progress that is true: stages, and steps and frames that were counted, never elapsed time."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import cast
from uuid import UUID

import httpx

from stillreel.job import Phase, Stage

log = logging.getLogger("stillreel.progress")

LAST_UPDATE_SECONDS = 10.0

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
_TEXT = re.compile(
    rf"(?P<stage>{'|'.join(Stage)}):?(?: (?P<phase>{'|'.join(Phase)}))?"
    r"(?: (?P<step>\d+)/(?P<steps>\d+))?"
)


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

    @staticmethod
    def parse(text: str) -> Progress | None:
        """The progress whose text this is; None for any other text."""
        found = _TEXT.fullmatch(text)
        if not found:
            return None
        phase = Phase(found["phase"]) if found["phase"] else None
        return Progress(
            Stage(found["stage"]), phase, int(found["step"] or 0), int(found["steps"] or 0)
        )

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


@contextmanager
def progress_artifact(key: str, *, seconds: float = 1.0) -> Iterator[None]:
    """Keep a Prefect progress artifact up to date in this block, at most once in `seconds`.

    A thread of its own writes it: a Prefect server that hangs holds up no work, and one that does
    not take an update costs nothing but that update.
    """
    sender = _Sender(key, seconds)
    thread = threading.Thread(target=copy_context().run, args=(sender.run,), daemon=True)
    thread.start()
    try:
        with listening(sender):
            yield
    finally:
        sender.close()
        thread.join(timeout=LAST_UPDATE_SECONDS)


class _Sender:
    def __init__(self, key: str, seconds: float) -> None:
        self._key = key
        self._seconds = seconds
        self._id: UUID | None = None
        self._latest: Progress | None = None
        self._closed = False
        self._changed = threading.Condition()

    def __call__(self, progress: Progress) -> None:
        with self._changed:
            self._latest = progress
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def run(self) -> None:
        while progress := self._next():
            self._send(progress)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=self._seconds)

    def _next(self) -> Progress | None:
        with self._changed:
            self._changed.wait_for(lambda: self._latest or self._closed)
            latest, self._latest = self._latest, None
            return latest

    def _send(self, progress: Progress) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact
        from prefect.exceptions import PrefectException

        percent, text = round(progress.percent, 1), progress.text
        try:
            if self._id is None:
                self._id = cast(
                    UUID, create_progress_artifact(percent, key=self._key, description=text)
                )
            else:
                update_progress_artifact(self._id, percent, description=text)
        except (httpx.HTTPError, PrefectException) as exc:
            log.info("progress not stored: %s", type(exc).__name__)
