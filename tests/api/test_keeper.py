"""What happens to jobs between requests: images copied, deadlines kept, storage swept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
import stamina
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.states import AwaitingRetry, Running

from stillreel import keys
from stillreel.api.services import Services
from stillreel.chores import copy_images, lifetimes
from stillreel.chores.copy_images import CopyImages
from stillreel.chores.lifetimes import Lifetimes
from stillreel.chores.tally import Tally
from stillreel.jobs import marks
from stillreel.jobs.record import Record
from tests.api.background import keep
from tests.api.calls import upload
from tests.api.conftest import SMALL, Api, StartApi, png, running_api
from tests.receiver import Answer, Exchange, Receiver, answer, redirect, reset
from tests.s3 import Bucket
from tests.stack import free_port

WAIT_SECONDS = 60.0
LIMIT = 50_000
"""Bytes of an image, for the API of these tests."""
HOUR, DAY = timedelta(hours=1), timedelta(days=1)

T = TypeVar("T")


@pytest.fixture(scope="module")
def port() -> int:
    """Where the sources of these tests listen; the one private address that may be fetched."""
    return free_port()


@pytest.fixture(scope="module")
def kept(prefect_api: str, port: int) -> Iterator[Api]:
    """An API whose keeper looks twice a second."""
    env = {
        "STILLREEL_ALLOW_ADDRESSES": f"127.0.0.1:{port}",
        "STILLREEL_KEEPER_SECONDS": "0.5",
        "STILLREEL_IMAGE_MAX_BYTES": str(LIMIT),
    }
    with running_api(env) as running:
        yield running


def eventually(check: Callable[[], T]) -> T:
    """What `check` gives, once it raises no AssertionError."""
    for attempt in stamina.retry_context(
        on=AssertionError, attempts=None, timeout=WAIT_SECONDS, wait_initial=0.05, wait_max=0.3
    ):
        with attempt:
            return check()
    raise AssertionError("it was not tried")


def image(data: bytes | None = None) -> Answer:
    return answer(200, png() if data is None else data, Content_Type="image/png")


def stored(api: Api, job_id: str) -> list[str]:
    """The names of the images that were put or copied for this job."""
    return [info.key.rpartition("/")[2] for info in api.storage.list(keys.inputs_prefix(job_id))]


def tags(api: Api, job_id: str) -> list[str]:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(api.job(job_id)["run_id"])).tags


def copied(api: Api, job_id: str) -> None:
    assert stored(api, job_id)
    assert marks.UNCOPIED not in tags(api, job_id)


def has_status(api: Api, job_id: str, status: str) -> dict[str, Any]:
    job = api.job(job_id)
    assert job["status"] == status
    return job


# --- images are copied ------------------------------------------------------------------------


def test_a_source_that_is_dead_when_the_job_runs_does_no_harm(
    kept: Api, port: int, inference_server: None
) -> None:
    with Receiver((image(),), port=port) as source:
        job_id = kept.submit(image_url=f"{source.url}a.png")["job_id"]
        eventually(lambda: copied(kept, job_id))
    assert len(source.requests) == 1
    assert stored(kept, job_id) == ["input.png"]
    assert kept.execute(job_id).is_completed()
    assert kept.job(job_id)["status"] == "completed"
    assert kept.storage.head(keys.source_key(job_id)), "it was made from the image"


def big() -> bytes:
    return png() + bytes(LIMIT)


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (answer(404), "image_unavailable"),
        (answer(200, b"<html>no image</html>"), "image_rejected"),
        (answer(200, big()), "image_too_large"),
        (redirect("http://10.0.0.1/a.png"), "address_refused"),
        (redirect("http://127.0.0.1:9/a.png"), "address_refused"),
    ],
    ids=["404", "not an image", "too large", "private redirect", "another port"],
)
def test_a_source_that_is_finally_bad_ends_its_job_early(
    kept: Api, port: int, act: Answer, code: str
) -> None:
    with Receiver((act,), port=port) as source:
        job_id = kept.submit(image_url=f"{source.url}a.png")["job_id"]
        job = eventually(lambda: has_status(kept, job_id, "failed"))
    assert job["error_code"] == code
    assert job["error"]
    assert len(source.requests) == 1
    assert stored(kept, job_id) == []
    status = kept.client.get(f"/status/{job_id}").json()
    assert (status["status"], status["error"]) == ("failed", job["error"])


def test_a_job_that_ended_early_can_be_retried_when_its_source_is_mended(
    kept: Api, port: int
) -> None:
    with Receiver((answer(404), image()), port=port) as source:
        job_id = kept.submit(image_url=f"{source.url}a.png")["job_id"]
        eventually(lambda: has_status(kept, job_id, "failed"))
        assert kept.client.post(f"/api/v1/jobs/{job_id}/retry").status_code == 200
        eventually(lambda: copied(kept, job_id))
    assert kept.job(job_id)["status"] == "queued"


def test_a_source_that_fails_twice_is_tried_again(kept: Api, port: int) -> None:
    with Receiver((answer(503), reset, image()), port=port) as source:
        job_id = kept.submit(image_url=f"{source.url}a.png")["job_id"]
        eventually(lambda: copied(kept, job_id))
    assert len(source.requests) == 3
    assert kept.job(job_id)["status"] == "queued"


def test_a_source_that_is_away_for_long_is_left_to_the_host(kept: Api, port: int) -> None:
    job_id = kept.submit(image_url=f"http://127.0.0.1:{port}/a.png")["job_id"]
    tally, now = Tally(), [0.0]

    async def wait_long(services: Services) -> None:
        copying = CopyImages(services, tally, clock=lambda: now[0])
        record = (await services.reader.get(job_id)).record
        await copying.copy(record)
        now[0] += copy_images.PATIENCE_SECONDS
        await copying.copy(record)

    keep(kept, wait_long)
    assert tally.counts == {"image_delayed": 1, "image_left_to_host": 1}
    assert marks.UNCOPIED not in tags(kept, job_id)
    assert kept.job(job_id)["status"] == "queued"


def test_an_upload_wins_over_the_source(kept: Api, port: int) -> None:
    """The source does not answer at first; the caller puts an image in the meantime."""
    mine = png(80, 80)
    with Receiver((answer(503), image()), port=port) as source:
        job_id = kept.submit(image_url=f"{source.url}a.png")["job_id"]
        eventually(lambda: _assert(source.requests))
        upload(kept, mine, job_id=job_id, content_length=len(mine))
        eventually(lambda: copied(kept, job_id))
    assert len(source.requests) == 1
    assert kept.storage.get_bytes(keys.input_key(job_id, "png")) == mine


def test_an_upload_wins_while_the_source_is_read(
    kept: Api, port: int, inference_server: None
) -> None:
    asked, go_on = Event(), Event()

    def slow(exchange: Exchange) -> None:
        asked.set()
        assert go_on.wait(WAIT_SECONDS)
        image(jpeg())(exchange)

    mine = png(80, 160)
    with Receiver((slow,), port=port) as source:
        job_id = kept.submit(image_url=f"{source.url}a.jpg", width=0, height=0)["job_id"]
        assert asked.wait(WAIT_SECONDS)
        upload(kept, mine, job_id=job_id)
        go_on.set()
        eventually(lambda: copied(kept, job_id))
    assert stored(kept, job_id) == ["input.png"]
    assert kept.execute(job_id).is_completed()
    video = kept.job(job_id)["video"]
    assert video["height"] > video["width"], "of the shape of what was uploaded"


def jpeg() -> bytes:
    buffer = BytesIO()
    Image.open(BytesIO(png())).save(buffer, "JPEG")
    return buffer.getvalue()


def _assert(found: Any) -> None:
    assert found


def test_a_job_that_its_own_process_has_forgotten_is_found_by_its_tag(
    kept: Api, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, taken = f"job_{uuid4().hex}", []
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("generate-video/preview-local")
        run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters=SMALL | {"image_url": f"http://127.0.0.1:{port}/a.png"},
            idempotency_key=job_id,
            tags=[marks.UNCOPIED],
        )

    class Taking(CopyImages):
        def take(self, record: Record) -> None:
            taken.append(record.job_id)

    async def look(services: Services) -> None:
        await Taking(services, Tally()).look()

    keep(kept, look)
    assert job_id not in taken, "a new job is left to the process that took its order"
    monkeypatch.setattr(copy_images, "GRACE", timedelta())
    keep(kept, look)
    assert job_id in taken
    with get_client(sync_client=True) as client:
        client.delete_flow_run(run.id)


# --- deadlines --------------------------------------------------------------------------------


def test_a_job_that_is_not_started_in_time_expires_and_can_be_retried(
    kept: Api, inference_server: None
) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=8)
    job_id = kept.submit(deadline=deadline.isoformat())["job_id"]
    assert kept.job(job_id)["status"] == "queued"
    job = eventually(lambda: has_status(kept, job_id, "expired"))
    assert datetime.now(UTC) >= deadline
    assert job["error_code"] == "expired"
    assert kept.client.get(f"/status/{job_id}").json()["status"] == "failed"
    assert kept.client.post(f"/api/v1/jobs/{job_id}/retry").json()["round"] == 2
    eventually(lambda: _assert(marks.DATED not in tags(kept, job_id)))
    job = kept.job(job_id)
    assert (job["status"], job["deadline"]) == ("queued", None)
    assert kept.execute(job_id).is_completed()
    assert kept.job(job_id)["status"] == "completed"


def test_a_job_that_was_begun_in_time_does_not_expire(kept: Api) -> None:
    """Its host has handed it over politely, so it waits again."""
    deadline = datetime.now(UTC) + timedelta(seconds=2)
    job_id = kept.submit(deadline=deadline.isoformat())["job_id"]
    run_id = UUID(kept.job(job_id)["run_id"])
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Running(), force=True)
        client.set_flow_run_state(run_id, AwaitingRetry(), force=True)
    eventually(lambda: _assert(marks.DATED not in tags(kept, job_id)))
    eventually(lambda: _assert(datetime.now(UTC) > deadline + timedelta(seconds=1)))
    kept.forget()
    assert kept.job(job_id)["status"] == "queued"


def test_a_deadline_that_is_to_come_changes_nothing(kept: Api) -> None:
    later = (datetime.now(UTC) + DAY).isoformat()
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    waits, expires = (kept.submit(deadline=at)["job_id"] for at in (later, soon))
    eventually(lambda: has_status(kept, expires, "expired"))
    kept.forget()
    assert kept.job(waits)["status"] == "queued"


def test_what_was_done_is_counted_and_told_with_its_job(
    kept: Api, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stillreel.keeper")
    counts = kept.app.state.keeper.counts
    before = counts.copy()
    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
    with Receiver((image(),), port=port) as source:
        job_id = kept.submit(image_url=f"{source.url}a.png?secret", deadline=soon)["job_id"]
        eventually(lambda: has_status(kept, job_id, "expired"))
        done = {"image_copied", "expired"}
        eventually(lambda: _assert(all(counts[action] > before[action] for action in done)))
    told = [r.getMessage() for r in caplog.records if job_id in r.getMessage()]
    assert {line.split()[0] for line in told} == done
    assert not any("secret" in line for line in told)


# --- lifetimes --------------------------------------------------------------------------------


@pytest.fixture
def bucket(moto_url: str) -> dict[str, str]:
    """The settings of an empty bucket."""
    return Bucket(moto_url, f"videos-{uuid4().hex}").create().env


@pytest.fixture(params=["local", "s3"])
def swept(
    request: pytest.FixtureRequest, start_api: StartApi, tmp_path: Path, bucket: dict[str, str]
) -> Api:
    """An API with a storage of its own, which may be emptied."""
    local = {"STILLREEL_STORAGE_DIR": str(tmp_path)}
    days = {"STILLREEL_INPUT_DAYS": "30", "STILLREEL_OUTPUT_DAYS": "90"}
    return start_api(**(bucket if request.param == "s3" else local), **days)


def sweep(api: Api, after: timedelta, rounds: int = 1) -> Tally:
    """What a keeper of a later day deletes."""
    tally = Tally()

    async def walk(services: Services) -> None:
        chore = Lifetimes(services, tally, now=lambda: datetime.now(UTC) + after)
        for _ in range(rounds):
            await chore.sweep()

    keep(api, walk)
    return tally


def put(api: Api, *names: str) -> None:
    storage = api.storage
    for name in names:
        storage.put_bytes(name, b"some bytes", content_type="application/octet-stream")


def there(api: Api, *names: str) -> list[bool]:
    storage = api.storage
    return [storage.head(name) is not None for name in names]


def test_an_upload_that_no_job_takes_is_deleted_in_the_end(swept: Api) -> None:
    key = keys.input_key(upload(swept, png()), "png")
    claim = timedelta(seconds=swept.settings.storage.upload_claim_seconds)
    sweep(swept, claim - timedelta(minutes=5))
    assert there(swept, key) == [True]
    assert sweep(swept, claim + timedelta(minutes=5)).counts == {"orphan_swept": 1}
    assert there(swept, key) == [False]


def test_an_image_whose_job_was_never_made_is_deleted(swept: Api) -> None:
    key = keys.inline_key(f"job_{'a' * 40}", "b" * 64, "png")
    put(swept, key)
    sweep(swept, HOUR - timedelta(minutes=5))
    assert there(swept, key) == [True]
    assert sweep(swept, HOUR + timedelta(minutes=5)).counts == {"orphan_swept": 1}
    assert there(swept, key) == [False]


def objects(job_id: str) -> list[str]:
    return [
        keys.source_key(job_id),
        keys.input_key(job_id, "png"),
        keys.inline_key(job_id, "b" * 64, "png"),
        keys.latents_key(job_id, "c" * 32),
        keys.output_key(job_id, "output.mp4"),
        keys.output_key(job_id, "receipt.json"),
    ]


def test_nothing_of_a_job_is_deleted_that_has_not_ended(swept: Api) -> None:
    uploaded = upload(swept, png())
    swept.submit(job_id=uploaded)
    with get_client(sync_client=True) as client:  # one that was made in the Prefect UI
        deployment = client.read_deployment_by_name("generate-video/preview-local")
        run = client.create_flow_run_from_deployment(deployment.id, parameters=SMALL)
    names = [*objects(uploaded), *objects(f"job_{run.id.hex}")]
    put(swept, *names)
    assert sweep(swept, 400 * DAY).counts == {}
    assert all(there(swept, *names))


@pytest.mark.parametrize(
    ("days", "left"),
    [
        (29, [True, True, True, True, True, True]),
        (31, [False, False, False, False, True, True]),
        (91, [False, False, False, False, False, True]),
    ],
)
def test_what_an_ended_job_leaves_has_lifetimes(swept: Api, days: int, left: list[bool]) -> None:
    """Its receipt stays: a completed job is one as long as it has that."""
    job_id = swept.submit()["job_id"]
    assert swept.client.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 200
    names = objects(job_id)
    put(swept, *names)
    sweep(swept, days * DAY)
    assert there(swept, *names) == left


def test_results_and_an_operators_own_images_stay_for_ever(
    start_api: StartApi, tmp_path: Path
) -> None:
    api = start_api(STILLREEL_STORAGE_DIR=str(tmp_path), STILLREEL_LATENTS_DAYS="0")
    forgotten = f"job_{'d' * 40}"  # Prefect's vacuum has removed its run
    stay = [
        "inputs/mine/picture.png",
        "inputs/local-00ff/input.png",
        keys.latents_key(forgotten, "c" * 32),
        keys.output_key(forgotten, "output.mp4"),
    ]
    put(api, *stay)
    assert sweep(api, 4000 * DAY).counts == {}
    assert all(there(api, *stay))


def test_what_lies_in_temp_goes_after_a_day_whatever_becomes_of_its_job(swept: Api) -> None:
    names = [f"temp/{swept.submit()['job_id']}/film.json", "temp/anything"]
    put(swept, *names)
    sweep(swept, DAY - HOUR)
    assert there(swept, *names) == [True, True]
    sweep(swept, DAY + HOUR)
    is_the_buckets = swept.settings.storage.kind != "local"
    assert there(swept, *names) == [is_the_buckets, is_the_buckets]


def test_a_note_about_latents_goes_with_them(swept: Api) -> None:
    key = keys.reuse_key("acme", "c" * 32)
    put(swept, key)
    sweep(swept, 31 * DAY)
    assert there(swept, key) == [False]


def test_a_long_walk_is_done_in_parts_and_then_rests(
    swept: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetimes, "CHUNK", 2)
    for n in range(5):
        put(swept, keys.inline_key(f"job_{n}{'a' * 39}", "b" * 64, "png"))
    assert sweep(swept, 2 * HOUR, rounds=2).counts == {"orphan_swept": 4}
    assert sweep(swept, 2 * HOUR, rounds=9).counts == {"orphan_swept": 1}
