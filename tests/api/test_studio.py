"""What the studio page asks for beside the API: who the key is, and one job's details."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import stamina

from stillreel.job import Stage
from tests.api.conftest import SMALL, Api, StartApi, png
from tests.api.outside import another_owner

UI = "https://prefect.example.com"


class _NotYet(Exception):
    """Prefect has not written all task runs down yet."""


def details(api: Api, job_id: str) -> dict[str, Any]:
    answer = api.client.get(f"/studio/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


@stamina.retry(on=_NotYet, attempts=None, timeout=120, wait_initial=0.1, wait_max=1.0)
def whole(api: Api, job_id: str) -> dict[str, Any]:
    """The details, once all five stages have ended in Prefect too."""
    found = details(api, job_id)
    if [span["state"] for span in found["timeline"]] != ["done"] * len(Stage):
        raise _NotYet
    return found


def test_the_page_is_at_the_root_and_needs_no_key(api: Api) -> None:
    answer = httpx.get(api.url, trust_env=False)
    assert answer.headers["content-type"].startswith("text/html")
    assert "script-src 'self';" in answer.headers["content-security-policy"]


def test_a_session_says_who_the_key_is(api: Api) -> None:
    session = api.client.get("/studio/session").json()
    assert session["owner"] == "default"
    assert session["scopes"] == ["admin", "generate", "read"]
    assert session["body_max_bytes"] == api.settings.api.body_max_bytes
    assert "image/png" in session["image_types"]
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.get(f"{api.url}/studio/session", headers=headers, trust_env=False)
        assert answer.status_code == 401


def test_only_admins_are_told_where_the_prefect_ui_is(start_api: StartApi) -> None:
    api = start_api(STILLREEL_PREFECT_UI_URL=UI + "/", STILLREEL_KEEPER_LEADS="false")
    assert api.client.get("/studio/session").json()["prefect_ui_url"] == UI
    with another_owner(api, scopes=["read"]) as reader:
        found = reader.get("/studio/session").json()
    assert (found["prefect_ui_url"], found["scopes"]) == ("", ["read"])


def test_details_have_the_receipt_the_stages_and_the_image(
    api: Api, inference_server: None
) -> None:
    form = {name: str(value) for name, value in SMALL.items()}
    answer = api.client.post("/api/v1/generate", data=form, files={"image": ("a.png", png())})
    job_id = answer.json()["job_id"]

    before = details(api, job_id)
    assert (before["receipt"], before["timeline"]) == (None, [])
    assert (before["parameters"]["width"], before["parameters"]["height"]) == (128, 72)
    assert "owner" not in before["parameters"]
    assert httpx.get(before["input_url"], trust_env=False).content == png()

    assert api.execute(job_id).is_completed()
    found = whole(api, job_id)
    assert [span["stage"] for span in found["timeline"]] == list(Stage)
    assert found["receipt"]["job_id"] == job_id
    assert found["receipt"]["model"]["seed"] == SMALL["seed"]
    source = httpx.get(found["input_url"], trust_env=False)
    assert source.headers["content-type"] == "image/png"
    assert "source.png" in found["input_url"]


def test_details_tell_what_was_switched_off(api: Api) -> None:
    job_id = api.submit(audio=False, quality="high")["job_id"]
    found = details(api, job_id)["parameters"]
    assert (found["audio"], found["quality"]) == (False, "high")
    assert not {"negative_prompt", "image_url"} & found.keys()


def test_a_job_without_an_image_has_none(api: Api) -> None:
    assert details(api, api.submit()["job_id"])["input_url"] is None


@pytest.mark.parametrize("path", ["/studio/jobs/{}", "/api/v1/jobs/{}"])
def test_another_owners_job_is_answered_like_none(api: Api, path: str) -> None:
    job_id = api.submit()["job_id"]
    with another_owner(api, scopes=["read"]) as reader:
        answer = reader.get(path.format(job_id))
    assert (answer.status_code, answer.json()["code"]) == (404, "job_unknown")
