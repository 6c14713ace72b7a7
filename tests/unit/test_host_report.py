"""A host reports itself at its start and at each change, and nothing that fails stops it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import anyio
import anyio.to_thread
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from prefect.settings import PREFECT_API_URL, temporary_settings

from stillreel import __version__
from stillreel.host_report import (
    HostReport,
    artifact_key,
    artifact_of,
    gpu_name,
    report_host,
    report_of,
)
from stillreel.inference.runner import Runner
from stillreel.inference.server import make_app
from stillreel.settings import get_settings
from tests.fake_backend import Script
from tests.receiver import Answer, Exchange, Receiver, answer, receiver, reset

SECONDS = 20.0
AT = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)
CREATED = answer(201, b"{}", Content_Type="application/json")


# --- the artifact -----------------------------------------------------------------------------


@given(st.text())
def test_a_key_is_one_that_prefect_takes(worker: str) -> None:
    assert re.fullmatch(r"host-[a-z0-9]+(-[a-z0-9]+)*", artifact_key(worker))


@given(
    worker=st.text(min_size=1),
    gpu=st.none() | st.text(min_size=1),
    models=st.lists(st.sampled_from(["preview", "wan-2.2", "ltx-2"])).map(tuple),
    price=st.sampled_from([0.0, 0.66, 1.006]),
)
def test_a_report_is_read_as_it_was_written(
    worker: str, gpu: str | None, models: tuple[str, ...], price: float
) -> None:
    report = HostReport(worker, "g5", gpu, models, price)
    assert report_of(json.loads(json.dumps(artifact_of(report, at=AT)))) == report


def test_a_person_reads_the_same_in_prefects_ui() -> None:
    artifact = artifact_of(HostReport("GPU_1", "g5", "A10G", ("wan-2.2",), 1.006), at=AT)
    assert (artifact["key"], artifact["type"]) == ("host-gpu-1", "markdown")
    lines = artifact["data"].splitlines()
    for row in ("| gpu | A10G |", "| models | wan-2.2 |", f"| version | {__version__} |"):
        assert row in lines
    nothing = artifact_of(HostReport("a|b", "local"), at=AT)["data"].splitlines()
    assert {"| worker | a/b |", "| gpu | none |", "| models | none is loaded |"} <= set(nothing)


@pytest.mark.parametrize(
    "artifact",
    [
        {},
        {"metadata_": None},
        {"metadata_": {"worker": "gpu-1"}},
        {"metadata_": artifact_of(HostReport("a", "b"), at=AT)["metadata_"] | {"usd_per_hour": ""}},
    ],
    ids=["empty", "no facts", "some facts", "no price"],
)
def test_what_somebody_else_wrote_is_no_report(artifact: dict[str, Any]) -> None:
    assert report_of(artifact) is None


# --- the GPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ("echo 'NVIDIA A10G'", "A10G"),
        ("echo 'NVIDIA A100-SXM4-40GB'; echo 'NVIDIA A100-SXM4-40GB'", "A100-SXM4-40GB"),
        ("echo 'NVIDIA A10G'; echo 'Tesla T4'", "A10G, Tesla T4"),
        ("echo", None),
        ("echo 'No devices were found'; exit 6", None),
    ],
)
def test_the_gpu_is_what_its_driver_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, name: str | None
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\n{tool}\n")
    script.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert anyio.run(gpu_name) == name


def test_a_machine_without_the_tool_has_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert anyio.run(gpu_name) is None


# --- reporting --------------------------------------------------------------------------------


class Model:
    """The inference server of this host, whose model is loaded when the test says so."""

    def __init__(self, socket: Path) -> None:
        self.runner = Runner(Script().load_backend, claim_seconds=60)
        config = uvicorn.Config(
            make_app(self.runner), uds=str(socket), log_level="error", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = Thread(target=self._server.run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture(autouse=True)
def no_inference_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test may have one on the home that they share."""
    monkeypatch.setenv("STILLREEL_INFERENCE_SOCKET", "nowhere.sock")


@pytest.fixture
def model(no_inference_server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    with TemporaryDirectory(prefix="sr-") as folder:
        socket = Path(folder, "s")
        monkeypatch.setenv("STILLREEL_INFERENCE_SOCKET", str(socket))
        model = Model(socket)
        yield model
        model.close()


def when(taken: Event, act: Answer = CREATED) -> Answer:
    """An answer that says when it is given."""

    def then(exchange: Exchange) -> None:
        act(exchange)
        taken.set()

    return then


def expect(event: Event) -> None:
    assert event.wait(SECONDS)


def report_until(done: Callable[[], None], prefect: Receiver, *, rest: float = 0.01) -> None:
    """Report to this Prefect server until `done` returns, which is a thread's work."""

    async def run() -> None:
        async with anyio.create_task_group() as group:

            async def report() -> None:
                settings = get_settings()
                await report_host(settings, worker="gpu-1", pool="g5", rest=rest, look=0.01)

            group.start_soon(report)
            await anyio.to_thread.run_sync(done)
            group.cancel_scope.cancel()

    with temporary_settings(updates={PREFECT_API_URL: f"{prefect.url}api"}):
        anyio.run(run)


def told(prefect: Receiver) -> list[HostReport | None]:
    assert {(r.method, r.path) for r in prefect.requests} == {("POST", "/api/artifacts/")}
    return [report_of(json.loads(request.body)) for request in prefect.requests]


def test_a_host_is_reported_at_its_start_and_when_a_model_is_loaded(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLREEL_HOST_PRICE", "0.66")
    first, second = Event(), Event()

    def load() -> None:
        expect(first)
        model.runner.preload("wan-2.2")
        expect(second)

    with receiver(when(first), when(second)) as prefect:
        report_until(load, prefect)
    before, after = told(prefect)
    assert before
    assert after
    assert (before.worker, before.pool, before.usd_per_hour) == ("gpu-1", "g5", 0.66)
    assert (before.models, after.models) == ((), ("wan-2.2",))


def test_a_host_whose_inference_server_is_away_has_no_model() -> None:
    taken = Event()
    with receiver(when(taken)) as prefect:
        report_until(lambda: expect(taken), prefect)
    assert [report.models for report in told(prefect) if report] == [()]


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(answer(422, b"{}"), id="refused"),
        pytest.param(answer(401, b"{}"), id="not let in"),
        pytest.param(answer(200, b"<html>"), id="not Prefect"),
        pytest.param(answer(503), id="busy"),
        pytest.param(reset, id="broken off"),
    ],
)
def test_a_report_that_is_not_taken_is_told_again(failure: Answer) -> None:
    taken = Event()
    with receiver(failure, when(taken)) as prefect:
        report_until(lambda: expect(taken), prefect)
    reports = told(prefect)
    assert len(reports) == 2
    assert reports[0] == reports[1]


def test_changes_wait_while_the_last_report_is_young(model: Model) -> None:
    first, second = Event(), Event()

    def change() -> None:
        expect(first)
        model.runner.preload("wan-2.2")
        assert not second.wait(0.3)

    with receiver(when(first), when(second)) as prefect:
        report_until(change, prefect, rest=3600)
    assert len(told(prefect)) == 1


def test_without_a_prefect_server_the_worker_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def report() -> None:
        await report_host(get_settings(), worker="gpu-1", pool="g5")

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        anyio.run(report)
    assert "PREFECT_API_URL" in caplog.text
