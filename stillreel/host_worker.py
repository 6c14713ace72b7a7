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
from typing import TYPE_CHECKING
from uuid import UUID

import anyio
import anyio.abc
import psutil
from prefect.workers.process import (
    ProcessJobConfiguration,
    ProcessWorker,
    ProcessWorkerResult,
)

from stillreel.process import end_tree

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse

log = logging.getLogger("stillreel.host_worker")

# It takes the place of the standard worker in this process, which is what Prefect warns about.
warnings.filterwarnings("ignore", message="Type 'HostWorker'", category=UserWarning)

HAND_OVER_SECONDS = 20.0
_RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"


class HostWorker(ProcessWorker):
    """A process worker that ends old processes of a run first, and hands over when it stops."""

    type = "process"
    stopping = False

    async def _submit_scheduled_flow_runs(
        self, flow_run_response: list[WorkerFlowRunResponse]
    ) -> list[FlowRun]:
        if self.stopping:
            return []
        held = set(self.limiter.statistics().borrowers)
        free: list[WorkerFlowRunResponse] = []
        for entry in flow_run_response:
            run_id = entry.flow_run.id
            if run_id in self._submitting_flow_run_ids:
                continue
            if await anyio.to_thread.run_sync(end_run, run_id):
                log.warning("run %s starts again: its old process was ended first", run_id)
            if run_id not in held:
                free.append(entry)
        return await super()._submit_scheduled_flow_runs(free)

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
        """Take no more runs, and have every flow process give its run back to the queue."""
        self.stopping = True
        await anyio.to_thread.run_sync(_hand_over)


def end_run(run_id: UUID) -> bool:
    """End every process on this machine that was started for a run; False when there is none.

    The process that Prefect's worker started gives the run back to the queue when it is asked to
    end, so that the worker does not report a crash. One that lost it can only be killed.
    """
    processes = {p.pid: p for p in psutil.process_iter() if _run_id_of(p) == str(run_id)}
    roots = [p for p in processes.values() if p.ppid() not in processes]
    for process in roots:
        is_engine = "prefect.engine" in process.cmdline()
        process.send_signal(signal.SIGKILL if is_engine else signal.SIGTERM)
    _end(roots)
    return bool(roots)


def _hand_over() -> None:
    supervisors = [p for p in psutil.Process().children() if _run_id_of(p)]
    for process in supervisors:
        process.send_signal(signal.SIGTERM)
    _end(supervisors)


def _end(processes: list[psutil.Process]) -> None:
    _, slow = psutil.wait_procs(processes, timeout=HAND_OVER_SECONDS)
    for process in slow:
        end_tree(process.pid)


def _run_id_of(process: psutil.Process) -> str:
    try:
        return process.environ().get(_RUN_VARIABLE, "")
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""


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
