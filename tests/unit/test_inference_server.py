"""The inference server over a real unix socket, and the client that survives its death."""

from __future__ import annotations

import gc
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import httpx
import numpy as np
import psutil
import pytest
import uvicorn

from stillreel.errors import (
    InferenceCancelled,
    InferenceFailed,
    InferenceServerAway,
    InferenceServerDied,
    ModelUnavailable,
    SettingsInvalid,
)
from stillreel.inference import server as inference_server
from stillreel.inference.client import InferenceClient, connect, socket_path
from stillreel.inference.entry import DecodeOrder, Entry, InferenceOrder, Kind, State
from stillreel.inference.latents import read_facts, write_latents
from stillreel.inference.runner import Runner
from stillreel.inference.server import make_app
from stillreel.job import Phase
from stillreel.models.base import Generated
from stillreel.settings import get_settings
from tests.fake_backend import GATE_SECONDS, Gate, Script, make_shot

# httpcore 1.0 leaves closing to the garbage collector where connecting to a unix socket fails.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket.socket.*family=1:ResourceWarning")


@pytest.fixture(autouse=True)
def _collect_sockets() -> Iterator[None]:
    """While that warning is ignored, not in whatever test comes later."""
    yield
    gc.collect()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose name is short enough for a socket."""
    with TemporaryDirectory(prefix="sr-") as name:
        yield Path(name)


@pytest.fixture
def client(script: Script, folder: Path) -> Iterator[InferenceClient]:
    """A client of a server in this process, whose backends follow the script."""
    runner = Runner(script.load_backend, claim_seconds=60)
    config = uvicorn.Config(
        make_app(runner, work_dir=folder / "work"),
        uds=str(folder / "s"),
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    client = InferenceClient(folder / "s", wait_for_server=GATE_SECONDS)
    yield client
    script.open_all()
    client.close()
    server.should_exit = True
    thread.join(GATE_SECONDS)
    assert not thread.is_alive()


def inference_order(folder: Path, prompt: str = "sea") -> InferenceOrder:
    return InferenceOrder(
        shot=make_shot(prompt),
        digest=f"digest-{prompt}",
        latents_path=str(folder / "work" / f"{prompt}.safetensors"),
    )


def decode_order(folder: Path, prompt: str = "sea") -> DecodeOrder:
    """Of latents that are stored by this call."""
    work = folder / "work"
    path = work / f"{prompt}.latents"
    work.mkdir(exist_ok=True)
    shot = make_shot(prompt, frames=20)
    write_latents(path, shot, Generated({"value": np.zeros(1)}))
    return DecodeOrder(
        shot=shot,
        digest=f"sha-{prompt}",
        latents_path=str(path),
        spool_dir=str(work / f"spool-{prompt}"),
    )


def ignore(_: Entry) -> None:
    """For tests that do not look at progress."""


def test_an_inference_is_followed_to_its_end(
    client: InferenceClient, folder: Path, script: Script
) -> None:
    seen: list[Entry] = []
    gate = script.gate("sea")

    def on_entry(entry: Entry) -> None:
        seen.append(entry)
        if entry.state is State.RUNNING:
            gate.open()

    order = inference_order(folder)
    entry = client.infer("run", order, on_entry=on_entry)
    assert entry.state is State.FINISHED
    assert Path(order.latents_path).exists()
    assert seen[-1] == entry
    versions = [one.version for one in seen]
    assert versions == sorted(set(versions))
    assert client.find(Kind.INFERENCE, "run") == entry


def test_a_second_client_attaches(client: InferenceClient, folder: Path, script: Script) -> None:
    for attached in (False, True):
        seen: list[Entry] = []
        client.infer("run", inference_order(folder), on_entry=seen.append)
        assert seen[0].attached is attached  # also a finished one is told, once
    assert script.log.count("generate sea") == 1


def test_frames_are_read_and_the_spool_is_gone_after_it(
    client: InferenceClient, folder: Path, script: Script
) -> None:
    order, seen = decode_order(folder), list[Entry]()
    with client.decode("run", order, on_entry=seen.append) as decoded:
        frames = np.concatenate(list(decoded.chunks))
    assert frames[:, 0, 0, 0].tolist() == list(range(20))
    assert seen[-1].state is State.FINISHED
    assert seen[-1].seconds["gpu"] > 0
    assert client.find(Kind.DECODE, "run") is None
    assert not Path(order.spool_dir).exists()


def test_frames_are_read_while_the_rest_is_decoded(
    client: InferenceClient, folder: Path, script: Script
) -> None:
    script.chunk = 8
    gate = script.gate("sea", decode=True)
    order = decode_order(folder)
    with client.decode("run", order, on_entry=ignore) as decoded:
        assert len(next(decoded.chunks)) == 8
        gate.wait()  # the decoder stands before its second chunk
        gate.open()
        assert sum(len(chunk) for chunk in decoded.chunks) == 12


def test_a_reader_that_fails_leaves_no_spool(client: InferenceClient, folder: Path) -> None:
    order = decode_order(folder)

    def read() -> None:
        with client.decode("run", order, on_entry=ignore) as decoded:
            next(decoded.chunks)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    client.infer("idle", inference_order(folder), on_entry=ignore)
    assert not Path(order.spool_dir).exists()


@pytest.mark.parametrize("made", [19, 24], ids=["too few", "too many"])
def test_a_decode_that_breaks_its_promise_fails_its_reader(
    client: InferenceClient, folder: Path, script: Script, made: int
) -> None:
    script.frames_made = made
    with (
        pytest.raises(InferenceFailed, match=f"{made} frames instead of 20"),
        client.decode("run", decode_order(folder), on_entry=ignore) as decoded,
    ):
        list(decoded.chunks)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ModelUnavailable("no weights"), ModelUnavailable, "no weights"),
        (RuntimeError("secret"), InferenceFailed, "the model failed: RuntimeError"),
    ],
    ids=["ours", "unknown"],
)
def test_the_error_of_the_server_is_raised_here(
    client: InferenceClient,
    folder: Path,
    script: Script,
    error: Exception,
    expected: type[Exception],
    message: str,
) -> None:
    script.errors["sea"] = error
    with pytest.raises(expected, match=f"^{message}$"):
        client.infer("run", inference_order(folder), on_entry=ignore)


def test_a_cancelled_inference_tells_who_follows_it(
    client: InferenceClient, folder: Path, script: Script
) -> None:
    gate = script.gate("sea")

    def on_entry(entry: Entry) -> None:
        if entry.state is State.RUNNING:
            client.cancel(Kind.INFERENCE, "run")
            gate.open()

    with pytest.raises(InferenceCancelled):
        client.infer("run", inference_order(folder), on_entry=on_entry)
    assert script.log.count("generate sea") == 1


def test_a_long_poll_returns_with_the_change(
    client: InferenceClient, folder: Path, script: Script
) -> None:
    gate: Gate = script.gate("sea")
    http = client._http
    body = inference_order(folder).model_dump(mode="json")
    version = http.put("/inferences/run", json=body).json()["version"]
    gate.wait()
    opener = Thread(target=gate.open)
    running = http.get("/inferences/run", params={"after": version, "wait": 30}).json()
    opener.start()
    after = running["version"]
    assert (
        http.get("/inferences/run", params={"after": after, "wait": 30}).json()["version"] > after
    )
    opener.join()


def test_what_is_not_known_or_not_valid_is_refused(client: InferenceClient, folder: Path) -> None:
    client.infer("run", inference_order(folder), on_entry=ignore)
    http = client._http
    assert http.get("/inferences/other").status_code == 404
    assert http.get("/nonsense/run").status_code == 422
    assert http.get("/inferences/run", params={"wait": 31}).status_code == 422
    assert http.put("/inferences/run", json={"shot": 1}).status_code == 422
    assert http.delete("/inferences/run").status_code == 204
    assert http.delete("/inferences/run").status_code == 404


@pytest.mark.parametrize(
    "place", ["elsewhere", "work", "work/../x", "work/link/x", None, "/dev/null"]
)
@pytest.mark.parametrize("field", ["latents_path", "image_path", "spool_dir"])
def test_files_outside_of_the_work_directory_are_refused(
    client: InferenceClient, folder: Path, field: str, place: str | None
) -> None:
    order = decode_order(folder) if field == "spool_dir" else inference_order(folder)
    (folder / "work").mkdir(exist_ok=True)
    (folder / "work" / "link").symlink_to(folder)
    kind = Kind.DECODE if field == "spool_dir" else Kind.INFERENCE
    body = order.model_dump(mode="json") | {field: str(folder / place) if place else "relative"}
    assert client._http.put(f"/{kind}/run", json=body).status_code == 422
    assert client.find(kind, "run") is None


def test_a_server_that_never_comes_is_away(folder: Path) -> None:
    client = InferenceClient(folder / "nobody", wait_for_server=0.2)
    with pytest.raises(InferenceServerAway, match="stillreel host"):
        client.infer("run", inference_order(folder), on_entry=ignore)
    with pytest.raises(InferenceServerAway):
        client.health()
    client.cancel(Kind.INFERENCE, "run")  # nothing to cancel is no error
    client.close()


def test_a_socket_that_nobody_listens_on_is_away(folder: Path) -> None:
    (folder / "s").touch()
    client = InferenceClient(folder / "s", wait_for_server=0.2)
    with pytest.raises(InferenceServerAway):
        client.infer("run", inference_order(folder), on_entry=ignore)
    client.close()


@pytest.mark.parametrize("length", [10, 90, 300], ids=["short", "long", "very long"])
def test_the_name_of_the_socket_is_short_enough(
    folder: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    home = folder / ("x" * min(length, 200)) / ("y" * max(0, length - 200))
    path = socket_path(home, "gpu3")
    assert len(os.fsencode(path)) < 108
    assert path == socket_path(home, "gpu3")
    assert path != socket_path(home, "gpu2")
    assert path != socket_path(home / "other", "gpu3")


def _open_to_others(path: Path) -> None:
    path.mkdir(mode=0o700)
    path.chmod(0o777)


def _a_link(path: Path) -> None:
    path.symlink_to(path.parent)


@pytest.mark.parametrize("prepare", [_open_to_others, _a_link, Path.touch])
def test_a_directory_of_sockets_that_somebody_else_could_have_made_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    home = folder / ("x" * 90)
    own = socket_path(home).parent
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    own.rmdir()
    prepare(own)
    with pytest.raises(SettingsInvalid, match="STILLREEL_HOME"):
        socket_path(home)


class Servers:
    """Real server processes, one after the other, on one socket."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.socket = home / "run" / "gpu0.sock"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *, seconds_per_step: float = 0.0) -> subprocess.Popen[bytes]:
        env = os.environ | {"STILLREEL_PREVIEW_SECONDS_PER_STEP": str(seconds_per_step)}
        argv = [sys.executable, "-m", "stillreel.inference.server", "--socket", str(self.socket)]
        process = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def servers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    monkeypatch.setenv("STILLREEL_HOME", str(folder))
    get_settings.cache_clear()
    servers = Servers(folder)
    yield servers
    servers.stop()


