"""Processes that end with others: a command with its parent, a flow process with its host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from stillreel.process import HOST_VARIABLE, _lives, end_tree, send

SECONDS = 20.0
WAIT = "import sys; print('here', flush=True); sys.stdin.read()"
WATCH_OVER = (
    "import os, sys; from stillreel.process import _watch_over; "
    "sys.exit(_watch_over(sys.argv[1:], os.getppid()))"
)
TERM_IS_7 = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "
    "print('here', flush=True); signal.pause()"
)


def start(code: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("import sys; sys.exit(5)", 5),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
    ids=["done", "failed", "killed"],
)
def test_a_command_that_is_watched_over_ends_with_its_own_code(code: str, expected: int) -> None:
    with start(WATCH_OVER, sys.executable, "-c", code) as watcher:
        assert watcher.wait(SECONDS) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_a_command_that_is_watched_over(number: signal.Signals) -> None:
    code = TERM_IS_7.replace("SIGTERM", number.name)
    with start(WATCH_OVER, sys.executable, "-c", code) as watcher:
        assert line(watcher) == "here"
        watcher.send_signal(number)
        assert watcher.wait(SECONDS) == 7


def test_a_command_that_is_watched_over_dies_with_the_parent() -> None:
    child = "import os; print(os.getpid(), flush=True); import signal; signal.pause()"
    parent = (
        "import subprocess, sys; "
        f"subprocess.run([sys.executable, '-c', {WATCH_OVER!r}, sys.executable, '-c', {child!r}])"
    )
    with start(parent) as process:
        command = psutil.Process(int(line(process)))
        watcher = command.parent()
        assert watcher is not None
        process.kill()
        _, alive = psutil.wait_procs([command, watcher], timeout=SECONDS)
        assert alive == []


ENGINE = (
    "import os; from stillreel.process import die_with_host; die_with_host(); "
    "print(os.getpid(), flush=True); import signal; signal.pause()"
)
SUPERVISOR = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ENGINE!r}])"


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_an_engine_and_its_supervisor_die_with_their_host(reaped: bool) -> None:
    with start(WAIT) as host, start(SUPERVISOR, **{HOST_VARIABLE: str(host.pid)}) as supervisor:
        engine = psutil.Process(int(line(supervisor)))
        host.kill()
        if reaped:
            host.wait()
        assert supervisor.wait(SECONDS) == -signal.SIGKILL
        _, alive = psutil.wait_procs([engine], timeout=SECONDS)
        assert alive == []


def test_an_engine_that_starts_after_the_end_of_its_host_ends_too() -> None:
    with start(WAIT) as host:
        host.kill()
    with start(SUPERVISOR, **{HOST_VARIABLE: str(host.pid)}) as supervisor:
        assert supervisor.wait(SECONDS) == -signal.SIGKILL


def test_a_younger_process_with_the_number_of_the_host_is_not_the_host() -> None:
    born = psutil.Process().create_time()
    assert _lives(os.getpid(), at=born)
    assert not _lives(os.getpid(), at=born - 1)


def test_processes_that_are_gone_can_be_ended() -> None:
    with start(WAIT) as process:
        gone = psutil.Process(process.pid)
        process.kill()
    send([gone], signal.SIGTERM)
    end_tree(process.pid, grace=1)
    assert not gone.is_running()
