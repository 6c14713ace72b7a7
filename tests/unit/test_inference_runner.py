"""The one thread that uses the GPU: order, attaching, cancelling, failing, forgetting."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from stillreel.errors import InferenceFailed, ModelUnavailable
from stillreel.inference.entry import DecodeOrder, Entry, InferenceOrder, Kind, State
from stillreel.inference.latents import read_facts, write_latents
from stillreel.inference.runner import Runner
from stillreel.inference.spool import read_spool
from stillreel.job import ModelName, Phase
from stillreel.models.base import Generated
from tests.fake_backend import GATE_SECONDS, Script, make_shot

INFERENCE, DECODE = Kind.INFERENCE, Kind.DECODE
StartRunner = Callable[..., Runner]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def start_runner(script: Script) -> Iterator[StartRunner]:
    """Starts runners that work in threads; all are stopped at the end."""
    started: list[tuple[Runner, Thread]] = []

    def start(*, claim_seconds: float = 60.0, kept: int = 256) -> Runner:
        runner = Runner(script.load_backend, claim_seconds=claim_seconds, kept=kept)
        thread = Thread(target=runner.run, daemon=True)
        thread.start()
        started.append((runner, thread))
        return runner

    yield start
    script.open_all()
    for runner, thread in started:
        runner.stop()
        thread.join(GATE_SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def runner(start_runner: StartRunner) -> Runner:
    return start_runner()


class Orders:
    """Orders whose files lie in one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def inference(
        self, prompt: str, *, digest: str = "", model: ModelName = "preview", image_path: str = ""
    ) -> InferenceOrder:
        digest = digest or f"digest-{prompt}"
        return InferenceOrder(
            shot=make_shot(prompt, model=model),
            digest=digest,
            latents_path=str(self.folder / f"{digest}.safetensors"),
            image_path=image_path,
        )

    def decode(self, prompt: str, *, spool: str = "", model: ModelName = "preview") -> DecodeOrder:
        """Of latents that are stored by this call."""
        path = self.folder / f"{prompt}.latents"
        write_latents(path, make_shot(prompt, model=model), Generated({"value": np.zeros(1)}))
        return DecodeOrder(
            shot=make_shot(prompt, model=model),
            digest=f"sha-{prompt}",
            latents_path=str(path),
            spool_dir=str(self.folder / (spool or f"spool-{prompt}")),
        )


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(tmp_path)


def wait_until(
    runner: Runner, kind: Kind, run_id: str, enough: Callable[[Entry], bool]
) -> list[Entry]:
    """All entries that a client sees until `enough`."""
    seen: list[Entry] = []
    deadline = monotonic() + GATE_SECONDS
    while monotonic() < deadline:
        after = seen[-1].version if seen else -1
        entry = runner.watch(kind, run_id, after=after, wait=1)
        assert entry is not None, f"{kind} {run_id} is not known"
        seen.append(entry)
        if enough(entry):
            return seen
    raise AssertionError(f"still {seen[-1]}")


def wait_for_end(runner: Runner, kind: Kind, run_id: str) -> Entry:
    return wait_until(runner, kind, run_id, lambda entry: not entry.state.is_live)[-1]


def test_an_inference_stores_latents_with_their_facts(runner: Runner, orders: Orders) -> None:
    image = orders.folder / "image.png"
    Image.new("RGB", (32, 16), (77, 0, 0)).save(image)
    order = orders.inference("sea", image_path=str(image))
    runner.start(INFERENCE, "run", order)
    entry = wait_for_end(runner, INFERENCE, "run")
    assert (entry.state, entry.phase, entry.step, entry.steps) == (
        State.FINISHED,
        Phase.DENOISE,
        3,
        3,
    )
    path = Path(order.latents_path)
    assert load_file(path)["value"].tolist() == [77]
    shot, seconds, dtype, plan, warnings, usd = read_facts(path)
    assert (shot, dtype, plan, warnings) == (order.shot, "uint8", "rich", ("Not quite.",))
    assert usd == 0.0
    assert seconds == entry.seconds
    assert seconds.keys() == {"denoise", "load", "gpu"}
    assert seconds["gpu"] >= seconds["load"]
    assert [file.name for file in orders.folder.iterdir() if file.name.startswith(".")] == []


