"""`/v1`: OpenAI's own client makes, waits for, lists, downloads and deletes videos here."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from openai import (
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    ConflictError,
    DefaultAsyncHttpxClient,
    DefaultHttpxClient,
    InternalServerError,
    NotFoundError,
    OpenAI,
    RateLimitError,
    UnprocessableEntityError,
)
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed

from stillreel.api.openai import POLL_MS_LIMIT, poll_ms
from tests.api.calls import upload
from tests.api.conftest import KEY, Api, StartApi, png
from tests.s3 import Bucket
from tests.stack import free_port

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

SMALL: dict[str, Any] = {"prompt": "slow zoom in", "size": "128x72"}
UNKNOWN_ID = "job_00000000000000000000000000"


class Client(OpenAI):
    """OpenAI's client, which also keeps what it sent and what it was answered."""

    def __init__(self, api: Api, key: str = KEY, **options: Any) -> None:
        self.sent: list[httpx2.Request] = []
        self.made: queue.Queue[str] = queue.Queue()
        hooks = {"request": [self.sent.append], "response": [self._look]}
        http = DefaultHttpxClient(trust_env=False, event_hooks=hooks)
        super().__init__(base_url=f"{api.url}/v1", api_key=key, http_client=http, **options)

    def _look(self, response: httpx2.Response) -> None:
        if response.request.method == "POST" and response.is_success:
            self.made.put(json.loads(response.read())["id"])


@pytest.fixture
def openai(api: Api) -> Iterator[Client]:
    with Client(api) as client:
        yield client


@pytest.fixture(scope="module")
def finished(api: Api, inference_server: None) -> str:
    """The id of a job that has its video."""
    job_id = api.submit()["job_id"]
    assert api.execute(job_id).is_completed()
    return job_id


