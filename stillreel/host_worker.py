"""The standard Prefect process worker, made safe for a host: `python -m stillreel.host_worker`.

A worker with a limit dies when it is handed a run whose old process it still holds (Prefect
3.8.8, docs/adr/0011), and a stopped worker leaves its runs Running. This one ends an old process
before the run starts again, and on SIGTERM hands its runs back before it goes.
"""

from __future__ import annotations

import argparse
import logging
import signal
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import anyio
import anyio.abc
import httpx
import psutil
from prefect.workers.process import (
    ProcessJobConfiguration,
    ProcessWorker,
    ProcessWorkerResult,
)

from stillreel.host import CONTROL_POOL
from stillreel.host_report import report_host
from stillreel.process import end_tree, send, wait_gone
from stillreel.settings import get_settings
from stillreel.unwanted import end_unwanted

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse

log = logging.getLogger("stillreel.host_worker")

# It takes the place of the standard worker in this process, which is what Prefect warns about.
warnings.filterwarnings("ignore", message="Type 'HostWorker'", category=UserWarning)

_T = TypeVar("_T")
HAND_OVER_SECONDS = 20.0
_RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"


class HostWorker(ProcessWorker):
    """A process worker that ends old processes of a run first, and hands over when it stops."""

    type = "process"
    stopping = False
    _is_away = False
    """Whether Prefect did not answer when it was asked the last time."""
    _young: frozenset[UUID] = frozenset()
    """Runs whose submission had not ended when the last poll was sent: its answer is too old."""

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll once; while Prefect is away there is nothing to do.

        The standard worker ends after some failures (a minute of them, where Prefect's database is
        away), and what it works on ends with it.
        """
        return await self._unless_away(super().get_and_submit_flow_runs) or []

    async def _sync_and_initialize(self) -> None:
        await self._unless_away(super()._sync_and_initialize)

    async def _unless_away(self, ask: Callable[[], Awaitable[_T]]) -> _T | None:
        """What Prefect answers; None while it is away. What it refuses is raised."""
        try:
            answer = await ask()
        except httpx.HTTPError as exc:
            self._note_away(exc)
            return None
        self._is_away = False
        return answer

    def _note_away(self, error: httpx.HTTPError) -> None:
        """Say once per outage that Prefect is away; a refusal is raised again."""
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
            raise error
        if not self._is_away:
            log.warning("Prefect is away (%s); what runs here goes on", type(error).__name__)
        self._is_away = True

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Claim and start a run; one that cannot be claimed now is left to a later poll.

        The standard worker would end by it, and with it what runs here.
        """
        try:
            await super()._submit_run(flow_run)
        except httpx.HTTPError as exc:
            self._note_away(exc)
            self._release_limit_slot(flow_run.id)
            self._submitting_flow_run_ids.discard(flow_run.id)
            if self._cancelling_observer is not None:
                self._cancelling_observer.remove_in_flight_flow_run_id(flow_run.id)

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        self._young = frozenset(self._submitting_flow_run_ids)
        return await super()._get_scheduled_flow_runs()

    async def _submit_scheduled_flow_runs(
        self, flow_run_response: list[WorkerFlowRunResponse]
    ) -> list[FlowRun]:
        if self.stopping or not flow_run_response:
            return []
        held = set(self.limiter.statistics().borrowers)
        working = await anyio.to_thread.run_sync(find_processes, get_settings().host.home)
        free: list[WorkerFlowRunResponse] = []
        for entry in flow_run_response:
            run_id = entry.flow_run.id
            if run_id in self._young:
                continue
            if old := working.get(str(run_id)):
                await anyio.to_thread.run_sync(end_processes, old)
                log.warning("run %s starts again: its old process was ended first", run_id)
            if run_id not in held:
                free.append(entry)
        return [] if self.stopping else await super()._submit_scheduled_flow_runs(free)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run a flow process to its end, however that was, and report a crash only once.

        The standard worker reports what its executor has reported already, and the second report
        can hit an execution that has begun since.
        """
        result = await super().run(flow_run, configuration, task_status)
        return ProcessWorkerResult(identifier=result.identifier, status_code=0)

    async def hand_over(self) -> None:
        """Take no more runs, and have every flow process give its run back to the queue.

        Also those that a worker before this one started, and did not live to hand over.
        """
        self.stopping = True
        working = await anyio.to_thread.run_sync(find_processes, get_settings().host.home)
        everything = [found for processes in working.values() for found in processes]
        await anyio.to_thread.run_sync(end_processes, everything)


@dataclass(frozen=True)
class FlowProcess:
    """A process that was started for a run, as it was when it was looked at."""

    process: psutil.Process
    run_id: str
    parent: int
    is_engine: bool


def find_processes(home: Path) -> dict[str, list[FlowProcess]]:
    """The flow processes of this home on this machine by run id, whoever started them."""
    working: dict[str, list[FlowProcess]] = {}
    for process in psutil.process_iter():
        found = _look_at(process, home)
        if found is not None:
            working.setdefault(found.run_id, []).append(found)
    return working


def end_processes(processes: Sequence[FlowProcess]) -> None:
    """End flow processes, and return when they are gone.

    The process that Prefect's worker started gives the run back to the queue when it is asked to
    end, so that the worker does not report a crash. An engine that lost it can only be killed.
    """
    pids = {found.process.pid for found in processes}
    roots = [found for found in processes if found.parent not in pids]
    send((root.process for root in roots if root.is_engine), signal.SIGKILL)
    send((root.process for root in roots if not root.is_engine), signal.SIGTERM)
    for process in wait_gone([root.process for root in roots], HAND_OVER_SECONDS):
        end_tree(process.pid)


def _look_at(process: psutil.Process, home: Path) -> FlowProcess | None:
    try:
        environment = process.environ()
        run_id = environment.get(_RUN_VARIABLE, "")
        if not run_id or environment.get("STILLREEL_HOME") != str(home):
            return None
        is_engine = "prefect.engine" in process.cmdline()
        process.create_time()  # remembered, for later questions whether it is still this one
        return FlowProcess(process, run_id, process.ppid(), is_engine)
    except (psutil.Error, OSError):  # it ended meanwhile, or is another user's
        return None


async def run_worker(pool: str, *, limit: int, name: str) -> None:
    """Work until SIGTERM or SIGINT; an error of the worker ends it, for its host to restart it."""
    worker = HostWorker(work_pool_name=pool, limit=limit, name=name, create_pool_if_not_found=False)
    async with anyio.create_task_group() as group:

        async def stop_on_signal() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    await worker.hand_over()
                    group.cancel_scope.cancel()
                    return

        group.start_soon(stop_on_signal)
        group.start_soon(partial(report_host, get_settings(), worker=worker.name, pool=pool))
        if pool != CONTROL_POOL:  # a drain has to give its host back before it ends
            group.start_soon(end_unwanted, get_settings())
        await worker.start(printer=log.info)
        group.cancel_scope.cancel()


def main() -> None:
    """Run the worker of one pool."""
    parser = argparse.ArgumentParser(description="the Prefect worker of a stillreel host")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    anyio.run(lambda: run_worker(arguments.pool, limit=arguments.limit, name=arguments.name))


if __name__ == "__main__":
    main()
