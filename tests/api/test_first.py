"""The shortest way through the API."""

from __future__ import annotations

from tests.api.conftest import Api


def test_a_job_goes_from_its_order_to_its_video(api: Api, inference_server: None) -> None:
    made = api.submit()
    assert made["status"] == "queued"
    assert api.execute(made["job_id"]).is_completed()
    job = api.job(made["job_id"])
    assert (job["status"], job["progress"]) == ("completed", 100)
    video = api.client.get(job["result_url"], headers={"Authorization": ""})
    assert video.content[4:8] == b"ftyp"
    assert video.headers["content-type"] == "video/mp4"
