"""What a server that ended under a job leaves beside the job's files, for the one after it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import psutil
from pydantic import BaseModel, Field, ValidationError

from stillreel.errors import InferenceServerDied
from stillreel.inference.entry import Kind, Problem
from stillreel.job import Phase

log = logging.getLogger("stillreel.inference")

LIMIT = 3
"""Servers that may end under one round of a job, on one host."""


def note_path(folder: Path, run_id: str) -> Path:
    """Where, among the work files of a job, it is noted what of its run a server has in hand."""
    return folder / f"in-hand-{run_id}.json"


def forget_deaths(folder: Path, run_id: str) -> None:
    """Begin anew once no server may end under this round any more: a person may retry it."""
    path = note_path(folder, run_id)
    if len(_read(path).failed) >= LIMIT:
        path.unlink(missing_ok=True)


class Begun(BaseModel):
    """Work that a server has in hand."""

    server: str
    phase: Phase
    execution: int = 1
    """Of its run: who had asked for it."""
    pid: int = 0
    """Of the server's process; another GPU's server may live, and have it in hand still."""

    def is_lost_to(self, server: str) -> bool:
        """Whether it is another server's that is dead, so nobody goes on with it."""
        lives = self.pid not in (0, os.getpid()) and psutil.pid_exists(self.pid)
        return self.server != server and not lives

    problem: Problem | None = None
    """Why the server ends under it, where the server could say so."""


class InHand(BaseModel):
    """What is known of one round of a job: what is in hand, and what ended with its server."""

    round: int = 1
    begun: dict[Kind, Begun] = Field(default_factory=dict)
    failed: list[Problem] = Field(default_factory=list)


class InHandNote:
    """The note about one kind of work of a run, as one server writes and reads it.

    Only what a server has begun is noted, so that a job that merely waits is never charged for
    what another one does to the server. A note that cannot be written is a warning in the log.
    """

    def __init__(
        self, path: Path, kind: Kind, *, job_round: int, execution: int, server: str
    ) -> None:
        self._path = path
        self._kind = kind
        self._round = job_round
        self._execution = execution
        self._server = server

    def begin(self, phase: Phase, problem: Problem | None = None) -> None:
        """Write down that the work is in this phase or, with a problem, that it ends there."""
        known = self._read()
        known.begun[self._kind] = Begun(
            server=self._server,
            phase=phase,
            execution=self._execution,
            pid=os.getpid(),
            problem=problem,
        )
        self._write(known)

    def clear(self) -> None:
        """Write down that the work has ended and the server lives, or ends for other reasons."""
        known = self._read()
        if known.begun.pop(self._kind, None) is not None:
            self._write(known)

    def take_failure(self) -> Problem | None:
        """Why what another server had begun has failed, told once; None when this may begin.

        Only the execution that had asked for it is told: one that came later was started because
        that one had ended. After LIMIT of them nothing may begin any more in this round.
        """
        known = self._read()
        lost = {k: begun for k, begun in known.begun.items() if begun.is_lost_to(self._server)}
        if lost:
            known.begun = {k: begun for k, begun in known.begun.items() if k not in lost}
            known.failed += [begun.problem or _died(begun.phase) for begun in lost.values()]
            self._write(known)
        is_told = any(begun.execution == self._execution for begun in lost.values())
        if not is_told and len(known.failed) < LIMIT:
            return None
        last, number = known.failed[-1], len(known.failed)
        return Problem(code=last.code, message=f"{last.message} (attempt {number} of {LIMIT})")

    def _read(self) -> InHand:
        known = _read(self._path)
        return known if known.round == self._round else InHand(round=self._round)

    def _write(self, known: InHand) -> None:
        try:
            if not known.begun and not known.failed:
                self._path.unlink(missing_ok=True)
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f"{self._path.name}.new")
            temporary.write_text(known.model_dump_json())
            temporary.replace(self._path)
        except OSError as exc:
            log.warning("what is in hand cannot be noted: %s", exc.strerror)


def _read(path: Path) -> InHand:
    try:
        return InHand.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):  # none yet, or of another version
        return InHand(round=0)


def _died(phase: Phase) -> Problem:
    message = (
        f"the inference server died under this job, in phase {phase}; the host's log may say why, "
        "and a shorter or smaller video may fit"
    )
    return Problem(code=InferenceServerDied.code, message=message)
