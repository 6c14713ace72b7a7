"""A host ends cancelled work by itself where the flow process did not hear of the cancel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
import uvicorn
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, Cancelling, Running

from stillreel.inference.client import InferenceClient, socket_path
from stillreel.inference.entry import InferenceOrder, Kind, State
from stillreel.inference.runner import Runner
from stillreel.inference.server import make_app
from stillreel.prefect_api import PrefectApi
from stillreel.settings import Settings
from stillreel.unwanted import LOOKS, Unwanted
from stillreel.workdir import job_dir
from tests.api.control import Control
from tests.fake_backend import GATE_SECONDS, Script, make_shot
from tests.stack import free_port

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); signal.pause()"

# httpcore 1.0 leaves closing to the garbage collector where connecting to a unix socket fails.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket.socket.*family=1:ResourceWarning")


@pytest.fixture
def settings(control: Control) -> Iterator[Settings]:
    """Those of a host with a home of its own."""
    found = control.api.settings
    with TemporaryDirectory(prefix="sr-") as name:
        home = found.host.model_copy(update={"home": Path(name)})
        yield found.model_copy(update={"host": home})


@contextmanager
def process_of(run_id: str, settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks as if it worked on the run, and hears nothing."""
    env = {"PREFECT__FLOW_RUN_ID": run_id, "STILLREEL_HOME": str(settings.host.home)}
    process = subprocess.Popen(
        [sys.executable, "-uc", DEAF], env=os.environ | env, stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def server_of(script: Script, settings: Settings) -> Iterator[InferenceClient]:
    """A client of the host's inference server, whose backends follow the script."""
    socket = socket_path(settings.host.home)
    socket.parent.mkdir(parents=True)
    config = uvicorn.Config(
        make_app(Runner(script.load_backend, claim_seconds=600)),
        uds=str(socket),
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    client = InferenceClient(socket, wait_for_server=GATE_SECONDS)
    try:
        yield client
    finally:
        script.open_all()
        client.close()
        server.should_exit = True
        thread.join(GATE_SECONDS)
        assert not thread.is_alive()


def started(control: Control, *states: Any) -> tuple[str, str]:
    """Job and run that came into these states."""
    job_id = control.api.submit()["job_id"]
    run_id = control.read(job_id).record.run_id
    with get_client(sync_client=True) as client:
        for state in states:
            client.set_flow_run_state(run_id, state, force=True)
    control.api.forget()
    return job_id, run_id


def look(control: Control, unwanted: Unwanted, times: int = LOOKS) -> None:
    for _ in range(times):
        control.run(unwanted.look())


def test_the_process_of_a_cancelled_run_is_ended_and_no_other(
    control: Control, settings: Settings
) -> None:
    job_id, run_id = started(control, Running(), Cancelling())
    _, other = started(control, Running())
    unwanted = Unwanted(control.services.api, settings)
    folder = job_dir(job_id, settings=settings)
    folder.mkdir(parents=True)
    with process_of(run_id, settings) as deaf, process_of(other, settings) as wanted:
        look(control, unwanted, LOOKS - 1)
        assert deaf.poll() is None, "its own end may still be under way"
        look(control, unwanted, 1)
        assert deaf.wait(GATE_SECONDS) < 0
        assert wanted.poll() is None
    assert control.read(job_id).record.state_type == "CANCELLED"
    assert control.read(job_id).status == "cancelled"
    assert not folder.exists()


def test_the_gpu_is_freed_of_a_cancelled_run_that_has_no_process_any_more(
    control: Control, settings: Settings
) -> None:
    _, run_id = started(control, Running(), Cancelled())
    script = Script()
    gate = script.gate("sea")
    with server_of(script, settings) as client:
        order = InferenceOrder(
            shot=make_shot("sea"), digest="sea", latents_path=str(settings.host.work_dir / "sea")
        )
        client._start(Kind.INFERENCE, run_id, order)
        gate.wait()
        look(control, Unwanted(control.services.api, settings))
        gate.open()
        while (health := client.health()).running or health.queued:
            Event().wait(0.01)
        entry = client.find(Kind.INFERENCE, run_id)
    assert entry
    assert entry.state is State.CANCELLED


def test_work_of_another_prefect_server_is_left_alone(control: Control, settings: Settings) -> None:
    """`stillreel generate` uses the server of the host too, and its run is known elsewhere."""
    with process_of(str(uuid4()), settings) as stranger:
        look(control, Unwanted(control.services.api, settings), LOOKS + 1)
        assert stranger.poll() is None


def test_a_prefect_server_that_is_away_ends_nothing(control: Control, settings: Settings) -> None:
    _, run_id = started(control, Running())

    async def look_away() -> None:
        api = PrefectApi(f"http://127.0.0.1:{free_port()}/api", patience=0.1)
        unwanted = Unwanted(api, settings)
        for _ in range(LOOKS + 1):
            await unwanted.look()
        await api.aclose()

    with process_of(run_id, settings) as process:
        control.run(look_away())
        assert process.poll() is None
