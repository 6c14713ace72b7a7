"""What counts as progress, and for how long none of it is borne."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from stillreel.inference.entry import InferenceOrder, Kind, State
from stillreel.inference.in_hand import note_path
from stillreel.inference.runner import Pulse, Runner
from stillreel.inference.server import patience_on
from stillreel.inference.watchdog import Silence
from stillreel.job import Phase
from stillreel.models.base import ModelSpec
from stillreel.models.registry import MODELS
from stillreel.settings import InferenceSettings
from tests.fake_backend import GATE_SECONDS, Script, make_shot

A = Pulse("preview", Phase.DENOISE, 1, 1, 60.0)
B = A._replace(beat=2)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def runner(script: Script) -> Iterator[Runner]:
    """One that works, and may be silent as long as its phase has letters."""
    runner = Runner(
        script.load_backend, claim_seconds=60, patience=lambda _, phase: float(len(phase))
    )
    thread = Thread(target=runner.run, daemon=True)
    thread.start()
    yield runner
    script.open_all()
    runner.stop()
    thread.join(GATE_SECONDS)
    assert not thread.is_alive()


def order(folder: Path, prompt: str) -> InferenceOrder:
    return InferenceOrder(
        shot=make_shot(prompt),
        digest=prompt,
        latents_path=str(folder / f"{prompt}.safetensors"),
    )


@pytest.mark.parametrize(
    ("looks", "seconds"),
    [
        ([(None, 0), (None, 100)], 0),
        ([(A, 0)], 0),
        ([(A, 0), (A, 2), (A, 3)], 3),
        ([(A, 0), (A, 2), (B, 3)], 0),
        ([(A, 0), (A, 2), (B, 3), (B, 4)], 1),
        ([(A, 0), (A, 2), (None, 3), (A, 4)], 0),
        ([(A, 0), (A, 2), (A, 500), (A, 501)], 2 + 4 + 1),
    ],
    ids=["idle", "new", "silent", "moved", "silent again", "was idle", "was stopped in between"],
)
def test_silence_is_as_long_as_nothing_changes(
    looks: list[tuple[Pulse | None, float]], seconds: float
) -> None:
    silence = Silence(most=4.0)
    assert [silence.look(pulse, now) for pulse, now in looks][-1] == seconds


def test_only_a_step_or_a_phase_is_progress(runner: Runner, script: Script, tmp_path: Path) -> None:
    assert runner.pulse is None
    gate = script.gate("sea")
    runner.start(Kind.INFERENCE, "run", order(tmp_path, "sea"))
    gate.wait()
    before = runner.pulse
    assert before
    assert (before.model, before.phase, before.patience) == ("preview", Phase.LOAD, len("load"))
    version = runner.watch(Kind.INFERENCE, "run", after=-1, wait=0)
    runner.start(Kind.INFERENCE, "other", order(tmp_path, "other"))
    runner.start(Kind.INFERENCE, "run", order(tmp_path, "sea"))
    runner.cancel(Kind.INFERENCE, "other")
    runner.cancel(Kind.INFERENCE, "run")
    assert runner.pulse == before
    assert version
    gate.open()
    entry = runner.watch(Kind.INFERENCE, "run", after=version.version, wait=GATE_SECONDS)
    assert entry
    assert entry.state is State.CANCELLED


def test_each_step_is_progress_and_the_end_needs_no_watch(
    runner: Runner, script: Script, tmp_path: Path
) -> None:
    gate = script.gate("second")
    runner.start(Kind.INFERENCE, "first", order(tmp_path, "first"))
    runner.start(Kind.INFERENCE, "second", order(tmp_path, "second"))
    gate.wait()  # the first, of three steps, is over
    pulse = runner.pulse
    assert pulse
    # load, its end, three steps of the first (the runner reports the last once more): seven beats
    assert (pulse.phase, pulse.step, pulse.beat) == (Phase.QUEUED, 0, 7)
    gate.open()
    while (entry := runner.watch(Kind.INFERENCE, "second", after=-1, wait=0)) and (
        entry.state is not State.FINISHED
    ):
        runner.watch(Kind.INFERENCE, "second", after=entry.version, wait=GATE_SECONDS)
    while runner.health().running:
        runner.watch(Kind.INFERENCE, "second", after=10**6, wait=0.01)
    assert runner.pulse is None


@pytest.mark.parametrize("cancelled", [False, True], ids=["wanted", "cancelled"])
def test_what_is_stuck_is_told_by_the_next_server_unless_nobody_wants_it(
    runner: Runner, script: Script, tmp_path: Path, cancelled: bool
) -> None:
    gate = script.gate("sea")
    stuck = order(tmp_path, "sea")
    runner.start(Kind.INFERENCE, "run", stuck)
    gate.wait()
    if cancelled:
        runner.cancel(Kind.INFERENCE, "run")
    assert runner.pulse
    problem = runner.give_up(runner.pulse, 7.4)
    assert problem.code == "inference_stalled"
    assert problem.message == "no progress for 7 s in phase load of the model preview"
    entry = Runner(script.load_backend, claim_seconds=60).start(Kind.INFERENCE, "run", stuck)
    if cancelled:
        assert entry.state is State.QUEUED
    else:
        assert entry.state is State.FAILED
        assert entry.problem
        assert entry.problem.message == f"{problem.message} (attempt 1 of 3)"


def test_a_server_that_is_asked_to_stop_charges_nobody(
    runner: Runner, script: Script, tmp_path: Path
) -> None:
    gate = script.gate("sea")
    runner.start(Kind.INFERENCE, "run", order(tmp_path, "sea"))
    gate.wait()
    assert note_path(tmp_path, "run").exists()
    runner.stop()
    assert not note_path(tmp_path, "run").exists()


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_every_model_states_its_limits_and_loading_may_take_longer(model: ModelSpec) -> None:
    limits = {phase: model.patience(phase) for phase in Phase}
    assert limits[Phase.DENOISE] == limits[Phase.DECODE] == model.stall_seconds
    early = [limits[phase] for phase in (Phase.QUEUED, Phase.LOAD, Phase.TEXT)]
    assert all(model.stall_seconds <= limit < math.inf for limit in early)


@pytest.mark.parametrize(
    ("setting", "denoise", "load"),
    [(0, 120, 1800), (60, 120, 1800), (900, 900, 1800), (3600, 3600, 3600)],
)
def test_a_slow_host_can_only_lengthen_the_limits(
    setting: float, denoise: float, load: float
) -> None:
    patience = patience_on(InferenceSettings.model_validate({"stall_seconds": setting}))
    assert patience("preview", Phase.DENOISE) == denoise
    assert patience("preview", Phase.LOAD) == load
