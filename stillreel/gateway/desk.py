"""What the gateway looks up while it checks a call: leases, runs, and what belongs to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from stillreel.errors import NotLeased, PrefectRefused
from stillreel.gateway.budget import Budget
from stillreel.gateway.claims import Claims
from stillreel.gateway.kept import Kept
from stillreel.gateway.lease import KEPT_MOST, Held, Lease, LeaseReader
from stillreel.jobs import marks
from stillreel.jobs.attempts import was_started_again
from stillreel.jobs.record import record_of
from stillreel.prefect_api import PAGE, Json, PrefectApi
from stillreel.recent import Recent

POOL_SECONDS = 60.0
"""So old may be what is known of a pool's deployments."""
BEAT_SECONDS = 15.0
"""At most so often a run's heartbeat is passed on; a process of ours tells one each 30 s."""


@dataclass(frozen=True)
class _Pool:
    flows: Mapping[str, str]
    queues: Collection[str]


class Desk:
    """Every method raises PrefectUnavailable, PrefectRefused; NotLeased where it says no."""

    def __init__(
        self, api: PrefectApi, *, installation: str, has_video: Callable[[str], Awaitable[bool]]
    ) -> None:
        self.api = api
        self.installation = installation
        self.has_video = has_video
        """Whether the video of a job, and with it its receipt, is stored."""
        self.budget = Budget()
        self.leases = LeaseReader(api, self.budget)
        self.claims = Claims(self.leases)
        self._pools: dict[str, Recent[_Pool]] = {}
        self._owners: Kept[str] = Kept(most=KEPT_MOST)
        """The flow runs of task runs and artifacts, by their ids; "" for those that have none."""
        self._beats: Kept[bool] = Kept(seconds=BEAT_SECONDS, most=KEPT_MOST)

    async def flows_of(self, lease: Lease) -> Mapping[str, str]:
        """The flow of each video deployment of the lease's pool, by the deployment's id."""
        return (await self._pool(lease.pool)).flows

    async def queues_of(self, lease: Lease) -> Collection[str]:
        """The ids of the queues of the lease's pool."""
        return (await self._pool(lease.pool)).queues

    async def waiting_run(self, lease: Lease, run_id: str) -> Json:
        """A run of the lease's pool, as it is now. Raises NotLeased for one of another pool."""
        self.budget.look(lease.id)
        run = await self.leases.run(run_id)
        if not run or run.get("work_pool_name") != lease.pool:
            raise NotLeased("This run is not of this lease's pool.")
        if run.get("deployment_id") not in await self.flows_of(lease):
            raise NotLeased("This run makes no video.")
        return run

    async def is_over(self, run: Json) -> bool:
        """Whether a run has ended for good: by its state, or because its job is settled or gone.

        A settled one that somebody has had started again, as by Retry in Prefect's UI, is not.
        """
        record = record_of(run)
        if record.is_final or record.is_deleted:
            return True
        if not record.is_settled:
            return False
        settled_at = str(record.labels.get(marks.END_AT) or "")
        history = await self.leases.history(record.run_id)
        return not (settled_at and was_started_again(history, datetime.fromisoformat(settled_at)))

    def is_beat(self, run_id: str) -> bool:
        """Whether a run's heartbeat is to be passed on now."""
        return not self._beats.get(run_id) and self._beats.put(run_id, True)

    async def task_run(self, lease: Lease, held: Held, task_run_id: str) -> None:
        """Nothing, where this task run is the run's; one that Prefect has not, is from now on."""
        owner = self._owners.get(task_run_id)
        if owner is None:
            self.budget.look(lease.id)
            found = await self._read(f"/task_runs/{task_run_id}")
            owner = str(found.get("flow_run_id") or "") if found else held.run_id
            self._owners.put(task_run_id, owner)
        if owner != held.run_id:
            raise NotLeased("This task run is another run's.")

    async def artifact(self, lease: Lease, artifact_id: str) -> str:
        """The id of the run that this artifact belongs to; "" where it has none."""
        owner = self._owners.get(artifact_id)
        if owner is None:
            self.budget.look(lease.id)
            found = await self._read(f"/artifacts/{artifact_id}")
            if found is None:
                raise NotLeased("There is no such artifact of this lease.")
            owner = self._owners.put(artifact_id, str(found.get("flow_run_id") or ""))
        return owner

    async def _read(self, path: str) -> Json | None:
        try:
            return await self.api.get(path)
        except PrefectRefused as exc:
            if exc.status != 404:
                raise
            return None

    async def _pool(self, name: str) -> _Pool:
        if name not in self._pools:
            self._pools[name] = Recent(partial(self._read_pool, name), seconds=POOL_SECONDS)
        return await self._pools[name].get()

    async def _read_pool(self, name: str) -> _Pool:
        body: Json = {
            "work_pools": {"name": {"any_": [name]}},
            "flows": {"name": {"any_": [marks.FLOW]}},
            "limit": PAGE,
        }
        deployments, queues = await asyncio.gather(
            self.api.ask("/deployments/filter", body),
            self.api.ask(f"/work_pools/{name}/queues/filter", {"limit": PAGE}),
        )
        return _Pool(
            {deployment["id"]: deployment["flow_id"] for deployment in deployments},
            frozenset(queue["id"] for queue in queues),
        )