def test_decodes_go_first_and_the_rest_in_order_of_arrival(
    runner: Runner, orders: Orders, script: Script
) -> None:
    gate = script.gate("first")
    runner.start(INFERENCE, "first", orders.inference("first"))
    gate.wait()
    runner.start(INFERENCE, "second", orders.inference("second"))
    runner.start(INFERENCE, "third", orders.inference("third"))
    runner.start(DECODE, "fourth", orders.decode("fourth"))
    entries = [
        runner.watch(kind, run_id, after=-1, wait=0)
        for kind, run_id in (
            (INFERENCE, "first"),
            (DECODE, "fourth"),
            (INFERENCE, "second"),
            (INFERENCE, "third"),
        )
    ]
    assert [entry.position for entry in entries if entry] == [0, 1, 2, 3]
    health = runner.health()
    assert (health.running, health.queued, health.loaded) == ("first", 3, True)
    gate.open()
    wait_for_end(runner, INFERENCE, "third")
    assert script.log == [
        "load preview",
        "generate first",
        "decode fourth",
        "generate second",
        "generate third",
    ]


@pytest.mark.parametrize("running", [True, False], ids=["running", "finished"])
def test_the_same_order_attaches(
    runner: Runner, orders: Orders, script: Script, running: bool
) -> None:
    gate = script.gate("sea")
    order = orders.inference("sea")
    assert not runner.start(INFERENCE, "run", order).attached
    gate.wait()
    if not running:
        gate.open()
        wait_for_end(runner, INFERENCE, "run")
    assert runner.start(INFERENCE, "run", order).attached
    gate.open()
    wait_for_end(runner, INFERENCE, "run")
    assert script.log == ["load preview", "generate sea"]


def test_equal_orders_of_two_runs_are_two_inferences(
    runner: Runner, orders: Orders, script: Script
) -> None:
    runner.start(INFERENCE, "one", orders.inference("sea", digest="a"))
    runner.start(INFERENCE, "two", orders.inference("sea", digest="b"))
    wait_for_end(runner, INFERENCE, "two")
    assert script.log.count("generate sea") == 2


def test_a_failed_entry_is_replaced(runner: Runner, orders: Orders, script: Script) -> None:
    script.errors["sea"] = RuntimeError("first time only")
    order = orders.inference("sea")
    runner.start(INFERENCE, "run", order)
    assert wait_for_end(runner, INFERENCE, "run").state is State.FAILED
    script.errors.clear()
    assert not runner.start(INFERENCE, "run", order).attached
    assert wait_for_end(runner, INFERENCE, "run").state is State.FINISHED


def test_another_digest_replaces_what_runs(runner: Runner, orders: Orders, script: Script) -> None:
    gate = script.gate("old")
    runner.start(INFERENCE, "run", orders.inference("old"))
    gate.wait()
    entry = runner.start(INFERENCE, "run", orders.inference("new"))
    assert (entry.attached, entry.state, entry.digest) == (False, State.QUEUED, "digest-new")
    gate.open()
    assert wait_for_end(runner, INFERENCE, "run").digest == "digest-new"
    assert not (orders.folder / "digest-old.safetensors").exists()
    assert (orders.folder / "digest-new.safetensors").exists()


def test_stored_latents_attach_after_a_restart(
    start_runner: StartRunner, orders: Orders, script: Script
) -> None:
    order = orders.inference("sea")
    first = start_runner()
    first.start(INFERENCE, "run", order)
    before = wait_for_end(first, INFERENCE, "run")
    entry = start_runner().start(INFERENCE, "run", order)
    assert entry.attached
    assert entry.state is State.FINISHED
    assert (entry.seconds, entry.dtype, entry.step) == (before.seconds, before.dtype, before.step)
    assert script.log.count("generate sea") == 1


