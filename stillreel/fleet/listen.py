"""Silent drains are listened to before their hosts go: their clock or ours may be wrong."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace

from stillreel.fleet.clock import Clock
from stillreel.fleet.leases import BEAT_SECONDS, Lease, LeaseBook

LISTEN_SECONDS = 2 * BEAT_SECONDS

log = logging.getLogger("stillreel.fleet")


def heard_of(book: LeaseBook, leases: Collection[Lease], clock: Clock) -> dict[str, Lease]:
    """Those of the silent drains among these that speak while we listen, by run.

    Raises PrefectUnavailable, PrefectRefused.
    """
    now = clock.now()
    silent = {lease.run_id: lease for lease in leases if lease.is_silent(now)}
    if not silent:
        return {}
    clock.sleep(LISTEN_SECONDS)
    heard = {
        run_id: replace(lease, beat_at=clock.now())
        for run_id, lease in book.read(silent.keys()).items()
        if lease.beat_at and lease.beat_at != silent[run_id].beat_at
    }
    for run_id in heard:
        log.warning(
            "the drain %s lives, and its beat is %.0f minutes old by this machine's clock; one of "
            "the two clocks is wrong",
            run_id,
            (now - (silent[run_id].beat_at or now)).total_seconds() / 60,
        )
    return heard
