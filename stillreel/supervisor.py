"""Runs services in the foreground: one readable log, dead ones restarted, stopped in order."""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from stillreel.errors import SettingsInvalid
from stillreel.process import end_tree, with_parent

log = logging.getLogger("stillreel.supervisor")

_STYLES = ("cyan", "green", "magenta", "yellow", "blue")
_STEADY_SECONDS = 60.0
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class Service:
    """A process that is to run as long as the supervisor does."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: float = 10.0
    final_code: int | None = None
    """The exit code by which it says that a restart cannot help."""
    is_silent: Callable[[], bool] | None = None
    """Whether it listens and yet gives no answer; may take seconds to find out."""
    silences: int = 8
    """After so many silences in a row it is killed, and started again."""
    look_seconds: float = 5.0
    """Between two looks."""


@dataclass
class _Running:
    service: Service
    process: subprocess.Popen[str]
    started_at: float
    deaths: int


class Supervisor:
    """Starts services in the order given and stops them in reverse order.

    Every child is started from the main thread and dies with this process, even by kill -9.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._running: dict[str, _Running] = {}
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._pumps: list[threading.Thread] = []

    def start(self, service: Service, *, deaths: int = 0) -> None:
        """Start a service and print its output line by line under its name."""
        process = subprocess.Popen(
            with_parent(service.argv),
            env={**os.environ, "PYTHONUNBUFFERED": "1", **service.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._running[service.name] = _Running(service, process, time.monotonic(), deaths)
        style = _STYLES[(len(self._running) - 1) % len(_STYLES)]
        pump = threading.Thread(target=self._pump, args=(service, process, style), daemon=True)
        pump.start()
        self._pumps.append(pump)
        if service.is_silent is not None:
            args = (service, service.is_silent, process)
            threading.Thread(target=self._look_after, args=args, daemon=True).start()

    def say(self, text: str) -> None:
        """Print a line of our own."""
        self._console.print(Text.assemble(("stillreel  ", "bold"), text), soft_wrap=True)

    def run(self) -> None:
        """Keep everything running until SIGTERM or SIGINT.

        Raises SettingsInvalid when a service ends with its final code.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._events.put(""))
        while name := self._events.get():
            self._restart(name)
        self.say("stopping")

    def stop(self) -> None:
        """Stop all services, the last one started first, each with its own patience."""
        for name in reversed(list(self._running)):
            running = self._running.pop(name)
            running.process.send_signal(signal.SIGTERM)
            try:
                running.process.wait(timeout=running.service.stop_seconds)
            except subprocess.TimeoutExpired:
                self.say(f"{name} does not stop; killing it")
            end_tree(running.process.pid)
        for pump in self._pumps:
            pump.join(timeout=2)

    def is_running(self, name: str) -> bool:
        """Whether the process of this service lives."""
        return name in self._running and self._running[name].process.poll() is None

    def _restart(self, name: str) -> None:
        dead = self._running.get(name)
        if dead is None:
            return
        if dead.process.returncode == dead.service.final_code:
            raise SettingsInvalid(f"{name} cannot run as it is set up; see its log above")
        lived = time.monotonic() - dead.started_at
        deaths = 1 if lived > _STEADY_SECONDS else dead.deaths + 1
        pause = min(_LONGEST_PAUSE, 0.5 * 2 ** (deaths - 1))
        code = dead.process.returncode
        self.say(f"{name} ended with code {code} after {lived:.0f} s; restart in {pause:.1f} s")
        try:
            other = self._events.get(timeout=pause)
        except queue.Empty:
            pass
        else:
            self._events.put(other)
            if not other:
                return
        self.start(dead.service, deaths=deaths)

    def _look_after(
        self, service: Service, is_silent: Callable[[], bool], process: subprocess.Popen[str]
    ) -> None:
        """Kill a process that lives and does not answer any more: stopped, or deadlocked.

        Looks are counted, not seconds: when this process itself was stopped, nobody was silent.
        """
        ticker, silent = threading.Event(), 0
        while process.poll() is None and silent < service.silences:
            silent = silent + 1 if is_silent() else 0
            ticker.wait(service.look_seconds)
        if process.poll() is None:
            self.say(f"{service.name} does not answer any more; killing it")
            process.kill()

    def _pump(self, service: Service, process: subprocess.Popen[str], style: str) -> None:
        assert process.stdout is not None  # noqa: S101 - for the type checker; it is a pipe
        with process.stdout as lines:
            for line in lines:
                text = Text.from_ansi(line.rstrip("\n"))
                self._console.print(
                    Text.assemble((f"{service.name:<10.10} ", style), text), soft_wrap=True
                )
        process.wait()
        self._events.put(service.name)
