"""Models that hang or end their server, on real servers under the real supervisor."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import monotonic

import numpy as np
import psutil
import pytest
from rich.console import Console

from stillreel.errors import InferenceError, StillreelError
from stillreel.inference.client import InferenceClient, answers, is_silent
from stillreel.inference.entry import DecodeOrder, Entry, InferenceOrder, Kind, State
from stillreel.inference.latents import write_latents
from stillreel.models.base import Generated
from stillreel.settings import get_settings
from stillreel.supervisor import Service, Supervisor
from tests.bad_backend import EXIT, FREEZE, HANG, KILL, LATE, hang_at_load
from tests.fake_backend import make_shot

# httpcore 1.0 leaves closing to the garbage collector where connecting to a unix socket fails.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket.socket.*family=1:ResourceWarning")

ROOT = Path(__file__).parents[2]
SECONDS = 120.0
SERVER = (
    "from tests.bad_backend import install; install(); "
    "from stillreel.inference.server import main; main()"
)


class Host:
    """One supervised server with the bad backend; a story runs beside it in a thread."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.work = home / "work"
        self.socket = home / "s"
        self.printed = io.StringIO()
        self.supervisor = Supervisor(Console(file=self.printed, width=300))

    def run(self, story: Callable[[InferenceClient], None], *arguments: str) -> None:
        """Run the server until the story has ended, and raise what it raised."""
        raised: list[BaseException] = []
        begun = Event()

        def tell() -> None:
            begun.wait()
            client = InferenceClient(self.socket, wait_for_server=SECONDS)
            try:
                story(client)
            except BaseException as exc:
                raised.append(exc)
            finally:
                client.close()
                os.kill(os.getpid(), signal.SIGTERM)

        argv = [sys.executable, "-c", SERVER, "--socket", str(self.socket), *arguments]
        service = Service(
            "gpu0",
            argv,
            {"STILLREEL_HOME": str(self.home), "PYTHONPATH": str(ROOT)},
            is_silent=partial(is_silent, self.socket, within=5.0),
            silences=3,
            look_seconds=0.2,
        )
        thread = Thread(target=tell)
        thread.start()
        signal.signal(signal.SIGTERM, lambda *_: None)
        self.supervisor.start(service)
        begun.set()
        self.supervisor.run()
        thread.join(SECONDS)
        if raised:
            raise raised[0]

    @property
    def deaths(self) -> int:
        """How often the server has ended so far."""
        return self.printed.getvalue().count("gpu0 ended with code")

    def order(self, prompt: str) -> InferenceOrder:
        return InferenceOrder(
            shot=make_shot(prompt), digest=prompt, latents_path=str(self.work / prompt / "latents")
        )

    def decode_order(self, prompt: str) -> DecodeOrder:
        """Of latents that are stored by this call, as the preview would have made them."""
        path, shot = self.work / prompt / "latents", make_shot(prompt, frames=20)
        boxes = np.tile(np.array([0.0, 0.0, shot.width, shot.height]), (shot.frames, 1))
        image = np.zeros((shot.height, shot.width, 3), np.uint8)
        write_latents(path, shot, Generated({"image": image, "boxes": boxes}))
        return DecodeOrder(
            shot=shot, digest=prompt, latents_path=str(path), spool_dir=str(path.with_name("spool"))
        )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with TemporaryDirectory(prefix="sr-") as name:
        monkeypatch.setenv("STILLREEL_HOME", name)
        get_settings.cache_clear()
        host = Host(Path(name))
        yield host
        host.supervisor.stop()
    for number, handler in before.items():
        signal.signal(number, handler)
    gc.collect()


def ignore(_: Entry) -> None:
    """For work whose progress nobody looks at."""


def wait_until(enough: Callable[[], bool]) -> None:
    deadline = monotonic() + SECONDS
    while not enough():
        assert monotonic() < deadline
        Event().wait(0.05)


