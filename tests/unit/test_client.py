"""The Python client where network and API misbehave; what answers is httpx's MockTransport."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st

from stillreel import errors
from stillreel.client import (
    ApiFailure,
    ApiUnreachable,
    AsyncClient,
    Client,
    DownloadDamaged,
    Job,
    WaitedTooLong,
)
from stillreel.client.events import Story
from stillreel.errors import SettingsInvalid, StillreelError

URL, KEY = "https://videos.example.com", "sr_key"
VIDEO = bytes(range(256)) * 40
FACTS = {
    "width": 128,
    "height": 72,
    "fps": 24,
    "frames": 12,
    "seconds": 0.5,
    "size": len(VIDEO),
    "codec": "h264",
    "audio": False,
    "sha256": hashlib.sha256(VIDEO).hexdigest(),
}
QUEUED = {"job_id": "job_a", "status": "queued"}
DONE = {
    "job_id": "job_a",
    "status": "completed",
    "progress": 100,
    "result_url": "https://storage.example.com/output.mp4?signature=1",
    "video": FACTS,
}

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Script:
    """Answers requests in turn, the last answer for ever; keeps what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.seen.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return answer(request)
        if isinstance(answer.stream, Broken | httpx.ByteStream) and not answer.is_closed:
            return answer
        # A response can be used once; headers are those of the body as it was given.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body whose connection breaks off."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self.data
        raise httpx.ReadError("reset by peer")

    async def __aiter__(self) -> Any:
        yield self.data
        raise httpx.ReadError("reset by peer")


Use = Callable[..., Any]


@pytest.fixture(params=[Client, AsyncClient])
def use(request: pytest.FixtureRequest) -> Use:
    """`use(script, "get", "job_a")`: a method of either client, the API being the script."""

    def blocking(script: Script, method: str, *args: Any, **kwargs: Any) -> Any:
        http = httpx.Client(transport=httpx.MockTransport(script))
        with http, Client(URL, KEY, http=http) as client:
            found = getattr(client, method)(*args, **kwargs)
            return list(found) if isinstance(found, Iterator) else found

    def awaited(script: Script, method: str, *args: Any, **kwargs: Any) -> Any:
        async def main() -> Any:
            http = httpx.AsyncClient(transport=httpx.MockTransport(script))
            async with http, AsyncClient(URL, KEY, http=http) as client:
                found = getattr(client, method)(*args, **kwargs)
                if hasattr(found, "__aiter__"):
                    return [item async for item in found]
                return await found

        return anyio.run(main)

    return blocking if request.param is Client else awaited


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=6):
        yield


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"code": code, "detail": f"It is {code}.", "status": status, "request_id": "r1"}
    kind = {"content-type": "application/problem+json"}
    return httpx.Response(status, json=body, headers=kind | headers)


def stream(*events: tuple[str, str, dict[str, Any]], broken: bool = False) -> httpx.Response:
    text = "retry: 1\n\n" + "".join(
        f"id: {id_}\nevent: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
        for id_, kind, data in events
    )
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    if broken:
        return httpx.Response(200, headers=headers, stream=Broken(text.encode()))
    return httpx.Response(200, headers=headers, content=text.encode())


def ok(body: Any, **headers: str) -> httpx.Response:
    return httpx.Response(200, json=body, headers=headers)


# --- what it needs --------------------------------------------------------------------------------


def test_it_brings_no_server_along(tmp_path: Path) -> None:
    (tmp_path / "api.key").write_text(KEY)
    code = (
        "import sys; from stillreel.client import Client; Client().close(); "
        "print([m for m in ('prefect', 'fastapi', 'torch', 'boto3', 'PIL') if m in sys.modules])"
    )
    env = os.environ | {"STILLREEL_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_URL", "https://other.example.com/")
    monkeypatch.setenv("API_KEY", "from-the-environment")
    script = Script(ok(QUEUED))
    with httpx.Client(transport=httpx.MockTransport(script)) as http:
        Client(http=http).get("job_a")
    assert str(script.seen[0].url) == "https://other.example.com/api/v1/jobs/job_a"
    assert script.seen[0].headers["authorization"] == "Bearer from-the-environment"


