"""A server's process: started with a log file, waited for, ended and reaped; dies with us."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import stamina

START_SECONDS, STOP_SECONDS = 300.0, 30.0
_LOG_LINES = 40

logging.getLogger("stamina").setLevel(logging.ERROR)  # a poll is not worth a warning


class ServiceFailed(Exception):
    """A service did what it should not; the message ends with what it said."""


class NotReady(Exception):
    """What is waited for is not there yet."""


class Daemon:
    """A process that serves until it is stopped."""

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]], log: Path) -> None:
        self._start = start
        self.log = log
        self.process = start()

    def again(self) -> None:
        """Start it once more with all that it was started with; its last process has ended."""
        self.process.wait(STOP_SECONDS)
        self.process = self._start()

    def wait_until(self, ready: Callable[[], object], *, timeout: float = START_SECONDS) -> None:
        """Return when `ready` does so without raising NotReady.

        Raises ServiceFailed when the process ends before that, or after `timeout` seconds.
        """
        try:
            for attempt in stamina.retry_context(
                on=NotReady, attempts=None, timeout=timeout, wait_initial=0.05, wait_max=0.2
            ):
                with attempt:
                    if self.process.poll() is not None:
                        raise self.failure(f"ended with {self.process.returncode}")
                    ready()
        except NotReady as exc:
            raise self.failure(f"was not ready after {timeout:g} s ({exc})") from exc

    def failure(self, what: str) -> ServiceFailed:
        """An error that says what the service did, with the end of its log."""
        return ServiceFailed(f"{self.log.stem} {what}; its log ends with:\n{end_of(self.log)}")


@contextmanager
def running_daemon(
    argv: Sequence[str | Path],
    *,
    log: Path,
    stop: signal.Signals = signal.SIGTERM,
    env: Mapping[str, str] | None = None,
    inherits: bool = True,
    user: str = "",
) -> Iterator[Daemon]:
    """The process that `argv` starts in the log's directory, ended by `stop` with the block.

    `env` comes on top of this process's environment, or is all of it where it `inherits` nothing.

    Start it from the main thread: it gets `stop` from the kernel when the thread that made it
    ends. Raises ServiceFailed when it ended before it was asked to.
    """

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                _as_user(user, "--pdeathsig", stop.name, "--", *argv),
                cwd=log.parent,
                env=_environment(env) if inherits else dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to handle
            )

    daemon = Daemon(start, log)
    try:
        yield daemon
        if daemon.process.poll() is not None:
            raise daemon.failure(f"ended by itself with {daemon.process.returncode}")
    finally:
        _end(daemon.process, stop)


def run(*argv: str | Path, cwd: Path, env: Mapping[str, str] | None = None, user: str = "") -> str:
    """What a command printed; ServiceFailed with all its output when it fails."""
    name = Path(argv[0]).name
    try:
        done = subprocess.run(
            _as_user(user, "--", *argv),
            cwd=cwd,
            env=_environment(env),
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
        )
    except subprocess.TimeoutExpired as exc:
        raise ServiceFailed(f"{name} did not end within {START_SECONDS:g} s") from exc
    if done.returncode != 0:
        raise ServiceFailed(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def end_of(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _as_user(user: str, *argv: str | Path) -> list[str]:
    identity = ("--reuid", user, "--regid", user, "--init-groups") if user else ()
    return ["setpriv", *identity, *map(str, argv)]


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    return dict(os.environ) | dict(env or {})


def _end(process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
    process.send_signal(stop)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