@pytest.mark.parametrize(
    ("prompt", "code", "exit_code"),
    [
        (HANG, "inference_stalled", 4),
        (KILL, "inference_server_died", -9),
        pytest.param(EXIT, "inference_server_died", 1, marks=pytest.mark.long),
        pytest.param(FREEZE, "inference_server_died", -9, marks=pytest.mark.long),
    ],
)
def test_an_inference_ends_three_servers_at_most_and_its_neighbour_only_waits(
    host: Host, prompt: str, code: str, exit_code: int
) -> None:
    """Whoever is told of a failed attempt begins another, far more often than any task would."""
    told: list[StillreelError] = []
    neighbour: list[Entry] = []
    thread: list[Thread] = []

    def wait_behind(_: Entry) -> None:
        if not thread:
            thread.append(Thread(target=follow_neighbour))
            thread[0].start()

    def follow_neighbour() -> None:
        client = InferenceClient(host.socket, wait_for_server=SECONDS)
        client.infer("neighbour", host.order("sea"), on_entry=neighbour.append)
        client.close()

    def story(client: InferenceClient) -> None:
        for _ in range(5):
            with pytest.raises(InferenceError) as failure:
                client.infer("bad", host.order(prompt), on_entry=wait_behind)
            told.append(failure.value)
        thread[0].join(SECONDS)

    host.run(story)
    assert {error.code for error in told} == {code}
    assert [str(error)[-16:] for error in told] == [
        f"(attempt {number} of 3)" for number in (1, 2, 3, 3, 3)
    ]
    assert host.deaths == 3
    assert host.printed.getvalue().count(f"gpu0 ended with code {exit_code} ") == 3
    assert neighbour[0].state is State.QUEUED
    assert neighbour[-1].state is State.FINISHED
    assert all(entry.problem is None for entry in neighbour)
    assert host.printed.getvalue().count("inferences of run neighbour finished") == 1
    if prompt == HANG:
        assert "no progress for" in host.printed.getvalue()
        assert 'bad_backend.py", line' in host.printed.getvalue()  # the stack of the thread


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        pytest.param(HANG + LATE, "inference_stalled", marks=pytest.mark.long),
        (KILL + LATE, "inference_server_died"),
    ],
)
def test_a_decode_ends_three_servers_at_most_too(host: Host, prompt: str, code: str) -> None:
    told: list[StillreelError] = []

    def story(client: InferenceClient) -> None:
        order = host.decode_order(prompt)
        for _ in range(4):
            with (
                pytest.raises(InferenceError) as failure,
                client.decode("bad", order, on_entry=ignore) as decoded,
            ):
                list(decoded.chunks)
            told.append(failure.value)
        with client.decode("good", host.decode_order("sea"), on_entry=ignore) as decoded:
            assert sum(len(chunk) for chunk in decoded.chunks) == 20

    host.run(story)
    assert {error.code for error in told} == {code}
    assert host.deaths == 3


def test_who_reads_frames_that_are_all_on_disk_does_not_need_the_server_any_more(
    host: Host,
) -> None:
    seen: list[Entry] = []

    def story(client: InferenceClient) -> None:
        with client.decode("reader", host.decode_order("sea"), on_entry=seen.append) as decoded:
            frames = len(next(decoded.chunks))
            wait_until(lambda: ended(client, Kind.DECODE, "reader"))
            with pytest.raises(InferenceError):
                client.infer("bad", host.order(KILL), on_entry=ignore)
            assert frames + sum(len(chunk) for chunk in decoded.chunks) == 20

    host.run(story)
    assert host.deaths == 1
    assert seen[-1].state is State.FINISHED


def ended(client: InferenceClient, kind: Kind, run_id: str) -> bool:
    entry = client.find(kind, run_id)
    return entry is not None and not entry.state.is_live


def test_a_cancelled_inference_that_does_not_end_ends_its_server_and_is_no_attempt(
    host: Host,
) -> None:
    def cancel(entry: Entry) -> None:
        if entry.step == 1 and entry.phase == "denoise" and host.deaths == 0:
            InferenceClient(host.socket, wait_for_server=0).cancel(Kind.INFERENCE, "bad")

    def story(client: InferenceClient) -> None:
        # the follower asks the next server, which knows nothing of it: a first attempt again
        with pytest.raises(InferenceError, match="attempt 1 of 3"):
            client.infer("bad", host.order(HANG), on_entry=cancel)
        assert client.infer("other", host.order("sea"), on_entry=ignore).state is State.FINISHED

    host.run(story)
    assert host.deaths == 2


def test_a_load_that_hangs_ends_the_server_and_the_next_one_may_be_luckier(host: Host) -> None:
    hang_at_load(host.home).touch()

    def story(client: InferenceClient) -> None:
        wait_until(lambda: host.deaths > 0)
        hang_at_load(host.home).unlink()
        assert client.infer("run", host.order("sea"), on_entry=ignore).state is State.FINISHED

    host.run(story, "--model", "preview")
    assert "gpu0 ended with code 4 " in host.printed.getvalue()
    assert "in phase load of the model preview" in host.printed.getvalue()
    assert host.printed.getvalue().count("loaded model preview") == 1


def test_a_frozen_server_is_killed_and_one_that_does_not_listen_yet_is_not(host: Host) -> None:
    """It listens late: a model of 40 GB is loaded before."""

    def story(client: InferenceClient) -> None:
        assert not is_silent(host.socket, within=0.1)
        wait_until(lambda: answers(host.socket))
        assert host.deaths == 0
        first = client.health().pid
        psutil.Process(first).suspend()
        wait_until(lambda: host.deaths > 0)
        entry = client.infer("run", host.order("sea"), on_entry=ignore)
        assert entry.state is State.FINISHED
        assert client.health().pid != first

    host.run(story)
    assert "gpu0 does not answer any more; killing it" in host.printed.getvalue()
    assert host.deaths == 1
