"""The one thread that uses the GPU: decodes first, then inferences in order of arrival."""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from PIL import Image

from stillreel.errors import (
    DiskFull,
    InferenceAbandoned,
    InferenceCancelled,
    InferenceFailed,
    InferenceInterrupted,
    InferenceStalled,
    StillreelError,
    is_disk_full,
)
from stillreel.inference.entry import (
    DecodeOrder,
    Entry,
    Health,
    InferenceOrder,
    Kind,
    Problem,
    State,
)
from stillreel.inference.in_hand import InHandNote, note_path
from stillreel.inference.latents import read_arrays, read_facts, write_latents
from stillreel.inference.spool import write_spool
from stillreel.job import ModelName, Phase
from stillreel.models.base import Backend, OnStep, Resumable

log = logging.getLogger("stillreel.inference")

Order = InferenceOrder | DecodeOrder
LoadBackend = Callable[[ModelName], Backend]
Patience = Callable[[ModelName, Phase], float]
"""Seconds that a model may take in a phase without any progress."""


class Pulse(NamedTuple):
    """What the thread does; it changes with each true progress, and with nothing else."""

    model: ModelName
    phase: Phase
    step: int
    beat: int
    patience: float
    """Seconds that it may stay as it is."""


@dataclass
class _Work:
    entry: Entry
    order: Order
    note: InHandNote
    claimed_at: float
    cancelled: bool = False
    interrupted: bool = False
    """Cancelled by the end of this server alone."""
    started_at: float = field(default=0.0)


