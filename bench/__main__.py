"""All measurements, as a table: `python -m bench [--rounds 3] [--jobs 12]`, what `make bench` runs.

Nothing here fails on a missed bar: a bench measures, it does not judge.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import api, encode, gateway, overlap
from tests.services.postgres import is_installed as postgres_is_installed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--limit", type=int, default=3)
    parser.add_argument("--stored", type=int, default=10_000)
    options = parser.parse_args()
    console = Console()
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    console.print(f"{now}, {platform.machine()}, {os.cpu_count()} cores, load "
                  f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}")  # fmt: skip
    console.print(_table("Encoder against bare x264", encode.run(options.rounds)))
    rows = overlap.run(jobs=options.jobs, limit=options.limit)
    console.print(_table(f"A backlog of {options.jobs} jobs on one host", rows))
    for postgres in (False, True) if postgres_is_installed() else (False,):
        rows = api.run_all(postgres=postgres, stored=options.stored, rounds=options.rounds)
        console.print(_table("The API beside Prefect's server and a bare route", rows))
    rows = [*gateway.run_all(rounds=options.rounds), *gateway.run_jobs(jobs=4)]
    console.print(_table("Calls through the gateway beside direct ones", rows))


def _table(title: str, rows: Iterable[dict[str, Any]]) -> Table:
    table = Table("what", "size", "value", "unit", "bar", "met", "detail", title=title)
    for row in rows:
        bar = "" if row["bar"] is None else f"<= {row['bar']:g}"
        if row.get("least") is not None:
            bar = f">= {row['least']:g}"
        met = {True: "yes", False: "NO", None: ""}[row["met"]]
        value = f"{row['value']:.2f}"
        table.add_row(row["what"], row.get("size", ""), value, row["unit"], bar, met, row["detail"])
    return table


if __name__ == "__main__":
    main()
