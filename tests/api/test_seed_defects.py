"""What broke in the two seed designs, one test per row that concerns the API.

The rows are those of the report on the seeds: L of the one with LTX, W of the one with WAN. Rows of
the worker (L1-L4, L18, L25, W1-W3, W10) have their tests where kills and encoding are tested.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.states import Running

from tests.api.background import eventually
from tests.api.calls import order
from tests.api.conftest import KEY, SMALL, Api, StartApi, png, running_api
from tests.api.outside import (
    INNER_WORDS,
    UNKNOWN_ID,
    Door,
    another_owner,
    assert_problem,
    assert_serves,
    count_runs,
    exchange,
    stored,
)
from tests.receiver import Answer, Receiver, answer, drip_body, hang, redirect, reset

SECRET = "the-secret-of-the-operator"
PRIVATE = (
    *("http://127.0.0.1:1/", "http://10.0.0.1/hook", "http://2130706433/"),
    *("http://169.254.169.254/latest/meta-data/", "http://[::ffff:10.0.0.1]/"),
)


def again(api: Api, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    """The answer to an order that is sent, as after every 503, until Prefect is reached in time."""
    for attempt in eventually():
        with attempt:
            made = api.client.post("/generate", json=body, headers=headers)
            assert made.status_code == 200, made.text
    return made


def cancel(api: Api, job_id: str) -> None:
    assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success


@contextmanager
def told(*answers: Answer, host: str = "127.0.0.1") -> Iterator[tuple[Receiver, str]]:
    """A receiver, and the pair that lets it be called."""
    with Receiver(answers or (answer(),), host) as receiver:
        yield receiver, f"{host}:{receiver.port}"


def arrived(receiver: Receiver, count: int = 1) -> None:
    for attempt in eventually():
        with attempt:
            assert len(receiver.requests) >= count


# --- webhooks ---------------------------------------------------------------------------------


def test_l5_a_receiver_that_is_down_is_told_later(start_api: StartApi) -> None:
    """Webhooks were fire-and-forget: a 500 once, and the message was lost."""
    api = start_api()  # with a keeper that looks every few seconds
    with (
        told(answer(500), answer()) as (receiver, _),
        another_owner(api, receiver=receiver.url) as owner,
    ):
        # All APIs here know this receiver, so whichever keeper looks next may tell it.
        job_id = owner.post("/generate", json={"prompt": "a cat"}).json()["job_id"]
        assert owner.post(f"/api/v1/jobs/{job_id}/cancel").is_success
        arrived(receiver, 2)
    first, second = receiver.requests[:2]
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == f"{job_id}-r1"


def test_l6_an_api_that_was_away_knows_how_a_job_ended(api: Api, inference_server: None) -> None:
    """The API learned of completions by one webhook: 6 of 8 jobs stayed queued for ever."""
    with running_api({}) as before:
        job_id = before.submit()["job_id"]
    assert api.execute(job_id).is_completed()
    with running_api({}) as after:
        assert after.job(job_id)["status"] == "completed"
        assert httpx.get(after.job(job_id)["result_url"], trust_env=False).status_code == 200


def test_l7_the_secret_goes_to_nobody_who_was_only_named_by_a_caller(start_api: StartApi) -> None:
    """The secret went in clear to every webhook_url, and again after a redirect; unsigned."""
    with told(redirect("http://127.0.0.1:1/", 307)) as (receiver, pair):
        api = start_api(STILLREEL_ALLOW_ADDRESSES=pair, STILLREEL_WEBHOOK_SECRET=SECRET)
        job_id = api.submit(webhook_url=receiver.url)["job_id"]
        cancel(api, job_id)
        arrived(receiver)
        for attempt in eventually():
            with attempt:
                assert "redirect" in (api.job(job_id)["delivery"]["error"] or "")
    for request in receiver.requests:
        assert "x-webhook-secret" not in request.headers
        assert SECRET not in str(request)
        assert KEY not in str(request)
        assert request.verify("whsec_" + base64.b64encode(SECRET.encode()).decode())


def test_l8_nobody_can_say_that_a_job_has_completed(
    start_api: StartApi, inference_server: None
) -> None:
    """Who had the secret, and every receiver had, forged any job's end and its video's address."""
    api = start_api(STILLREEL_WEBHOOK_SECRET=SECRET)
    victim, own = api.submit()["job_id"], api.submit()["job_id"]
    assert api.execute(own).is_completed()
    forged = {"job_id": victim, "status": "completed", "video_url": "https://evil.example/x.mp4"}
    for key in (SECRET, KEY, "-", own, api.job(own)["run_id"]):
        for headers in ({"X-Webhook-Secret": key}, {"Authorization": f"Bearer {key}"}):
            api.client.post("/webhook/complete", json=forged, headers=headers)
    api.forget()
    job = api.job(victim)
    assert (job["status"], job["result_url"]) == ("queued", None)
    assert "evil" not in json.dumps(job)


def test_l9_no_private_receiver_is_called(start_api: StartApi) -> None:
    """Every private address was POSTed to, also behind a redirect."""
    with told() as (inner, _), told(redirect(f"{inner.url}x", 307)) as (receiver, pair):
        api = start_api(STILLREEL_ALLOW_ADDRESSES=pair, STILLREEL_WEBHOOK_SECRET=SECRET)
        for url in (*PRIVATE, inner.url):
            assert_problem(order(api, webhook_url=url), 422, "public")
        cancel(api, api.submit(webhook_url=receiver.url)["job_id"])
        arrived(receiver)
    assert inner.requests == []


@pytest.mark.parametrize("slow", [hang, drip_body])
def test_l10_a_slow_receiver_holds_nobody_up(start_api: StartApi, slow: Answer) -> None:
    """A receiver that dripped for 25 s stopped the worker for 25 s."""
    with told(slow) as (receiver, slow_pair), told(host="127.0.0.2") as (quick, pair):
        api = start_api(
            STILLREEL_ALLOW_ADDRESSES=f"{slow_pair},{pair}", STILLREEL_WEBHOOK_SECRET=SECRET
        )
        for _ in range(12):  # more than deliver at a time
            cancel(api, api.submit(webhook_url=receiver.url)["job_id"])
        arrived(receiver)
        cancel(api, api.submit(webhook_url=quick.url)["job_id"])
        arrived(quick)
        assert_serves(api)


# --- what is fetched --------------------------------------------------------------------------


def test_l11_w4_private_addresses_are_refused_and_not_told_apart(api: Api) -> None:
    """A private picture came back as a video; errors told closed ports from open ones."""
    with told(answer(body=png(), Content_Type="image/png")) as (inner, _), told(reset) as (bad, _):
        urls = (*PRIVATE, inner.url, bad.url, "http://localhost/", "http://no-such-name.invalid/")
        problems = [assert_problem(order(api, image_url=url), 422, "public") for url in urls]
    assert len({problem["detail"] for problem in problems}) == 1
    assert inner.requests == bad.requests == []


def test_l11_w4_a_redirect_to_a_private_address_is_refused(start_api: StartApi) -> None:
    """The same by way of a redirect, where the first address is a good one."""
    picture = answer(body=png(), Content_Type="image/png")
    with told(picture) as (inner, _), told(redirect(f"{inner.url}a.png")) as (outer, pair):
        api = start_api(STILLREEL_ALLOW_ADDRESSES=pair)
        job_id = api.submit(image_url=outer.url)["job_id"]
        for attempt in eventually():
            with attempt:
                assert api.job(job_id)["error_code"] == "address_refused"
    assert inner.requests == []
    assert stored(api, job_id) == []


def test_l12_w5_an_image_that_never_ends_harms_nobody(start_api: StartApi) -> None:
    """A drip held the only worker for 41 s; 300 MB without a length filled its memory."""
    with told(drip_body) as (slow, slow_pair), told(answer(body=png())) as (quick, pair):
        api = start_api(
            STILLREEL_ALLOW_ADDRESSES=f"{slow_pair},{pair}", STILLREEL_FETCH_SECONDS="2"
        )
        for _ in range(8):
            api.submit(image_url=slow.url)
        arrived(slow)
        job_id = api.submit(image_url=quick.url)["job_id"]
        for attempt in eventually():
            with attempt:
                assert stored(api, job_id)
        assert_serves(api)


# --- what is sent -----------------------------------------------------------------------------


def test_l13_w6_large_bodies_are_refused_and_leave_nothing(api: Api) -> None:
    """A prompt of 50 MB was taken: +340 MiB, and its copies stayed in both stores."""
    for field in ("prompt", "image_base64", "unknown"):
        body = json.dumps({"prompt": "a cat", field: "x" * 50_000_000})
        for path in ("/api/v1/generate", "/generate"):
            told = api.client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert_problem(told, 413)
    body = json.dumps({"prompt": "x" * 1_000_000})
    told = api.client.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert_problem(told, 422, "4000")


def test_l14_nul_is_no_server_error(api: Api) -> None:
    """NUL in a prompt or id was a 500, for Postgres refuses it."""
    assert_problem(order(api, prompt="a\0cat"), 422, "NUL")
    assert_problem(exchange(api, "/api/v1/jobs/job_%00", method="GET").response, 404)
    assert_problem(exchange(api, "/status/%00", method="GET").response, 404)


def test_l15_a_duration_has_an_upper_bound(api: Api) -> None:
    """1 000 000 000 s were given to the model as 24 000 000 001 frames."""
    assert_problem(order(api, duration=1_000_000_000), 422, "duration", "30")


def test_w7_a_lone_surrogate_is_no_server_error(api: Api) -> None:
    """The 422 about it could not be encoded, so it became a 500."""
    for name in (
        "prompt",
        "model",
        "image_url",
        "webhook_url",
        "job_id",
        "image_base64",
        "x\\ud800",
    ):
        body = f'{{"prompt": "a cat", "{name}": "\\ud800"}}'
        told = api.client.post(
            "/generate", content=body, headers={"Content-Type": "application/json"}
        )
        assert_problem(told, (404, 422))


# --- the same order twice ---------------------------------------------------------------------


def test_l16_w8_one_key_makes_one_job(api: Api) -> None:
    """The same Idempotency-Key twice made two jobs; five at once made five."""
    headers, body = {"Idempotency-Key": str(uuid4())}, SMALL | {"prompt": "once"}
    first = api.client.post("/api/v1/generate", json=body, headers=headers)
    again = api.client.post("/api/v1/generate", json=body, headers=headers)
    assert again.json()["job_id"] == first.json()["job_id"]
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    headers = {"Idempotency-Key": str(uuid4())}

    def send(_: int) -> str:
        made = api.client.post("/generate", json=body, headers=headers, timeout=20)
        return made.json()["job_id"]

    with ThreadPoolExecutor(5) as pool:
        ids = set(pool.map(send, range(5)))
    assert len(ids) == 1
    assert count_runs(ids.pop()) == 1


# --- Prefect away -----------------------------------------------------------------------------


def test_l17_with_prefect_away_every_answer_comes_within_5_seconds(
    door: Door, start_api: StartApi
) -> None:
    """A submit with Redis down had no answer in 10 s, and ran later although it was given up."""
    api = start_api()
    assert_serves(api)
    job_id = api.submit()["job_id"]
    cancel(api, job_id)
    other = api.submit()["job_id"]
    door.shut()
    api.forget()
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/api/v1/generate", SMALL | {"prompt": "x"}),
        ("POST", "/api/v1/generate", SMALL | {"image_base64": base64.b64encode(png()).decode()}),
        ("POST", "/generate", {"prompt": "x"}),
        ("POST", "/api/v1/batches", {"items": [{"prompt": "x"}]}),
        ("POST", f"/api/v1/jobs/{other}/cancel", None),
        ("POST", f"/api/v1/jobs/{job_id}/retry", None),
        ("DELETE", f"/api/v1/jobs/{job_id}", None),
        ("GET", f"/api/v1/jobs/{job_id}", None),
        ("GET", f"/status/{job_id}", None),
        ("GET", f"/api/v1/jobs/{UNKNOWN_ID}", None),
        ("GET", f"/api/v1/jobs/{job_id}/events", None),
        ("GET", f"/api/v1/presign/download/{job_id}", None),
        ("GET", "/api/v1/jobs", None),
        ("GET", "/api/v1/queue/stats", None),
    ]

    def send(call: tuple[str, str, Any]) -> httpx.Response:
        method, path, body = call
        try:
            return api.client.request(method, path, json=body, timeout=5)
        except httpx.TimeoutException as exc:
            raise AssertionError(f"{method} {path}: no answer within 5 s") from exc

    with ThreadPoolExecutor(len(calls)) as pool:
        answers = list(pool.map(send, calls))
    for call, told in zip(calls, answers, strict=True):
        problem = assert_problem(told, 503)
        assert problem["code"] == "prefect_unavailable", call
        assert int(told.headers["Retry-After"]) > 0, call
    openai = api.client.post("/v1/videos", json={"prompt": "x"}, timeout=5)
    assert openai.status_code == 503
    assert openai.json()["error"]["code"] == "prefect_unavailable"
    health = api.client.get("/health", timeout=5)
    assert (health.status_code, health.json()["api"]) == (503, "ok")
    assert health.json()["database"] != "ok"
    door.open()
    assert_serves(api)
    assert api.job(other)["status"] == "queued"


def test_l17_after_a_503_the_job_is_absent_or_found_by_its_key(
    door: Door, start_api: StartApi
) -> None:
    """Row and queue entry were two writes, and a client that tried again paid twice."""
    api = start_api()
    assert_serves(api)
    headers, body = {"Idempotency-Key": str(uuid4())}, SMALL | {"prompt": "once"}
    door.shut()
    assert_problem(api.client.post("/generate", json=body, headers=headers, timeout=5), 503)
    door.open()
    made = again(api, body, headers)
    assert count_runs(made.json()["job_id"]) == 1


def test_l17_a_job_whose_answer_was_lost_is_found_by_its_key(
    door: Door, start_api: StartApi
) -> None:
    """The worst moment: Prefect has stored it, and the connection breaks before it says so."""
    api = start_api()
    assert_serves(api)
    headers = {"Idempotency-Key": str(uuid4())}
    body = SMALL | {"prompt": "once", "image_base64": base64.b64encode(png()).decode()}
    door.mute = True
    lost = api.client.post("/generate", json=body, headers=headers, timeout=5)
    assert_problem(lost, 503)
    assert door.swallowed > 0, "nothing was stored, so nothing was tried"
    door.open()
    made = again(api, body, headers)
    assert made.headers["Idempotency-Replayed"] == "true"
    job_id = made.json()["job_id"]
    assert count_runs(job_id) == 1
    assert len(stored(api, job_id)) == 1


# --- the line ---------------------------------------------------------------------------------


def test_l19_the_line_is_not_empty_while_the_last_job_runs(api: Api) -> None:
    """`batch_processor.py` destroys the machine when `pending_jobs` is 0."""

    def pending() -> int:
        return api.client.get("/api/v1/queue/stats").json()["pending_jobs"]

    before = pending()
    job_id = api.submit()["job_id"]
    with get_client(sync_client=True) as client:
        run_id = UUID(api.job(job_id)["run_id"])
        client.set_flow_run_state(run_id, Running(), force=True)
        for attempt in eventually():
            with attempt:
                health = api.client.get("/health").json()
                assert health["queue"]["processing"] >= 1
        assert pending() == before + 1
    cancel(api, job_id)


# --- URLs and owners --------------------------------------------------------------------------


def test_l20_presign_signs_nothing_that_is_not_ones_own(api: Api, inference_server: None) -> None:
    """It signed `inputs/../outputs/<other job>/...` with text/html, and jobs that never were."""
    job_id = api.submit()["job_id"]
    assert api.execute(job_id).is_completed()
    for bad in (f"../outputs/{job_id}", f"x/../../outputs/{job_id}", UNKNOWN_ID, "job_abc123"):
        body = {"job_id": bad, "content_type": "image/png"}
        assert_problem(api.client.post("/api/v1/presign/upload", json=body), (404, 422))
    body = {"job_id": job_id, "content_type": "image/png"}
    assert_problem(api.client.post("/api/v1/presign/upload", json=body), 409)
    assert_problem(
        api.client.post("/api/v1/presign/upload", json={"content_type": "text/html"}), 422
    )
    assert_problem(api.client.get(f"/api/v1/presign/download/{UNKNOWN_ID}"), 404)
    with another_owner(api) as other:
        assert_problem(other.get(f"/api/v1/presign/download/{job_id}"), 404)
        assert_problem(other.post("/api/v1/presign/upload", json=body), 404)


def test_l21_a_videos_url_is_signed_anew_at_each_read(
    api: Api, start_api: StartApi, inference_server: None
) -> None:
    """It was signed once, for 7 days, and stored; then it was dead for ever."""
    job_id = api.submit()["job_id"]
    assert api.execute(job_id).is_completed()
    short = start_api(STILLREEL_DOWNLOAD_URL_SECONDS="60")

    def ends(url: str) -> int:
        return int(parse_qs(urlsplit(url).query)["expires"][0])

    first = ends(short.job(job_id)["result_url"])
    assert ends(api.job(job_id)["result_url"]) - first > 80_000
    for attempt in eventually():
        with attempt:
            assert ends(short.job(job_id)["result_url"]) > first


@pytest.mark.parametrize(
    "key", [KEY[:-1], KEY + "x", KEY.upper(), "k\u00e9y", "\u00ff" * 100, "0"], ids=repr
)
def test_l22_w13_keys_are_compared_whole(api: Api, key: str) -> None:
    """They were compared with `!==`, from left to right until the first difference."""
    for name, value in (("Authorization", f"Bearer {key}"), ("X-API-Key", key)):
        headers = [(name.encode(), value.encode("latin-1"))]
        told = httpx.get(f"{api.url}/api/v1/jobs", headers=headers, trust_env=False)
        assert_problem(told, 401)


def test_l22_w13_the_comparison_takes_constant_time() -> None:
    """Time on a shared machine proves nothing, so this looks at what does it."""
    import inspect

    from stillreel import owner_store
    from stillreel.api import webhooks

    for module in (owner_store, webhooks):
        assert "compare_digest" in inspect.getsource(module)


# --- what is told -----------------------------------------------------------------------------


def test_l23_w12_errors_hold_no_paths_and_no_inner_addresses(
    start_api: StartApi, inference_server: None
) -> None:
    """File paths of the worker and internal addresses stood in `error`."""
    picture = base64.b64encode(png()).decode()
    with told(answer(403, body=b"/etc/secret 10.0.0.1")) as (server, pair):
        api = start_api(STILLREEL_ALLOW_ADDRESSES=pair)
        refused = api.submit(image_url=f"{server.url}a.png")["job_id"]
        for attempt in eventually():
            with attempt:
                assert api.job(refused)["status"] == "failed"
    lost, half = (api.submit(image_base64=text)["job_id"] for text in (picture, picture[:160]))
    for key in stored(api, lost):
        api.storage.delete(key)
    for job_id in (lost, half):
        api.execute(job_id)
    for job_id in (refused, lost, half):
        job = api.job(job_id)
        assert job["status"] == "failed"
        assert job["error"]
        for word in (*INNER_WORDS, "127.0.0.1", "10.0.0.1", "Errno", str(api.settings.host.home)):
            assert word not in job["error"]
            assert word not in api.client.get(f"/status/{job_id}").json()["error"]


def test_l24_progress_is_told_while_a_job_runs(api: Api, inference_server: None) -> None:
    """Status had to be asked of the queue, and progress was 0 or 100."""
    made = api.client.post("/api/v1/generate", json={"prompt": "zoom in", "duration": 4})
    job_id = made.json()["job_id"]
    seen: list[tuple[str, int, str | None]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            job = api.job(job_id)
            seen.append((job["status"], job["progress"], job["stage"]))
            ended.wait(0.1)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            assert api.execute(job_id).is_completed()
        finally:
            ended.set()
        watching.result()
    progress = [percent for _, percent, _ in seen]
    assert progress == sorted(progress)
    running = {percent for status, percent, stage in seen if status == "processing" and stage}
    assert len(running) > 1
    assert all(0 <= percent < 100 for percent in running)
    assert api.job(job_id)["progress"] == 100


# --- many at once -----------------------------------------------------------------------------


def test_w9_sixteen_writers_and_readers_have_no_error(api: Api) -> None:
    """SQLite's lock was waited for by each of 16 writers, for up to 1.1 s."""

    def one(n: int) -> list[int]:
        made = order(api, prompt=f"cat {n}")
        read = api.client.get(f"/api/v1/jobs/{made.json()['job_id']}")
        return [made.status_code, read.status_code]

    with ThreadPoolExecutor(16) as pool:
        codes = {code for pair in pool.map(one, range(160)) for code in pair}
    assert codes == {200}


def test_w11_a_job_can_be_cancelled_watched_and_told(start_api: StartApi) -> None:
    """There was no webhook, no progress and no cancel."""
    with told() as (receiver, pair):
        api = start_api(STILLREEL_ALLOW_ADDRESSES=pair, STILLREEL_WEBHOOK_SECRET=SECRET)
        job_id = api.submit(webhook_url=receiver.url)["job_id"]
        assert api.job(job_id)["progress"] == 0
        cancel(api, job_id)
        assert api.job(job_id)["status"] == "cancelled"
        arrived(receiver)
    assert json.loads(receiver.requests[0].body)["job_id"] == job_id
