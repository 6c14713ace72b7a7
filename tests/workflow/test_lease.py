"""A whole job on a host that has no storage of its own: what it needs is lent to it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from stillreel.job import spec_of
from stillreel.keys import output_key
from stillreel.settings import StorageSettings, get_settings
from tests.lent import TOKEN, lender
from tests.workflow.conftest import MakeJob, png


def test_a_job_is_made_with_lent_storage(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StorageSettings.model_validate({"storage_dir": tmp_path / "storage"})
    with lender(folder, tmp_path / "api") as api:
        key = "inputs/shared/picture.png"
        api.storage.put_bytes(key, png(), content_type="image/png")
        job = make_job(image_key=key, prompt="slow zoom in")
        spec = spec_of(job.run.parameters)
        api.door.orders[str(job.run_id)] = (job.job_id, spec)
        monkeypatch.setenv("STILLREEL_LEASE_URL", f"{api.url}/lease")
        monkeypatch.setenv("STILLREEL_LEASE_TOKEN", TOKEN)
        get_settings.cache_clear()

        video = job.video()

        receipt = json.loads(api.storage.get_bytes(output_key(job.job_id, "receipt.json")))
        assert receipt["video"]["sha256"] == video.sha256
        shared = [re.split(r"-\d-", info.key)[0] for info in api.storage.list("results/")]
        assert shared == ["results/fetch-image", "results/infer"]
        assert not list(api.storage.list("latents/index/"))

        shutil.rmtree(get_settings().host.home / "results")  # as on another host
        assert job.video().sha256 == video.sha256
        states = [(run.name.partition("-")[0], run.state_name) for run in job.task_runs(10)]
        assert [name for name, state in states if state == "Cached"] == ["fetch", "infer"]
