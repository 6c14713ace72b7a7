"""A host that a drain has rented, as a process on loopback that has nothing but its lease."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from stillreel.fleet.labels import Label
from stillreel.fleet.leases import FLOW, HOST, POOL, Asked
from stillreel.gateway.lease import grant, lease_id
from stillreel.process import end_tree
from tests.stack import Stack, env_of


@dataclass(frozen=True)
class Rented:
    """A host that a drain has started."""

    process: psutil.Process
    lease: str
    home: Path
    log: Path

    def parts(self, word: str) -> list[psutil.Process]:
        """Its processes whose command line has this word."""
        found = list[psutil.Process]()
        for process in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def holdings(self) -> bytes:
        """All that it has: environments, command lines and files of its own, and what it said."""
        told = [self.log.read_bytes()]
        for process in [self.process, *self.process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                told.append(repr((process.environ(), process.cmdline())).encode())
        for path in self.home.rglob("*"):
            with suppress(FileNotFoundError):  # it works meanwhile
                if path.is_file():
                    told.append(path.read_bytes())
        return b"\n".join(told)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        for process in [self.process, *self.process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # some end with their parent
                process.kill()


@contextmanager
def rented_host(stack: Stack, folder: Path, **env: str) -> Iterator[Rented]:
    """A stock host as a drain starts it; `env` adds to its environment."""
    label, token = lease(stack)
    home = folder / label.run_id[:8]
    environment = env_of(home) | {
        "PREFECT_API_URL": f"{stack.shim_url}/lease/api",
        "PREFECT_API_AUTH_STRING": f"lease:{token}",
        "STILLREEL_API_URL": stack.shim_url,
        "STILLREEL_HOST_NAME": str(label),
        "STILLREEL_LEASE_URL": f"{stack.shim_url}/lease",
        "STILLREEL_LEASE_TOKEN": token,
        "STILLREEL_RENTED_UNTIL": str(int(datetime.now(UTC).timestamp()) + 3600),
        **env,
    }
    log = folder / f"{label.run_id[:8]}.log"
    with log.open("wb") as file:
        argv = [sys.executable, "-m", "stillreel.cli", "host", "--pool", "local"]
        process = subprocess.Popen(argv, env=environment, stdout=file, stderr=file)
    try:
        yield Rented(psutil.Process(process.pid), lease_id(label.run_id, 1), home, log)
    finally:
        end_tree(process.pid, grace=60)
        process.wait(60)
        assert token not in log.read_text()


def lease(stack: Stack, number: int = 1) -> tuple[Label, str]:
    """A token for a host of a drain that is made here, and the host's name."""
    until = datetime.now(UTC) + timedelta(hours=1)
    host = {f"{HOST}{number}": Asked(number, until, usd_per_hour=0.36).to_text()}
    flow = stack.api.post("/flows/", json={"name": FLOW}).json()["id"]
    body = {"flow_id": flow, "state": {"type": "RUNNING"}, "labels": {POOL: "local"} | host}
    drain = stack.api.post("/flow_runs/", json=body).json()["id"]
    made = grant(drain, number, expires=until)
    stack.api.patch(f"/flow_runs/{drain}/labels", json=made.labels).raise_for_status()
    return Label("main", drain, number), made.token