def test_a_finished_entry_whose_latents_are_gone_is_computed_again(
    runner: Runner, orders: Orders, script: Script
) -> None:
    order = orders.inference("sea")
    runner.start(INFERENCE, "run", order)
    wait_for_end(runner, INFERENCE, "run")
    Path(order.latents_path).unlink()
    assert not runner.start(INFERENCE, "run", order).attached
    wait_for_end(runner, INFERENCE, "run")
    assert Path(order.latents_path).exists()
    assert script.log.count("generate sea") == 2


def test_stored_latents_of_another_shot_are_computed_again(runner: Runner, orders: Orders) -> None:
    order = orders.inference("sea")
    write_latents(
        Path(order.latents_path),
        make_shot("another", frames=999),
        Generated({"value": np.zeros(1)}, seconds={"gpu": 1e7}, usd=987654.0),
    )
    assert not runner.start(INFERENCE, "run", order).attached
    assert wait_for_end(runner, INFERENCE, "run").state is State.FINISHED
    facts = read_facts(Path(order.latents_path))
    assert (facts.shot, facts.usd) == (order.shot, 0.0)
    assert facts.seconds["gpu"] < 1e7


def test_a_decode_makes_what_was_ordered_whatever_the_latents_say(
    runner: Runner, orders: Orders
) -> None:
    order = orders.decode("sea")
    shot = make_shot("another", model="wan-2.2", frames=999)
    write_latents(Path(order.latents_path), shot, Generated({"value": np.zeros(1)}))
    runner.start(DECODE, "run", order)
    assert wait_for_end(runner, DECODE, "run").state is State.FINISHED
    assert read_spool(Path(order.spool_dir), lambda _: None).frames == order.shot.frames


def test_damaged_stored_latents_are_computed_again(
    runner: Runner, orders: Orders, script: Script
) -> None:
    order = orders.inference("sea")
    Path(order.latents_path).write_bytes(b"half a file")
    assert not runner.start(INFERENCE, "run", order).attached
    assert wait_for_end(runner, INFERENCE, "run").state is State.FINISHED
    assert read_facts(Path(order.latents_path))[0] == order.shot


def test_cancelling_stops_between_two_steps_and_the_run_can_start_again(
    runner: Runner, orders: Orders, script: Script
) -> None:
    gate = script.gate("sea")
    order = orders.inference("sea")
    runner.start(INFERENCE, "run", order)
    gate.wait()
    assert runner.cancel(INFERENCE, "run")
    again = runner.start(INFERENCE, "run", order)
    assert (again.attached, again.state) == (False, State.QUEUED)
    gate.open()
    assert wait_for_end(runner, INFERENCE, "run").state is State.FINISHED
    assert script.log == ["load preview", "generate sea", "generate sea"]


def test_a_cancelled_entry_in_the_queue_never_runs(
    runner: Runner, orders: Orders, script: Script
) -> None:
    gate = script.gate("first")
    runner.start(INFERENCE, "first", orders.inference("first"))
    gate.wait()
    runner.start(INFERENCE, "second", orders.inference("second"))
    runner.start(INFERENCE, "third", orders.inference("third"))
    runner.cancel(INFERENCE, "second")
    gate.open()
    wait_for_end(runner, INFERENCE, "third")
    assert "generate second" not in script.log


@pytest.mark.parametrize("queued", [True, False], ids=["queued", "running"])
def test_who_watches_a_cancelled_inference_is_told(
    runner: Runner, orders: Orders, script: Script, queued: bool
) -> None:
    gate = script.gate("blocker" if queued else "sea")
    if queued:
        runner.start(INFERENCE, "blocker", orders.inference("blocker"))
    runner.start(INFERENCE, "run", orders.inference("sea"))
    gate.wait()
    assert runner.cancel(INFERENCE, "run")
    gate.open()
    entry = wait_for_end(runner, INFERENCE, "run")
    assert entry.problem
    assert (entry.state, entry.problem.code) == (State.CANCELLED, "cancelled")
    assert runner.cancel(INFERENCE, "run")  # forgets it
    assert runner.watch(INFERENCE, "run", after=-1, wait=0) is None
    assert not runner.cancel(INFERENCE, "run")


