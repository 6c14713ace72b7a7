"""Tokens of leases, and which runs a lease has: the rules, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from stillreel.errors import LeaseRefused
from stillreel.fleet.leases import POOL
from stillreel.gateway.lease import CLAIM, claim_in, grant, lease_id, lease_in, revoke

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
DRAIN, OTHER = str(uuid4()), str(uuid4())
FLOW_ID = str(uuid4())
MINE, THEIRS = lease_id(DRAIN, 1), lease_id(OTHER, 1)


def drain(labels: dict[str, Any], **values: Any) -> dict[str, Any]:
    labels = {POOL: "a100", **labels}
    return {"id": DRAIN, "flow_id": FLOW_ID, "state_type": "RUNNING", "labels": labels} | values


def look(run: dict[str, Any], token: str, at: datetime = NOW) -> str:
    return lease_in(run, token, flow_id=FLOW_ID, now=at).id


def test_a_token_opens_its_own_lease_until_it_expires() -> None:
    made = grant(DRAIN, 2, expires=NOW + timedelta(hours=1))

    lease = lease_in(drain(made.labels), made.token, flow_id=FLOW_ID, now=NOW)

    assert (lease.drain_id, lease.number, lease.pool) == (DRAIN, 2, "a100")
    assert lease.worker("main") == f"stillreel-main-{DRAIN.replace('-', '')}-2"
    with pytest.raises(LeaseRefused):
        look(drain(made.labels), made.token, NOW + timedelta(hours=1))


def test_a_token_is_written_down_hashed_only_and_is_no_part_of_a_log() -> None:
    made = grant(DRAIN, 1, expires=NOW)
    secret = made.token.rpartition("_")[2]
    assert secret not in str(made.labels)
    assert secret not in repr(made)
    assert grant(DRAIN, 1, expires=NOW).token != made.token


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        pytest.param(revoke(1), {}, id="revoked"),
        pytest.param({}, {"state_type": "COMPLETED"}, id="its drain is over"),
        pytest.param({}, {"state_type": "CRASHED"}, id="its drain crashed"),
        pytest.param({}, {"flow_id": str(uuid4())}, id="a run that is no drain"),
        pytest.param({}, {"id": OTHER}, id="another drain"),
        pytest.param({"stillreel.drain.token.1": ""}, {}, id="no token"),
        pytest.param({"stillreel.drain.token.1": "0" * 64 + " 2027-01-01T00:00:00+00:00"}, {},
                     id="another token"),
    ],
)  # fmt: skip
def test_a_token_that_does_not_count(labels: dict[str, Any], values: dict[str, Any]) -> None:
    made = grant(DRAIN, 1, expires=NOW + timedelta(hours=1))
    assert look(drain(made.labels), made.token) == MINE
    with pytest.raises(LeaseRefused):
        look(drain({**made.labels, **labels}, **values), made.token)


@pytest.mark.parametrize(
    "change", [str.upper, lambda t: t + "x", lambda t: t.replace("_1_", "_2_")]
)
def test_a_changed_token_does_not_count(change: Any) -> None:
    made = grant(DRAIN, 1, expires=NOW + timedelta(hours=1))
    with pytest.raises(LeaseRefused):
        look(drain(made.labels), change(made.token))


def state(kind: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "message": message}


WAITS, RUNS, CRASHED = state("SCHEDULED"), state("RUNNING"), state("CRASHED")
CLAIMED, TAKEN = state("PENDING", CLAIM + MINE), state("PENDING", CLAIM + THEIRS)
DIRECT = state("PENDING")


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([WAITS], ("", False)),
        ([WAITS, CLAIMED], (MINE, True)),
        ([WAITS, CLAIMED, RUNS, CRASHED], (MINE, True)),
        ([WAITS, CLAIMED, RUNS, CRASHED, WAITS], (MINE, False)),
        ([WAITS, CLAIMED, RUNS, CRASHED, WAITS, CLAIMED], (MINE, True)),
        ([WAITS, CLAIMED, RUNS, CRASHED, WAITS, TAKEN], (THEIRS, True)),
        ([WAITS, CLAIMED, RUNS, CRASHED, WAITS, DIRECT], ("", False)),
        ([WAITS, CLAIMED, state("RUNNING", CLAIM + THEIRS)], (MINE, True)),
        ([WAITS, DIRECT, state("RUNNING", CLAIM + THEIRS)], ("", False)),
    ],
)
def test_who_claimed_a_run_last_has_it(
    history: list[dict[str, Any]], expected: tuple[str, bool]
) -> None:
    assert claim_in(history) == expected
