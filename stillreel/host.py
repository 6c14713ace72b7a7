"""Everything a GPU host runs: one inference server per GPU and the Prefect worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from stillreel.idle import end_when_idle
from stillreel.inference.client import is_silent, socket_path
from stillreel.lock import make_private, only_one
from stillreel.prefect_env import worker_env
from stillreel.process import HOST_VARIABLE, NO_RESTART
from stillreel.settings import HostSettings, Settings
from stillreel.spot import hand_back_on_notice
from stillreel.supervisor import Service, Supervisor
from stillreel.workdir import sweep

CONTROL_POOL = "control"
CONTROL_LIMIT = 5
"""Drains at once, one a pool, and the reaper."""


def host_services(settings: Settings, *, pool: str, model: str) -> list[Service]:
    """The services of a host in the order of their start: the models first, then the worker.

    They are stopped in reverse order, so that no job loses its model before it is handed back.
    """
    host = settings.host
    servers = [_server(host, n, model) for n in range(host.gpus)]
    worker = Service(
        "worker",
        [
            sys.executable,
            "-m",
            "stillreel.host_worker",
            "--pool",
            pool,
            "--limit",
            str(host.limit),
            "--name",
            host.host_name,
        ],
        worker_env(settings) | {"STILLREEL_HOME": str(host.home), HOST_VARIABLE: str(os.getpid())},
        stop_seconds=40.0,
    )
    return [*servers, worker]


def control_service(settings: Settings) -> Service:
    """The worker of the pool `control`: drains and the reaper, which need no GPU.

    It has a home of its own, because a worker that stops ends the flow processes of its home.
    """
    home = settings.host.home / "control"
    name = f"{settings.host.host_name}-control"
    argv = ["--pool", CONTROL_POOL, "--limit", str(CONTROL_LIMIT), "--name", name]
    env = worker_env(settings) | {"STILLREEL_HOME": str(home), HOST_VARIABLE: str(os.getpid())}
    return Service(
        "control", [sys.executable, "-m", "stillreel.host_worker", *argv], env, stop_seconds=40.0
    )


def run_control(settings: Settings) -> None:
    """Work on drains and the reaper in the foreground until SIGTERM or Ctrl-C."""
    supervisor = Supervisor(Console(stderr=True))
    try:
        supervisor.start(control_service(settings))
        supervisor.say(f"serving pool {CONTROL_POOL}; Ctrl-C stops it")
        supervisor.run()
    finally:
        supervisor.stop()


def inference_argv(socket: Path, *, model: str = "") -> list[str]:
    """The command of one inference server."""
    argv = [sys.executable, "-m", "stillreel.inference.server", "--socket", str(socket)]
    return [*argv, "--model", model] if model else argv


@contextmanager
def only_host(settings: Settings) -> Iterator[None]:
    """Be the one host of this home for the block; SettingsInvalid when one runs already."""
    run = settings.host.home / "run"
    make_private(run)
    taken = (
        "a host runs on this STILLREEL_HOME already (`stillreel host` or `stillreel up`); stop it "
        "first, or set another STILLREEL_HOME"
    )
    with only_one(run / "host.lock", taken=taken):
        yield


def check_signing(host: HostSettings) -> None:
    """Nothing, where this host can sign videos, or is not to. Raises SettingsInvalid."""
    if host.c2pa_cert:
        from stillreel.credentials import check_credentials  # an extra

        check_credentials(host)


def run_host(settings: Settings, *, pool: str, model: str) -> None:
    """Run a host in the foreground until SIGTERM or Ctrl-C.

    Raises SettingsInvalid when one runs on this home already, or a service or the signing of
    videos cannot work at all.
    """
    with only_host(settings):
        check_signing(settings.host)
        sweep(settings)
        supervisor = Supervisor(Console(stderr=True))
        try:
            for service in host_services(settings, pool=pool, model=model):
                supervisor.start(service)
            supervisor.say(f"host {settings.host.host_name} serves pool {pool}; Ctrl-C stops it")
            end_when_idle(settings, pool=pool, model=model)
            hand_back_on_notice(settings)
            supervisor.run()
        finally:
            supervisor.stop()


def _server(host: HostSettings, gpu: int, model: str) -> Service:
    name = f"gpu{gpu}"
    socket = socket_path(host.home, name)
    return Service(
        name,
        inference_argv(socket, model=model),
        _gpu_env(host, gpu),
        final_code=NO_RESTART,
        is_silent=partial(is_silent, socket),
    )


def _gpu_env(host: HostSettings, gpu: int) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": str(gpu)} if host.gpus > 1 else {}
