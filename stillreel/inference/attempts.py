"""What a server that ended under a job leaves beside the job's files, for the one after it."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from stillreel.errors import InferenceServerDied
from stillreel.inference.entry import Kind, Problem
from stillreel.job import Phase

log = logging.getLogger("stillreel.inference")

LIMIT = 3
"""Attempts of one round of a job that may end with their server."""


def attempts_path(folder: Path, run_id: str) -> Path:
    """Where, among the work files of a job, the attempts of its run are noted."""
    return folder / f"attempts-{run_id}.json"


class Begun(BaseModel):
    """Work that a server has in hand."""

    server: str
    phase: Phase
    problem: Problem | None = None
    """Why the server ends under it, where the server could say so."""


class Attempts(BaseModel):
    """What is known of one round of a job: what is in hand, and what ended with its server."""

    round: int = 1
    begun: dict[Kind, Begun] = Field(default_factory=dict)
    failed: list[Problem] = Field(default_factory=list)


class AttemptNote:
    """The note about one kind of work of a run, as one server writes and reads it.

    Only what a server has begun is noted, so that a job that merely waits is never charged for
    what another one does to the server. A note that cannot be written is a warning in the log.
    """

    def __init__(self, path: Path, kind: Kind, *, job_round: int, server: str) -> None:
        self._path = path
        self._kind = kind
        self._round = job_round
        self._server = server

    def begin(self, phase: Phase, problem: Problem | None = None) -> None:
        """Write down that the work is in this phase or, with a problem, that it ends there."""
        attempts = self._read()
        attempts.begun[self._kind] = Begun(server=self._server, phase=phase, problem=problem)
        self._write(attempts)

    def clear(self) -> None:
        """Write down that the work has ended and the server lives, or ends for other reasons."""
        attempts = self._read()
        if attempts.begun.pop(self._kind, None) is not None:
            self._write(attempts)

    def take_failure(self) -> Problem | None:
        """Why what another server had begun has failed, told once; None when this may begin.

        After LIMIT of them it may not begin any more in this round.
        """
        attempts = self._read()
        lost = {k: begun for k, begun in attempts.begun.items() if begun.server != self._server}
        if lost:
            attempts.begun = {k: b for k, b in attempts.begun.items() if k not in lost}
            attempts.failed += [begun.problem or _died(begun.phase) for begun in lost.values()]
            self._write(attempts)
        elif len(attempts.failed) < LIMIT:
            return None
        last, number = attempts.failed[-1], len(attempts.failed)
        return Problem(code=last.code, message=f"{last.message} (attempt {number} of {LIMIT})")

    def _read(self) -> Attempts:
        try:
            attempts = Attempts.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):  # none yet, or of another version
            return Attempts(round=self._round)
        return attempts if attempts.round == self._round else Attempts(round=self._round)

    def _write(self, attempts: Attempts) -> None:
        try:
            if not attempts.begun and not attempts.failed:
                self._path.unlink(missing_ok=True)
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f"{self._path.name}.new")
            temporary.write_text(attempts.model_dump_json())
            temporary.replace(self._path)
        except OSError as exc:
            log.warning("attempts cannot be noted: %s", exc.strerror)


def _died(phase: Phase) -> Problem:
    message = (
        f"the inference server died under this job, in phase {phase}; the host's log may say why, "
        "and a shorter or smaller video may fit"
    )
    return Problem(code=InferenceServerDied.code, message=message)
