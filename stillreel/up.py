"""The whole stack on this machine in one foreground command: server, API, deployments, host."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace

import anyio
import httpx
import stamina
from rich.console import Console

from stillreel import prefect_env
from stillreel.errors import SettingsInvalid, StillreelError
from stillreel.host import check_signing, control_service, host_services, only_host
from stillreel.owner_store import KEY_FILE, first_key
from stillreel.prefect_server import server_argv
from stillreel.process import NO_RESTART
from stillreel.settings import Settings
from stillreel.supervisor import Service, Supervisor
from stillreel.workdir import sweep

START_SECONDS = 600.0
"""For a server that lives and does not answer yet: the first start makes a database, and a machine
that is busy takes minutes for it."""


def run_up(settings: Settings, *, pool: str, model: str) -> None:
    """Run everything until SIGTERM or Ctrl-C; the host stops before the server.

    Raises SettingsInvalid when a host runs on this home already or the port cannot be used, and
    DeploymentInvalid.
    """
    with only_host(settings):
        check_signing(settings.host)
        _run(settings, pool=pool, model=model)


def _run(settings: Settings, *, pool: str, model: str) -> None:
    _check_port(
        prefect_env.listen_host(settings), settings.server.prefect_port, "STILLREEL_PREFECT_HOST"
    )
    _check_port(settings.api.api_host, settings.api.api_port, "STILLREEL_API_HOST")
    key, is_new = first_key(settings, settings.host.home)
    url = prefect_env.api_url(settings)
    (settings.host.home / "prefect").mkdir(parents=True, exist_ok=True)
    prefect_env.apply(prefect_env.common_env(settings))
    supervisor = Supervisor(Console(stderr=True))
    if other := prefect_env.use_own_api(url):
        supervisor.say(f"runs its own Prefect server; PREFECT_API_URL={other} is not used")
    try:
        supervisor.start(_server(settings))
        supervisor.say("waiting for the Prefect server (the first start takes longest)")
        _wait_until_ready(f"{url}/health", "server", supervisor)
        supervisor.say("making work pools, queues and deployments")
        for name in _deploy(settings):
            supervisor.say(f"deployed {name}")
        sweep(settings)
        address = settings.api.local_url
        supervisor.start(_api(key, settings.server.prefect_ui_url or url.removesuffix("/api")))
        _wait_until_ready(f"{address}/health", "api", supervisor)
        for service in host_services(settings, pool=pool, model=model):
            supervisor.start(replace(service, env={**service.env, "STILLREEL_API_URL": address}))
        if settings.fleet.accounts:
            supervisor.start(control_service(settings))
        if is_new:
            supervisor.say(f"made an API key, kept in {settings.host.home / KEY_FILE}: {key}")
        supervisor.say(f"studio on {address}/, the API's reference at {address}/docs")
        supervisor.say(
            f"ready: {url.removesuffix('/api')}/v2/deployments starts a video, Ctrl-C stops all"
        )
        supervisor.run()
    finally:
        supervisor.stop()


def _server(settings: Settings) -> Service:
    return Service("server", server_argv(settings), prefect_env.server_env(settings))


def _api(key: str, prefect_ui_url: str) -> Service:
    return Service(
        "api",
        [sys.executable, "-m", "stillreel.api.server"],
        {"STILLREEL_API_KEY": key, "STILLREEL_PREFECT_UI_URL": prefect_ui_url},
        stop_seconds=20.0,
        final_code=NO_RESTART,
    )


def _deploy(settings: Settings) -> list[str]:
    from stillreel.deploy import deploy

    return anyio.run(deploy, settings)


def _check_port(host: str, port: int, variable: str) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise SettingsInvalid(
            f"{variable}: {host} is no address of this machine; use 127.0.0.1, "
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
            f"already? Else set {variable.removesuffix('HOST')}PORT"
        ) from exc


def _wait_until_ready(address: str, name: str, supervisor: Supervisor) -> None:
    try:
        for attempt in stamina.retry_context(
            on=httpx.HTTPError, attempts=None, timeout=START_SECONDS, wait_initial=0.3, wait_max=1.0
        ):
            if not supervisor.is_running(name):
                raise StillreelError(f"the {name} ended at its start; see its log above")
            with attempt:
                httpx.get(address, timeout=5, trust_env=False).raise_for_status()
    except httpx.HTTPError as exc:
        raise StillreelError(
            f"the {name} did not answer within {START_SECONDS:.0f} s; see its log above"
        ) from exc
