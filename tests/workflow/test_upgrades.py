"""Jobs of the release before on today's engine: one waits, one is half done."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client

from stillreel import keys
from stillreel.storage import Storage
from tests.releases import RELEASES, read, result

from .conftest import Job, read_json

NEWEST = RELEASES[-1]


@pytest.mark.parametrize("name", ["queued", "broken"])
def test_a_job_of_the_release_before_is_carried_out(
    prefect_api: None, inference_server: None, storage: Storage, name: str
) -> None:
    given = read(NEWEST / f"{name}_run.json")
    job = as_it_was(given)
    order = given["parameters"]
    image = (NEWEST / "input.png").read_bytes()
    storage.put_bytes(order["image_key"], image, content_type="image/png")
    latents = result(NEWEST, "broken_infer")
    if name == "broken":
        storage.put_file(latents.key, NEWEST / "broken_latents.safetensors", content_type="")

    video = job.video()

    assert (video.key, video.width, video.height) == (f"outputs/{job.job_id}/output.mp4", 96, 54)
    receipt = read_json(storage, keys.output_key(job.job_id, "receipt.json"))
    assert receipt["input"]["prompt"] == order["prompt"]
    if name == "broken":
        # what the inference took is told by its latents: those of the release before
        took = {phase: round(seconds, 3) for phase, seconds in latents.seconds.items()}
        assert receipt["took"]["infer_seconds"] == took
        assert receipt["video"]["frames"] == result(NEWEST, "broken_encode").frames


def as_it_was(given: dict[str, Any]) -> Job:
    """A run with the parameters, tags and labels that the release before gave it."""
    from flows.generate_video import generate_video

    body = {
        **{name: given[name] for name in ("name", "parameters", "tags", "idempotency_key")},
        "state": {"type": "PENDING", "name": "Pending"},
    }
    # "prefect." is Prefect's own, and names what is not on this server
    ours = {k: v for k, v in given["labels"].items() if k.startswith("stillreel.")}
    with get_client(sync_client=True) as client:
        body["flow_id"] = str(client.create_flow(generate_video))
        run_id = UUID(client.request("POST", "/flow_runs/", json=body).json()["id"])
        client.update_flow_run_labels(run_id, ours)
    return Job(run_id, given["idempotency_key"])
