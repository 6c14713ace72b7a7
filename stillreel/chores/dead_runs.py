"""Finds the runs whose processes are dead: nobody else would, and they would run for ever.

A process of ours tells Prefect each 30 s that it lives (prefect_env.py). The keeper listens by its
own clock only: what counts is when it last saw something new of a run. It speaks as well, and while
it does not hear itself it takes nobody for dead: events may be stuck between Prefect and Redis.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from stillreel.api.services import Services
from stillreel.chores.scan import Scan
from stillreel.chores.tally import Tally
from stillreel.errors import JobConflict, PrefectRefused, PrefectUnavailable
from stillreel.jobs.attempts import Over, decide
from stillreel.jobs.record import Record

SILENCE_SECONDS = 75.0
"""Two heartbeats, and the seconds that Prefect takes to store one."""
NEVER_HEARD_SECONDS = 240.0
"""For a run that was never heard: it may beat as slowly as Prefect does by default, each 180 s."""
PENDING_SECONDS = 120.0
"""From the claim of a run to the start of its process; some seconds are usual.

Twice as long after each time that a run was put back: a host that is too busy for the start of a
process within the time would be interrupted in it for ever.
"""
PENDING_DOUBLINGS = 3
BLIND_SECONDS = 20.0
"""After so long without a look everybody is given all of the time again: nobody could be heard."""
SPEAK_SECONDS = 10.0
DEAF_SECONDS = 40.0
"""After so long without hearing itself it is not the others who are silent."""
SAY_DEAF_SECONDS = 300.0
OWN_EVENT = "stillreel.keeper.look"
LISTEN = timedelta(minutes=10)
AT_ONCE = 10
"""Runs in one question about heartbeats, of which Prefect gives 50."""

log = logging.getLogger("stillreel.keeper")


@dataclass
class _Sign:
    """What was last seen of a run, and when we saw it first."""

    state: tuple[str, datetime | None]
    beat: str
    """The id of the newest heartbeat; empty for a run that was never heard."""
    at: float


class DeadRuns:
    """Looks at runs that should be alive: running, being cancelled, or about to start."""

    def __init__(
        self,
        services: Services,
        tally: Tally,
        *,
        clock: Callable[[], float] = time.monotonic,
        deaf_seconds: float = DEAF_SECONDS,
    ) -> None:
        self._services = services
        self._tally = tally
        self._clock = clock
        self._deaf_seconds = deaf_seconds
        self._scan = Scan(states=("RUNNING", "CANCELLING", "PENDING"))
        self._signs: dict[str, _Sign] = {}
        self._put_back: Counter[str] = Counter()
        """How often this keeper has put a claimed run back, by run."""
        self._looked_at = self._spoke_at = self._heard_at = float("-inf")
        self._deaf_said_at = float("-inf")
        self._own = ""
        """The id of the newest event of a keeper that was heard."""

    @property
    def is_heard(self) -> bool:
        """Whether an event of a keeper has come back."""
        return bool(self._own)

    async def look(self) -> None:
        """One look at them. Raises PrefectUnavailable."""
        records = await self._scan.read(self._services.api)
        alive = [record for record in records if record.state_type != "PENDING"]
        beats = await self._heartbeats([record.run_id for record in alive])
        if alive:
            try:
                await self._hear_itself()
            except (PrefectRefused, PrefectUnavailable) as exc:
                log.info("events are asked for again: %s", exc.message)
        now = self._clock()
        if not alive:  # nobody has to be heard, and the keeper itself has not spoken either
            self._heard_at = now
        if now - self._looked_at > BLIND_SECONDS:
            self._signs.clear()
            self._heard_at = now
        is_deaf = bool(alive) and now - self._heard_at > self._deaf_seconds
        if is_deaf:
            claimed = {run: s for run, s in self._signs.items() if s.state[0] == "PENDING"}
            self._signs = claimed  # for these nobody has to be heard
        self._say_deaf(is_deaf, now)
        self._looked_at = now
        for record in records:
            if record.state_type == "RUNNING":
                self._put_back.pop(record.run_id, None)
            sign = self._see(record, beats.get(record.run_id, ""), now)
            if now - sign.at > self._patience(record, sign):
                try:
                    await self._end(record, now - sign.at)
                except (JobConflict, PrefectRefused) as exc:
                    log.info("%s is looked at again: %s", record.job_id, exc.message)
        oldest = now - max(SILENCE_SECONDS, NEVER_HEARD_SECONDS, PENDING_SECONDS) * 8
        self._signs = {run: sign for run, sign in self._signs.items() if sign.at > oldest}

    def _see(self, record: Record, beat: str, now: float) -> _Sign:
        """What is known of a run after this look; a new state or heartbeat is news."""
        state, known = (record.state_type, record.state_at), self._signs.get(record.run_id)
        if known is None or known.state != state or beat not in ("", known.beat):
            known = self._signs[record.run_id] = _Sign(state, beat, now)
        return known

    async def _end(self, record: Record, silent: float) -> None:
        actions = self._services.actions
        match record.state_type:
            case "PENDING":
                message = f"claimed by a host {silent:.0f} s ago, which has not started it"
                history = await self._services.api.get(
                    f"/flow_run_states/?flow_run_id={record.run_id}"
                )
                then = decide(
                    record.round,
                    message,
                    sorted(history, key=lambda state: state["timestamp"]),
                    is_outage=True,  # no process has begun: that is no attempt
                    now=datetime.now(UTC),
                )
                if isinstance(then, Over):
                    await actions.crash(record, message)
                else:
                    await actions.requeue(record, then)
                self._put_back[record.run_id] += 1
                self._tally.note("unclaimed", record.job_id, message)
            case "CANCELLING":
                await actions.end_cancel(record)
                self._tally.note(
                    "cancel_ended", record.job_id, f"its host is silent: {silent:.0f} s"
                )
            case _:
                message = f"no sign of life of its process for {silent:.0f} s"
                await actions.crash(record, message)
                self._tally.note("crashed", record.job_id, message)

    def _patience(self, record: Record, sign: _Sign) -> float:
        if record.state_type != "PENDING":
            return SILENCE_SECONDS if sign.beat else NEVER_HEARD_SECONDS
        return PENDING_SECONDS * 2 ** min(self._put_back[record.run_id], PENDING_DOUBLINGS)

    def _say_deaf(self, is_deaf: bool, now: float) -> None:
        """Again and again, while it lasts: the alarm looks at the last minutes."""
        if not is_deaf:
            self._deaf_said_at = float("-inf")
        elif now - self._deaf_said_at >= SAY_DEAF_SECONDS:
            self._deaf_said_at = now
            why = "events do not come back; look at Prefect's background services, and at Redis"
            log.warning("nobody is taken for dead: %s", why)
            self._tally.note("deaf", "", why)

    async def _hear_itself(self) -> None:
        """Send an event now and then, and look whether one has come since the last look."""
        now = self._clock()
        if now - self._spoke_at >= SPEAK_SECONDS:
            self._spoke_at = now
            event = {
                "id": str(uuid4()),
                "occurred": datetime.now(UTC).isoformat(),
                "event": OWN_EVENT,
                "resource": {"prefect.resource.id": "stillreel.keeper"},
            }
            # As a question: an event is no write that others have to wait behind.
            await self._services.api.ask("/events", [event])
        query = {
            "event": {"name": [OWN_EVENT]},
            "occurred": {"since": (datetime.now(UTC) - LISTEN).isoformat()},
            "order": "DESC",
        }
        found = await self._services.api.ask("/events/filter", {"filter": query, "limit": 1})
        newest = next((event["id"] for event in found["events"]), "")
        if newest and newest != self._own:
            self._own, self._heard_at = newest, now

    async def _heartbeats(self, run_ids: Sequence[str]) -> dict[str, str]:
        """The newest heartbeat of each run, where one was found: an id that changes with it."""
        found: dict[str, str] = {}
        since = (datetime.now(UTC) - LISTEN).isoformat()
        for some in _groups(run_ids):
            query = {
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "resource": {"id": [f"prefect.flow-run.{run}" for run in some]},
                "occurred": {"since": since},
                "order": "DESC",
            }
            body = {"filter": query, "limit": 50}
            for event in (await self._services.api.ask("/events/filter", body))["events"]:
                run = event["resource"]["prefect.resource.id"].removeprefix("prefect.flow-run.")
                found.setdefault(run, event["id"])
        return found


def _groups(run_ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (run_ids[n : n + AT_ONCE] for n in range(0, len(run_ids), AT_ONCE))
