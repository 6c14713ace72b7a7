"""Leases of rented hosts: whose token this is, until when it counts, and which runs it has.

There is no table. A token is granted by a drain and stands, hashed, in a label of the drain's own
run, one for each host. Which runs were handed to a lease stands in their states: who claims a run
has it Pending with the lease's name in the message, and Prefect lets only one do that. Whoever
schedules the run anew, as the keeper does with dead ones, takes it from the lease again.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from stillreel.errors import LeaseRefused, NotLeased, PrefectRefused
from stillreel.fleet.labels import Label
from stillreel.fleet.leases import FLOW, LONGEST, POOL, TOKEN, drains_since
from stillreel.gateway.budget import Budget
from stillreel.gateway.kept import Kept
from stillreel.job import job_id_of
from stillreel.jobs.record import FINAL_STATES
from stillreel.prefect_api import PAGE, Json, PrefectApi
from stillreel.recent import Recent

KEEP_SECONDS = 2.0
"""So old may be what is known of a lease or a run: so long a revoked token may still count."""
KEPT_MOST = 10_000
MISSES_MOST = 1_000
"""Of what is not there less is remembered, and apart: who asks for nothing pushes nobody out."""
CLAIM = "claimed by the lease "
"""+ its id: the message of a run's Pending state by which it was handed to this lease."""

