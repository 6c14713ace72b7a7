"""Another host goes on where the first one ended: nothing that is finished is done again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from stillreel.inference.entry import Kind
from stillreel.job import Phase
from tests.drills.test_kills import kill_flow_processes, outcomes, wait_for_entry
from tests.s3 import Bucket
from tests.stack import Stack, env_of

ORDER = {"prompt": "pan right", "duration": 6, "width": 1280, "height": 720, "quality": "high"}


def test_a_job_in_s3_leaves_its_objects_and_results_there(stack: Stack, bucket: Bucket) -> None:
    run_id = stack.submit({"prompt": "zoom in", "duration": 0.5, "width": 160, "height": 96})

    run = stack.wait(run_id)

    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    job_id = f"job_{run_id.replace('-', '')}"
    keys = bucket.keys()
    assert {
        f"outputs/{job_id}/{name}"
        for name in ("output.mp4", "poster.jpg", "teaser.mp4", "receipt.json")
    } <= keys
    assert any(key.startswith(f"latents/{job_id}/") for key in keys)
    assert any(key.startswith("results/infer-") for key in keys)
    link = stack.artifacts(run_id)["video"]["data"]
    url = link[link.index("](") + 2 : link.rindex(")")]
    assert httpx.get(url, trust_env=False).headers["content-type"] == "video/mp4"


def test_a_second_host_takes_over_after_inference_and_does_not_repeat_it(
    stack: Stack, bucket: Bucket, tmp_path: Path
) -> None:
    run_id = stack.submit(ORDER)
    wait_for_entry(stack, Kind.DECODE, run_id, lambda entry: entry.phase is Phase.DECODE)
    for worker in stack.processes("stillreel.host_worker"):
        worker.suspend()  # the first host is cut off: it cannot take the run again
    try:
        kill_flow_processes(stack, run_id)
        stack.api.post(
            f"/flow_runs/{run_id}/set_state", json={"state": {"type": "CRASHED"}, "force": True}
        )
        with second_host(stack, bucket, tmp_path) as log:
            run = stack.wait_for_end(run_id)
    finally:
        for worker in stack.processes("stillreel.host_worker"):
            worker.resume()

    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert outcomes(stack, run_id)["infer"] == ["Completed", "Cached"]
    assert f"inferences of run {run_id}" not in log.read_text()
    receipt = json.loads(bucket.read(f"outputs/job_{run_id.replace('-', '')}/receipt.json"))
    assert receipt["took"]["execution"] == 2


@contextmanager
def second_host(stack: Stack, bucket: Bucket, folder: Path) -> Iterator[Path]:
    """A host with a home and a name of its own, on the same Prefect server and bucket."""
    log = folder / "second.log"
    with log.open("w") as file:
        host = subprocess.Popen(
            [sys.executable, "-m", "stillreel.cli", "host", "--pool", "local"],
            env=env_of(folder / "home")
            | bucket.env
            | {"PREFECT_API_URL": f"{stack.url}/api", "STILLREEL_HOST_NAME": "second"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            yield log
        finally:
            host.terminate()
            assert host.wait(timeout=60) == 0, log.read_text()
    assert not [p for p in psutil.Process().children(recursive=True) if _at(p, folder / "home")]


def _at(process: psutil.Process, home: Path) -> bool:
    try:
        return process.environ().get("STILLREEL_HOME") == str(home)
    except psutil.Error:
        return False
