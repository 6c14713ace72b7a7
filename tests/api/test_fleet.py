"""Leases and backlog in a real Prefect; the fake of the drain's tests keeps the same promises."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Cancelled, Completed, Crashed, Pending, Running, Scheduled, State

from stillreel.deploy import _set_schedules
from stillreel.errors import LeaseTaken
from stillreel.fleet.alerts import PrefectBell, tell_budget
from stillreel.fleet.backlog import Backlog
from stillreel.fleet.calls import PrefectCalls, prefect_calls
from stillreel.fleet.decision import Money
from stillreel.fleet.flows import costs
from stillreel.fleet.leases import (
    FLOW,
    LEASE,
    NOT_RENTED,
    Asked,
    LeaseBook,
    Leases,
    money_of,
)
from stillreel.jobs import marks
from stillreel.project import load_flow
from tests.api.background import eventually
from tests.fleet.fake_world import FakeBook

NOW = datetime.now(UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def calls(prefect_api: str) -> Iterator[PrefectCalls]:
    with prefect_calls() as found:
        yield found


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


@flow(name=FLOW)
def drain_flow() -> None:
    """Stands for the drain: only its name counts here."""


class RealBook:
    """Leases in Prefect, with runs that the test starts and ends."""

    def __init__(self, client: SyncPrefectClient, calls: PrefectCalls) -> None:
        self.client, self.calls, self.book = client, calls, Leases(calls)

    def another(self) -> Leases:
        return Leases(self.calls)

    def start(self) -> str:
        return str(self.client.create_flow_run(drain_flow, state=Running()).id)

    def over(self, run_id: str) -> None:
        self.client.set_flow_run_state(UUID(run_id), Completed(), force=True)


class FakeRuns:
    """The same with the fake."""

    def __init__(self) -> None:
        self.book = FakeBook()

    def another(self) -> FakeBook:
        return self.book.again()

    def start(self) -> str:
        return self.book.start(str(uuid4())).run_id

    def over(self, run_id: str) -> None:
        self.book.change(run_id, is_over=True, is_running=False)


@pytest.fixture(params=["real", "fake"])
def runs(request: pytest.FixtureRequest) -> Any:
    if request.param == "fake":
        return FakeRuns()
    return RealBook(request.getfixturevalue("client"), request.getfixturevalue("calls"))


def pool_of() -> str:
    return f"pool-2.{uuid4().hex[:8]}"  # as `a100-ltx-2.3` has a dot


def test_one_drain_lives_on_a_pool(runs: Any) -> None:
    book: LeaseBook = runs.book
    first, second, pool = runs.start(), runs.start(), pool_of()
    lease = book.claim(first, pool, NOW)
    assert lease
    assert (lease.run_id, lease.pool, lease.number, lease.is_over) == (first, pool, 0, False)
    assert lease.lives(NOW)
    assert book.claim(second, pool, NOW + MINUTE) is None
    assert book.claim(second, pool_of(), NOW)
    assert book.claim(first, pool, NOW + MINUTE)  # it starts again
    runs.over(first)
    assert book.claim(runs.start(), pool, NOW + MINUTE)


def test_a_drain_that_is_not_heard_of_holds_a_pool_no_longer(runs: Any) -> None:
    first, second, pool = runs.start(), runs.start(), pool_of()
    assert runs.book.claim(first, pool, NOW)
    assert runs.book.claim(second, pool, NOW + LEASE - MINUTE) is None
    assert runs.book.claim(second, pool, NOW + LEASE)


def test_what_was_written_down_is_read_again(runs: Any) -> None:
    book: LeaseBook = runs.book
    run_id, pool = runs.start(), pool_of()
    book.claim(run_id, pool, NOW)
    until = NOW + timedelta(hours=4)
    two, three = Asked(2, until - MINUTE, 0.5, NOW, 0.75), Asked(3, until, 0.6, NOW)
    with book.deciding():
        assert book.ask(run_id, two, usd=0.0, reserved_usd=2.0, now=NOW)
        assert book.ask(run_id, three, usd=0.1, reserved_usd=2.64, now=NOW)
    assert book.read([run_id])[run_id].hosts == (two, three)
    book.gone(run_id, 2)
    book.quarantine(run_id, 2, "vast/13")
    assert book.beat(run_id, usd=0.25, reserved_usd=2.64, now=NOW + MINUTE)
    lease = book.read([run_id, str(uuid4())])[run_id]
    assert (lease.number, lease.until, lease.beat_at) == (3, until, NOW + MINUTE)
    assert (lease.usd_per_hour, lease.reserved_usd, lease.usd) == (0.6, 2.64, 0.25)
    assert lease.bad_machines == ("vast/13",)
    assert lease.hosts == (three,)
    book.quarantine(run_id, 3, "vast/14", "vast/owner/7")
    book.booted(run_id, "-+-")
    lease = book.read([run_id])[run_id]
    assert (lease.bad_machines, lease.bad_owners) == (
        ("vast/13", "vast/14"),
        (("vast/14", "vast/owner/7"),),
    )
    assert lease.boots == "-+-"
    money = money_of([lease], but="", now=NOW)
    assert money.spent_usd == 0.25
    assert money.reserved_usd == pytest.approx(2.39)
    assert money_of([lease], but=run_id, now=NOW).spent_usd == 0
    book.end(run_id, usd=0.4, videos=3, is_settled=False)
    assert book.read([run_id])[run_id].reserved_usd == 2.64  # a host may be left
    book.end(run_id, usd=0.5, videos=4, is_settled=True)
    ended = book.read([run_id])[run_id]
    assert (ended.usd, ended.reserved_usd, ended.lives(NOW)) == (0.5, 0.0, False)
    assert (ended.videos, ended.is_settled) == (4, True)
    assert run_id in {lease.run_id for lease in book.since(NOW - timedelta(days=1))}


def test_a_drain_that_is_over_is_not_to_go_on(runs: Any) -> None:
    run_id = runs.start()
    runs.book.claim(run_id, pool_of(), NOW)
    runs.over(run_id)
    assert not runs.book.beat(run_id, usd=0.1, reserved_usd=0.2, now=NOW)
    with runs.book.deciding():
        asked = Asked(1, NOW, 0.5, NOW)
        assert not runs.book.ask(run_id, asked, usd=0.0, reserved_usd=2.0, now=NOW)
    assert runs.book.read([run_id])[run_id].hosts == ()
    assert not runs.book.read([run_id])[run_id].lives(NOW)


def test_a_process_before_the_one_that_holds_the_lease_writes_nothing(runs: Any) -> None:
    book: LeaseBook = runs.book
    run_id, pool, successor = runs.start(), pool_of(), runs.another()
    assert book.claim(run_id, pool, NOW)
    assert successor.claim(run_id, pool, NOW)
    with pytest.raises(LeaseTaken):
        book.beat(run_id, usd=9.0, reserved_usd=9.0, now=NOW)
    with book.deciding(), pytest.raises(LeaseTaken):
        book.ask(run_id, Asked(1, NOW, 0.5, NOW), usd=0.0, reserved_usd=2.0, now=NOW)
    with pytest.raises(LeaseTaken):
        book.end(run_id, usd=9.0, videos=9, is_settled=True)
    assert successor.beat(run_id, usd=0.5, reserved_usd=1.0, now=NOW)
    lease = book.read([run_id])[run_id]
    assert (lease.usd, lease.hosts, lease.videos) == (0.5, (), None)


def test_what_a_drain_of_the_version_before_wrote_is_read(
    client: SyncPrefectClient, calls: PrefectCalls
) -> None:
    book = RealBook(client, calls)
    run_id, until = book.start(), NOW + timedelta(hours=4)
    labels = {
        "stillreel.drain.pool": "a100",
        "stillreel.drain.number": 2,
        "stillreel.drain.until": until.isoformat(),
        "stillreel.drain.usd_per_hour": 0.6,
        "stillreel.drain.reserved_usd": 2.64,
        "stillreel.drain.usd": 0.3,
        "stillreel.drain.beat": NOW.isoformat(),
        "stillreel.drain.bad.1": "vast/5",
    }
    calls.patch(f"/flow_runs/{run_id}/labels", labels)
    lease = book.book.read([run_id])[run_id]
    assert lease.hosts == (Asked(2, until, 0.6),)
    assert (lease.number, lease.bad_machines, lease.videos) == (2, ("vast/5",), None)
    assert book.book.beat(run_id, usd=0.4, reserved_usd=2.64, now=NOW)


def test_a_circuit_is_closed_and_closed_again(runs: Any) -> None:
    pool = pool_of()
    assert runs.book.circuit_closed_at(pool) is None
    for at in (NOW, NOW + MINUTE):
        runs.book.close_circuit(pool, at)
        assert runs.book.circuit_closed_at(pool) == at
    assert runs.book.circuit_closed_at(pool_of()) is None


def test_nothing_is_asked_for_nothing(runs: Any) -> None:
    assert runs.book.read([]) == {}


def make_video_run(client: SyncPrefectClient, *, state: State, **more: Any) -> str:
    deployment = client.read_deployment_by_name("generate-video/ltx-2-a100")
    run = client.create_flow_run_from_deployment(deployment.id, state=state, **more)
    return str(run.id)


def test_the_backlog_of_a_pool_is_counted(client: SyncPrefectClient, calls: PrefectCalls) -> None:
    backlog, started = Backlog(calls, "a100"), datetime.now(UTC) - MINUTE
    assert backlog.waiting(datetime.now(UTC)).count == 0
    old = datetime.now(UTC) - timedelta(hours=30)
    ids = [
        make_video_run(client, state=Scheduled(scheduled_time=old)),
        make_video_run(client, state=Scheduled(), tags=[marks.DATED]),
        make_video_run(client, state=Pending()),
        make_video_run(client, state=Running()),
    ]
    make_video_run(client, state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1)))
    ids.append(make_video_run(client, state=Scheduled(), tags=[marks.DATED]))
    deadline = datetime.now(UTC) + timedelta(hours=5)
    for run_id, at in ((ids[1], deadline), (ids[-1], datetime.now(UTC) - MINUTE)):
        calls.patch(f"/flow_runs/{run_id}/labels", {marks.DEADLINE: at.isoformat()})

    now = datetime.now(UTC)
    waiting = backlog.waiting(now)

    assert waiting.count == 3
    assert waiting.oldest >= timedelta(hours=30)
    assert waiting.soonest_deadline == deadline - now
    assert backlog.working() == 2
    assert Backlog(calls, "g5").waiting(now).count == 0
    assert (backlog.ended(started).videos, backlog.ended(started).failed) == (0, 0)
    ends = (Completed(), Completed(), Crashed(), Cancelled(), Cancelled())
    for run_id, state in zip(ids, ends, strict=True):
        client.set_flow_run_state(UUID(run_id), state, force=True)
    ended = backlog.ended(started)
    assert (ended.videos, ended.failed) == (2, 1)
    assert backlog.ended(datetime.now(UTC) + MINUTE).videos == 0
    assert backlog.working() == 0


def test_a_worker_that_never_spoke_is_not_online(calls: PrefectCalls) -> None:
    assert not Backlog(calls, "a100").is_online("stillreel-main-1")
    calls._portal.call(
        calls._api.post, "/work_pools/a100/workers/heartbeat", {"name": "stillreel-main-1"}
    )
    assert Backlog(calls, "a100").is_online("stillreel-main-1")
    assert not Backlog(calls, "g5").is_online("stillreel-main-1")


def test_schedules_rest_without_an_account_and_run_with_one(client: SyncPrefectClient) -> None:
    names = ("drain-backlog/drain-a100", "drain-backlog/drain-g5", "reap-hosts/reap")

    def schedules() -> dict[str, bool]:
        found = (client.read_deployment_by_name(name) for name in names)
        return {f"{one.name} {x.slug}": x.active for one in found for x in one.schedules}

    async def set_all(**how: bool) -> None:
        async with get_client() as api:
            for name in names:
                await _set_schedules(api, name, **how)

    drains = ("drain-a100", "drain-g5")
    assert len(schedules()) == 5
    assert not any(schedules().values())  # as `deploy` left them: no account is set
    try:
        asyncio.run(set_all(active=True))
        on = {name for name, active in schedules().items() if active}
        assert on == {*(f"{name} weekly" for name in drains), "reap often"}
        asyncio.run(set_all(active=True, auto=True))
        on = {name for name, active in schedules().items() if active}
        assert on == {*(f"{name} auto" for name in drains), "reap often"}
    finally:
        asyncio.run(set_all(active=False))
    assert not any(schedules().values())


def test_drains_that_asked_for_nothing_are_told_from_the_others(
    client: SyncPrefectClient, calls: PrefectCalls
) -> None:
    done = load_flow("flows/drain_backlog.py:drain_backlog")(pool="a100", return_state=True)
    assert (done.name, done.type) == (NOT_RENTED, "COMPLETED")
    facts = load_flow("flows/drain_backlog.py:drain_backlog")(pool="a100")
    assert (facts["outcome"], facts["rented"]) == ("nothing waits", False)
    run_id = str(done.state_details.flow_run_id)
    leases = Leases(calls)
    assert run_id in leases.read([run_id])
    assert run_id not in {x.run_id for x in leases.since(NOW - timedelta(days=1))}


def test_something_is_first_once_on_all_machines(calls: PrefectCalls) -> None:
    name = f"stillreel_test_{uuid4().hex}"
    with prefect_calls() as others:
        assert [PrefectBell(x).is_first(name) for x in (calls, others, calls)] == [
            True,
            False,
            False,
        ]


def test_an_event_about_the_budget_reaches_prefect(calls: PrefectCalls) -> None:
    money, installation = Money(30.0), uuid4().hex[:16]
    said = tell_budget(
        PrefectBell(calls), money, budget_usd=50.0, installation=installation, now=NOW
    )
    assert said == [50]
    body = {"filter": {"event": {"name": ["stillreel.fleet.budget"]}}}

    for attempt in eventually():
        with attempt:
            found = calls.ask("/events/filter", body)["events"]
            named = [(x["resource"]["prefect.resource.name"], x["payload"]["level"]) for x in found]
            assert (installation, 50) in named


def test_what_videos_cost_is_read_from_drains_and_receipts(
    client: SyncPrefectClient, calls: PrefectCalls
) -> None:
    book, before = RealBook(client, calls), {row.model: row for row in costs(months=1)[0]}
    run_id = book.start()
    assert book.book.claim(run_id, "g5", NOW)
    asked = Asked(1, NOW + timedelta(hours=4), 0.5, NOW)
    assert book.book.ask(run_id, asked, usd=0.0, reserved_usd=2.0, now=NOW)
    made = client.create_flow_run_from_deployment(
        client.read_deployment_by_name("generate-video/wan-2.2-g5").id, state=Running()
    )
    client.set_flow_run_state(made.id, Completed(), force=True)
    labels = {marks.SETTLED: 1, marks.END: "completed", marks.USD: 0.02, marks.GPU_SECONDS: 90.0}
    calls.patch(f"/flow_runs/{made.id}/labels", labels)
    book.book.end(run_id, usd=0.25, videos=1, is_settled=True)
    book.over(run_id)

    (row,) = (row for row in costs(months=1)[0] if row.model == "wan-2.2")

    assert "wan-2.2" not in before
    assert (row.drains, row.videos, row.usd) == (1, 1, 0.25)
    assert (row.gpu_seconds, row.gpu_usd) == (90.0, 0.02)