@pytest.mark.parametrize(
    ("listens_on", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8123"),
        ("0.0.0.0", "http://127.0.0.1:8123"),
        ("::", "http://[::1]:8123"),
        ("10.0.0.7", "http://10.0.0.7:8123"),
    ],
)
def test_the_api_of_this_machine_is_found(
    monkeypatch: pytest.MonkeyPatch, listens_on: str, url: str
) -> None:
    monkeypatch.setenv("STILLREEL_API_HOST", listens_on)
    monkeypatch.setenv("PORT", "8123")
    with Client(api_key=KEY) as client:
        assert client.base_url == url


def test_the_key_that_up_made_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path))
    monkeypatch.setenv("PORT", "8123")
    (tmp_path / "api.key").write_text("sr_made_by_up\n")
    script = Script(ok(QUEUED))
    with httpx.Client(transport=httpx.MockTransport(script)) as http:
        Client(http=http).get("job_a")
    assert str(script.seen[0].url).startswith("http://127.0.0.1:8123/")
    assert script.seen[0].headers["authorization"] == "Bearer sr_made_by_up"


def test_the_key_that_up_made_is_shown_to_no_other_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path))
    (tmp_path / "api.key").write_text("sr_made_by_up")
    with pytest.raises(SettingsInvalid, match="no API key"):
        Client(URL)


def test_settings_of_servers_may_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_REGION", "eu-central-1")  # half of S3's settings
    monkeypatch.setenv("DATABASE_URL", "mysql://elsewhere")
    monkeypatch.setenv("API_KEY", KEY)
    Client(URL).close()


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("videos.example.com", KEY),
        ("ftp://videos.example.com", KEY),
        ("https://", KEY),
        ("https://me:secret@videos.example.com", KEY),
        ("https://videos.example.com/?key=secret", KEY),
        (URL, "sécret"),
        (URL, "two\nlines"),
    ],
)
def test_bad_addresses_and_keys_are_refused(url: str, key: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        Client(url, key)
    assert "secret" not in str(caught.value).replace(url, "")
    assert key not in str(caught.value)


def test_the_key_is_in_no_repr() -> None:
    with Client(URL, "sr_secret") as client:
        assert "sr_secret" not in repr(client) + repr(vars(client))


# --- answers --------------------------------------------------------------------------------------


def test_a_newer_server_may_say_more(use: Use) -> None:
    job = use(Script(ok({**QUEUED, "status": "paused", "colour": "red"})), "get", "job_a")
    assert (job.status, job.has_ended, job.failure) == ("paused", False, None)
    assert job.model_extra == {"colour": "red"}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"status": "failed", "error": "x", "error_code": "image_rejected"}, errors.ImageRejected),
        ({"status": "failed", "error": "x", "error_code": "crashed"}, errors.JobFailed),
        ({"status": "failed", "error": "x", "error_code": "internal"}, errors.JobFailed),
        ({"status": "cancelled", "error_code": "cancelled"}, errors.JobCancelled),
        ({"status": "expired", "error_code": "expired"}, errors.JobExpired),
        ({"status": "completed"}, type(None)),
        ({"status": "processing"}, type(None)),
    ],
)
def test_a_job_says_why_it_has_no_video(body: dict[str, Any], error: type) -> None:
    assert type(Job(job_id="job_a", **body).failure) is error


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>a page</html>", headers={"content-type": "text/html"}),
        ok([1, 2]),
        ok({"something": "else"}),
        httpx.Response(301, headers={"location": "https://elsewhere.example.com/"}),
    ],
    ids=["page", "list", "other", "redirect"],
)
def test_what_is_no_answer_of_ours_is_said_to_be_none(use: Use, answer: httpx.Response) -> None:
    with pytest.raises(ApiFailure, match="address"):
        use(Script(answer), "get", "job_a")


@pytest.mark.parametrize("job_id", ["", ".", "..", "/", " "])
def test_what_cannot_be_an_id_is_not_asked_for(use: Use, job_id: str) -> None:
    script = Script(ok(QUEUED))
    with pytest.raises(errors.RequestRejected):
        use(script, "delete", job_id)
    assert not script.seen


