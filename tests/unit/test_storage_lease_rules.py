"""Which objects a rented host may have, and which uploads are its own: the rules, by themselves."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stillreel.errors import NotLeased, RequestRejected, TooManyRequests
from stillreel.fleet.leases import HOST, POOL, Asked
from stillreel.gateway import budget
from stillreel.gateway.access import RunAccess
from stillreel.gateway.desk import Desk
from stillreel.gateway.door import LeaseDoor, terms_in
from stillreel.gateway.lease import CLAIM, Lease, grant
from stillreel.gateway.uploads import Ticket, unseal
from stillreel.jobs.places import Places
from stillreel.jobs.reader import JobReader
from stillreel.keys import lent_key, output_key, source_key
from stillreel.prefect_api import PrefectApi
from stillreel.storage import LocalStorage
from tests.receiver import answer, receiver

JOB, OTHER = "job_0123456789ab", "job_ba9876543210"
RUN = "11111111-2222-3333-4444-555555555555"
DIGEST = "0123456789abcdef" * 2
ACCESS = RunAccess(RUN, JOB, image_key="inputs/shared/picture.png")

RESULT = f"results/infer-2-{RUN}-0a1b2c"
MINE = [
    f"inputs/{JOB}/input.png",
    f"inputs/{JOB}/input-0123.jpg",
    "inputs/shared/picture.png",
    source_key(JOB),
    lent_key(JOB, DIGEST),
    output_key(JOB, "receipt.json"),
    RESULT,
    f"results/fetch-image-1-{RUN}-ff",
]
THEIRS = [
    f"inputs/{OTHER}/input.png",
    "inputs/shared/other.png",
    lent_key(OTHER, DIGEST),
    output_key(OTHER, "output.mp4"),
    f"outputs/{JOB}x/output.mp4",
    f"outputs/{JOB.upper()}/output.mp4",
    f"latents/index/nobody/{DIGEST}.json",
    f"results/infer-1-{RUN.replace('1', '9')}-0a1b",
    f"results/infer-3-{RUN}-0a1b",
    f"results/infer-12-{RUN}-0a1b",
    f"results/encode-1-{RUN}-0a1b-rented-1",
    f"results/infer-1-{RUN}-0a1b/../../outputs",
    f"results/x/infer-1-{RUN}-0a1b",
    f"temp/{JOB}/film.json",
    "results/" + "0" * 32,
    ".parts/x",
    "server.secret",
]
TRICKS = [
    f"inputs/{JOB}/../{OTHER}/input.png",
    f"inputs//{JOB}/input.png",
    f"/inputs/{JOB}/input.png",
    f"inputs/{JOB}/./input.png",
    f"inputs\\{JOB}\\input.png",
    f"inputs/{JOB}/",
    f"inputs/{JOB}/a\0.png",
    f"inputs/{JOB}/..%2f{OTHER}/input.png",
    f"inputs/{JOB}\\..\\{OTHER}",
    "",
    "..",
]
SLOTS = {
    source_key(JOB): "image/png",
    lent_key(JOB, DIGEST): "application/octet-stream",
    output_key(JOB, "output.mp4"): "video/mp4",
    output_key(JOB, "teaser.mp4"): "video/mp4",
    output_key(JOB, "poster.jpg"): "image/jpeg",
    output_key(JOB, "receipt.json"): "application/json",
    RESULT: "application/octet-stream",
}
NO_SLOTS = [
    *THEIRS,
    f"inputs/{JOB}/input.png",
    "inputs/shared/picture.png",
    f"outputs/{JOB}/page.html",
    f"outputs/{JOB}/output.mp4/x",
    f"latents/{JOB}/{DIGEST}.safetensors",
    f"latents/{JOB}/lent/{DIGEST}.json",
    f"latents/{JOB}/lent/{DIGEST[:-1]}.safetensors",
    f"latents/{JOB}/lent/x/{DIGEST}.safetensors",
]


@pytest.mark.parametrize("key", MINE)
def test_a_host_reads_its_own_job(key: str) -> None:
    ACCESS.read(key)


@pytest.mark.parametrize("key", THEIRS + TRICKS)
def test_a_host_reads_nothing_else(key: str) -> None:
    with pytest.raises((NotLeased, RequestRejected)):
        ACCESS.read(key)


def test_an_image_that_an_order_names_elsewhere_is_not_read() -> None:
    named = f"outputs/{OTHER}/output.mp4"
    with pytest.raises(NotLeased):
        RunAccess(RUN, JOB, image_key=named).read(named)


@pytest.mark.parametrize(("key", "content_type"), SLOTS.items())
def test_a_host_writes_what_its_stages_make(key: str, content_type: str) -> None:
    slot = ACCESS.write(key, content_type, 10)
    with pytest.raises(NotLeased, match="nothing else"):
        ACCESS.write(key, "text/html", 10)
    with pytest.raises(NotLeased, match="At most"):
        ACCESS.write(key, content_type, slot.bytes_max + 1)


@pytest.mark.parametrize("key", NO_SLOTS + TRICKS)
def test_a_host_writes_nothing_else(key: str) -> None:
    for content_type in set(SLOTS.values()):
        with pytest.raises((NotLeased, RequestRejected)):
            ACCESS.write(key, content_type, 10)


@pytest.mark.parametrize(
    "prefix", ["", "inputs/", "outputs", f"outputs/{JOB}", f"inputs/{OTHER}/", "results/", "temp/"]
)
def test_a_host_lists_no_more_than_its_job(prefix: str) -> None:
    ACCESS.list(f"inputs/{JOB}/input.")
    with pytest.raises((NotLeased, RequestRejected)):
        ACCESS.list(prefix)


def test_a_host_deletes_nothing() -> None:
    for key in (*MINE, *THEIRS, f"temp/{JOB}/x"):
        with pytest.raises((NotLeased, RequestRejected)):
            ACCESS.delete(key)


def test_a_ticket_is_of_one_lease_and_one_run() -> None:
    ticket = Ticket("lease-1", RUN, "key", "video/mp4", 5, "temp/x")
    sealed, secret = ticket.sealed(b"s" * 32), b"s" * 32
    assert unseal(sealed, secret, lease="lease-1", run_id=RUN) == ticket
    for text, key, lease, run in (
        (sealed, secret, "lease-2", RUN),
        (sealed, secret, "lease-1", "another"),
        (sealed, b"t" * 32, "lease-1", RUN),
        (sealed[:-8], secret, "lease-1", RUN),
        (replace(ticket, size=6).sealed(b"t" * 32), secret, "lease-1", RUN),
        ("", secret, "lease-1", RUN),
        ("é", secret, "lease-1", RUN),
    ):
        with pytest.raises(NotLeased):
            unseal(text, key, lease=lease, run_id=run)


# --- the terms ----------------------------------------------------------------------------------

AGAIN = "attempt 2 of 3 in round 1, after: the host was lost"
LEASE = Lease("22222222-2222-3333-4444-555555555555", 2, "a100", datetime(2026, 11, 29, tzinfo=UTC))


def state(kind: str, minute: int, message: str = "") -> dict[str, str]:
    return {"type": kind, "message": message, "timestamp": f"2026-11-28T12:{minute:02}:00Z"}


def drain(**prices: float) -> dict[str, Any]:
    until = LEASE.expires
    labels = {
        f"{HOST}{n[1:]}": Asked(int(n[1:]), until, usd).to_text() for n, usd in prices.items()
    }
    return {"id": LEASE.drain_id, "labels": labels}


def test_what_a_host_costs_and_since_when_it_has_the_run_is_what_the_control_side_wrote() -> None:
    mine, theirs = f"{CLAIM}{LEASE.id}", f"{CLAIM}another"
    states = [
        state("SCHEDULED", 1), state("PENDING", 2, theirs), state("RUNNING", 3),
        state("SCHEDULED", 4), state("PENDING", 5, mine), state("RUNNING", 6, mine),
    ]  # fmt: skip
    terms = terms_in(drain(_1=9.0, _2=0.36), states, lease=LEASE, host="rented")
    assert (terms.host, terms.usd_per_hour) == ("rented", 0.36)
    assert (terms.had_before, terms.claimed_at.minute) == (120.0, 5)
    assert terms.seconds(terms.claimed_at + timedelta(seconds=7)) == 127.0


@pytest.mark.parametrize(
    ("states", "seconds"),
    [
        ([], 0),
        ([state("PENDING", 2), state("RUNNING", 3), state("SCHEDULED", 59)], 57 * 60),
        ([state("PENDING", 2), state("CRASHED", 3), state("SCHEDULED", 59, AGAIN)], 60),
        ([state("PENDING", 2), state("FAILED", 9), state("SCHEDULED", 59)], 0),
        ([state("PENDING", 2), state("CRASHED", 3), state("SCHEDULED", 4, AGAIN),
          state("PENDING", 8), state("COMPLETED", 9), state("SCHEDULED", 40),
          state("PENDING", 50), state("CRASHED", 51), state("SCHEDULED", 52, AGAIN)], 60),
    ],
)  # fmt: skip
def test_the_time_in_which_a_run_waited_or_was_of_another_round_is_no_hosts(
    states: list[dict[str, str]], seconds: float
) -> None:
    claim = {**state("PENDING", 0, f"{CLAIM}{LEASE.id}"), "timestamp": "2026-11-28T14:00:00Z"}
    history = [state("SCHEDULED", 1), *states, claim, {**claim, "type": "RUNNING"}]
    assert terms_in(drain(_2=0.36), history, lease=LEASE, host="any").had_before == seconds


def test_a_visit_counts_before_anything_is_asked_about_its_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "MINUTE", 1e12)  # none ends meanwhile
    made, flow_id = grant(LEASE.drain_id, 2, expires=datetime.now(UTC) + timedelta(hours=1)), "f"
    run = {"id": LEASE.drain_id, "flow_id": flow_id, "state_type": "RUNNING"}
    drain_run = run | {"labels": {POOL: "a100", **made.labels}}
    answers = (json.dumps(each).encode() for each in ({"id": flow_id}, [drain_run]))

    async def never(job_id: str) -> bool:
        raise AssertionError(job_id)

    async def come(url: str) -> None:
        api = PrefectApi(url)
        desk = Desk(api, installation="main", has_video=never)
        storage = LocalStorage(Path("none"))
        door = LeaseDoor(desk, JobReader(api, storage, Places(api)))
        lease = await desk.leases.lease_of(made.token)
        for _ in range(budget.CALLS):
            desk.budget.call(lease.id)
        with pytest.raises(TooManyRequests):
            await door.enter(made.token, RUN)
        await api.aclose()

    with receiver(*(answer(200, each) for each in answers), answer(404)) as server:
        asyncio.run(come(server.url))
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("prices", "message"), [({"_1": 9.0}, f"{CLAIM}{LEASE.id}"), ({"_2": 0.36}, f"{CLAIM}other")]
)
def test_without_a_price_or_a_claim_there_are_no_terms(
    prices: dict[str, float], message: str
) -> None:
    with pytest.raises(NotLeased):
        terms_in(drain(**prices), [state("PENDING", 2, message)], lease=LEASE, host="rented")