def test_what_nobody_asks_for_is_cancelled(
    start_runner: StartRunner, orders: Orders, script: Script
) -> None:
    runner = start_runner(claim_seconds=0.3)
    gate = script.gate("sea")
    runner.start(INFERENCE, "run", orders.inference("sea"))
    Event().wait(0.4)  # longer than a claim lasts
    gate.open()
    while (health := runner.health()).running or health.queued:
        Event().wait(0.01)
    entry = runner.watch(INFERENCE, "run", after=-1, wait=0)
    assert entry
    assert entry.problem
    assert (entry.state, entry.problem.code) == (State.CANCELLED, "inference_abandoned")
    assert not (orders.folder / "digest-sea.safetensors").exists()


def test_what_a_client_waits_for_is_not_cancelled(
    start_runner: StartRunner, orders: Orders, script: Script
) -> None:
    gate = script.gate("sea")
    runner = start_runner(claim_seconds=0.2)
    runner.start(INFERENCE, "run", orders.inference("sea"))
    gate.wait()
    for _ in range(5):  # each longer than the claim, with nothing new to see
        runner.watch(INFERENCE, "run", after=10**6, wait=0.1)
    gate.open()
    assert wait_for_end(runner, INFERENCE, "run").state is State.FINISHED


def test_another_model_is_swapped_in(runner: Runner, orders: Orders, script: Script) -> None:
    runner.start(INFERENCE, "one", orders.inference("one"))
    wait_for_end(runner, INFERENCE, "one")
    runner.start(INFERENCE, "two", orders.inference("two", model="ltx-2"))
    entry = wait_for_end(runner, INFERENCE, "two")
    assert script.log[-3:] == ["close preview", "load ltx-2", "generate two"]
    assert entry.seconds.keys() == {"denoise", "load", "gpu"}
    assert runner.health().model == "ltx-2"


def test_loading_is_a_phase_of_its_own(orders: Orders, script: Script) -> None:
    phases: list[tuple[Phase, int]] = []

    runner = Runner(lambda name: _noting(script, name, phases, runner), claim_seconds=60)
    thread = Thread(target=runner.run, daemon=True)
    thread.start()
    runner.start(INFERENCE, "run", orders.inference("sea"))
    wait_for_end(runner, INFERENCE, "run")
    runner.stop()
    thread.join(GATE_SECONDS)
    assert phases == [(Phase.LOAD, 0)]


def _noting(script: Script, name: ModelName, phases: list[tuple[Phase, int]], runner: Runner):
    entry = runner.watch(INFERENCE, "run", after=-1, wait=0)
    assert entry is not None
    phases.append((entry.phase, entry.step))
    return script.load_backend(name)


def test_a_model_that_does_not_load_fails_its_job_only(
    runner: Runner, orders: Orders, script: Script
) -> None:
    script.load_error = ModelUnavailable("no weights here")
    runner.start(INFERENCE, "one", orders.inference("one"))
    entry = wait_for_end(runner, INFERENCE, "one")
    assert entry.problem
    assert (entry.problem.code, entry.problem.message) == ("model_unavailable", "no weights here")
    assert not runner.health().loaded
    script.load_error = None
    runner.start(INFERENCE, "two", orders.inference("two"))
    assert wait_for_end(runner, INFERENCE, "two").state is State.FINISHED


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InferenceFailed("too dark"), "inference_failed", "too dark"),
        (RuntimeError("secret /srv/x"), "inference_failed", "the model failed: RuntimeError"),
        (OSError(errno.EIO, "secret"), "inference_failed", InferenceFailed().message),
        (OSError(errno.ENOSPC, "secret"), "disk_full", None),
        (MemoryError("secret"), "inference_failed", "the model failed: MemoryError"),
    ],
    ids=["ours", "unknown", "disk error", "disk full", "memory"],
)
def test_failures_are_told_without_inner_texts(
    runner: Runner,
    orders: Orders,
    script: Script,
    error: Exception,
    code: str,
    message: str | None,
) -> None:
    script.errors["sea"] = error
    runner.start(INFERENCE, "run", orders.inference("sea"))
    entry = wait_for_end(runner, INFERENCE, "run")
    assert entry.state is State.FAILED
    assert entry.problem
    assert entry.problem.code == code
    assert message is None or entry.problem.message == message
    assert "secret" not in entry.problem.message
    wait_until_idle(runner, orders)
    assert runner.health().running != "run"


