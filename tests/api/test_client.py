"""The Python client against a running API; where the network misbehaves, see tests/unit."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import anyio
import pytest
from PIL import Image

from stillreel import errors
from stillreel.client import ApiFailure, ApiUnreachable, AsyncClient, Client, Job, steps
from tests.api.conftest import KEY, SMALL, Api, StartApi, png
from tests.stack import free_port


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, KEY) as client:
        yield client


def big_bmp() -> bytes:
    """A picture of more bytes than travel with an order."""
    buffer = BytesIO()
    Image.linear_gradient("L").resize((2000, 1500)).convert("RGB").save(buffer, "BMP")
    assert len(buffer.getvalue()) > steps.INLINE_BYTES
    return buffer.getvalue()


def input_of(api: Api, job_id: str) -> bytes:
    (found,) = api.storage.list(f"inputs/{job_id}/")
    return api.storage.get_bytes(found.key, limit=100_000_000)


def test_from_a_file_to_a_file(
    api: Api, client: Client, inference_server: None, tmp_path: Path
) -> None:
    picture = tmp_path / "photo.png"
    picture.write_bytes(png())
    made = client.submit("slow zoom in", picture, **SMALL)
    assert (made.status, made.model) == ("queued", "preview")
    told: list[Job] = []
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.wait, made.job_id, on_progress=told.append)
        assert api.execute(made.job_id).is_completed()
        job = waiting.result(60)
    assert job == client.get(made.job_id).model_copy(
        update={
            name: getattr(job, name)
            for name in ("result_url", "poster_url", "teaser_url", "url_expires_at", "delivery")
        }
    )
    assert job.has_ended
    assert job.failure is None
    assert job.progress == told[-1].progress == 100
    assert [t.status for t in told].count(job.status) == 1
    path = client.download(job.job_id, tmp_path)
    assert job.video
    assert hashlib.sha256(path.read_bytes()).hexdigest() == job.video.sha256
    poster = client.download(job.job_id, tmp_path / "p.jpg", variant="poster")
    assert poster.read_bytes().startswith(b"\xff\xd8\xff")
    teaser = client.download(job.job_id, tmp_path, variant="teaser")
    assert teaser.name == f"{job.job_id}-teaser.mp4"
    with pytest.raises(errors.JobConflict):
        client.retry(job.job_id)


def test_the_same_from_asyncio(api: Api, inference_server: None, tmp_path: Path) -> None:
    async def main() -> tuple[Job, Path]:
        async with AsyncClient(api.url, KEY) as client:
            made = await client.submit("slow zoom in", png(), **SMALL)
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, api.execute, made.job_id)
                job = await client.wait(made.job_id)
            assert [j.job_id async for j in client.list(limit=1)] == [job.job_id]
            return job, await client.download(job.job_id, tmp_path)

    job, path = anyio.run(main)
    assert job.video
    assert hashlib.sha256(path.read_bytes()).hexdigest() == job.video.sha256


@pytest.mark.parametrize("kind", ["bytes", "path", "str"])
def test_a_large_image_arrives_by_its_own_upload(
    api: Api, client: Client, kind: str, tmp_path: Path
) -> None:
    data = big_bmp()
    (tmp_path / "big.bmp").write_bytes(data)
    image = {"bytes": data, "path": tmp_path / "big.bmp", "str": str(tmp_path / "big.bmp")}[kind]
    job = client.submit("slow zoom in", image, **SMALL)
    assert input_of(api, job.job_id) == data


def test_a_small_image_arrives_with_its_order(api: Api, client: Client) -> None:
    job = client.submit("slow zoom in", png(), audio=False, deadline="2026-12-24T18:00:00Z")
    assert input_of(api, job.job_id) == png()
    found = client.get(job.job_id)
    assert found.deadline
    assert found.deadline.isoformat() == "2026-12-24T18:00:00+00:00"


def test_an_upload_is_for_one_order(api: Api, client: Client) -> None:
    upload = client.upload(png())
    job = client.submit("slow zoom in", upload, **SMALL)
    assert job.job_id == upload.job_id
    with pytest.raises(errors.IdConflict):
        client.submit("slow zoom in", upload, **SMALL)
    again = client.upload(png())
    first = client.submit("zoom", again, idempotency_key="order-of-an-upload", **SMALL)
    second = client.submit("zoom", again, idempotency_key="order-of-an-upload", **SMALL)
    assert first.job_id == second.job_id == again.job_id


def test_one_key_makes_one_job(client: Client) -> None:
    first = client.submit("zoom", png(), idempotency_key="order-17", **SMALL)
    second = client.submit("zoom", png(), idempotency_key="order-17", **SMALL)
    assert first.job_id == second.job_id
    with pytest.raises(errors.KeyReused) as caught:
        client.submit("zoom", png(170), idempotency_key="order-17", **SMALL)
    assert isinstance(caught.value, ApiFailure)
    assert caught.value.request_id


def test_wrong_fields_are_named(client: Client) -> None:
    with pytest.raises(errors.RequestRejected) as caught:
        client.submit("zoom", duration=-1)
    failure = caught.value
    assert isinstance(failure, ApiFailure)
    assert [field["pointer"] for field in failure.errors] == ["#/duration"]


def test_a_private_address_is_refused_as_the_api_does(client: Client) -> None:
    with pytest.raises(errors.AddressRefused):
        client.submit("zoom", "http://127.0.0.1/a.png")


def test_events_tell_the_end(client: Client) -> None:
    job_id = client.submit("zoom", png(), **SMALL).job_id
    events = client.events(job_id)
    assert next(events).job.status == "queued"
    client.cancel(job_id)
    last = list(events)[-1]
    assert (last.kind, last.job.status) == ("end", "cancelled")
    assert isinstance(last.job.failure, errors.JobCancelled)
    assert [event.kind for event in client.events(job_id)] == ["end"]


def test_waiting_goes_on_without_a_stream(start_api: StartApi) -> None:
    api = start_api(STILLREEL_STREAMS_MAX="1")
    with Client(api.url, KEY) as client, ThreadPoolExecutor() as pool:
        job_id = client.submit("zoom", png(), **SMALL).job_id
        only = client.events(job_id)
        next(only)
        seen = threading.Event()
        waiting = pool.submit(client.wait, job_id, on_progress=lambda _: seen.set())
        assert seen.wait(60)
        client.cancel(job_id)
        assert waiting.result(60).status == "cancelled"
        only.close()


def test_a_cancelled_job_is_tried_again(client: Client) -> None:
    job_id = client.submit("zoom", png(), **SMALL).job_id
    client.cancel(job_id)
    assert client.wait(job_id).status == "cancelled"
    job = client.retry(job_id)
    assert (job.status, job.round) == ("queued", 2)
    client.cancel(job_id)


def test_a_deleted_job_is_gone(client: Client) -> None:
    job_id = client.submit("zoom", png(), **SMALL).job_id
    assert client.delete(job_id)
    assert client.delete(job_id)
    with pytest.raises(errors.JobDeleted):
        client.get(job_id)
    with pytest.raises(errors.JobDeleted):
        client.wait(job_id)


def test_a_batch_is_one_call(api: Api, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    items: list[steps.Item] = [
        {"prompt": "zoom", "image": png()},
        {"prompt": "no such thing", "image": png(), "duration": -1.0},
        {"prompt": "pan", "image": big_bmp()},
    ]
    answer = client.submit_batch(items, duration=0.5)
    made = [result.job_id for result in answer.results]
    assert (answer.created, answer.failed) == (2, 1)
    assert made[0]
    assert made[2]
    assert input_of(api, made[0]) == png()
    assert answer.results[1].error
    assert answer.results[1].error["code"] == "request_rejected"
    assert client.batch(answer.batch_id).counts["queued"] == 2
    monkeypatch.setattr(steps, "PAGE", 1)
    listed = [job.job_id for job in client.list(batch_id=answer.batch_id)]
    assert sorted(listed) == sorted(filter(None, made))
    assert client.cancel_batch(answer.batch_id).total == 2


def test_a_batch_of_which_nothing_can_be_made_says_why(client: Client) -> None:
    with pytest.raises(errors.RequestRejected) as caught:
        client.submit_batch([{"prompt": "zoom", "duration": -1}])
    assert isinstance(caught.value, ApiFailure)
    assert caught.value.problem["results"][0]["error"]["errors"][0]["pointer"]


def test_what_a_video_would_take(client: Client) -> None:
    found = client.estimate("zoom", duration=2.0, width=1280, height=720)
    assert (found.model, found.width, found.height) == ("preview", 1280, 720)
    assert found.queue
    assert found.queue.position >= 1


def test_models_are_listed_with_the_default_first(client: Client) -> None:
    models = client.models()
    assert [model.default for model in models] == [True, *(False for _ in models[1:])]
    assert "preview" in [model.id for model in models]


def test_usage_counts_by_model(client: Client) -> None:
    usage = client.usage(group_by=["model"])
    assert usage.owner == "default"
    assert all(row.model for row in usage.rows)


def test_another_key_is_refused(api: Api) -> None:
    with Client(api.url, "sr_another") as client, pytest.raises(errors.Unauthorized) as caught:
        client.get("job_00000000")
    assert "sr_another" not in str(caught.value)


def test_no_api_is_said_to_be_none() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, KEY, patience=0.1) as client:  # noqa: SIM117
        with pytest.raises(ApiUnreachable, match="stillreel up") as caught:
            client.get("job_00000000")
    assert url in str(caught.value)


def test_what_is_on_this_machine_is_not_asked_of_a_proxy(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Client(api.url, KEY) as client:
        assert client.models()


def test_the_examples_of_the_guide_are_python() -> None:
    guide = Path(__file__).parents[2] / "docs" / "client.md"
    blocks = guide.read_text().split("```python\n")[1:]
    assert blocks
    for n, block in enumerate(blocks):
        compile(block.partition("```")[0], f"docs/client.md, example {n + 1}", "exec")
