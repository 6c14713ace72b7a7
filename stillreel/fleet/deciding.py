"""The decision to rent one machine: by the rule, within the budget, one drain at a time."""

from __future__ import annotations

import logging

from stillreel.errors import HostFailed, PrefectUnavailable
from stillreel.fleet.circuit import failed_boots
from stillreel.fleet.clock import Clock
from stillreel.fleet.decision import Crew, Waiting, decide
from stillreel.fleet.holding import Holding
from stillreel.fleet.labels import MOST, Label
from stillreel.fleet.leases import LOOK_BACK, Asked, LeaseBook, money_of
from stillreel.fleet.limits import Limits, Order
from stillreel.fleet.offers import usd_at_most, usd_for_bytes
from stillreel.fleet.ranking import Ranked
from stillreel.fleet.report import Report

DECISIONS = 3
"""So often one is made again that took longer than its lock."""

log = logging.getLogger("stillreel.fleet")


class Deciding:
    """What one drain may ask for, and the word that it will: written down before it does."""

    def __init__(
        self,
        order: Order,
        limits: Limits,
        book: LeaseBook,
        clock: Clock,
        holding: Holding,
        report: Report,
    ) -> None:
        self._order, self._limits, self._book, self._clock = order, limits, book, clock
        self._holding, self._report = holding, report

    @property
    def is_asked(self) -> bool:
        """Whether one job is enough: a person asks, or this drain has begun what it is to end."""
        return self._order.now or self._holding.number > 0

    def ask(self, waiting: Waiting, choice: Ranked | None, crew: Crew | None) -> Asked | None:
        """Decide about this offer, and write down what is asked for; None when the rule says no.

        One drain at a time, or each would spend what is left of the budget.
        """
        if self._holding.number >= MOST:
            raise HostFailed(f"one drain asks for {MOST} machines at most; a later one goes on")
        for _ in range(DECISIONS):
            with self._book.deciding() as is_alone:
                asked = self._decide(waiting, choice, crew)
                if asked is None or is_alone():
                    return asked
            log.warning("the decision took too long; another drain may have decided meanwhile")
            self._holding.note_gone(self.label(asked))
        raise PrefectUnavailable("deciding what to rent took longer than anybody waits for it")

    def _decide(self, waiting: Waiting, choice: Ranked | None, crew: Crew | None) -> Asked | None:
        now, run_id = self._clock.now(), self._order.run_id
        at_most = self._report.usd_at_most(now)
        if choice:
            at_most += usd_at_most(choice, self._limits.life)
        leases = self._book.since(now - LOOK_BACK)
        closed_at = self._book.circuit_closed_at(self._order.pool)
        decision = decide(
            waiting,
            self._limits.rule,
            best=choice,
            reserve_usd=at_most,
            money=money_of(leases, but=run_id, now=now),
            now=self.is_asked,
            crew=crew,
            failed_boots=failed_boots(leases, self._order.pool, closed_at=closed_at),
            pool=self._order.pool,
        )
        if not crew:
            self._report.decision = decision
        log.info("%s", decision.explain())
        if not decision.rent or not choice:
            return None
        asked = Asked(
            self._holding.number + 1,
            now + self._limits.life,
            choice.offer.usd_per_hour,
            now,
            usd_for_bytes(choice),
        )
        self._holding.ask(asked, at_most_usd=at_most, now=now)
        return asked

    def label(self, asked: Asked) -> Label:
        return Label(self._order.installation, self._order.run_id, asked.number)
