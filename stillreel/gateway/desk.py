"""What the gateway looks up while it checks a call: leases, runs, and what belongs to them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

from stillreel.errors import NotLeased, PrefectRefused
from stillreel.gateway.lease import KEPT_MOST, Held, Lease, LeaseReader
from stillreel.jobs import marks
from stillreel.prefect_api import PAGE, Json, PrefectApi
from stillreel.recent import Recent

POOL_SECONDS = 60.0
"""So old may be what is known of a pool's deployments."""


@dataclass(frozen=True)
class _Pool:
    flows: Mapping[str, str]
    queues: Collection[str]


class Desk:
    """Every method raises PrefectUnavailable, PrefectRefused; NotLeased where it says no."""

    def __init__(self, api: PrefectApi, *, installation: str) -> None:
        self.api = api
        self.installation = installation
        self.leases = LeaseReader(api)
        self._pools: dict[str, Recent[_Pool]] = {}
        self._owners: dict[str, str] = {}
        """The flow runs of task runs and artifacts, by their ids."""

    async def flows_of(self, lease: Lease) -> Mapping[str, str]:
        """The flow of each video deployment of the lease's pool, by the deployment's id."""
        return (await self._pool(lease.pool)).flows

    async def queues_of(self, lease: Lease) -> Collection[str]:
        """The ids of the queues of the lease's pool."""
        return (await self._pool(lease.pool)).queues

    async def waiting_run(self, lease: Lease, run_id: str) -> Json:
        """A run of the lease's pool, as it is now. Raises NotLeased for one of another pool."""
        run = await self.leases.run(run_id)
        if not run or run.get("work_pool_name") != lease.pool:
            raise NotLeased("This run is not of this lease's pool.")
        if run.get("deployment_id") not in await self.flows_of(lease):
            raise NotLeased("This run makes no video.")
        return run

    async def task_run(self, held: Held, task_run_id: str) -> None:
        """Nothing, where this task run is the run's; one that Prefect has not, is from now on."""
        await self._belongs(f"/task_runs/{task_run_id}", task_run_id, held.run_id)

    async def artifact(self, artifact_id: str) -> str:
        """The id of the run that this artifact belongs to; "" where it has none."""
        if artifact_id not in self._owners:
            found = await self._read(f"/artifacts/{artifact_id}")
            if found is None:
                raise NotLeased("There is no such artifact of this lease.")
            self._note(artifact_id, str(found.get("flow_run_id") or ""))
        return self._owners[artifact_id]

    async def _belongs(self, path: str, name: str, run_id: str) -> None:
        if name not in self._owners:
            found = await self._read(path)
            self._note(name, str(found.get("flow_run_id") or "") if found else run_id)
        if self._owners[name] != run_id:
            raise NotLeased("This task run is another run's.")

    async def _read(self, path: str) -> Json | None:
        try:
            return await self.api.get(path)
        except PrefectRefused as exc:
            if exc.status != 404:
                raise
            return None

    def _note(self, name: str, run_id: str) -> None:
        if len(self._owners) > KEPT_MOST:
            self._owners.clear()
        self._owners[name] = run_id

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
