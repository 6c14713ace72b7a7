"""How well a host overlaps encodes with inference: a backlog of preview jobs on one host.

`python -m bench.overlap [--jobs 12] [--limit 3] [--json FILE]`. Each job waits 6 s as on a GPU
(preview's seconds_per_step), is decoded in about 1 s and encoded in a few CPU seconds. The bound
is what no schedule can beat: the GPU's own time, or the CPU time over the cores, whichever is
larger, and then one encode and one process start, which nothing can overlap with.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from stillreel.inference.client import InferenceClient, socket_path
from stillreel.models.registry import get_model
from tests.stack import Stack, running_stack

INFERENCE_SECONDS, RATIO_BAR = 6.0, 1.10
ORDER = {"duration": 5.0, "width": 960, "height": 544, "quality": "high"}


def run(*, jobs: int = 12, limit: int = 3) -> list[dict[str, Any]]:
    """One row per term of the bound, the wall time, its ratio, and the serial sum beside it."""
    steps = next(iter(get_model("preview").presets.values())).steps
    with running_stack(
        STILLREEL_PREVIEW_SECONDS_PER_STEP=str(INFERENCE_SECONDS / steps),
        STILLREEL_LIMIT=str(limit),
    ) as stack:
        start, encode, alone = _measure_one(stack)
        busy, cpu = _busy_seconds(stack), _cpu_seconds(stack)
        ids = [stack.submit({**ORDER, "prompt": f"zoom in {n}", "seed": n}) for n in range(jobs)]
        runs = [stack.wait(run_id, timeout=1200) for run_id in ids]
        gpu, cpu = _busy_seconds(stack) - busy, _cpu_seconds(stack) - cpu
    assert all(run["state_type"] == "COMPLETED" for run in runs), "a job did not complete"
    begin = min(_time(run["created"]) for run in runs)
    wall = (max(_time(run["end_time"]) for run in runs) - begin).total_seconds()
    cores = os.cpu_count() or 1
    bound = max(gpu, cpu / cores) + encode + start
    ratio = wall / bound
    rows = [
        ("inference and decode, sum", gpu, "s", ""),
        (f"CPU seconds of everything / {cores} cores", cpu / cores, "s", f"{cpu:.1f} CPU s"),
        ("one encode, alone", encode, "s", ""),
        ("one process start, alone", start, "s", "from pending to running"),
        ("bound", bound, "s", "max of the first two, plus the other two"),
        ("wall", wall, "s", f"{jobs} jobs, limit {limit}"),
        ("serial sum, for comparison", alone * jobs, "s", f"{alone:.1f} s alone, times {jobs}"),
    ]
    table = [
        {"what": what, "value": value, "unit": unit, "bar": None, "met": None, "detail": detail}
        for what, value, unit, detail in rows
    ]
    return [*table, {"what": "wall / bound", "value": ratio, "unit": "x", "bar": RATIO_BAR,
                     "met": ratio <= RATIO_BAR, "detail": ""}]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--limit", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = run(jobs=options.jobs, limit=options.limit)
    for row in rows:
        print(f"{row['what']:<40}{row['value']:>8.2f} {row['unit']:<3} {row['detail']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _measure_one(stack: Stack) -> tuple[float, float, float]:
    """Seconds of a process start, of an encode and of a whole job, from a job alone.

    The first job warms the caches and does not count.
    """
    order = {**ORDER, "prompt": "zoom in"}
    stack.wait(stack.submit({**order, "seed": 1000}), timeout=300)
    run_id = stack.submit({**order, "seed": 1001})
    stack.wait(run_id, timeout=300)
    tasks = {task["name"].rpartition("-")[0]: task for task in stack.task_runs(run_id)}
    encode = tasks["encode"]["total_run_time"]
    states = stack.api.get("/flow_run_states/", params={"flow_run_id": run_id}).json()
    at = {state["type"]: _time(state["timestamp"]) for state in reversed(states)}
    start = (at["RUNNING"] - at["PENDING"]).total_seconds()
    whole = (at["COMPLETED"] - at["PENDING"]).total_seconds()
    return start, encode, whole


def _busy_seconds(stack: Stack) -> float:
    client = InferenceClient(socket_path(stack.home), wait_for_server=5)
    try:
        return sum(client.health().busy_seconds.values())
    finally:
        client.close()


def _cpu_seconds(stack: Stack) -> float:
    """CPU seconds of every process of the stack, those that ended included."""
    times = [process.cpu_times() for process in stack.processes()]
    return sum(sum(t[:4]) for t in times)  # user, system, and the same of ended children


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


if __name__ == "__main__":
    main()
