"""Ceph's S3 server with one monitor and one disk in memory.

Unlike moto it checks signatures, what a signed URL binds, and when it ends; and it expires what a
lifecycle says.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx

from tests.services.daemon import (
    Daemon,
    NotReady,
    ServiceFailed,
    end_of,
    free_ports,
    run,
    running_daemon,
)

DAY_SECONDS = 2
"""How long a day of a lifecycle lasts here."""

_COMMANDS = (
    "radosgw",
    "radosgw-admin",
    "ceph-mon",
    "ceph-osd",
    "ceph",
    "ceph-authtool",
    "monmaptool",
)


@dataclass(frozen=True)
class Radosgw:
    """Where it is reached, and the keys of its one user."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    gateway: Daemon = field(repr=False)
    """What answers requests; the objects are not in it."""


def is_installed() -> bool:
    """Whether this machine has all of its commands."""
    return all(map(shutil.which, (*_COMMANDS, "setpriv")))


@contextmanager
def running_radosgw() -> Iterator[Radosgw]:
    """A fresh server on loopback, after one or two seconds; many run beside each other.

    Start it from the main thread. Raises ServiceFailed with the logs of all parts when it fails.
    """
    with tempfile.TemporaryDirectory(prefix="rgw-") as temporary, ExitStack() as stack:
        cluster = _Cluster(Path(temporary))
        try:
            cluster.make_keys()
            cluster.start_monitor(stack)
            cluster.start_disk(stack)
            made = cluster.start_gateway(stack)
        except ServiceFailed as exc:
            for log in cluster.home.glob("*.log"):
                exc.add_note(f"{log.name}:\n{end_of(log)}")
            raise
        yield made


class _Cluster:
    """The parts in the order in which they have to start."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.monitor_port, self.gateway_port = free_ports(2)
        self.fsid = str(uuid4())
        self.env = {"CEPH_CONF": str(home / "ceph.conf")}
        (home / "ceph.conf").write_text(self._settings())
        for name in ("mon", "osd", "run", "rgw"):
            (home / name).mkdir()

    def make_keys(self) -> None:
        caps = {
            "mon.": ["--cap", "mon", "allow *"],
            "client.admin": [
                *("--cap", "mon", "allow *"),
                *("--cap", "osd", "allow *"),
                *("--cap", "mgr", "allow *"),
            ],
            "osd.0": ["--cap", "mon", "allow profile osd", "--cap", "osd", "allow *"],
            "client.rgw.a": ["--cap", "mon", "allow rwx", "--cap", "osd", "allow rwx"],
        }
        self._run("ceph-authtool", "--create-keyring", "keyring")
        for name, allowed in caps.items():
            self._run("ceph-authtool", "keyring", "--gen-key", "-n", name, *allowed)

    def start_monitor(self, stack: ExitStack) -> None:
        address = f"[v2:127.0.0.1:{self.monitor_port}]"
        self._run("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", address, "monmap")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        self._start(stack, "ceph-mon", "-i", "a", "-f")

    def start_disk(self, stack: ExitStack) -> None:
        disk = str(uuid4())
        # the commands of `ceph` wait for the monitor by themselves
        self._run("ceph", "osd", "new", disk)
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=h", "root=default")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._start(stack, "ceph-osd", "-i", "0", "-f")

    def start_gateway(self, stack: ExitStack) -> Radosgw:
        gateway = self._start(stack, "radosgw", "-n", "client.rgw.a", "-f")
        endpoint = f"http://127.0.0.1:{self.gateway_port}"
        made = Radosgw(endpoint, uuid4().hex[:20], uuid4().hex, gateway)
        gateway.wait_until(partial(_answers, made.endpoint))
        self._run(
            *("radosgw-admin", "user", "create", "--uid", "tests", "--display-name", "tests"),
            *("--access-key", made.access_key, "--secret-key", made.secret_key),
        )
        return made

    def _run(self, *argv: str) -> None:
        run(*argv, cwd=self.home, env=self.env)

    def _start(self, stack: ExitStack, *argv: str) -> Daemon:
        return stack.enter_context(
            running_daemon(
                argv,
                log=self.home / f"{argv[0]}.log",
                stop=signal.SIGKILL,  # nothing here is worth writing back
                env=self.env,
            )
        )

    def _settings(self) -> str:
        """One copy of all, in memory, and a monitor that agrees with itself at once.

        Without the two `paxos_` lines a start takes 12 s instead of 1.2. cephx stays on: with
        "none" the gateway waits for ever.
        """
        return f"""
[global]
fsid = {self.fsid}
mon_initial_members = a
mon_host = [v2:127.0.0.1:{self.monitor_port}]
ms_bind_msgr1 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_crush_update_on_start = false
osd_objectstore = memstore
memstore_device_bytes = {2 * 1024**3}
mon_allow_pool_size_one = true
mon_cluster_log_to_file = false
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
run_dir = {self.home}/run
admin_socket = {self.home}/run/$name.asok
pid_file = {self.home}/run/$name.pid
keyring = {self.home}/keyring
mon_data = {self.home}/mon
osd_data = {self.home}/osd
log_to_file = false
[mon]
log_to_stderr = true
[osd]
log_to_stderr = true
[client.rgw.a]
log_to_stderr = true
rgw_frontends = beast endpoint=127.0.0.1:{self.gateway_port}
rgw_data = {self.home}/rgw
rgw_lc_debug_interval = {DAY_SECONDS}
"""


def _answers(endpoint: str) -> None:
    try:
        httpx.get(endpoint, trust_env=False, timeout=5).raise_for_status()
    except httpx.HTTPError as exc:
        raise NotReady(f"{endpoint}: {type(exc).__name__}") from exc