def test_an_id_cannot_lead_elsewhere(use: Use) -> None:
    script = Script(ok(QUEUED))
    use(script, "get", "../batches?x#y")
    assert script.seen[0].url.raw_path == b"/api/v1/jobs/..%2Fbatches%3Fx%23y"


# --- errors and repeats ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthorized", errors.Unauthorized),
        (404, "job_unknown", errors.JobUnknown),
        (422, "image_rejected", errors.ImageError),
        (422, "invented_tomorrow", ApiFailure),
        (500, "internal", ApiFailure),
    ],
)
def test_a_failure_is_the_error_that_the_api_raised(
    use: Use, status: int, code: str, kind: type[Exception]
) -> None:
    script = Script(problem(status, code))
    with pytest.raises(ApiFailure) as caught:
        use(script, "get", "job_a")
    failure = caught.value
    assert isinstance(failure, kind)
    assert (failure.status, failure.code, failure.request_id) == (status, code, "r1")
    assert failure.message == failure.detail == f"It is {code}."
    assert len(script.seen) == 1
    copy = pickle.loads(pickle.dumps(failure))
    assert isinstance(copy, kind)
    assert (copy.code, copy.message, copy.status) == (code, failure.message, status)


PASSING: list[Answer] = [
    problem(503, "prefect_unavailable", **{"retry-after": "2"}),
    problem(429, "too_many_requests"),
    httpx.Response(502, text="Bad Gateway"),
    httpx.ConnectError("refused"),
    httpx.ReadTimeout(""),
    httpx.RemoteProtocolError("closed"),
]


@pytest.mark.parametrize("trouble", PASSING, ids=lambda t: type(t).__name__)
def test_what_passes_is_waited_for(use: Use, trouble: Answer) -> None:
    script = Script(trouble, trouble, ok(QUEUED))
    assert use(script, "submit", "slow zoom in").job_id == "job_a"
    assert len(script.seen) == 3
    sent = {request.headers["idempotency-key"] for request in script.seen}
    assert len(sent) == 1, "a repeat with another key would make a second video"


@pytest.mark.parametrize("trouble", PASSING, ids=lambda t: type(t).__name__)
def test_not_for_ever(use: Use, trouble: Answer) -> None:
    script = Script(trouble)
    with pytest.raises((ApiFailure, ApiUnreachable)):
        use(script, "get", "job_a")
    assert len(script.seen) == 6


def test_each_order_has_a_key_of_its_own(use: Use) -> None:
    script = Script(ok(QUEUED))
    use(script, "submit", "one")
    use(script, "submit", "one")
    assert len({request.headers["idempotency-key"] for request in script.seen}) == 2


def test_a_wait_of_hours_is_left_to_the_caller(use: Use) -> None:
    script = Script(problem(429, "quota_exceeded", **{"retry-after": "36000"}))
    with pytest.raises(errors.QuotaExceeded) as caught:
        use(script, "submit", "one")
    assert caught.value.retry_after == 36000
    assert len(script.seen) == 1


def test_a_retry_is_not_sent_twice_where_it_may_have_been_done(use: Use) -> None:
    script = Script(httpx.ReadTimeout(""), ok(QUEUED))
    with pytest.raises(ApiUnreachable):
        use(script, "retry", "job_a")
    script = Script(httpx.ConnectError("refused"), problem(429, "too_many_requests"), ok(QUEUED))
    assert use(script, "retry", "job_a").job_id == "job_a"


def test_a_job_that_is_deleted_already_is_deleted(use: Use) -> None:
    assert use(Script(httpx.ReadTimeout(""), problem(410, "job_deleted")), "delete", "job_a")
    assert use(Script(httpx.Response(204)), "delete", "job_a")
    assert not use(Script(httpx.Response(202, json={"status": "deleting"})), "delete", "job_a")


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "sent"),
    [
        ("https://example.com/a.jpg", {"image_url": "https://example.com/a.jpg"}),
        ("data:image/png;base64,AAAA", {"image_base64": "data:image/png;base64,AAAA"}),
        (None, {}),
    ],
)
def test_addresses_are_sent_as_they_are(use: Use, image: Any, sent: dict[str, str]) -> None:
    script = Script(ok(QUEUED))
    use(script, "submit", "zoom", image, seed=None, width=128)
    assert json.loads(script.seen[0].content) == {"prompt": "zoom", "width": 128, **sent}


