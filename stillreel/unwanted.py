"""Ends work on this host that nobody wants any more, where its own process did not hear of it.

A cancel reaches a flow process by an event of Prefect. Events get lost while the server is away,
and a process that has missed three polls after that does not listen any more (Prefect 3.8.8). A
process may also be stopped, or dead while its inference goes on. So the host asks for itself.
"""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Iterable

import anyio
import anyio.to_thread

from stillreel.errors import InferenceServerAway, StillreelError
from stillreel.inference.client import InferenceClient, sockets_of
from stillreel.job import job_id_of
from stillreel.prefect_api import PAGE, Json, PrefectApi, connect
from stillreel.process import send, wait_gone
from stillreel.settings import Settings
from stillreel.stages.infer import cancel
from stillreel.workdir import clean

LOOK_SECONDS = 3.0
LOOKS = 3
"""So often in a row a run is seen unwanted before its work is ended here; mostly it ends sooner."""
PATIENCE_SECONDS = KILL_SECONDS = 10.0

log = logging.getLogger("stillreel.host_worker")


async def end_unwanted(settings: Settings, *, look: float = LOOK_SECONDS) -> None:
    """Look every `look` seconds, until cancelled; no failure ends it."""
    try:
        api = connect(PATIENCE_SECONDS)
        try:
            unwanted = Unwanted(api, settings)
            while True:
                await unwanted.look()
                await anyio.sleep(look)
        finally:
            with anyio.CancelScope(shield=True):
                await api.aclose()
    except StillreelError as exc:
        log.warning("cancels are heard by flow processes only: %s", exc.message)


class Unwanted:
    """The cancelled runs that this host works on.

    Of a run that Prefect does not know nothing is said: `stillreel generate` brings its own server.
    """

    def __init__(self, api: PrefectApi, settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self._seen: Counter[str] = Counter()

    async def look(self) -> None:
        """One look; ends what has been seen often enough. What goes wrong is logged."""
        try:
            await self._look()
        except StillreelError as exc:
            log.info("cancels are looked for again: %s", exc.message)
        except Exception:  # the worker is worth more than this
            log.exception("cancels are looked for again")

    async def _look(self) -> None:
        working = await anyio.to_thread.run_sync(_working_on, self._settings)
        runs = await self._cancelled(working) if working else []
        self._seen = Counter({run["id"]: self._seen[run["id"]] + 1 for run in runs})
        for run in runs:
            if self._seen[run["id"]] >= LOOKS:
                await self._end(run)

    async def _cancelled(self, run_ids: Iterable[str]) -> list[Json]:
        wanted = {
            "id": {"any_": sorted(run_ids)[:PAGE]},
            "state": {"type": {"any_": ["CANCELLED", "CANCELLING"]}},
        }
        return await self._api.ask("/flow_runs/filter", {"flow_runs": wanted, "limit": PAGE})

    async def _end(self, run: Json) -> None:
        run_id = run["id"]
        if not await self._is_as_it_was(run):  # a retry may have begun since the list was read
            return
        log.warning("run %s is cancelled and still worked on: its work is ended", run_id)
        await anyio.to_thread.run_sync(_end_work, self._settings, run)
        if run["state_type"] == "CANCELLING" and await self._is_as_it_was(run):
            message = "cancelled; its host has ended its process"
            state = {"type": "CANCELLED", "name": "Cancelled", "message": message}
            await self._api.post(f"/flow_runs/{run_id}/set_state", {"state": state})

    async def _is_as_it_was(self, run: Json) -> bool:
        now = await self._api.get(f"/flow_runs/{run['id']}")
        return now["state_id"] == run["state_id"]


def _working_on(settings: Settings) -> set[str]:
    """The runs that have processes on this host, or have its GPU."""
    from stillreel.host_worker import find_processes

    return {*find_processes(settings.host.home), *_on_gpu(settings)}


def _on_gpu(settings: Settings) -> Iterable[str]:
    for socket in sockets_of(settings):
        client = InferenceClient(socket, wait_for_server=0)
        try:
            running = client.health().running
        except (InferenceServerAway, ValueError):  # or one that is not of this version
            continue
        finally:
            client.close()
        if running:
            yield running


def _end_work(settings: Settings, run: Json) -> None:
    from stillreel.host_worker import find_processes

    run_id = run["id"]
    processes = [p.process for p in find_processes(settings.host.home).get(run_id, ())]
    send(processes, signal.SIGKILL)
    wait_gone(processes, KILL_SECONDS)
    cancel(run_id, settings=settings)
    clean(job_id_of(run_id, run["idempotency_key"]), settings=settings)
