"""The whole stack on this machine in one foreground command: server, deployments, host."""

from __future__ import annotations

import socket
import sys

import anyio
import httpx
import stamina
from rich.console import Console

from stillreel import prefect_env
from stillreel.errors import SettingsInvalid, StillreelError
from stillreel.host import host_services, only_host
from stillreel.settings import Settings
from stillreel.supervisor import Service, Supervisor
from stillreel.workdir import sweep

START_SECONDS = 180.0


def run_up(settings: Settings, *, pool: str, model: str) -> None:
    """Run everything until SIGTERM or Ctrl-C; the host stops before the server.

    Raises SettingsInvalid when a host runs on this home already or the port cannot be used, and
    DeploymentInvalid.
    """
    with only_host(settings):
        _run(settings, pool=pool, model=model)


def _run(settings: Settings, *, pool: str, model: str) -> None:
    _check_port(prefect_env.listen_host(settings), settings.server.prefect_port)
    url = prefect_env.api_url(settings)
    (settings.host.home / "prefect").mkdir(parents=True, exist_ok=True)
    prefect_env.apply(prefect_env.common_env(settings))
    supervisor = Supervisor(Console(stderr=True))
    if other := prefect_env.use_own_api(url):
        supervisor.say(f"runs its own Prefect server; PREFECT_API_URL={other} is not used")
    try:
        supervisor.start(_server(settings))
        supervisor.say("waiting for the Prefect server (the first start takes longest)")
        _wait_until_ready(url, supervisor)
        supervisor.say("making work pools, queues and deployments")
        for name in _deploy(settings):
            supervisor.say(f"deployed {name}")
        sweep(settings)
        for service in host_services(settings, pool=pool, model=model):
            supervisor.start(service)
        supervisor.say(
            f"ready: {url.removesuffix('/api')}/v2/deployments starts a video, Ctrl-C stops all"
        )
        supervisor.run()
    finally:
        supervisor.stop()


def _server(settings: Settings) -> Service:
    return Service(
        "server",
        [
            sys.executable,
            "-m",
            "prefect",
            "server",
            "start",
            "--host",
            prefect_env.listen_host(settings),
            "--port",
            str(settings.server.prefect_port),
            "--log-level",
            "WARNING",
        ],
        prefect_env.server_env(settings),
    )


def _deploy(settings: Settings) -> list[str]:
    from stillreel.deploy import deploy

    return anyio.run(deploy, settings)


def _check_port(host: str, port: int) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise SettingsInvalid(
            f"STILLREEL_PREFECT_HOST: {host} is no address of this machine; use 127.0.0.1, "
            "or 0.0.0.0 for all its addresses"
        ) from exc
    family, kind, protocol, _, address = found[0]
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        raise SettingsInvalid(
            f"port {port} on {host} cannot be used ({exc.strerror}); is `stillreel up` running "
            "already? Else set STILLREEL_PREFECT_PORT"
        ) from exc


def _wait_until_ready(url: str, supervisor: Supervisor) -> None:
    try:
        for attempt in stamina.retry_context(
            on=httpx.HTTPError, attempts=None, timeout=START_SECONDS, wait_initial=0.3, wait_max=1.0
        ):
            if not supervisor.is_running("server"):
                raise StillreelError("the Prefect server ended at its start; see its log above")
            with attempt:
                httpx.get(f"{url}/health", timeout=5, trust_env=False).raise_for_status()
    except httpx.HTTPError as exc:
        raise StillreelError(
            f"the Prefect server did not answer within {START_SECONDS:.0f} s; see its log above"
        ) from exc
