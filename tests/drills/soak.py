"""The soak: `python -m tests.drills.soak`, or `make drill-soak`.

Many jobs on several hosts, and every few seconds something dies. No job is struck oftener than a
round has spare attempts, so each of them has to complete, and in the end each is held against the
invariants that the matrix has too.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random
from threading import Event
from time import monotonic

import psutil

from stillreel.jobs.attempts import ATTEMPTS
from tests.drills.installation import (
    SERVERS,
    Installation,
    NeverCame,
    running_installation,
)
from tests.drills.outcome import HEAD, Outcome, look_at, to_row

JOBS, HOSTS = 200, 3
PAUSES = (3.0, 12.0)
"""Seconds between two kills: from, to."""
WEIGHTS = {"flow": 8, "worker": 3, "inference": 3, "host": 2} | dict.fromkeys(SERVERS, 0.6)
"""How often each is struck. A server of ours takes longer to come back than a host's parts."""
SECONDS_PER_STEP = 0.2
LOOKS = 10
"""Jobs that are asked for between two kills, in turn: while Prefect is away each takes seconds."""
SILENT_SECONDS = 1200.0
"""After so long without the end of any job they are stuck."""

log = logging.getLogger("stillreel.soak")


@dataclass
class Soak:
    """Who has been struck, and how often."""

    installation: Installation
    dice: Random
    strikes: Counter[str] = field(default_factory=Counter[str])
    """By target."""
    hits: Counter[str] = field(default_factory=Counter[str])
    """By run: how often something that it needed for its attempt died."""

    def strike(self) -> str:
        """kill -9 of something, and a start again where nobody else does it; its name, or ''."""
        [target] = self.dice.choices(list(WEIGHTS), list(WEIGHTS.values()))
        host = self.dice.choice(self.installation.hosts)
        runs = self.installation.runs_on(host)
        run = self.dice.choice(sorted(runs)) if runs else ""
        match target:
            case "flow":
                victims, hurt = self.installation.processes(target, run, host=host), {run}
            case "worker" | "inference":
                victims, hurt = self.installation.processes(target, run, host=host), runs
            case "host":
                target, hurt = host, runs
                victims = self.installation.processes(host, run)
            case _:
                victims, hurt = self.installation.processes(target, run), set[str]()
        if not victims or any(self.hits[run] >= ATTEMPTS - 1 for run in hurt):
            return ""
        self.hits.update(hurt)
        for process in victims:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(victims, timeout=60)
        self.installation.bring_back(target)
        self.strikes[target] += 1
        return target


def run_soak(installation: Installation, *, jobs: int, seed: int) -> tuple[list[Outcome], Soak]:
    """Order so many jobs, strike until all of them have ended, and look at each."""
    soak, begin = Soak(installation, Random(seed)), monotonic()
    ordered = [installation.order() for _ in range(jobs)]
    waiting, seconds = deque(ordered), dict[str, float]()
    log.info("%d jobs ordered after %.0f s", jobs, monotonic() - begin)
    while waiting:
        Event().wait(soak.dice.uniform(*PAUSES))  # the pace of the drill
        installation.revive()
        struck, now = soak.strike(), monotonic() - begin
        for _ in range(min(LOOKS, len(waiting))):
            job_id = waiting.popleft()
            if installation.ended(job_id):
                seconds[job_id] = round(now, 1)
            else:
                waiting.append(job_id)
        log.info("%6.0f s: %d jobs left, %s struck", now, len(waiting), struck or "nothing")
        if now - max([0.0, *seconds.values()]) > SILENT_SECONDS:
            break  # what is left is stuck, and its row says so
    return [_outcome(soak, job_id, seconds.get(job_id, 0.0)) for job_id in ordered], soak


def _outcome(soak: Soak, job_id: str, seconds: float) -> Outcome:
    found = Outcome(job_id, seconds=seconds)
    try:
        job, found.revived = soak.installation.wait_for_end(job_id, seconds=60)
        look_at(found, soak.installation, job, struck=None)
    except NeverCame as exc:
        found.wrong = [f"never came: {exc}"]
    return found


def main() -> int:
    """Run the soak; 1 where a job breaks an invariant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--hosts", type=int, default=HOSTS)
    parser.add_argument("--seed", type=int, default=1, help="of what is struck when")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with running_installation(
        hosts=given.hosts, preview_seconds_per_step=SECONDS_PER_STEP
    ) as installation:
        found, soak = run_soak(installation, jobs=given.jobs, seed=given.seed)
    wrong = [outcome for outcome in found if outcome.wrong]
    attempts = Counter(outcome.attempt for outcome in found)
    print("\n".join([HEAD, *map(to_row, wrong)]))
    print(f"struck: {dict(soak.strikes)}; jobs by attempts: {dict(sorted(attempts.items()))}")
    print(f"{len(found) - len(wrong)} of {len(found)} jobs ended right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
