"""The entrypoint of a rented host, run with tools that only write down what they are asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest

SCRIPT = Path(__file__).parents[2] / "infra" / "vast" / "start_worker.sh"
KEY = "the-machines-own-key"
SECONDS = 20.0
CURL = """#!/usr/bin/env bash
{ echo "argv $*"; echo "stdin $(cat)"; } >>"$LOG"
printf '%s' "${STATUS:-200}"
"""
QUICK = "#!/bin/sh\nexec /bin/sleep 0.05\n"


class Machine:
    """The script at work, and what it has asked for so far."""

    def __init__(self, folder: Path, host: str, clock: str = "") -> None:
        self.log = folder / "log"
        self.log.touch()
        self.bin = folder / "bin"
        self.bin.mkdir()
        tools = {"curl": CURL, "sleep": QUICK, "stillreel": host}
        if clock:
            tools["date"] = clock
        for name, text in tools.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o700)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> None:
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), "--pool", "a100", "--model", "ltx-2"],
            env={"PATH": f"{self.bin}:{os.environ['PATH']}", "LOG": str(self.log), **env},
            start_new_session=True,
        )

    def wait_for(self, text: str) -> str:
        deadline = time.monotonic() + SECONDS
        while text not in (found := self.log.read_text()):
            assert time.monotonic() < deadline, f"{text!r} is not in {found!r}"
            Event().wait(0.02)
        return found

    def stop(self) -> None:
        """End all of it, the timer too, which outlives the script by design."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


Rent = Callable[..., Machine]
VAST = {"CONTAINER_ID": "4711", "CONTAINER_API_KEY": KEY}
LATER = """#!/bin/sh
echo date >>"$LOG"
echo $((1800000000 + 3600 * $(grep -c date "$LOG")))
"""
"""A clock that is an hour further each time that it is asked."""
WORKS = '#!/bin/sh\necho "host up" >>"$LOG"\n/bin/sleep 1\nexit 7\n'
HANGS = '#!/bin/sh\necho "host $*" >>"$LOG"\nexec /bin/sleep 600\n'
ENDS = '#!/bin/sh\nenv >>"$LOG"\nexit 7\n'


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Rent]:
    made: list[Machine] = []

    def rent(host: str, *, clock: str = "", **env: str) -> Machine:
        made.append(Machine(tmp_path, host, clock))
        made[-1].start(**env)
        return made[-1]

    yield rent
    for one in made:
        one.stop()


def later(seconds: float) -> str:
    return str(int(time.time() + seconds))


def test_it_is_a_script_that_bash_can_read() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_the_end_of_the_host_ends_the_rental_again_and_again(machine: Rent) -> None:
    it = machine(ENDS, **VAST, STILLREEL_RENTED_UNTIL=later(3600))
    it.wait_for("argv")
    deadline = time.monotonic() + SECONDS
    while (found := it.log.read_text()).count("--request DELETE") < 3:
        assert time.monotonic() < deadline
        Event().wait(0.02)
    assert "/api/v0/instances/4711/" in found
    assert f'stdin header = "Authorization: Bearer {KEY}"' in found
    assert all(KEY not in line for line in found.splitlines() if not line.startswith("stdin"))


def test_a_host_that_hangs_is_ended_when_its_time_is_over(machine: Rent) -> None:
    it = machine(HANGS, **VAST, STILLREEL_RENTED_UNTIL=later(1))
    assert "host host --pool a100 --model ltx-2" in it.wait_for("--request DELETE")


@pytest.mark.parametrize("until", ["", "soon", "99999999999"])
def test_a_deadline_that_is_none_does_not_end_a_host_at_once(machine: Rent, until: str) -> None:
    it = machine(HANGS, **VAST, STILLREEL_RENTED_UNTIL=until)
    it.wait_for("host host")
    Event().wait(0.5)
    assert "DELETE" not in it.log.read_text()


def test_at_vast_it_ends_after_four_hours_without_a_deadline(machine: Rent) -> None:
    it = machine(HANGS, clock=LATER, **VAST)
    said = it.wait_for("--request DELETE")
    assert said.partition("argv")[0].count("date") == 5  # at 0, 1, 2, 3 and 4 hours


@pytest.mark.parametrize(("hours", "looks"), [("1", 2), ("0.5", 2), ("2.5", 4), ("two", 5)])
def test_a_machine_whose_clock_is_a_day_behind_lives_no_longer(
    machine: Rent, hours: str, looks: int
) -> None:
    day_ahead = str(1_800_000_000 + 3600 + 86_400)
    it = machine(
        HANGS, clock=LATER, **VAST, STILLREEL_RENTED_UNTIL=day_ahead, STILLREEL_HOST_HOURS=hours
    )
    said = it.wait_for("--request DELETE")
    assert said.partition("argv")[0].count("date") == looks


@pytest.mark.parametrize("env", [{}, {"STILLREEL_RENTED_UNTIL": "0"}])
def test_a_machine_that_nobody_rented_has_no_timer(machine: Rent, env: dict[str, str]) -> None:
    it = machine(WORKS, clock=LATER, **env)
    assert it.process
    assert it.process.wait(SECONDS) == 7  # and not by a signal, hours after its start
    assert "date" not in it.log.read_text()


def test_a_refused_destroy_at_least_stops_the_machine(machine: Rent) -> None:
    it = machine(ENDS, **VAST, STATUS="403", STILLREEL_RENTED_UNTIL=later(3600))
    assert '{"state":"stopped"}' in it.wait_for("--request PUT")


def test_elsewhere_it_ends_as_the_host_does_and_calls_nobody(machine: Rent) -> None:
    it = machine(ENDS, STILLREEL_RENTED_UNTIL=later(3600))
    assert it.process
    assert it.process.wait(SECONDS) == 7
    assert "argv" not in it.log.read_text()


def test_elsewhere_the_time_that_is_over_ends_the_host(machine: Rent) -> None:
    it = machine(HANGS, STILLREEL_RENTED_UNTIL=later(1))
    assert it.process
    assert it.process.wait(SECONDS) != 0


def test_a_polite_stop_reaches_the_host(machine: Rent) -> None:
    host = '#!/bin/bash\ntrap \'echo stopped >>"$LOG"; exit 0\' TERM\necho "host up" >>"$LOG"\n'
    it = machine(host + "while :; do /bin/sleep 0.05; done\n", STILLREEL_RENTED_UNTIL=later(3600))
    it.wait_for("host up")
    assert it.process
    it.process.send_signal(signal.SIGTERM)
    assert it.process.wait(SECONDS) == 0
    assert "stopped" in it.log.read_text()


@pytest.mark.parametrize("name", ["ec2/start.sh", "ec2/stop.sh"])
def test_the_kept_instance_is_started_and_stopped_by_its_scripts(tmp_path: Path, name: str) -> None:
    (tmp_path / "stillreel").write_text('#!/bin/sh\necho "$*"\nexit 5\n')
    (tmp_path / "stillreel").chmod(0o700)
    done = subprocess.run(
        ["bash", str(SCRIPT.parents[1] / name)],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == (f"fleet {Path(name).stem}\n", 5)


def test_the_weekly_script_is_the_drain() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT.parents[1] / "batch_processor.py"), "--help"],
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--explain" in done.stdout
