"""`infra/compose.yaml` as real processes of this machine: the same commands and environments.

Postgres and Redis come from Debian's packages; each other service is `stillreel` with the command
that its container has. Names of services in addresses become ports of loopback.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from stillreel.project import project_dir
from tests.services.daemon import Daemon, NotReady, free_ports, running_daemon
from tests.services.postgres import postgres_daemon
from tests.services.redis import redis_daemon

FILE = project_dir() / "infra" / "compose.yaml"
PACKAGES = project_dir() / ".server-packages"
"""Where `make services` puts what only the control image has."""
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")
START_SECONDS = 600.0


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """`${NAME}`, `${NAME:-default}` and `${NAME:?why}` as Compose reads them."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if env.get(name):
            return env[name]
        if kind == ":-":
            return rest
        raise KeyError(f"{name}: {rest or 'is not set'}")

    return _VARIABLE.sub(value, text)


def read_services(env: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services of the file, with this environment put into its texts, as Compose does it."""

    def placed(value: Any) -> Any:
        if isinstance(value, str):
            return interpolate(value, env)
        if isinstance(value, dict):
            return {key: placed(item) for key, item in value.items()}
        return [placed(item) for item in value] if isinstance(value, list) else value

    return placed(yaml.safe_load(FILE.read_text()))["services"]


class Compose:
    """The running installation: started service by service, in the order that the file asks for."""

    def __init__(self, folder: Path, env: dict[str, str], stack: ExitStack) -> None:
        self.env = env
        self.beside: dict[str, str] = {}
        """What each service gets that the file does not name."""
        self.ports: dict[str, int] = {}
        self.daemons: dict[str, Daemon] = {}
        self.beneath: dict[str, Daemon] = {}
        """Postgres and Redis."""
        self._folder = folder
        self._stack = stack
        self._done: set[str] = set()

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        return read_services(self.env)

    def start(self, name: str, *, instance: str = "", wait: bool = True) -> None:
        """Start a service, after what it depends on; `wait` until its own check finds it healthy.

        `instance` tells several of one service apart.
        """
        service = self.services[name]
        for other, need in service.get("depends_on", {}).items():
            if need["condition"] == "service_completed_successfully":
                self.complete(other)
            elif other not in self.ports:
                self.start(other)
        called = f"{name}{instance}"
        self.ports[called] = free_ports(1)[0]
        daemon = self._stack.enter_context(
            running_daemon(
                self._argv(service),
                log=self._folder / f"{called}.log",
                env=self._env(called, name),
                inherits=False,
            )
        )
        self.daemons[called] = daemon
        if wait:
            self.wait(name, instance=instance)

    def wait(self, name: str, *, instance: str = "") -> None:
        """Return when the service's own check finds it healthy, where it has one."""
        called = f"{name}{instance}"
        if check := self.services[name].get("healthcheck"):
            ready = partial(self._healthy, called, check)
            self.daemons[called].wait_until(ready, timeout=START_SECONDS)

    def complete(self, name: str) -> None:
        """Run a service that ends, once, and what it depends on; it has to end with 0."""
        if name in self._done:
            return
        self._done.add(name)
        service = self.services[name]
        for other in service.get("depends_on", {}):
            if other not in self.ports:
                self.start(other)
        done = subprocess.run(
            self._argv(service),
            env=self._env(name, name),
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"

    def home(self, called: str) -> Path:
        """The `STILLREEL_HOME` of a service."""
        return self._folder / called

    def log(self, called: str) -> str:
        return (self._folder / f"{called}.log").read_text(errors="replace")

    def _argv(self, service: Mapping[str, Any]) -> list[str]:
        return [sys.executable, "-m", "stillreel.cli", *service["command"]]

    def _env(self, called: str, name: str) -> dict[str, str]:
        """The container's environment, and nothing of the test's but what starts a process."""
        given = {k: self._placed(str(v)) for k, v in self.services[name]["environment"].items()}
        port = str(self.ports.get(called, 0) or 1)
        return {
            **_of_this_machine(),
            "STILLREEL_HOME": str(self.home(called)),
            "STILLREEL_API_PORT": port,
            "STILLREEL_PREFECT_PORT": port,
            **given,
            **self.beside,
        }

    def _placed(self, text: str) -> str:
        for name, inner in (("postgres", 5432), ("redis", 6379), ("prefect", 4200)):
            text = re.sub(rf"(?<=[/@]){name}:{inner}", f"127.0.0.1:{self.ports.get(name, 1)}", text)
        return text

    def _healthy(self, called: str, check: Mapping[str, Any]) -> None:
        kind, command, *words = check["test"]
        assert (kind, command) == ("CMD", "python"), check
        words = [re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{self.ports[called]}", w) for w in words]
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise NotReady(done.stderr.strip().rpartition("\n")[2])


@contextmanager
def running_compose(**env: str) -> Iterator[Compose]:
    """The installation with Postgres and Redis up and nothing else; secrets by make-env.sh."""
    with tempfile.TemporaryDirectory(prefix="co-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        url, postgres = stack.enter_context(postgres_daemon(database="prefect"))
        address = urlsplit(url)
        file = folder / ".env"
        file.write_text(f"POSTGRES_PASSWORD={address.password}\n")
        made = make_env(file) | env
        assert made["POSTGRES_PASSWORD"] == address.password  # what is there stays
        compose = Compose(folder, made, stack)
        command = compose.services["redis"]["command"]
        running = redis_daemon(command[1:], password=made["REDIS_PASSWORD"])
        port, redis = stack.enter_context(running)
        compose.ports |= {"postgres": address.port or 0, "redis": port}
        compose.beneath |= {"postgres": postgres, "redis": redis}
        yield compose


def make_env(file: Path) -> dict[str, str]:
    """What `infra/make-env.sh` leaves in this file."""
    script = project_dir() / "infra" / "make-env.sh"
    subprocess.run(["bash", str(script), str(file)], check=True, capture_output=True)
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def _of_this_machine() -> dict[str, str]:
    """What starts a process here, and nothing else: a container inherits no environment."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR")
    path = os.pathsep.join([str(project_dir()), str(PACKAGES)])
    mine = {name: os.environ[name] for name in kept if name in os.environ}
    return {**mine, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
