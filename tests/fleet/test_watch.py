"""What is concluded from what is seen of one host, and when."""

from __future__ import annotations

from datetime import timedelta

import pytest

from stillreel.fleet.backlog import Ended
from stillreel.fleet.labels import Label
from stillreel.fleet.provider import Host, HostState
from stillreel.fleet.report import End, Stay
from stillreel.fleet.watch import MISSING, Watch
from stillreel.idle import HAND_OVER_SECONDS
from tests.fleet.drains import HOUR, LIFE, LIMITS, MINUTE, RUN
from tests.fleet.fake_world import START

LABEL = Label("main", RUN, 1)
HOST = Host("h1", "fake", LABEL, HostState.RUNNING, 0.6, "m1", START)
DEADLINE = START + LIFE
HANDS_OVER = DEADLINE - timedelta(seconds=HAND_OVER_SECONDS)


def watch_of(*, ready: bool = True) -> Watch:
    stay = Stay(LABEL, "fake", "m1", 0.6, START, DEADLINE)
    stay.ready_at = START + 5 * MINUTE if ready else None
    return Watch(stay, HOST, LIMITS)


@pytest.mark.parametrize(
    ("gone", "ready", "end"),
    [
        pytest.param(timedelta(0), True, End.DEADLINE, id="as it is told to"),
        pytest.param(-MINUTE, True, End.DEADLINE, id="by a clock that is ahead"),
        pytest.param(-HOUR, True, End.LOST, id="an hour early"),
        pytest.param(timedelta(0), False, End.NEVER_READY, id="it never worked"),
    ],
)
@pytest.mark.parametrize("is_shown", [False, True], ids=["not there", "exited"])
def test_a_host_that_hands_its_jobs_back_has_not_failed(
    gone: timedelta, ready: bool, end: End, is_shown: bool
) -> None:
    watch, now = watch_of(ready=ready), HANDS_OVER + gone
    exited = Host("h1", "fake", LABEL, HostState.LOST) if is_shown else None
    for _ in range(MISSING):
        watch.see_host(now, exited, is_alone=True)
    assert watch.end(now) is end


@pytest.mark.parametrize(
    ("idle", "end"),
    [
        pytest.param(LIMITS.idle, End.DRAINED, id="to the second"),
        pytest.param(LIMITS.idle - MINUTE, End.DRAINED, id="by its own clock"),
        pytest.param(LIMITS.idle - 4 * MINUTE, End.LOST, id="too early"),
    ],
)
def test_one_of_several_that_is_gone_was_idle_by_its_own_clock(idle: timedelta, end: End) -> None:
    watch, now = watch_of(), START + HOUR
    watch.see_jobs(now, waiting=0, open_=1, ended=Ended(), online=True)
    for _ in range(MISSING):
        watch.see_host(now + idle, None, is_alone=False)
    assert watch.end(now + idle) is end


def test_where_jobs_wait_nobody_is_idle_however_short_the_idle_time_is() -> None:
    watch, now = watch_of(), START + HOUR
    watch.see_jobs(now, waiting=3, open_=4, ended=Ended(), online=True)
    for _ in range(MISSING):
        watch.see_host(now, None, is_alone=False)
    assert watch.end(now) is End.LOST
