"""When a machine is rented, and that the reasons are the rule."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.fleet.decision import Money, Rule, Waiting, decide
from stillreel.fleet.ranking import Batch, priced
from tests.fleet.test_ranking import GOOD

HOUR = timedelta(hours=1)
RULE = Rule(threshold=10, oldest=168 * HOUR, deadline=24 * HOUR, month_budget_usd=50.0)
BEST = priced(GOOD, Batch(1.0))


@pytest.mark.parametrize(
    ("waiting", "more", "rents", "reason"),
    [
        pytest.param(Waiting(0), {}, False, "nothing waits", id="nothing"),
        pytest.param(Waiting(0), {"now": True}, False, "nothing waits", id="nothing, asked for"),
        pytest.param(Waiting(9, HOUR), {}, False, "does not pay yet", id="below threshold"),
        pytest.param(Waiting(10, HOUR), {}, True, "enough jobs wait", id="threshold"),
        pytest.param(Waiting(1, HOUR), {"now": True}, True, "enough jobs", id="one, asked for"),
        pytest.param(Waiting(1, 167.9 * HOUR), {}, False, "not pay yet", id="almost a week"),
        pytest.param(Waiting(1, 168 * HOUR), {}, True, "oldest waits long", id="a week"),
        pytest.param(Waiting(1, HOUR, 25 * HOUR), {}, False, "not pay yet", id="far deadline"),
        pytest.param(Waiting(1, HOUR, 24 * HOUR), {}, True, "deadline is near", id="deadline"),
        pytest.param(Waiting(1, HOUR, -HOUR), {}, True, "deadline is near", id="passed deadline"),
        pytest.param(Waiting(99, HOUR), {"best": None}, False, "an offer fits", id="no offer"),
        pytest.param(
            Waiting(99, HOUR), {"money": Money(47.5)}, False, "budget", id="budget used up"
        ),
        pytest.param(
            Waiting(99, HOUR),
            {"money": Money(40.0, reserved_usd=8.0)},
            False,
            "budget",
            id="budget promised to others",
        ),
        pytest.param(
            Waiting(99, HOUR), {"money": Money(47.0)}, True, "enough jobs", id="budget just enough"
        ),
    ],
)
def test_the_rule(waiting: Waiting, more: dict[str, Any], rents: bool, reason: str) -> None:
    given_ = {"best": BEST, "reserve_usd": 3.0, "money": Money(0.0)} | more
    decision = decide(waiting, RULE, **given_)
    assert decision.rent is rents
    assert reason in decision.reason
    last = decision.explain().splitlines()[-1]
    assert last.startswith("=> rent" if rents else "=> do not rent")
    assert decision.reason in last


def test_a_person_reads_every_line_with_its_limit() -> None:
    decision = decide(
        Waiting(12, 30 * HOUR), RULE, best=BEST, reserve_usd=2.64, money=Money(1.5, 0.5)
    )
    offer = "vast 1, A100 PCIE, US$ 0.660/h, 1.18 h, US$ 0.78 in all"
    usd = "US$ 1.50 spent + 0.50 promised + 2.64 at most for this host"
    assert decision.explain().splitlines() == [
        "yes  enough jobs wait              12 (limit: 10 or more)",
        "no   the oldest waits long         30.0 h (limit: 168.0 h or more)",
        "no   a deadline is near            none (limit: 24.0 h or less)",
        "yes  hosts come to work            0 in a row did not (limit: fewer than 3)",
        f"yes  an offer fits                 {offer} (limit: price cap and the model's need)",
        f"yes  the month's budget allows it  {usd} (limit: US$ 50.00)",
        "=> rent: enough jobs wait",
    ]


WAITING = st.builds(
    Waiting,
    st.integers(0, 50),
    st.timedeltas(timedelta(0), timedelta(days=30)),
    st.none() | st.timedeltas(timedelta(days=-1), timedelta(days=30)),
)


@given(WAITING, st.floats(0, 100), st.floats(0, 100), st.floats(0, 10), st.booleans())
def test_the_budget_is_never_passed_and_nothing_is_rented_for_nothing(
    waiting: Waiting, spent: float, reserved: float, reserve: float, now: bool
) -> None:
    decision = decide(
        waiting, RULE, best=BEST, reserve_usd=reserve, money=Money(spent, reserved), now=now
    )
    if decision.rent:
        assert spent + reserved + reserve <= RULE.month_budget_usd
        assert waiting.count > 0


@given(WAITING)
def test_more_jobs_never_stop_a_renting(waiting: Waiting) -> None:
    more = replace(waiting, count=waiting.count + 1)
    one, other = (
        decide(w, RULE, best=BEST, reserve_usd=1, money=Money(0)).rent for w in (waiting, more)
    )
    assert other >= one