class Runner:
    """Entries by kind and run id, worked on one at a time by `run()` in a thread of its own.

    All other methods may be called from any thread.
    """

    pulse: Pulse | None = None
    """None while there is nothing to do that could be stuck."""

    def __init__(
        self,
        load: LoadBackend,
        *,
        claim_seconds: float,
        patience: Patience = lambda *_: math.inf,
        kept: int = 256,
    ) -> None:
        self._id = uuid4().hex
        self._load = load
        self._claim_seconds = claim_seconds
        self._patience = patience
        self._kept = kept
        self._works: dict[tuple[Kind, str], _Work] = {}
        self._changed = threading.Condition(threading.RLock())
        self._backend: Backend | None = None
        self._running: _Work | None = None
        self._gpu: str | None = None
        self._busy = dict.fromkeys(Kind, 0.0)
        self._beats = count(1)
        self._versions = count(1)
        self._stopping = False

    def start(self, kind: Kind, run_id: str, order: Order) -> Entry:
        """The entry of this run: a running or finished one of the same order, else a new one.

        An inference is the same by its digest; a decode must also go to the same spool. Where a
        server before this one ended under the work, the entry has failed, once: so whoever had
        started it is told, and a job that ends its server each time does so three times at most.
        """
        with self._changed:
            work = self._works.get((kind, run_id))
            if work is not None and self._attachable(work, order):
                work.claimed_at = time.monotonic()
                return work.entry.model_copy(update={"attached": True})
            self.cancel(kind, run_id)
            self._works.pop((kind, run_id), None)
            entry = Entry(kind=kind, run_id=run_id, digest=order.digest, model=_model_of(order))
            work = _Work(entry, order, self._note(kind, run_id, order), time.monotonic())
            self._works[(kind, run_id)] = work
            if isinstance(order, InferenceOrder):
                self._take_stored(work, order)
            if work.entry.state is State.QUEUED and (problem := work.note.take_failure()):
                work.entry = entry.model_copy(update={"state": State.FAILED, "problem": problem})
            self._forget_old()
            self._touch(work)
            return self._seen(work)

    def watch(self, kind: Kind, run_id: str, *, after: int, wait: float) -> Entry | None:
        """The entry once its version is beyond `after`, at the latest after `wait` seconds.

        None when there is none, or when this runner stops: another one may know more.
        """
        with self._changed:
            work = self._works.get((kind, run_id))
            if work is None:
                return None
            work.claimed_at = time.monotonic() + wait
            self._changed.wait_for(
                lambda: work.entry.version > after or self._stopping, timeout=wait
            )
            work.claimed_at = time.monotonic()
            return None if self._stopping else self._seen(work)

    def cancel(self, kind: Kind, run_id: str) -> bool:
        """Stop an entry or forget an ended one, and delete its spool; False when there is none.

        What is stopped stays known as cancelled, so that whoever follows it is told.
        """
        with self._changed:
            work = self._works.get((kind, run_id))
            if work is None:
                return False
            work.cancelled = True
            if work.entry.state is State.QUEUED:
                self._end(work, State.CANCELLED, InferenceCancelled())
            elif not work.entry.state.is_live:
                del self._works[(kind, run_id)]
            if work is not self._running:  # else `run` does it, once nothing is written any more
                _delete_spool(work.order)
        return True

    def health(self) -> Health:
        """What this server is doing."""
        with self._changed:
            return Health(
                pid=os.getpid(),
                model=self._backend.spec.name if self._backend else "",
                loaded=self._backend is not None,
                gpu=self._gpu,
                queued=sum(w.entry.state is State.QUEUED for w in self._works.values()),
                running=self._running.entry.run_id if self._running else None,
                busy_seconds={str(kind): seconds for kind, seconds in self._busy.items()},
            )

    def preload(self, model: ModelName) -> None:
        """Load a model before the first job; call it before `run`."""
        self._beat(model, Phase.LOAD)
        self._ensure(model, lambda *_: None)
        self.pulse = None

    def run(self) -> None:
        """Work until `stop` is called."""
        while (work := self._next()) is not None:
            self._carry_out(work)
            self.pulse = None
            with self._changed:
                self._running = None
                if work.cancelled:
                    _delete_spool(work.order)
        if self._backend is not None:
            self._backend.close()

    def stop(self) -> None:
        """End `run` between two steps; what runs is cancelled."""
        with self._changed:
            self._stopping = True
            if self._running is not None:
                self._running.note.clear()  # what ends this server now is not the job
                if not self._running.cancelled:
                    self._running.cancelled = self._running.interrupted = True
            self._changed.notify_all()

    def give_up(self, pulse: Pulse, seconds: float) -> Problem:
        """What the work that is stuck failed by, noted for the next server; this one has to end."""
        text = f"no progress for {seconds:.0f} s in phase {pulse.phase} of the model {pulse.model}"
        problem = Problem(code=InferenceStalled.code, message=text)
        with self._changed:
            if self._running is not None and self._running.cancelled:
                self._running.note.clear()
            elif self._running is not None:
                self._running.note.begin(pulse.phase, problem)
        return problem

    def _note(self, kind: Kind, run_id: str, order: Order) -> InHandNote:
        path = note_path(Path(order.latents_path).parent, run_id)
        return InHandNote(
            path, kind, job_round=order.round, execution=order.execution, server=self._id
        )

    def _attachable(self, work: _Work, order: Order) -> bool:
        if work.cancelled or work.entry.digest != order.digest:
            return False
        if isinstance(order, DecodeOrder) and order != work.order:
            return False
        if work.entry.state.is_live:
            return True
        return work.entry.state is State.FINISHED and _result_exists(work.order)

    def _take_stored(self, work: _Work, order: InferenceOrder) -> None:
        path = Path(order.latents_path)
        if not path.exists():
            return
        try:
            facts = read_facts(path)
        except InferenceFailed as exc:
            log.warning("run %s is computed again: %s", work.entry.run_id, exc.message)
            return
        if facts.shot.digest() != order.shot.digest():
            log.warning("run %s is computed again: what is there is not of it", work.entry.run_id)
            return
        work.note.clear()  # whatever became of the server that made them
        work.entry = work.entry.model_copy(
            update={
                "state": State.FINISHED,
                "phase": Phase.DENOISE,
                "step": facts.shot.steps,
                "steps": facts.shot.steps,
                "seconds": facts.seconds,
                "dtype": facts.dtype,
                "attached": True,
            }
        )

    def _forget_old(self) -> None:
        over = len(self._works) - self._kept
        ended = [key for key, work in self._works.items() if not work.entry.state.is_live]
        for key in ended[: max(0, over)]:
            del self._works[key]

    def _next(self) -> _Work | None:
        with self._changed:
            while not self._stopping:
                queued = [w for w in self._works.values() if w.entry.state is State.QUEUED]
                for work in queued:
                    if self._unclaimed(work):
                        self._end(work, State.CANCELLED, InferenceAbandoned())
                queued = [w for w in queued if w.entry.state is State.QUEUED]
                if queued:
                    work = min(queued, key=lambda w: w.entry.kind is not Kind.DECODE)
                    work.started_at = time.monotonic()
                    self._running = work
                    self._touch(work, state=State.RUNNING)
                    work.note.begin(work.entry.phase)
                    return work
                self._changed.wait()
            return None

    def _carry_out(self, work: _Work) -> None:
        order = work.order
        try:
            if isinstance(order, InferenceOrder):
                self._infer(work, order)
            else:
                self._decode(work, order)
        except (InferenceCancelled, InferenceAbandoned) as exc:
            self._end(work, State.CANCELLED, exc)
        except StillreelError as exc:
            self._end(work, State.FAILED, exc)
        except OSError as exc:
            log.exception("%s of run %s", work.entry.kind, work.entry.run_id)
            self._end(work, State.FAILED, DiskFull() if is_disk_full(exc) else InferenceFailed())
        except (Exception, SystemExit) as exc:  # the one place that reports how an entry ended
            log.exception("%s of run %s", work.entry.kind, work.entry.run_id)
            text = f"the model failed: {type(exc).__name__}"
            self._end(work, State.FAILED, InferenceFailed(text))
        else:
            self._end(work, State.FINISHED)

    def _infer(self, work: _Work, order: InferenceOrder) -> None:
        on_step = self._on_step(work, order.shot.model)
        backend = self._ensure(order.shot.model, on_step)
        image = Image.open(order.image_path).convert("RGB") if order.image_path else None
        path = Path(order.latents_path)
        if isinstance(backend, Resumable):
            note = path.with_suffix(".note.json")
            generated = backend.resume(order.shot, image, on_step, note)
        else:
            generated = backend.generate(order.shot, image, on_step)
        on_step(Phase.DENOISE, order.shot.steps, order.shot.steps)
        generated.seconds = {
            **generated.seconds,
            **work.entry.seconds,
            "gpu": _gpu_seconds(work, backend),
        }
        write_latents(path, order.shot, generated)
        work.entry = work.entry.model_copy(
            update={"seconds": dict(generated.seconds), "dtype": generated.dtype}
        )

    def _decode(self, work: _Work, order: DecodeOrder) -> None:
        path, shot = Path(order.latents_path), order.shot
        on_step = self._on_step(work, shot.model)
        backend = self._ensure(shot.model, on_step)
        decoded = backend.decode(shot, read_arrays(path))
        write_spool(Path(order.spool_dir), decoded, lambda n, of: on_step(Phase.DECODE, n, of))
        seconds = {**work.entry.seconds, "gpu": _gpu_seconds(work, backend)}
        work.entry = work.entry.model_copy(
            update={"seconds": seconds, "warnings": list(decoded.warnings)}
        )

    def _ensure(self, model: ModelName, on_step: OnStep) -> Backend:
        if self._backend is not None and self._backend.spec.name == model:
            return self._backend
        on_step(Phase.LOAD, 0, 1)
        if self._backend is not None:
            log.info("swap model %s for %s", self._backend.spec.name, model)
            self._backend.close()
            self._backend = None
        started = time.monotonic()
        backend = self._load(model)
        backend.load()
        self._backend = backend
        seconds = time.monotonic() - started
        self._gpu = _gpu_name()
        log.info("loaded model %s in %.1f s", model, seconds)
        if self._running is not None:
            entry = self._running.entry
            self._running.entry = entry.model_copy(
                update={"seconds": {**entry.seconds, "load": seconds}}
            )
        on_step(Phase.LOAD, 1, 1)
        return backend

    def _on_step(self, work: _Work, model: ModelName) -> OnStep:
        self._beat(model, work.entry.phase)

        def on_step(phase: Phase, step: int, steps: int) -> None:
            with self._changed:
                if work.cancelled and not work.interrupted:
                    raise InferenceCancelled
                if self._stopping:
                    raise InferenceInterrupted
                if work.entry.kind is Kind.INFERENCE and self._unclaimed(work):
                    work.cancelled = True  # a decode may be far ahead of its reader, and ends soon
                    raise InferenceAbandoned()
                if phase is not work.entry.phase:
                    work.note.begin(phase)
                if (phase, step) != (work.entry.phase, work.entry.step):
                    self._beat(model, phase, step)
                self._touch(work, phase=phase, step=step, steps=steps)

        return on_step

    def _beat(self, model: ModelName, phase: Phase, step: int = 0) -> None:
        self.pulse = Pulse(model, phase, step, next(self._beats), self._patience(model, phase))

    def _unclaimed(self, work: _Work) -> bool:
        return time.monotonic() - work.claimed_at > self._claim_seconds

    def _end(self, work: _Work, state: State, error: StillreelError | None = None) -> None:
        problem = None if error is None else Problem(code=error.code, message=error.message)
        with self._changed:
            work.note.clear()
            if work.started_at:
                self._busy[work.entry.kind] += time.monotonic() - work.started_at
            self._touch(work, state=state, problem=problem)
        log.info(
            "%s of run %s %s%s",
            work.entry.kind,
            work.entry.run_id,
            state,
            f": {problem.message}" if problem else "",
        )

    def _touch(self, work: _Work, **update: object) -> None:
        version = next(self._versions)  # never smaller, also when an entry replaces another
        work.entry = work.entry.model_copy(update={**update, "version": version})
        self._changed.notify_all()

    def _seen(self, work: _Work) -> Entry:
        queued = [w for w in self._works.values() if w.entry.state is State.QUEUED]
        queued.sort(key=lambda w: w.entry.kind is not Kind.DECODE)
        position = queued.index(work) + 1 if work in queued else 0
        return work.entry.model_copy(update={"position": position})


def _model_of(order: Order) -> str:
    return order.shot.model if isinstance(order, InferenceOrder) else ""


def _result_exists(order: Order) -> bool:
    if isinstance(order, InferenceOrder):
        return Path(order.latents_path).exists()
    return (Path(order.spool_dir) / "header.json").exists()


def _delete_spool(order: Order) -> None:
    if isinstance(order, DecodeOrder):
        shutil.rmtree(order.spool_dir, ignore_errors=True)


def _gpu_seconds(work: _Work, backend: Backend) -> float:
    return 0.0 if backend.spec.elsewhere else time.monotonic() - work.started_at


def _gpu_name() -> str | None:
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(0)
