"""What a host may send in a minute, how much is remembered of it, and what a host sees of a run."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from stillreel.api.lease import parse
from stillreel.errors import RequestRejected, TooManyRequests
from stillreel.gateway.bounds import plain
from stillreel.gateway.budget import ARTIFACTS, AT_ONCE, REPORTS, SOCKETS, UNNAMED, Budget
from stillreel.gateway.kept import Kept
from stillreel.gateway.pools import unclaimed
from stillreel.gateway.runs import seen_run


def test_each_lease_has_a_budget_of_its_own() -> None:
    budget = Budget(calls=2, looks=2, size=10, day_size=24, strangers=1)
    # A minute may end in between; nobody gets more than two of them at once.
    spent = [_refused(lambda: budget.call("a")) for _ in range(5)]
    assert spent.count(False) in (2, 3, 4)
    assert not _refused(lambda: budget.call("b"))
    assert any(_refused(lambda: budget.size("a", 6)) for _ in range(4))
    assert any(_refused(lambda: budget.look("a")) for _ in range(5))
    assert any(_refused(budget.stranger) for _ in range(3))
    spent = [_refused(lambda: budget.size("c", 1)) for _ in range(60)]
    assert spent.count(False) <= 24 * 2
    assert all(spent[-10:])
    for most, count in ((ARTIFACTS, budget.artifact), (REPORTS, budget.report)):
        assert any(_refused(lambda count=count: count("a")) for _ in range(2 * most + 1))


def test_sockets_are_counted_while_they_are_open() -> None:
    budget = Budget()
    for lease, most in (("a", SOCKETS), ("", UNNAMED)):
        opened = [budget.socket(lease) for _ in range(most)]
        for each in opened:
            each.__enter__()
        with pytest.raises(TooManyRequests), budget.socket(lease):
            pass
        opened.pop().__exit__(None, None, None)
        with budget.socket(lease), budget.socket("other"):
            pass


def test_a_lease_has_few_calls_at_once() -> None:
    budget = Budget()
    with ExitStack() as stack:
        for _ in range(AT_ONCE):
            stack.enter_context(budget.turn("a"))
        with pytest.raises(TooManyRequests), budget.turn("a"):
            pass
        with budget.turn("b"):
            pass
    with budget.turn("a"):
        pass


@pytest.mark.parametrize(("given", "told"), [
    ("see https://evil.example/x now", "see (an address) now"),
    ("WWW.evil.example", "(an address)"),
    ("ftp://a //b ok", "(an address) (an address) ok"),
    ("the image is 12.5 MB: at most 10 MB/s", "the image is 12.5 MB: at most 10 MB/s"),
    (None, None),
    ("", ""),
])  # fmt: skip
def test_what_people_read_has_no_addresses(given: Any, told: Any) -> None:
    assert plain(given) == told


def test_the_oldest_is_forgotten_where_there_is_too_much() -> None:
    kept: Kept[int] = Kept(most=3)
    for n in range(5):
        kept.put(str(n), n)
    kept.put("2", 7)
    kept.put("5", 5)
    assert [kept.get(str(n)) for n in range(6)] == [None, None, 7, None, 4, 5]
    assert Kept[int](seconds=0.0, most=3).put("a", 1) == 1
    kept.drop("2")
    assert kept.get("2") is None


def test_a_host_sees_of_its_run_what_a_flow_reads() -> None:
    labels = {"stillreel.token": "t", "stillreel.round": 2, "prefect.flow.id": "f"}
    notes = {"stillreel.owner": "o", "stillreel.delivery_error": "e", "stillreel.key": "k"}
    order = {"prompt": "p", "webhook_url": "https://x"}
    run = {"id": "i", "labels": labels | notes, "parameters": order}
    seen = seen_run(run)
    assert seen["parameters"] == {"prompt": "p"}
    assert seen["labels"] == labels
    assert order["webhook_url"] == "https://x"


def test_a_host_sees_of_a_waiting_run_named_fields_only() -> None:
    state = {"id": "s", "type": "SCHEDULED", "name": "Scheduled", "message": "m", "data": {"a": 1}}
    seen = unclaimed({"id": "i", "name": "wan: a prompt", "state": state, "tags": ["owner:o"],
                       "parameters": {"prompt": "p"}, "a_field_of_a_later_prefect": 1})  # fmt: skip
    assert seen == {
        "id": "i",
        "name": "a job that waits",
        "state": {"id": "s", "type": "SCHEDULED", "name": "Scheduled"},
    }
    polled = unclaimed({"id": str(uuid4()), "flow_id": str(uuid4()), "state": None})
    assert FlowRun.model_validate(polled).name == "a job that waits"


@pytest.mark.parametrize("data", [
    b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b'{"a": "\\u0000"}', b"{", b"",
    '{"a": "é"}'.encode("latin-1"), '{"a": "b"}'.encode("utf-16"), b'"\xed\xa0\x80"',
    b"\xef\xbb\xbf{}", b"[" * 100_000, b"1" * 5_000,
])  # fmt: skip
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(RequestRejected):
        parse(data)


def _refused(spend: Any) -> bool:
    try:
        spend()
    except TooManyRequests:
        return True
    return False
