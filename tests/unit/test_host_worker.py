"""The worker of a host ends old processes of a run, and only those, and hands over all others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import anyio
import httpx
import psutil
import pytest
from prefect.workers.process import ProcessWorker

from stillreel.host_worker import HostWorker, end_processes, find_processes

SECONDS = 20.0
WORK = (
    "import os, signal; "
    "signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), os._exit(0))); "
    "print(os.getpid(), flush=True); signal.pause()"
)
ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WORK!r}])"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """`start(run_id)` is a process that looks as if it worked on a run of this home."""
    started: list[subprocess.Popen[str]] = []

    def start(
        run_id: UUID, *arguments: str, code: str = WORK, of: Path = home
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=os.environ | {"PREFECT__FLOW_RUN_ID": str(run_id), "STILLREEL_HOME": str(of)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout
        process.pid_of_code = int(process.stdout.readline())  # type: ignore[attr-defined]
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def last_words(process: subprocess.Popen[str]) -> str:
    """What it says between its first line and its end, for which this waits."""
    assert process.stdout
    return process.stdout.read().strip()


class Polls:
    """A worker whose API answers with these runs, and what it then submits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: list[UUID] = []
        self.submitted: list[UUID] = []
        self.looks = 0
        self.worker = HostWorker(work_pool_name="pool", limit=2)

        async def get(_: Any) -> list[Any]:
            return [SimpleNamespace(flow_run=SimpleNamespace(id=run_id)) for run_id in self.answer]

        async def submit(_: Any, entries: list[Any]) -> list[Any]:
            self.submitted += [entry.flow_run.id for entry in entries]
            return []

        def look() -> Iterator[psutil.Process]:
            self.looks += 1
            return every_process()

        every_process = psutil.process_iter
        monkeypatch.setattr(ProcessWorker, "_get_scheduled_flow_runs", get)
        monkeypatch.setattr(ProcessWorker, "_submit_scheduled_flow_runs", submit)
        monkeypatch.setattr(psutil, "process_iter", look)

    def poll(
        self,
        *answer: UUID,
        held: UUID | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """One poll with this answer; `meanwhile` is between the answer and what is done with it."""
        self.answer = list(answer)
        self.worker._limiter = anyio.CapacityLimiter(2)

        async def once() -> None:
            entries = await self.worker._get_scheduled_flow_runs()
            meanwhile()
            if held:
                self.worker.limiter.acquire_on_behalf_of_nowait(held)
            await self.worker._submit_scheduled_flow_runs(entries)

        anyio.run(once)


@pytest.fixture
def polls(home: Path, monkeypatch: pytest.MonkeyPatch) -> Polls:
    return Polls(monkeypatch)


def test_the_processes_of_a_home_are_found_by_run(home: Path, start: Start) -> None:
    run, other = uuid4(), uuid4()
    first, second, third = start(run), start(run, "prefect.engine"), start(other)
    start(other, of=home / "another")
    found = find_processes(home)
    assert {key: {one.process.pid for one in value} for key, value in found.items()} == {
        str(run): {first.pid, second.pid},
        str(other): {third.pid},
    }
    assert {one.process.pid for one in found[str(run)] if one.is_engine} == {second.pid}


@pytest.mark.parametrize("moment", ["environ", "cmdline", "ppid"])
def test_a_process_that_ends_while_it_is_looked_at_is_not_found(
    home: Path, start: Start, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run = uuid4()
    ending, staying = start(run), start(run)

    class Ending(psutil.Process):
        """Ends just before the question of this moment."""

    def end_first(process: psutil.Process) -> Any:
        ending.kill()
        ending.wait()
        return getattr(psutil.Process, moment)(process)

    setattr(Ending, moment, end_first)
    both = [Ending(ending.pid), psutil.Process(staying.pid)]
    monkeypatch.setattr(psutil, "process_iter", lambda: both)
    assert [one.process.pid for one in find_processes(home)[str(run)]] == [staying.pid]


def test_processes_that_ended_since_they_were_found_are_no_error(home: Path, start: Start) -> None:
    run = uuid4()
    ended, living = start(run), start(run)
    found = find_processes(home)[str(run)]
    ended.kill()
    ended.wait()
    end_processes(found)
    assert last_words(living) == "asked"


def test_a_supervisor_is_asked_and_an_engine_that_lost_it_is_killed(
    home: Path, start: Start
) -> None:
    run = uuid4()
    supervisor, engine = start(run), start(run, "prefect.engine")
    end_processes(find_processes(home)[str(run)])
    assert last_words(supervisor) == "asked"
    assert last_words(engine) == ""
    assert engine.wait(SECONDS) == -signal.SIGKILL  # not reaped: its exit code is still there


def test_a_run_that_is_scheduled_again_loses_its_old_process_before_it_is_submitted(
    polls: Polls, start: Start
) -> None:
    run, held, new = uuid4(), uuid4(), uuid4()
    old = [start(run), start(held)]
    polls.poll(run, held, new, held=held)
    assert [last_words(process) for process in old] == ["asked", "asked"]
    assert polls.submitted == [run, new]  # the held one comes with a later poll


def test_a_run_whose_submission_ends_after_the_answer_keeps_its_new_process(
    polls: Polls, start: Start
) -> None:
    run = uuid4()
    polls.worker._submitting_flow_run_ids.add(run)
    started: list[subprocess.Popen[str]] = []

    def submission_ends() -> None:
        started.append(start(run))
        polls.worker._submitting_flow_run_ids.remove(run)

    polls.poll(run, meanwhile=submission_ends)
    assert started[0].poll() is None
    assert polls.submitted == []
    polls.poll(run)  # scheduled again since: now it is an old one
    assert last_words(started[0]) == "asked"


def test_a_poll_looks_at_the_machine_once_and_an_empty_one_never(polls: Polls) -> None:
    polls.poll()
    assert polls.looks == 0
    runs = [uuid4() for _ in range(200)]
    polls.poll(*runs)
    assert polls.looks == 1
    assert polls.submitted == runs


def test_a_stopping_worker_hands_over_what_a_dead_worker_had_started(
    home: Path, polls: Polls, start: Start
) -> None:
    orphan = start(uuid4(), code=ORPHAN)
    orphan.wait(SECONDS)
    left = psutil.Process(orphan.pid_of_code)  # type: ignore[attr-defined]
    own, foreign = start(uuid4()), start(uuid4(), of=home / "another")
    anyio.run(polls.worker.hand_over)
    _, alive = psutil.wait_procs([left], timeout=SECONDS)
    assert alive == []
    assert last_words(own) == "asked"
    assert foreign.poll() is None
    polls.poll(uuid4())
    assert polls.submitted == []


def test_an_outage_of_prefect_is_no_error_of_the_worker(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard worker gives up after some failed polls, and takes along what it works on."""
    errors: list[httpx.HTTPError] = [status(401), status(500), status(503), httpx.ConnectError("")]

    async def fail(_: Any) -> list[Any]:
        raise errors.pop()

    monkeypatch.setattr(ProcessWorker, "get_and_submit_flow_runs", fail)
    worker = HostWorker(work_pool_name="pool", limit=2)
    for _ in range(3):
        assert anyio.run(worker.get_and_submit_flow_runs) == []
    with pytest.raises(httpx.HTTPStatusError, match="401"):  # that does not pass by itself
        anyio.run(worker.get_and_submit_flow_runs)


def status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://prefect/api")
    return httpx.HTTPStatusError(str(code), request=request, response=httpx.Response(code))