def parameters_of(api: Api, job_id: str) -> dict[str, Any]:
    """What the flow run of a job is given."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(api.job(job_id)["run_id"]).parameters


def stored_image(api: Api, job_id: str) -> bytes:
    return api.storage.get_bytes(parameters_of(api, job_id)["image_key"])


def data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


# --- from the order to the bytes --------------------------------------------------------------


def test_create_and_poll_returns_the_finished_video(
    api: Api, openai: Client, inference_server: None
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            copy_context().run, lambda: openai.videos.create_and_poll(**SMALL, seconds="4")
        )
        job_id = openai.made.get(timeout=60)
        assert api.execute(job_id).is_completed()
        video = waiting.result(timeout=60)
    assert (video.id, video.object, video.status, video.progress) == (
        job_id,
        "video",
        "completed",
        100,
    )
    assert (video.seconds, video.size, video.prompt) == ("4", "128x72", "slow zoom in")
    assert (video.model, video.error, video.remixed_from_video_id) == ("preview", None, None)
    assert video.created_at <= (video.completed_at or 0)
    assert video.model_extra is not None
    assert video.model_extra["usage"]["duration_seconds"] == pytest.approx(4, abs=0.1)
    assert video.model_extra["cost"]["usd"] == 0


def test_download_content_gives_the_stored_bytes(
    api: Api, openai: Client, finished: str, tmp_path: Path
) -> None:
    stored = api.storage.get_bytes(f"outputs/{finished}/output.mp4")
    assert openai.videos.download_content(finished).read() == stored
    with openai.videos.with_streaming_response.download_content(finished) as answer:
        answer.stream_to_file(tmp_path / "video.mp4")
    assert (tmp_path / "video.mp4").read_bytes() == stored
    poster = openai.videos.download_content(finished, variant="thumbnail")
    assert poster.read() == api.storage.get_bytes(f"outputs/{finished}/poster.jpg")
    assert poster.response.headers["content-type"] == "image/jpeg"


def test_content_answers_range(api: Api, finished: str) -> None:
    stored = api.storage.get_bytes(f"outputs/{finished}/output.mp4")
    answer = api.client.get(f"/v1/videos/{finished}/content", headers={"Range": "bytes=4-7"})
    assert (answer.status_code, answer.content) == (206, b"ftyp")
    assert answer.headers["content-range"] == f"bytes 4-7/{len(stored)}"
    beyond = {"Range": f"bytes={len(stored)}-"}
    answer = api.client.get(f"/v1/videos/{finished}/content", headers=beyond)
    assert (answer.status_code, answer.json()["error"]["type"]) == (416, "invalid_request_error")
    assert answer.headers["content-range"] == f"bytes */{len(stored)}"


def test_a_bucket_serves_the_bytes_and_never_sees_the_key(
    api: Api, finished: str, start_api: StartApi, moto_url: str
) -> None:
    made = Bucket(moto_url, f"videos-{uuid4().hex}").create()
    remote: Api = start_api(**made.env)
    job_id = remote.submit()["job_id"]
    for name in ("output.mp4", "poster.jpg", "receipt.json"):
        data = api.storage.get_bytes(f"outputs/{finished}/{name}")
        remote.app.state.services.storage.put_bytes(
            f"outputs/{job_id}/{name}", data, content_type="application/octet-stream"
        )
    with get_client(sync_client=True) as prefect:
        prefect.set_flow_run_state(remote.job(job_id)["run_id"], Completed(), force=True)
    remote.forget()
    with Client(remote) as client:
        stored = api.storage.get_bytes(f"outputs/{finished}/output.mp4")
        assert client.videos.download_content(job_id).read() == stored
        ours, bucket = client.sent
    assert "authorization" in ours.headers
    assert str(bucket.url).startswith(moto_url)
    assert KEY not in str(bucket.url) + str(bucket.headers.raw)


def test_the_async_client_does_the_same(api: Api, finished: str) -> None:
    async def use() -> None:
        http = DefaultAsyncHttpxClient(trust_env=False)
        async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key=KEY, http_client=http) as client:
            made = await client.videos.create(**SMALL, input_reference=("a.png", png()))
            assert (await client.videos.retrieve(made.id)).status == "queued"
            assert made.id == (await anext(aiter(client.videos.list(limit=2)))).id
            content = await client.videos.download_content(finished)
            assert content.content[4:8] == b"ftyp"

    asyncio.run(use())


# --- what an order may say --------------------------------------------------------------------


def test_a_file_becomes_the_image(api: Api, openai: Client, tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    path.write_bytes(png())
    with path.open("rb") as file:
        made = openai.videos.create(**SMALL, input_reference=file)
    assert (made.status, made.size, made.seconds) == ("queued", "128x72", "5")
    assert stored_image(api, made.id) == png()


@pytest.mark.parametrize(
    "fields",
    [
        {"input_reference": {"image_url": data_url(png())}},
        {"image_reference": {"image_url": data_url(png())}},
        {"image_reference": json.dumps({"image_url": data_url(png())})},
        {"extra_body": {"input_reference": {"image_url": data_url(png())}}},
        {"extra_params": json.dumps({"image_base64": data_url(png())})},
    ],
)
@pytest.mark.parametrize("content_type", ["multipart/form-data", "application/json"])
def test_an_image_may_come_as_an_object(
    api: Api, openai: Client, content_type: str, fields: dict[str, Any]
) -> None:
    if content_type == "multipart/form-data" and "extra_body" in fields:
        fields = {"extra_body": json.dumps(fields["extra_body"])}
    made = openai.videos.create(
        **SMALL, extra_body=fields, extra_headers={"Content-Type": content_type}
    )
    assert stored_image(api, made.id) == png()


def test_a_public_address_is_taken_as_it_is(api: Api, openai: Client) -> None:
    url = "https://1.1.1.1/still.png"
    made = openai.videos.create(**SMALL, extra_body={"input_reference": {"image_url": url}})
    assert parameters_of(api, made.id)["image_url"] == url


def test_an_upload_is_ordered_as_a_file_id(api: Api, openai: Client) -> None:
    job_id = upload(api, png())
    reference = {"input_reference": {"file_id": job_id}}
    made = openai.videos.create(**SMALL, extra_body=reference)
    assert made.id == job_id
    assert stored_image(api, made.id) == png()


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"seconds": "8"}, {"duration": 8.0}),
        ({"seconds": 12}, {"duration": 12.0}),
        ({"size": "1280x720"}, {"width": 1280, "height": 720}),
        ({"num_frames": 121}, {"duration": 5.0}),
        ({"num_frames": 121, "fps": 60}, {"duration": 2.0, "fps": 60}),
        ({"num_inference_steps": 4, "seed": 7}, {"steps": 4, "seed": 7}),
        ({"negative_prompt": "blur"}, {"negative_prompt": "blur"}),
        ({"extra_body": {"seed": 9, "quality": "high"}}, {"seed": 9, "quality": "high"}),
        ({"model": "preview", "preset": "standard"}, {"model": "preview", "preset": "standard"}),
        ({"duration": 3, "width": 64, "height": 64}, {"duration": 3.0, "width": 64}),
    ],
)
@pytest.mark.parametrize("content_type", ["multipart/form-data", "application/json"])
def test_the_words_of_open_servers_are_understood(
    api: Api,
    openai: Client,
    content_type: str,
    fields: dict[str, Any],
    parameters: dict[str, Any],
) -> None:
    made = openai.videos.create(
        prompt="pan left", extra_body=fields, extra_headers={"Content-Type": content_type}
    )
    found = parameters_of(api, made.id)
    assert {name: found[name] for name in parameters} == parameters


def test_what_has_no_effect_is_said(openai: Client) -> None:
    made = openai.videos.create(**SMALL, extra_body={"guidance_scale": 7.5})
    assert made.model_extra is not None
    assert "guidance_scale" in made.model_extra["warnings"][0]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "required"),
        ({"prompt": "x" * 5000}, "prompt", "4000"),
        ({"prompt": "a\x00b"}, None, "NUL"),
        ({"model": "sora-2"}, None, "preview"),
        ({"seconds": "31"}, "seconds", "30"),
        ({"seconds": "soon"}, "seconds", "number"),
        ({"seconds": "nan"}, "seconds", ""),
        ({"size": "big"}, "size", "pattern"),
        ({"size": "8x8"}, None, "16 to 4096"),
        ({"size": "9999x9999"}, "width", "4096"),
        ({"fps": 23}, None, "24, 25, 30"),
        ({"seconds": 4, "num_frames": 97}, None, "keep one"),
        ({"size": "128x72", "width": 128}, None, "keep one"),
        ({"guidance_scale": -1}, "guidance_scale", "0"),
        ({"motion": 5}, "motion", "not permitted"),
        ({"extra_params": "{"}, None, "JSON object"),
        ({"extra_params": "[1]"}, None, "JSON object"),
        ({"extra_params": {"motion": 5}}, "motion", "not permitted"),
        ({"input_reference": "https://example.com/a.png"}, None, "JSON object"),
        ({"input_reference": {"file_id": "file-1"}}, None, "presign/upload"),
        ({"input_reference": {"file_id": UNKNOWN_ID}}, None, "no such job_id"),
        ({"input_reference": {"image_url": "http://127.0.0.1/a.png"}}, None, "public"),
        ({"input_reference": {"image_url": "data:image/png,x"}}, None, "base64"),
        ({"input_reference": {"image_url": data_url(b"no picture")}}, None, "image"),
        ({"input_reference": {"image_url": "a", "file_id": "b"}}, "input_reference", "either"),
        ({"image_url": "https://1.1.1.1/a", "job_id": UNKNOWN_ID}, None, "keep one"),
    ],
)
def test_a_bad_order_is_refused_by_name(
    openai: Client, fields: dict[str, Any], param: str | None, says: str
) -> None:
    with pytest.raises((UnprocessableEntityError, NotFoundError)) as caught:
        openai.videos.create(prompt="pan", extra_body=fields)
    error = caught.value
    assert isinstance(error.body, dict)
    assert {"message", "type", "param", "code"} == set(error.body)
    assert error.type == "invalid_request_error"
    assert says.lower() in error.body["message"].lower(), error.body
    if param:
        assert error.param == param
    assert len(openai.sent) == 1


@pytest.mark.parametrize("body", ["{", "[]", "", '{"prompt": "x", "seconds": NaN}', '"x"'])
def test_a_broken_body_is_refused(api: Api, body: str) -> None:
    answer = api.client.post(
        "/v1/videos", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_an_image_may_not_come_twice(openai: Client) -> None:
    reference = {"image_reference": json.dumps({"image_url": "https://1.1.1.1/a.png"})}
    with pytest.raises(UnprocessableEntityError, match="twice"):
        openai.videos.create(**SMALL, input_reference=png(), extra_body=reference)


def test_the_same_key_makes_the_same_video(openai: Client) -> None:
    key = {"Idempotency-Key": "openai-1"}
    made = openai.videos.create(**SMALL, extra_headers=key)
    again = openai.videos.with_raw_response.create(**SMALL, extra_headers=key)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.parse().id == made.id
    with pytest.raises(UnprocessableEntityError) as caught:
        openai.videos.create(prompt="another", extra_headers=key)
    assert caught.value.code == "idempotency_key_reused"


# --- reading ----------------------------------------------------------------------------------


def test_a_waiting_video_says_when_to_ask_again(openai: Client, finished: str) -> None:
    made = openai.videos.create(**SMALL)
    waiting = openai.videos.with_raw_response.retrieve(made.id)
    assert waiting.parse().status == "queued"
    assert 1000 <= int(waiting.headers["openai-poll-after-ms"]) <= POLL_MS_LIMIT
    ended = openai.videos.with_raw_response.retrieve(finished)
    assert "openai-poll-after-ms" not in ended.headers


@pytest.mark.parametrize(
    ("place", "milliseconds"), [(None, 1000), (0, 1000), (4, 1000), (20, 5000), (10_000, 10_000)]
)
def test_who_waits_far_behind_asks_less_often(place: int | None, milliseconds: int) -> None:
    assert poll_ms(place) == milliseconds


def test_a_cancelled_job_is_a_failed_video(api: Api, openai: Client) -> None:
    made = openai.videos.create(**SMALL)
    assert api.client.post(f"/api/v1/jobs/{made.id}/cancel").is_success
    with get_client(sync_client=True) as prefect:
        prefect.set_flow_run_state(api.job(made.id)["run_id"], Cancelled(), force=True)
    api.forget()
    video = openai.videos.poll(made.id)
    assert video.error is not None
    assert (video.status, video.error.code) == ("failed", "cancelled")
    assert video.completed_at is None


def test_lists_go_page_by_page_in_both_orders(start_api: StartApi) -> None:
    with Client(start_api(STILLREEL_API_OWNER="pager")) as openai:
        made = [openai.videos.create(**SMALL).id for _ in range(7)]
        newest = [video.id for video in openai.videos.list(limit=2)]
        assert newest == made[::-1]
        oldest = [video.id for video in openai.videos.list(limit=3, order="asc")]
        assert oldest == made
        page = openai.videos.list(limit=2, after=made[3])
        assert [video.id for video in page.data] == [made[2], made[1]]
        assert page.has_more


def test_a_list_after_an_unknown_video_is_refused(openai: Client) -> None:
    with pytest.raises(NotFoundError):
        openai.videos.list(after=UNKNOWN_ID)


def test_the_models_that_are_offered(openai: Client) -> None:
    assert "preview" in [model.id for model in openai.models.list()]
    assert openai.models.retrieve("preview").id == "preview"
    with pytest.raises(NotFoundError):
        openai.models.retrieve("sora-2")


# --- deleting ---------------------------------------------------------------------------------


def test_delete_leaves_nothing_to_download(api: Api, openai: Client) -> None:
    image = openai.videos.create(**SMALL, input_reference=png())
    assert list(api.storage.list(f"inputs/{image.id}/"))
    gone = openai.videos.delete(image.id)
    assert (gone.id, gone.deleted, gone.object) == (image.id, True, "video.deleted")
    assert not list(api.storage.list(f"inputs/{image.id}/"))
    with pytest.raises(APIStatusError) as caught:
        openai.videos.retrieve(image.id)
    assert caught.value.status_code in (404, 410)
    assert image.id not in [video.id for video in openai.videos.list(limit=5).data]


def test_a_list_goes_on_while_what_it_lists_is_deleted(openai: Client) -> None:
    kept, *made = [openai.videos.create(**SMALL).id for _ in range(5)]
    seen = []
    for video in openai.videos.list(limit=2):
        seen.append(video.id)
        if video.id == kept:
            break
        openai.videos.delete(video.id)
    assert seen == [*made[::-1], kept]


# --- errors -----------------------------------------------------------------------------------


def test_a_wrong_key_is_an_authentication_error(api: Api) -> None:
    with Client(api, "another-key") as client:
        for call in (lambda: client.videos.create(**SMALL), client.videos.list, client.models.list):
            with pytest.raises(AuthenticationError, match="Invalid API key"):
                call()


def test_an_unknown_video_is_not_found(openai: Client) -> None:
    for call in (
        openai.videos.retrieve,
        openai.videos.download_content,
        openai.videos.delete,
    ):
        for video_id in (UNKNOWN_ID, "video_123", "../models"):
            with pytest.raises(NotFoundError):
                call(video_id)


def test_a_used_up_minute_is_a_rate_limit_error(start_api: StartApi) -> None:
    api: Api = start_api(STILLREEL_REQUESTS_PER_MINUTE="1")
    with Client(api, max_retries=0) as client:
        client.models.list()
        with pytest.raises(RateLimitError) as caught:
            client.models.list()
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_what_cannot_succeed_is_not_sent_again(openai: Client) -> None:
    made = openai.videos.create(**SMALL)
    for call, error in (
        (lambda: openai.videos.download_content(made.id), ConflictError),
        (
            lambda: openai.videos.download_content(made.id, variant="spritesheet"),
            InternalServerError,
        ),
        (lambda: openai.videos.remix(made.id, prompt="x"), InternalServerError),
        (lambda: openai.videos.edit(prompt="x", video=b"x"), InternalServerError),
        (
            lambda: openai.videos.extend(prompt="x", seconds="4", video=b"x"),
            InternalServerError,
        ),
        (
            lambda: openai.videos.create_character(name="x", video=b"x"),
            InternalServerError,
        ),
        (lambda: openai.videos.get_character("x"), InternalServerError),
    ):
        openai.sent.clear()
        with pytest.raises(error):
            call()
        assert len(openai.sent) == 1


def test_an_order_without_a_key_is_not_repeated_when_its_fate_is_unknown(
    prefect_api: str, start_api: StartApi
) -> None:
    away = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings(updates={PREFECT_API_URL: away}):
        api: Api = start_api(STILLREEL_PREFECT_SECONDS="0.3")
    with Client(api) as client:
        with pytest.raises(InternalServerError) as caught:
            client.videos.create(**SMALL)
        assert caught.value.status_code == 503
        assert len(client.sent) == 1
    safe = api.client.post("/v1/videos", json=SMALL, headers={"Idempotency-Key": "away"})
    assert (safe.status_code, "x-should-retry" in safe.headers) == (503, False)
