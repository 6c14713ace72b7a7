"""The host of a running stack is known to the API and shown in Prefect, model and all."""

from __future__ import annotations

import shutil
from typing import Any

import stamina

from stillreel import __version__
from stillreel.host_report import report_of
from tests.stack import Stack

SECONDS = 90.0


def test_the_host_of_the_stack_is_reported_with_its_model(stack: Stack) -> None:
    small = {"prompt": "zoom in", "width": 128, "height": 72, "duration": 0.5}
    stack.wait(stack.submit(small))  # the first job loads the model
    told: dict[str, Any] = {}
    for attempt in stamina.retry_context(
        on=AssertionError, attempts=None, timeout=SECONDS, wait_max=1
    ):
        with attempt:
            told = stack.shim.get("/health").raise_for_status().json()
            assert told["model_loaded"]
    assert (told["status"], told["storage"], told["database"]) == ("ok", "ok", "ok")
    assert bool(told["gpu"]) == bool(shutil.which("nvidia-smi"))
    body = {"artifacts": {"key": {"like_": "host-%"}}}
    [artifact] = stack.api.post("/artifacts/latest/filter", json=body).json()
    report = report_of(artifact)
    assert report
    assert (report.pool, report.models, report.version) == ("local", ("preview",), __version__)
    assert f"| worker | {report.worker} |" in artifact["data"]