def test_a_small_file_goes_along_with_its_order(use: Use, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n rest")
    script = Script(problem(503, "prefect_unavailable"), ok(QUEUED))
    use(script, "submit", "zoom", path, reuse=True)
    assert [r.url.path for r in script.seen] == ["/api/v1/generate"] * 2
    for request in script.seen:
        assert path.read_bytes() in request.content
        assert b'name="reuse"\r\n\r\ntrue' in request.content
        assert b"image/png" in request.content


@pytest.mark.parametrize("image", [b"\xff\xd8\xff" + bytes(8_000_000), "file"])
def test_a_large_image_is_uploaded_without_our_key(
    use: Use, image: bytes | str, tmp_path: Path
) -> None:
    data = b"\xff\xd8\xff" + bytes(8_000_000)
    if image == "file":
        image = str(tmp_path / "a.jpg")
        Path(image).write_bytes(data)
    target = {"upload_url": "https://storage.example.com/x?sig=1", "job_id": "job_new"}
    script = Script(ok(target), httpx.Response(200), ok(QUEUED))
    use(script, "submit", "zoom", image)
    presign, put, order = script.seen
    wanted = {"content_type": "image/jpeg", "content_length": len(data)}
    assert json.loads(presign.content) == wanted
    assert (put.method, put.content) == ("PUT", data)
    assert (put.headers["content-type"], put.headers["content-length"]) == (
        "image/jpeg",
        str(len(data)),
    )
    assert "authorization" not in put.headers
    assert json.loads(order.content) == {"prompt": "zoom", "job_id": "job_new"}


def test_the_callers_own_key_stays_true_for_a_large_image(use: Use) -> None:
    """An upload has a new id each time, so the key could not find the job again."""
    script = Script(ok(QUEUED))
    use(script, "submit", "zoom", bytes(9_000_000), idempotency_key="order-17")
    assert [r.url.path for r in script.seen] == ["/api/v1/generate"]
    with pytest.raises(errors.RequestRejected, match="idempotency_key"):
        use(Script(ok(QUEUED)), "submit", "zoom", bytes(25_000_000), idempotency_key="order-17")


@pytest.mark.parametrize(
    ("name", "text"), [("none.jpg", "there is no file"), (".", "is a directory")]
)
def test_files_that_cannot_be_read_are_named(
    use: Use, name: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(errors.ImageRejected, match=text):
        use(Script(ok(QUEUED)), "submit", "zoom", tmp_path / name)


# --- events and waiting ---------------------------------------------------------------------------

STATUS = ("1-a", "status", {"job_id": "job_a", "status": "queued", "at": "x", "job": QUEUED})
STEP = ("2-b", "progress", {"stage": "infer", "phase": "denoise", "step": 3, "steps": 8})
END = ("3-end", "end", DONE)


def test_a_broken_stream_goes_on_where_it_broke(use: Use) -> None:
    script = Script(
        stream(STATUS, broken=True),
        stream(STEP, broken=True),
        httpx.Response(503, text="Service Unavailable"),
        stream(END),
    )
    events = use(script, "events", "job_a")
    assert [event.kind for event in events] == ["status", "progress", "end"]
    seen = [request.headers.get("last-event-id") for request in script.seen]
    assert seen == [None, "1-a", "2-b", "2-b"]
    assert (events[1].job.status, events[1].job.step) == ("queued", 3)
    assert events[2].job.has_ended


def test_an_event_counts_as_seen_when_it_was_whole(use: Use) -> None:
    half = httpx.Response(
        200,
        headers={"content-type": "text/event-stream"},
        stream=Broken(b'retry: 1\n\nid: 1-a\nevent: status\ndata: {"job_id":'),
    )
    script = Script(half, stream(STATUS, END))
    assert [event.id for event in use(script, "events", "job_a")] == ["1-a", "3-end"]
    assert script.seen[1].headers.get("last-event-id") is None


def test_the_end_that_is_known_is_204(use: Use) -> None:
    script = Script(stream(STATUS, broken=True), httpx.Response(204))
    assert len(use(script, "events", "job_a")) == 1


def test_streams_that_tell_nothing_are_given_up(use: Use) -> None:
    script = Script(stream())
    with pytest.raises(ApiFailure):
        use(script, "events", "job_a")
    assert len(script.seen) == 5


def test_waiting_tells_of_progress_and_reads_the_job_last(use: Use) -> None:
    told: list[Job] = []
    script = Script(stream(STATUS, STEP, END), ok(DONE))
    job = use(script, "wait", "job_a", on_progress=told.append)
    assert job.result_url == DONE["result_url"]
    assert [(t.status, t.step) for t in told] == [
        ("queued", None),
        ("queued", 3),
        ("completed", None),
    ]
    assert script.seen[-1].url.path == "/api/v1/jobs/job_a"


@pytest.mark.parametrize(
    "no_stream",
    [
        problem(429, "too_many_requests"),
        problem(501, "not_implemented"),
        problem(404, "not_found"),
        httpx.Response(200, text="<html>", headers={"content-type": "text/html"}),
    ],
    ids=["too many", "not here", "older api", "page"],
)
def test_waiting_needs_no_stream(use: Use, no_stream: httpx.Response) -> None:
    told: list[Job] = []
    script = Script(no_stream, ok(DONE))
    assert use(script, "wait", "job_a", on_progress=told.append).status == "completed"
    assert len(told) == 1
    assert len(script.seen) == 2


def test_waiting_for_what_is_not_there_says_so(use: Use) -> None:
    with pytest.raises(errors.JobUnknown):
        use(Script(problem(404, "job_unknown")), "wait", "job_a")


def test_waiting_has_an_end(use: Use) -> None:
    with pytest.raises(WaitedTooLong, match="it is queued") as caught:
        use(Script(ok(QUEUED)), "wait", "job_a", timeout=0.01)
    assert isinstance(caught.value, TimeoutError)


@given(st.text(), st.lists(st.integers(1, 400), max_size=30), st.booleans())
def test_events_are_the_same_however_they_arrive(
    prompt: str, cuts: list[int], is_crlf: bool
) -> None:
    job = {**QUEUED, "prompt": prompt.encode("utf-8", "replace").decode()}
    text = json.dumps(job, ensure_ascii=False)  # as the API does it: U+2028 is sent as it is
    wire = (
        f": ping\n\nid: 1\nevent: status\ndata: {json.dumps({'job': 0})[:-2]}{text}}}\n\n".encode()
    )
    wire = wire.replace(b"\n", b"\r\n") if is_crlf else wire
    story, events, at = Story("job_a"), [], 0
    for cut in [*cuts, len(wire)]:
        events += story.take(wire[at : at + cut])
        at += cut
    assert [event.job.prompt for event in events] == [job["prompt"]]


# --- downloads ------------------------------------------------------------------------------------


def storage(data: bytes, *, breaks_at: int = 0) -> Callable[[httpx.Request], httpx.Response]:
    """Storage that answers Range and If-Range, or whose connection breaks."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert "authorization" not in request.headers
        start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"etag": '"e1"'}
        if start:
            assert request.headers["if-range"] == '"e1"'
            headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if breaks_at:
            stream = Broken(data[start:breaks_at])
            return httpx.Response(206 if start else 200, headers=headers, stream=stream)
        whole = httpx.ByteStream(data[start:])
        return httpx.Response(206 if start else 200, headers=headers, stream=whole)

    return answer


def test_a_broken_download_is_resumed(use: Use, tmp_path: Path) -> None:
    script = Script(
        ok(DONE), storage(VIDEO, breaks_at=4000), ok(DONE), storage(VIDEO, breaks_at=9000),
        ok(DONE), storage(VIDEO),
    )  # fmt: skip
    path = use(script, "download", "job_a", tmp_path)
    assert path == tmp_path / "job_a.mp4"
    assert path.read_bytes() == VIDEO
    asked = [r.headers.get("range") for r in script.seen if r.url.host == "storage.example.com"]
    assert asked == [None, "bytes=4000-", "bytes=9000-"]
    assert list(tmp_path.iterdir()) == [path]


def test_storage_that_knows_no_ranges_sends_all_again(use: Use, tmp_path: Path) -> None:
    whole = httpx.Response(200, stream=httpx.ByteStream(VIDEO))
    script = Script(ok(DONE), storage(VIDEO, breaks_at=4000), ok(DONE), whole)
    assert use(script, "download", "job_a", tmp_path / "a.mp4").read_bytes() == VIDEO


def test_an_object_that_changed_is_read_anew(use: Use, tmp_path: Path) -> None:
    changed = b"x" * 4000 + VIDEO[4000:]
    script = Script(
        ok(DONE), storage(changed, breaks_at=4000), ok(DONE), storage(VIDEO),  # a wrong whole
        ok(DONE), storage(VIDEO),
    )  # fmt: skip
    assert use(script, "download", "job_a", tmp_path / "a.mp4").read_bytes() == VIDEO


@pytest.mark.parametrize("wrong", [VIDEO[:-1], VIDEO[:-1] + b"x", b""], ids=["short", "bit", "no"])
def test_what_is_damaged_is_not_kept(use: Use, wrong: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"what was there before")
    answers = [ok(DONE), storage(wrong)] * 6
    with pytest.raises(DownloadDamaged):
        use(Script(*answers), "download", "job_a", path)
    assert path.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (QUEUED, errors.JobConflict),
        ({"job_id": "job_a", "status": "cancelled"}, errors.JobCancelled),
        ({**DONE, "result_url": None}, errors.ObjectMissing),
    ],
)
def test_a_job_without_a_video_cannot_be_downloaded(
    use: Use, body: dict[str, Any], error: type[StillreelError], tmp_path: Path
) -> None:
    with pytest.raises(error):
        use(Script(ok(body)), "download", "job_a", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_link_that_storage_refuses_is_a_failure(use: Use, tmp_path: Path) -> None:
    script = Script(ok(DONE), httpx.Response(403, text="<Error>AccessDenied</Error>"))
    with pytest.raises(ApiFailure, match=r"storage\.example\.com answered 403"):
        use(script, "download", "job_a", tmp_path)


def test_a_place_that_cannot_be_written_is_named(use: Use, tmp_path: Path) -> None:
    with pytest.raises(errors.OutputUnwritable, match="none"):
        use(Script(ok(DONE), storage(VIDEO)), "download", "job_a", tmp_path / "none" / "a.mp4")


# --- lists and batches ----------------------------------------------------------------------------


def test_a_list_is_read_page_by_page(use: Use) -> None:
    def page(*names: str, cursor: str | None = None) -> httpx.Response:
        jobs = [{"job_id": name, "status": "queued"} for name in names]
        return ok({"jobs": jobs, "next_cursor": cursor, "scanned": 9})

    script = Script(page("job_a", "job_b", cursor="c1"), page(cursor="c2"), page("job_c"))
    found = use(script, "list", status=["queued", "failed"], q="dog", model=None)
    assert [job.job_id for job in found] == ["job_a", "job_b", "job_c"]
    assert [r.url.params.get("cursor") for r in script.seen] == [None, "c1", "c2"]
    assert script.seen[0].url.params.multi_items() == [
        ("status", "queued"),
        ("status", "failed"),
        ("q", "dog"),
        ("limit", "100"),
    ]
    script = Script(page("job_a", "job_b", cursor="c1"), page("job_c", cursor="c2"))
    assert len(use(script, "list", limit=3)) == 3
    assert [r.url.params["limit"] for r in script.seen] == ["3", "1"]


def test_a_batch_takes_along_what_is_small(use: Use) -> None:
    answer = {"batch_id": "batch_a", "created": 2, "failed": 0, "results": []}
    target = {"upload_url": "https://storage.example.com/x?sig=1", "job_id": "job_new"}
    script = Script(ok(target), httpx.Response(200), ok(answer))
    items = [{"image": b"small"}, {"prompt": "pan", "image": bytes(8_000_001)}]
    assert use(script, "submit_batch", items, duration=2.0).batch_id == "batch_a"
    order = script.seen[2].content
    assert b'name="image_0"' in order
    assert b'name="image_1"' not in order
    assert b'[{}, {"prompt": "pan", "job_id": "job_new"}]' in order
    assert b'{"duration": 2.0}' in order
