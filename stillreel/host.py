"""Everything a GPU host runs: one inference server per GPU and the Prefect worker."""

from __future__ import annotations

import shutil
import sys
import time

from rich.console import Console

from stillreel.inference.client import socket_path
from stillreel.prefect_env import worker_env
from stillreel.settings import Settings
from stillreel.supervisor import Service, Supervisor

WORK_DAYS = 3


def host_services(settings: Settings, *, pool: str, model: str) -> list[Service]:
    """The services of a host in the order of their start: the models first, then the worker.

    They are stopped in reverse order, so that no job loses its model before it is handed back.
    """
    host = settings.host
    servers = [
        Service(
            f"gpu{gpu}", inference_argv(settings, gpu=gpu, model=model), _gpu_env(host.gpus, gpu)
        )
        for gpu in range(host.gpus)
    ]
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
        worker_env(settings),
        stop_seconds=40.0,
    )
    return [*servers, worker]


def inference_argv(settings: Settings, *, gpu: int = 0, model: str = "") -> list[str]:
    """The command of one inference server."""
    argv = [
        sys.executable,
        "-m",
        "stillreel.inference.server",
        "--socket",
        str(socket_path(settings.host.home, gpu)),
    ]
    return [*argv, "--model", model] if model else argv


def run_host(settings: Settings, *, pool: str, model: str) -> None:
    """Run a host in the foreground until SIGTERM or Ctrl-C."""
    sweep_work_dir(settings)
    supervisor = Supervisor(Console(stderr=True))
    try:
        for service in host_services(settings, pool=pool, model=model):
            supervisor.start(service)
        supervisor.say(f"host {settings.host.host_name} serves pool {pool}; Ctrl-C stops it")
        supervisor.run()
    finally:
        supervisor.stop()


def sweep_work_dir(settings: Settings) -> None:
    """Delete work files that nothing touched for days: of jobs that ended elsewhere."""
    oldest = time.time() - WORK_DAYS * 86400
    folder = settings.host.work_dir
    for job in folder.iterdir() if folder.exists() else ():
        if job.stat().st_mtime < oldest:
            shutil.rmtree(job, ignore_errors=True)


def _gpu_env(gpus: int, gpu: int) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": str(gpu)} if gpus > 1 else {}
