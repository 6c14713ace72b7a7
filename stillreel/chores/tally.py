"""What keepers have done: one log line and one count per action."""

from __future__ import annotations

import logging
from collections import Counter

log = logging.getLogger("stillreel.keeper")


class Tally:
    """Tells the log of each action, and counts them by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def note(self, action: str, job_id: str, reason: str) -> None:
        """One action on one job, and why; the reason holds no secret and no caller's URL."""
        self.counts[action] += 1
        log.info(
            "%s %s: %s", action, job_id, reason, extra={"job_id": job_id, "keeper_action": action}
        )