def test_an_inference_survives_the_polite_end_of_its_server(servers: Servers, folder: Path) -> None:
    servers.start(seconds_per_step=0.05)
    ended: list[int] = []

    def on_entry(entry: Entry) -> None:
        if entry.step >= 1 and not ended:
            servers.processes[0].terminate()
            ended.append(servers.processes[0].wait())
            servers.start()

    order = inference_order(folder).model_copy(
        update={"shot": make_shot("slow zoom in").model_copy(update={"steps": 20})}
    )
    with connect(get_settings(), "run") as client:
        entry = client.infer("run", order, on_entry=on_entry)
    assert ended == [0]
    assert entry.state is State.FINISHED
    assert read_facts(Path(order.latents_path))[0] == order.shot


def test_a_server_that_is_killed_under_the_work_is_an_attempt_of_its_job_and_not_of_who_waits(
    servers: Servers, folder: Path
) -> None:
    servers.start(seconds_per_step=0.05)
    shot = make_shot("slow zoom in").model_copy(update={"steps": 200})
    order = inference_order(folder).model_copy(update={"shot": shot})
    waiting = inference_order(folder, "second")

    def on_entry(entry: Entry) -> None:
        if entry.phase is Phase.DENOISE and len(servers.processes) == 1:
            client._start(Kind.INFERENCE, "waiting", waiting)
            servers.processes[-1].kill()
            servers.processes[-1].wait()
            servers.start()

    with connect(get_settings(), "run") as client:
        with pytest.raises(InferenceServerDied, match=r"in phase denoise; .*\(attempt 1 of 3\)"):
            client.infer("run", order, on_entry=on_entry)
        assert client.infer("waiting", waiting, on_entry=ignore).state is State.FINISHED
        assert client.infer("run", order, on_entry=ignore).state is State.FINISHED
    assert len(servers.processes) == 2


