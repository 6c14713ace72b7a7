"""Postgres from Debian's packages, with a new cluster in a temporary directory."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from tests.services.daemon import Daemon, NotReady, ServiceFailed, free_ports, run, running_daemon

USER = DATABASE = "stillreel"

_INSTALLED = Path("/usr/lib/postgresql")
_SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "on"}


def is_installed() -> bool:
    """Whether this machine has a Postgres of Debian's."""
    return bool(_versions()) and shutil.which("setpriv") is not None


@contextmanager
def running_postgres(database: str = DATABASE) -> Iterator[str]:
    """The address `postgresql://...` of an empty database on a fresh server of loopback.

    Start it from the main thread. Raises ServiceFailed with the log when it does not start.
    """
    with postgres_daemon(database) as (url, _):
        yield url


@contextmanager
def postgres_daemon(database: str = DATABASE) -> Iterator[tuple[str, Daemon]]:
    """The same, and the server itself."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as temporary:
        home, user = Path(temporary), "postgres" if os.geteuid() == 0 else ""
        [port], password = free_ports(1), uuid4().hex
        (home / "password").write_text(password)
        if user:
            for path in (home, home / "password"):
                shutil.chown(path, user, user)
        run(
            *(_binary("initdb"), "--pgdata", home / "data", "--no-sync"),
            *("--username", USER, "--pwfile", home / "password", "--auth", "scram-sha-256"),
            *("--encoding", "UTF8", "--locale", "C.UTF-8"),
            cwd=home,
            user=user,
        )
        settings = _SETTINGS | {"port": str(port)}
        with running_daemon(
            [
                *(_binary("postgres"), "-D", home / "data"),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ],
            log=home / "postgres.log",
            stop=signal.SIGINT,  # ends at once, in order, whoever is connected
            user=user,
        ) as daemon:
            server = f"postgresql://{USER}:{password}@127.0.0.1:{port}"
            daemon.wait_until(partial(_accepts, server))
            yield create_database(f"{server}/postgres", database), daemon


def create_database(url: str, name: str) -> str:
    """The address of a new, empty database beside that of `url`."""
    run(_binary("createdb"), "--maintenance-db", url, name, cwd=Path("/"))
    return urlsplit(url)._replace(path=f"/{name}").geturl()


def _accepts(server: str) -> None:
    try:
        run(_binary("pg_isready"), "--dbname", f"{server}/postgres", cwd=Path("/"))
    except ServiceFailed as exc:
        raise NotReady(str(exc)) from exc


def _binary(name: str) -> Path:
    return _INSTALLED / str(max(_versions())) / "bin" / name


def _versions() -> list[int]:
    return [int(found.parts[-3]) for found in _INSTALLED.glob("[0-9]*/bin/initdb")]
