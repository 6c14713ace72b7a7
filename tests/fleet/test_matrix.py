"""Whoever dies at whatever step: what lives too long, is rented twice, or is lost; -s prints it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from stillreel.errors import (
    LeaseLost,
    OfferGone,
    PrefectUnavailable,
    ProviderUnavailable,
)
from stillreel.fleet.provider import HostState
from tests.fleet.drains import (
    LIFE,
    MINUTE,
    MOMENTS,
    RUN,
    Setup,
    count,
)
from tests.fleet.fake_world import (
    Killed,
    World,
)

ANSWERS: dict[str, tuple[str, Any]] = {
    "create: made, answer lost": ("create", "lost answer"),
    "create: nothing made, no answer": ("create", "nothing made"),
    "create: offer gone": ("create", OfferGone()),
    "create: 429": ("create", ProviderUnavailable()),
    "destroy: lost": ("destroy", "lost"),
    "destroy: 429": ("destroy", ProviderUnavailable()),
    "look: 503": ("get", ProviderUnavailable()),
}


STEPS: dict[str, Callable[[World], Any]] = {
    "before the create": lambda _: True,
    "while it boots": lambda w: w.hosts and w.at > w.hosts[0].born + MINUTE,
    "while it works": lambda w: w.videos == 5,
    "while it is idle": lambda w: w.videos == 12 and w.living(),
    "before the destroy": lambda w: w.hosts and w.hosts[0].quiet_since and w.videos == 12,
}


def away(it: Setup, step: str, span: timedelta, *, api: bool, with_host: bool) -> None:
    """From this step on the API (and its keeper), or Prefect, is away for so long."""
    until: list[datetime] = []

    def tick(world: World) -> None:
        if not until and STEPS[step](world):
            until.append(world.at + span)
            if with_host and world.hosts:
                world.hosts[0].host = replace(world.hosts[0].host, state=HostState.LOST)
        is_away = bool(until) and world.at < until[0]
        if api:
            world.keeper = not is_away
        else:
            it.book.is_away = is_away

    it.book.away = it.jobs.away = lambda: it.book.is_away
    it.world.on_step = tick
    tick(it.world)


def rows_without_api_or_prefect() -> list[tuple[str, str, str, int, int, int]]:
    """The API or Prefect dies at each step, alone or with the host, and is back later."""
    rows: list[tuple[str, str, str, int, int, int]] = []
    for api in (True, False):
        for minutes in (8, 40):
            for step in STEPS:
                for with_host in (True, False):
                    it = Setup(12, ends_itself=step != "before the destroy")
                    away(it, step, minutes * MINUTE, api=api, with_host=with_host)
                    with contextlib.suppress(LeaseLost, PrefectUnavailable):
                        it.drain().run()
                    it.book.change(RUN, is_over=True, is_running=False)
                    it.live_on(LIFE + 30 * MINUTE)
                    who = ("API" if api else "Prefect") + (", host" if with_host else "")
                    rows.append((who, step, f"is back after {minutes}", *count(it)))
                    it.drain(str(uuid4()), now=True).run()
                    assert it.world.videos == 12, rows[-1]
                    assert count(it) == (0, 0, 0)
    return rows


def test_the_whole_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever dies at whatever step: who is still alive, what was rented twice, what was lost."""
    rows: list[tuple[str, str, str, int, int, int]] = []
    for moment, kill in MOMENTS.items():
        for agent in (True, False):
            for again in (True, False):
                it = Setup(12, ends_itself=agent)
                kill(it)
                if moment == "before the destroy":
                    it.world.ends_itself = False
                with pytest.raises(Killed):
                    it.drain().run()
                if again:
                    it.drain().run()
                it.live_on(LIFE + 30 * MINUTE)
                who = "drain" if agent else "drain, host agent"
                rows.append((who, moment, "starts again" if again else "stays dead", *count(it)))
    for name, (call, fault) in ANSWERS.items():
        for lag in (0.0, 30.0):
            it = Setup(12, ends_itself=call != "destroy")
            it.provider.lag = lag
            it.provider.faults[call].append(fault)
            it.drain().run()
            rows.append(("provider's answer", name, f"list lags {lag:.0f} s", *count(it)))
    rows += rows_without_api_or_prefect()
    with capsys.disabled():
        if "-s" in sys.argv:
            for row in (("dies", "when", "then", "alive", "double", "lost"), *rows):
                sys.stdout.write("{:<18} {:<32} {:<15} {:>5} {:>6} {:>4}\n".format(*row))
    assert {row[3:] for row in rows} == {(0, 0, 0)}
    assert len(rows) == len(MOMENTS) * 4 + len(ANSWERS) * 2 + len(STEPS) * 8