def test_ctrl_c_is_not_for_the_server_and_sigterm_ends_it_while_clients_wait(
    servers: Servers, folder: Path
) -> None:
    process = servers.start(seconds_per_step=30)
    client = InferenceClient(servers.socket, wait_for_server=GATE_SECONDS)
    http = client._http
    first = client._start(Kind.INFERENCE, "first", inference_order(folder))
    client._start(Kind.INFERENCE, "second", inference_order(folder, "second"))
    assert first.phase is Phase.QUEUED
    process.send_signal(signal.SIGINT)
    assert client.health().queued == 1
    waiter = Thread(target=_poll, args=(http,))
    waiter.start()
    process.terminate()
    waiter.join(GATE_SECONDS)
    assert not waiter.is_alive()
    client.close()


def _poll(http: httpx.Client) -> None:
    """A wait of 30 s for something that does not change."""
    try:
        http.get("/inferences/second", params={"after": 10**6, "wait": 30})
    except httpx.TransportError:
        return


def test_a_second_server_leaves_the_socket_to_the_first(
    servers: Servers,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = servers.start()
    client = InferenceClient(servers.socket, wait_for_server=GATE_SECONDS)
    client.infer("run", inference_order(folder), on_entry=ignore)
    monkeypatch.setattr(inference_server, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(sys, "argv", ["server", "--socket", str(servers.socket)])
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            inference_server.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 3
    assert "another process serves on gpu0.sock" in caplog.text
    assert client.health().pid == first.pid
    client.close()
    assert stat.S_IMODE(servers.socket.parent.stat().st_mode) == 0o700


def test_a_server_that_stops_leaves_neither_socket_nor_lock(servers: Servers, folder: Path) -> None:
    process = servers.start()
    client = InferenceClient(servers.socket, wait_for_server=GATE_SECONDS)
    client.infer("run", inference_order(folder), on_entry=ignore)
    client.close()
    process.terminate()
    assert process.wait(GATE_SECONDS) == 0
    assert list(servers.socket.parent.iterdir()) == []


def test_the_server_dies_with_its_parent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_HOME", str(folder))
    code = (
        "import subprocess, sys; from pathlib import Path; "
        "from stillreel.host import inference_argv; from stillreel.process import with_parent; "
        f"argv = with_parent(inference_argv(Path({str(folder / 's')!r}))); "
        "p = subprocess.Popen(argv); print(p.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout
    assert parent.stdin
    server = psutil.Process(int(parent.stdout.readline()))
    client = InferenceClient(folder / "s", wait_for_server=GATE_SECONDS)
    client.infer("run", inference_order(folder), on_entry=ignore)
    client.close()
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    gone, _ = psutil.wait_procs([server], timeout=GATE_SECONDS)
    assert gone


def test_a_model_that_is_not_here_ends_the_server_with_one_line(folder: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "stillreel.inference.server",
            "--socket",
            str(folder / "s"),
            "--model",
            "no-such",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("the inference server cannot start: There is no model 'no-such'")
    assert "Traceback" not in done.stderr