_RUN_PATH = re.compile(r"/flow_runs/([0-9a-f-]{36})(?:/|$)")
_TOKEN = re.compile(r"lease_([0-9a-f]{32})_([1-9][0-9]{0,2})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Lease:
    """The right of one rented host to the runs of one pool, while its drain holds it."""

    drain_id: str
    """Of the drain's flow run."""
    number: int
    """Which of the drain's hosts it is."""
    pool: str
    expires: datetime

    @property
    def id(self) -> str:
        """Its name in states and logs; no secret."""
        return lease_id(self.drain_id, self.number)

    def worker(self, installation: str) -> str:
        """The only name that this host's worker may have: the label of the machine."""
        return str(Label(installation, self.drain_id, self.number))


@dataclass(frozen=True)
class Grant:
    """A new token, to be given to one host, and what of it is written on the drain's run."""

    token: str = field(repr=False)
    labels: Json


@dataclass(frozen=True)
class Held:
    """A run that was handed to a lease."""

    run_id: str
    job_id: str
    is_open: bool
    """Whether it is still the lease's to carry on; False once it was scheduled anew."""
    is_over: bool
    """Whether it was in a final state when it was looked at."""
    state_id: str
    """Of the state that it was in then: while it is in that one, nobody else has got it."""
    run: Mapping[str, Any] = field(repr=False)
    """As Prefect gave it when it was first seen: for what does not change."""


def grant(drain_id: str, number: int, *, expires: datetime) -> Grant:
    """A token of 256 random bits for the n-th host of a drain; count it granted once written."""
    token = f"lease_{UUID(drain_id).hex}_{number}_{secrets.token_urlsafe(32)}"
    text = f"{_hash(token)} {expires.astimezone(UTC).isoformat(timespec='seconds')}"
    return Grant(token, {f"{TOKEN}{number}": text})


def revoke(number: int) -> Json:
    """What is written on the drain's run so that the n-th host's token does not count any more."""
    return {f"{TOKEN}{number}": ""}


def lease_id(drain_id: str, number: int) -> str:
    """The name of a lease: the drain's run in hex, and the number of its host."""
    return f"{UUID(drain_id).hex}-{number}"


def lease_in(run: Mapping[str, Any], token: str, *, flow_id: str, now: datetime) -> Lease:
    """The lease that this token is by this drain's run. Raises LeaseRefused."""
    found = _TOKEN.fullmatch(token)
    labels = run.get("labels") or {}
    digest, _, expires = str(labels.get(f"{TOKEN}{found[2] if found else ''}") or "").partition(" ")
    if not found or not hmac.compare_digest(digest, _hash(token)):
        raise LeaseRefused
    if run["flow_id"] != flow_id or str(UUID(found[1])) != run["id"]:
        raise LeaseRefused  # the labels of other runs say nothing: their makers are not our drains
    if run.get("state_type") in FINAL_STATES or now >= datetime.fromisoformat(expires):
        raise LeaseRefused("This lease is over.")
    if not labels.get(POOL):
        raise LeaseRefused
    return Lease(run["id"], int(found[2]), str(labels[POOL]), datetime.fromisoformat(expires))


def claim_in(history: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Which lease a run was handed to last, "" for none, and whether it still is the lease's.

    `history` are the states of the run, the oldest first.
    """
    holder, is_open = "", False
    for state in history:
        if state["type"] == "SCHEDULED":
            is_open = False
        elif state["type"] == "PENDING":
            message = str(state.get("message") or "")
            is_claim = message.startswith(CLAIM)
            holder, is_open = (message.removeprefix(CLAIM), True) if is_claim else ("", False)
    return holder, is_open


class LeaseReader:
    """Leases and the runs that were handed to them, as Prefect has them; kept for a moment.

    Every method raises PrefectUnavailable, PrefectRefused.
    """

    def __init__(self, api: PrefectApi, budget: Budget, *, keep: float = KEEP_SECONDS) -> None:
        self._api, self._budget = api, budget
        self._drains: Recent[Mapping[str, Json]] = Recent(self._read_drains, seconds=keep)
        self._held: Kept[tuple[str, Held]] = Kept(seconds=keep, most=KEPT_MOST)
        self._seen: Kept[tuple[str, Held]] = Kept(most=KEPT_MOST)
        """The same, however old it is."""
        self._now: Kept[Json] = Kept(seconds=keep, most=KEPT_MOST)
        """Runs as they are."""
        self._no_runs: Kept[bool] = Kept(seconds=keep, most=MISSES_MOST)
        self._runs: Kept[Json] = Kept(most=KEPT_MOST)
        self._flow_id = ""

    async def lease_of(self, token: str) -> Lease:
        """The lease whose token this is. Raises LeaseRefused, TooManyRequests."""
        found = _TOKEN.fullmatch(token)
        if not found:
            raise LeaseRefused
        drain_id = str(UUID(found[1]))
        try:
            return self._lease(await self._drains.get(), drain_id, token)
        except LeaseRefused:
            self._budget.stranger()  # it may have been granted just now
        return self._lease(await self._drains.get(anew=True), drain_id, token)

    async def held(self, lease: Lease, run_id: str, *, writes: bool = False) -> Held:
        """A run of this lease; `writes`: one that is still its own to carry on.

        Raises NotLeased.
        """
        run_id = _uuid(run_id)
        found = self._held.get(run_id) or await self._look(lease, run_id)
        return _of(lease, found, writes=writes)

    async def held_now(self, lease: Lease, run_id: str) -> tuple[Held, Json]:
        """A run of this lease that is still its own, and the run, two seconds old at most.

        What this process writes itself counts at once, see `written`. Raises NotLeased.
        """
        run_id = _uuid(run_id)
        run, found = self._now.get(run_id), self._seen.get(run_id)
        if run is None:
            run = self._now.put(run_id, await self.run(run_id))
        if not found or found[1].state_id != run.get("state_id"):
            self.forget(run_id)
            found = await self._look(lease, run_id)
            run = self._now.put(run_id, await self.run(run_id))
        return _of(lease, found, writes=True), run

    def moved(self, lease: Lease, held: Held, state: Mapping[str, Any]) -> None:
        """Note that a run of this lease is in this new state, by the lease's own word."""
        is_open, is_over = state["type"] != "SCHEDULED", state["type"] in FINAL_STATES
        now = replace(held, is_open=is_open, is_over=is_over, state_id=state["id"])
        self._know(held.run_id, (lease.id, now))
        if run := self._now.get(held.run_id):
            changed = {"state_id": state["id"], "state_type": state["type"], "state": dict(state)}
            self._now.put(held.run_id, run | changed)

    def written(self, path: str) -> None:
        """Note that this process has written at this path of Prefect's API."""
        if found := _RUN_PATH.match(path):
            self.forget(found[1])

    def forget(self, run_id: str) -> None:
        """Ask Prefect again about this run: something has changed."""
        for kept in (self._held, self._seen, self._now, self._no_runs):
            kept.drop(run_id)

    async def run(self, run_id: str) -> Json:
        """A flow run as Prefect gives it now; empty where there is none."""
        try:
            return await self._api.get(f"/flow_runs/{run_id}")
        except PrefectRefused as exc:
            if exc.status != 404:
                raise
            return {}

    async def history(self, run_id: str) -> list[Json]:
        """The states of a run, the oldest first; empty where there is no such run."""
        states = await self._api.get(f"/flow_run_states/?flow_run_id={run_id}")
        return sorted(states, key=lambda state: datetime.fromisoformat(state["timestamp"]))

    def _lease(self, drains: Mapping[str, Json], drain_id: str, token: str) -> Lease:
        run = drains.get(drain_id)
        if run is None:
            raise LeaseRefused
        return lease_in(run, token, flow_id=self._flow_id, now=datetime.now(UTC))

    async def _read_drains(self) -> Mapping[str, Json]:
        """The drains that live, by their ids: all at once, so that no token asks for one more."""
        self._flow_id = await self._drain_flow()
        body: dict[str, Any] = drains_since(datetime.now(UTC) - LONGEST) | {"limit": PAGE}
        body["flow_runs"]["state"]["type"] = {"not_any_": sorted(FINAL_STATES)}
        return {run["id"]: run for run in await self._api.ask("/flow_runs/filter", body)}

    async def _look(self, lease: Lease, run_id: str) -> tuple[str, Held]:
        if self._no_runs.get(run_id):
            raise NotLeased("This run was not handed to this lease.")
        self._budget.look(lease.id)
        run = self._runs.get(run_id)
        if run:
            states = await self.history(run_id)
        else:
            states, run = await asyncio.gather(self.history(run_id), self.run(run_id))
            if not run:
                self._no_runs.put(run_id, True)
                raise NotLeased("This run was not handed to this lease.")
            self._runs.put(run_id, run)
        holder, is_open = claim_in(states)
        is_over = bool(states) and states[-1]["type"] in FINAL_STATES
        job_id = job_id_of(run_id, run.get("idempotency_key"))
        state_id = str(states[-1]["id"]) if states else ""
        held = Held(run_id, job_id, is_open, is_over, state_id, run)
        return self._know(run_id, (holder, held))

    def _know(self, run_id: str, found: tuple[str, Held]) -> tuple[str, Held]:
        self._seen.put(run_id, found)
        return self._held.put(run_id, found)

    async def _drain_flow(self) -> str:
        if self._flow_id:
            return self._flow_id
        try:
            return (await self._api.get(f"/flows/name/{FLOW}"))["id"]
        except PrefectRefused as exc:
            if exc.status != 404:
                raise
            raise LeaseRefused from exc


def _of(lease: Lease, found: tuple[str, Held], *, writes: bool) -> Held:
    holder, held = found
    if holder != lease.id:
        raise NotLeased("This run was not handed to this lease.")
    if writes and not held.is_open:
        raise NotLeased("This run was taken from this lease.")
    return held


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _uuid(text: str) -> str:
    """The id as Prefect writes it. Raises NotLeased for anything else."""
    try:
        return str(UUID(text))
    except ValueError as exc:
        raise NotLeased("This is no id of a run.") from exc
