"""The matrix of deaths: `python -m tests.drills.matrix`, or `make drill-matrix`.

Each cell kills, ends, stops or takes away one part while a job is in one stage, and looks how the
job ends. Results are appended to a file of JSON lines; a cell that stands there as held is not
tried again, so a run of hours goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import psutil

from stillreel.chores.dead_runs import SILENCE_SECONDS
from tests.drills.installation import (
    ON_HOST,
    SERVERS,
    STAGES,
    TARGETS,
    Installation,
    NeverCame,
    running_installation,
)
from tests.drills.outcome import HEAD, Outcome, look_at, to_row

STOPPED_SECONDS = SILENCE_SECONDS + 30
"""For what has heartbeats: longer than anybody waits for one."""
STOPPED_SERVER_SECONDS = 20.0
AWAY_SECONDS = 40.0
LONG_STEPS = 200
"""Of 0.75 s each: twice what the keeper waits for a sign of life."""
RESULTS = Path(".drills/matrix.jsonl")


@dataclass(frozen=True)
class Cell:
    """One drill."""

    target: str
    stage: str
    fault: str

    @property
    def name(self) -> str:
        return f"{self.target}/{self.stage}/{self.fault}"

    @property
    def is_long(self) -> bool:
        """Whether the inference outlasts all patience: what heartbeats need is taken away."""
        return self.stage == "infer" and self.target in ("prefect", "postgres", "redis")


log = logging.getLogger(__name__)

Fault = Callable[[Installation, Cell, list[psutil.Process], Callable[[], None]], None]
"""What is done to these processes; it calls the last argument when the held request may go on."""


def kill(installation: Installation, cell: Cell, victims: Any, let_go: Callable[[], None]) -> None:
    """kill -9, and a start again at once where nobody else does it."""
    _signal(victims, signal.SIGKILL)
    let_go()
    psutil.wait_procs(victims, timeout=60)
    installation.bring_back(cell.target)


def end(installation: Installation, cell: Cell, victims: Any, let_go: Callable[[], None]) -> None:
    """SIGTERM to the first, which knows what to do with the others.

    To Postgres that means: once all clients are gone. SIGINT is what its image is stopped by.
    """
    polite = signal.SIGINT if cell.target == "postgres" else signal.SIGTERM
    _signal(victims[:1], polite)
    let_go()
    _, alive = psutil.wait_procs(victims[:1], timeout=120)
    _signal(alive, signal.SIGKILL)
    installation.bring_back(cell.target)


def stop(installation: Installation, cell: Cell, victims: Any, let_go: Callable[[], None]) -> None:
    """SIGSTOP, longer than anybody has patience, then SIGCONT."""
    _signal(victims, signal.SIGSTOP)
    let_go()
    seconds = STOPPED_SERVER_SECONDS if cell.target in SERVERS else STOPPED_SECONDS
    Event().wait(seconds)  # the time itself is what is tried here
    _signal(victims, signal.SIGCONT)


def outage(
    installation: Installation, cell: Cell, victims: Any, let_go: Callable[[], None]
) -> None:
    """kill -9, and away for a while."""
    _signal(victims, signal.SIGKILL)
    let_go()
    psutil.wait_procs(victims, timeout=60)
    Event().wait(AWAY_SECONDS)
    installation.bring_back(cell.target)


FAULTS: dict[str, Fault] = {"kill": kill, "term": end, "outage": outage, "stop": stop}


def cells() -> list[Cell]:
    """All of them, the quick ones first.

    What its host restarts at once is never away, and a flow has no second start.
    """
    return [
        Cell(target, stage, fault)
        for fault in FAULTS
        for stage in STAGES
        for target in TARGETS
        if not (fault == "outage" and (target == "flow" or target in ON_HOST))
    ]


def run_cell(cell: Cell, installation: Installation) -> Outcome:
    """Try one cell; whatever goes wrong stands in the outcome."""
    found = Outcome(cell.name)
    held = installation.hold(cell.stage)
    try:
        job_id = installation.order(steps=LONG_STEPS if cell.is_long else 0)
        run_id = installation.job(job_id)["run_id"]
        installation.wait_for_stage(cell.stage, job_id, held)
        victims = installation.processes(cell.target, run_id)
        if not victims:
            raise NeverCame(f"a process of {cell.target}")
        begin, struck = monotonic(), datetime.now(UTC)
        FAULTS[cell.fault](installation, cell, victims, held.open if held else _nothing)
        job, found.revived = installation.wait_for_end(job_id)
        found.seconds = round(monotonic() - begin, 1)
        look_at(found, installation, job, struck=struck)
    except NeverCame as exc:
        found.wrong = [f"never came: {exc}"]
    except Exception as exc:  # hours of other cells go on, and this one is red
        log.exception("cell %s broke off", cell.name)
        found.wrong = [f"broke off: {type(exc).__name__}: {exc}"]
    finally:
        if held:
            held.open()
    return found


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _nothing() -> None:
    """For stages in which no request is held."""


def read_results(path: Path) -> list[Outcome]:
    """What earlier runs have found, the newest last."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


def _shard(text: str) -> tuple[int, int]:
    """Which part, of how many; several runs beside each other may share a file of results."""
    number, of = map(int, text.split("/"))
    if not 1 <= number <= of:
        raise ValueError(text)
    return number, of


def to_summary(known: Collection[Outcome]) -> str:
    """Cells that held of those that were tried, and the longest recovery, by target and fault."""
    lines = [f"| | {' | '.join(FAULTS)} |", f"|---{'|---' * len(FAULTS)}|"]
    for target in TARGETS:
        row = [target]
        for fault in FAULTS:
            found = [o for o in known if re.fullmatch(f"{target}/.*/{fault}", o.cell)]
            held = [o for o in found if not o.wrong]
            worst = max((o.seconds for o in held), default=0.0)
            row.append(f"{len(held)} / {len(found)}, {worst:.0f} s" if found else "")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> int:
    """Run what has not held yet; 1 where a cell breaks an invariant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of JSON lines")
    parser.add_argument("--only", default="", help="cells whose name has this regular expression")
    parser.add_argument("--shard", type=_shard, default=(1, 1), help="2/3: the second of three")
    parser.add_argument("--limit", type=int, default=0, help="so many cells at most")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    given = parser.parse_args()
    known = {found.cell: found for found in read_results(given.results)}
    number, of = given.shard
    todo = [cell for cell in cells()[number - 1 :: of] if re.search(given.only, cell.name)]
    todo = [cell for cell in todo if cell.name not in known or known[cell.name].wrong]
    if todo and not given.table:
        given.results.parent.mkdir(parents=True, exist_ok=True)
        with running_installation() as installation, given.results.open("a") as file:
            print(HEAD, flush=True)
            for cell in todo[: given.limit or None]:
                found = known[cell.name] = run_cell(cell, installation)
                file.write(json.dumps(asdict(found)) + "\n")
                file.flush()
                print(to_row(found), flush=True)
    print(f"\n{len(known)} of {len(cells())} cells tried\n{HEAD}")
    for found in known.values():
        print(to_row(found))
    print(f"\nheld / tried, longest recovery:\n{to_summary(known.values())}")
    return 1 if any(found.wrong for found in known.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