def test_a_full_disk_while_latents_are_written_is_told_as_such(
    runner: Runner, orders: Orders
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full, which this system does not have")
    order = orders.inference("sea")
    path = Path(order.latents_path)
    path.with_name(f".{path.name}.{os.getpid()}").symlink_to(full)
    runner.start(INFERENCE, "run", order)
    entry = wait_for_end(runner, INFERENCE, "run")
    assert entry.problem
    assert entry.problem.code == "disk_full"
    assert not path.exists()


def test_a_decode_never_waits_for_its_reader(runner: Runner, orders: Orders) -> None:
    order = orders.decode("sea")
    runner.start(DECODE, "run", order)
    entry = wait_for_end(runner, DECODE, "run")  # nobody has read a frame
    assert (entry.state, entry.step, entry.steps) == (State.FINISHED, 5, 5)
    assert entry.seconds["gpu"] >= 0
    decoded = read_spool(Path(order.spool_dir), lambda _: None)
    frames = np.concatenate(list(decoded.chunks))
    assert frames.shape == (5, 16, 32, 3)
    assert frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_running_decode_is_not_abandoned_by_a_slow_reader(
    start_runner: StartRunner, orders: Orders, script: Script
) -> None:
    runner = start_runner(claim_seconds=0.1)
    gate = script.gate("sea", decode=True)
    runner.start(DECODE, "run", orders.decode("sea"))
    gate.wait()
    Event().wait(0.3)  # longer than a claim lasts
    gate.open()
    assert wait_for_end(runner, DECODE, "run").state is State.FINISHED


def test_the_spool_goes_when_the_decode_is_forgotten(runner: Runner, orders: Orders) -> None:
    order = orders.decode("sea")
    runner.start(DECODE, "run", order)
    wait_for_end(runner, DECODE, "run")
    assert Path(order.spool_dir).exists()
    assert runner.cancel(DECODE, "run")
    wait_until_idle(runner, orders)
    assert not Path(order.spool_dir).exists()


def test_the_spool_goes_when_a_running_decode_is_cancelled(
    runner: Runner, orders: Orders, script: Script
) -> None:
    gate = script.gate("sea", decode=True)
    order = orders.decode("sea")
    runner.start(DECODE, "run", order)
    gate.wait()
    assert runner.cancel(DECODE, "run")
    gate.open()
    wait_until_idle(runner, orders)
    assert not Path(order.spool_dir).exists()


def test_the_spool_goes_however_close_the_cancel_is_to_the_end(
    runner: Runner, orders: Orders
) -> None:
    """A client forgets its decode right after the last frame: while the runner ends it."""
    for number in range(60):
        order = orders.decode(f"p{number}")
        runner.start(DECODE, "run", order)
        wait_until(runner, DECODE, "run", lambda entry: entry.step == 5)
        runner.cancel(DECODE, "run")
    wait_until_idle(runner, orders)
    assert list(orders.folder.glob("spool-*")) == []


def test_the_next_execution_gets_its_own_spool(
    runner: Runner, orders: Orders, script: Script
) -> None:
    """The first execution was killed while it read; the second asks for a spool of its own."""
    first = orders.decode("sea", spool="spool-1")
    runner.start(DECODE, "run", first)
    wait_for_end(runner, DECODE, "run")
    second = first.model_copy(update={"spool_dir": str(orders.folder / "spool-2")})
    runner.start(DECODE, "run", second)
    assert wait_for_end(runner, DECODE, "run").state is State.FINISHED
    decoded = read_spool(Path(second.spool_dir), lambda _: None)
    assert sum(len(chunk) for chunk in decoded.chunks) == 5
    wait_until_idle(runner, orders)
    assert not Path(first.spool_dir).exists()


@pytest.mark.parametrize("made", [0, 3, 7], ids=["none", "too few", "too many"])
def test_a_wrong_number_of_frames_fails(
    runner: Runner, orders: Orders, script: Script, made: int
) -> None:
    script.frames_made = made
    runner.start(DECODE, "run", orders.decode("sea"))
    entry = wait_for_end(runner, DECODE, "run")
    assert entry.problem
    assert entry.problem.code == "inference_failed"
    assert f"{made} frames instead of 5" in entry.problem.message


def test_latents_that_are_gone_fail_their_decode(runner: Runner, orders: Orders) -> None:
    order = orders.decode("sea")
    Path(order.latents_path).unlink()
    runner.start(DECODE, "run", order)
    entry = wait_for_end(runner, DECODE, "run")
    assert entry.problem
    assert entry.problem.message == "the stored latents cannot be read"


def test_old_ended_entries_are_forgotten_and_live_ones_are_not(
    start_runner: StartRunner, orders: Orders, script: Script
) -> None:
    runner = start_runner(kept=2)
    gate = script.gate("live")
    for name in ("a", "b"):
        runner.start(INFERENCE, name, orders.inference(name))
        wait_for_end(runner, INFERENCE, name)
    runner.start(INFERENCE, "live", orders.inference("live"))
    gate.wait()
    for name in ("c", "d", "e"):
        runner.start(INFERENCE, name, orders.inference(name))
    known = [
        name
        for name in ("a", "b", "live", "c", "d", "e")
        if runner.watch(INFERENCE, name, after=-1, wait=0)
    ]
    assert known == ["live", "c", "d", "e"]


def test_versions_of_a_run_only_grow(runner: Runner, orders: Orders, script: Script) -> None:
    """A client that follows a run must not wait for a version that its replacement has not."""
    script.errors["sea"] = RuntimeError("first time only")
    order = orders.inference("sea")
    runner.start(INFERENCE, "run", order)
    failed = wait_for_end(runner, INFERENCE, "run")
    script.errors.clear()
    assert runner.start(INFERENCE, "run", order).version > failed.version


def test_stop_ends_the_work_and_gives_the_memory_back(
    start_runner: StartRunner, orders: Orders, script: Script
) -> None:
    gate = script.gate("sea")
    runner = start_runner()
    runner.start(INFERENCE, "run", orders.inference("sea"))
    runner.start(INFERENCE, "queued", orders.inference("queued"))
    gate.wait()
    runner.stop()
    assert runner.watch(INFERENCE, "queued", after=10**6, wait=GATE_SECONDS) is None
    gate.open()
    thread = Thread(target=runner.run, daemon=True)
    thread.start()
    thread.join(GATE_SECONDS)
    assert not thread.is_alive()
    assert "generate queued" not in script.log


def test_a_model_loaded_before_the_first_job_is_not_loaded_again(
    start_runner: StartRunner, orders: Orders, script: Script
) -> None:
    runner = Runner(script.load_backend, claim_seconds=60)
    runner.preload("preview")
    assert runner.health().loaded
    thread = Thread(target=runner.run, daemon=True)
    thread.start()
    runner.start(INFERENCE, "run", orders.inference("sea"))
    entry = wait_for_end(runner, INFERENCE, "run")
    runner.stop()
    thread.join(GATE_SECONDS)
    assert script.log == ["load preview", "generate sea", "close preview"]
    assert "load" not in entry.seconds


def test_nothing_is_known_about_a_run_that_never_started(runner: Runner) -> None:
    assert runner.watch(INFERENCE, "never", after=-1, wait=0) is None
    assert not runner.cancel(DECODE, "never")


def test_busy_seconds_count_by_kind(runner: Runner, orders: Orders) -> None:
    runner.start(INFERENCE, "run", orders.inference("sea"))
    wait_for_end(runner, INFERENCE, "run")
    runner.start(DECODE, "run", orders.decode("sea"))
    wait_for_end(runner, DECODE, "run")
    assert runner.health().busy_seconds.keys() == {"inferences", "decodes"}


def wait_until_idle(runner: Runner, orders: Orders) -> None:
    """One more inference: what was before it is over when it has ended."""
    runner.start(INFERENCE, "idle", orders.inference("idle"))
    wait_for_end(runner, INFERENCE, "idle")
