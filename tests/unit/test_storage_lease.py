"""A rented host's storage: its own job's objects, what was ordered, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest

from stillreel.arrival.claims import FilmNote
from stillreel.arrival.film import order_of
from stillreel.encoder import Encoded, encode_video
from stillreel.errors import (
    ObjectMissing,
    ResultRefused,
    StaleExecution,
    StorageRefused,
)
from stillreel.gateway.access import SMALL_BYTES
from stillreel.gateway.uploads import PART_BYTES
from stillreel.job import Clip, JobSpec, Latents, Prepared, SourceImage
from stillreel.keys import lent_key, output_key, source_key
from stillreel.models.base import Decoded
from stillreel.models.registry import get_model
from stillreel.models.shots import resolve
from stillreel.receipt import write_receipt
from stillreel.settings import StorageSettings
from stillreel.storage_lease import LeaseStorage
from tests.lent import TOKEN, Lender, lender

JOB, OTHER = "job_0123456789ab", "job_ba9876543210"
SPEC = JobSpec(prompt="slow zoom in", width=160, height=90, duration=0.5)
DIGEST = "0123456789abcdef" * 2
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
LATENTS = (2).to_bytes(8, "little") + b"{}" + bytes(100)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lender]:
    home = tmp_path_factory.mktemp("api")
    with lender(StorageSettings.model_validate({"storage_dir": home / "storage"}), home) as running:
        yield running


@pytest.fixture
def host(api: Lender) -> Iterator[LeaseStorage]:
    """Storage as a host has it whose run is one of JOB."""
    yield api.lend(api.door.hand(JOB, SPEC))
    api.door.is_revoked = api.door.is_taken = False
    for info in list(api.storage.list("")):
        api.storage.delete(info.key)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """What a host would make of SPEC."""
    order = order_of(SPEC, get_model("preview"))
    shape = (order.frames, 90, 160, 3)
    frames = np.random.default_rng(3).integers(0, 255, shape, dtype=np.uint8)
    decoded = Decoded(160, 90, order.frames, iter([frames]))
    return encode_video(
        decoded, tmp_path_factory.mktemp("clip"), stem="clip", fps=order.fps, crop=(160, 90)
    )


def receipt_of(clip: Encoded, **changes: Any) -> bytes:
    """As the host writes it, with other values where it lies."""
    shot = resolve(SPEC, get_model("preview"), job_id=JOB, image_size=None)
    made = Clip(
        host="rented-1", video_path="", poster_path="", teaser_path="", sha256=clip.sha256,
        size=clip.size, width=160, height=90, fps=shot.fps, frames=clip.frames, codec="h264",
        has_audio=False, decode_gpu_seconds=1.0, encode_seconds=2.0, encoder="libx264",
    )  # fmt: skip
    latents = Latents(
        key=lent_key(JOB, DIGEST), sha256="0" * 64, size=9, seconds={"gpu": 3.0}, host_price=0.5
    )
    from datetime import UTC, datetime

    told = write_receipt(
        JOB, SPEC, Prepared(shot=shot), latents, made, upload_seconds=1.0, execution=1,
        completed_at=datetime.now(UTC), objects={},
    )  # fmt: skip
    for name, value in changes.items():
        group, _, field = name.partition("__")
        if field:
            told[group][field] = value
        else:
            told[group] = value
    return json.dumps(told).encode()


def put_all(host: LeaseStorage, clip: Encoded, **changes: Any) -> None:
    """What the stage upload does."""
    host.put_file(output_key(JOB, "output.mp4"), clip.video, content_type="video/mp4")
    host.put_file(output_key(JOB, "poster.jpg"), clip.poster, content_type="image/jpeg")
    host.put_file(output_key(JOB, "teaser.mp4"), clip.teaser, content_type="video/mp4")
    put_receipt(host, clip, **changes)


def arrive(api: Lender, clip: Encoded) -> None:
    """All but the receipt is there, and was looked at."""
    for name, path in (
        ("output.mp4", clip.video),
        ("poster.jpg", clip.poster),
        ("teaser.mp4", clip.teaser),
    ):
        api.storage.put_file(output_key(JOB, name), path, content_type="any")
    note = FilmNote(
        sha256=clip.sha256, size=clip.size, width=160, height=90, fps=24, frames=clip.frames,
        has_sound=False, codec="h264",
    )  # fmt: skip
    data = note.model_dump_json().encode()
    api.storage.put_bytes(f"temp/{JOB}/film.json", data, content_type="application/json")


def put_receipt(host: LeaseStorage, clip: Encoded, **changes: Any) -> None:
    data = receipt_of(clip, **changes)
    host.put_bytes(output_key(JOB, "receipt.json"), data, content_type="application/json")


def record_of(value: Any, kind: str, **metadata: Any) -> bytes:
    """A result as Prefect writes it."""
    data = value.to_json() if hasattr(value, "to_json") else value
    inner = json.dumps({"__class__": kind, "data": data})
    return json.dumps(
        {"metadata": {"serializer": {"type": "json"}, **metadata}, "result": inner}
    ).encode()


# --- over the wire ------------------------------------------------------------------------------


def test_a_job_goes_through(api: Lender, host: LeaseStorage, clip: Encoded, tmp_path: Path) -> None:
    api.storage.put_bytes(f"inputs/{JOB}/input.png", PNG, content_type="image/png")
    assert [i.key for i in host.list(f"inputs/{JOB}/input.")] == [f"inputs/{JOB}/input.png"]
    assert host.get_bytes(f"inputs/{JOB}/input.png") == PNG
    host.put_bytes(source_key(JOB), PNG + bytes(SMALL_BYTES), content_type="image/png")
    path = tmp_path / "latents"
    path.write_bytes(LATENTS + bytes(PART_BYTES))
    key = lent_key(JOB, DIGEST)
    assert host.put_file(key, path, content_type="application/octet-stream").size > PART_BYTES
    host.get_file(key, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()

    lies = {"cost__usd": 999.0, "cost__usd_per_hour": 99.0, "cost__host": "another"}
    lies |= {"model__seed": 77, "model__steps": 999, "model__preset": "other", "model__version": ""}
    lies |= {"input__camera": "none", "input__model_prompt": "another"}
    put_all(host, clip, video__width=7, video__key="outputs/other", cost__remote_usd=9.0, **lies)

    assert api.storage.get_bytes(output_key(JOB, "output.mp4")) == clip.video.read_bytes()
    receipt = json.loads(api.storage.get_bytes(output_key(JOB, "receipt.json")))
    assert (receipt["video"]["width"], receipt["video"]["sha256"]) == (160, clip.sha256)
    assert receipt["video"]["video"] == output_key(JOB, "output.mp4")
    assert "key" not in receipt["video"]
    cost = receipt["cost"]
    assert (cost["host"], cost["usd_per_hour"], cost["remote_usd"]) == ("rented-1", 0.5, 0)
    assert cost["usd"] == round(4.0 * 0.5 / 3600, 6)
    honest = json.loads(receipt_of(clip))
    assert (receipt["model"], receipt["input"]) == (honest["model"], honest["input"])
    left = [i.key for i in api.storage.list("temp/")]
    assert left == [f"temp/{JOB}/film.json"]


def test_a_completed_job_is_not_changed_any_more(
    api: Lender, host: LeaseStorage, clip: Encoded
) -> None:
    arrive(api, clip)
    put_receipt(host, clip)
    before = {i.key: i.etag for i in api.storage.list("outputs/")}
    put_receipt(host, clip, cost__usd_per_hour=9.0)
    host.put_file(output_key(JOB, "poster.jpg"), clip.poster, content_type="image/jpeg")
    assert {i.key: i.etag for i in api.storage.list("outputs/")} == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"video__sha256": "0" * 64}, "another video"),
        ({"video__sha256": "x"}, "video.sha256"),
        ({"took__gpu_seconds": -1}, "took.gpu_seconds"),
        ({"took__gpu_seconds": 1e300}, "took.gpu_seconds"),
        ({"took__gpu_seconds": 3600}, "3600 s of the GPU"),
        ({"cost__remote_usd": float("nan")}, "cost.remote_usd"),
        ({"cost__remote_usd": "free"}, "cost.remote_usd"),
        ({"model__dtype": None}, "model.dtype"),
        ({"warnings": ["\ud800"]}, "no JSON"),
        ({"took__infer_seconds": {str(n): 1.0 for n in range(50)}}, "took.infer_seconds"),
    ],
)
def test_a_receipt_that_lies_completes_nothing(
    api: Lender, host: LeaseStorage, clip: Encoded, changes: dict[str, Any], told: str
) -> None:
    arrive(api, clip)
    with pytest.raises(ResultRefused, match=f"receipt.json is refused: .*{told}"):
        put_receipt(host, clip, **changes)
    assert api.storage.head(output_key(JOB, "receipt.json")) is None


def test_what_is_not_as_ordered_reaches_nobody(
    api: Lender, host: LeaseStorage, clip: Encoded
) -> None:
    video = output_key(JOB, "output.mp4")
    refused: list[tuple[str, bytes, str, str]] = [
        (video, b"<html>" * 20_000, "video/mp4", "output.mp4 is refused: it is no whole MP4"),
        (video, clip.video.read_bytes()[:-500], "video/mp4", "cut off"),
        (output_key(JOB, "teaser.mp4"), clip.teaser.read_bytes(), "video/mp4", "come first"),
        (output_key(JOB, "poster.jpg"), clip.poster.read_bytes(), "image/jpeg", "come first"),
        (output_key(JOB, "receipt.json"), receipt_of(clip), "application/json", "come first"),
        (source_key(JOB), b"GIF89a", "image/png", "no PNG"),
        (lent_key(JOB, DIGEST), b"\x80\x04cos\nsystem", "application/octet-stream", "safeten"),
    ]
    for key, data, content_type, told in refused:
        with pytest.raises(ResultRefused, match=told):
            host.put_bytes(key, data, content_type=content_type)
    assert list(api.storage.list("")) == []


def test_other_jobs_are_out_of_reach(api: Lender, host: LeaseStorage) -> None:
    theirs = output_key(OTHER, "output.mp4")
    api.storage.put_bytes(theirs, b"theirs", content_type="video/mp4")
    calls: list[Callable[[], object]] = [
        lambda: host.get_bytes(theirs),
        lambda: host.head(theirs),
        lambda: host.download_url(theirs, seconds=60),
        lambda: host.put_bytes(theirs, b"mine", content_type="video/mp4"),
        lambda: host.put_bytes(theirs, bytes(SMALL_BYTES + 1), content_type="video/mp4"),
        lambda: host.delete(theirs),
        lambda: host.delete(output_key(JOB, "output.mp4")),
        lambda: list(host.list("")),
        lambda: list(host.list("outputs/")),
        lambda: host.upload_url(theirs, content_type="video/mp4", size=1, seconds=60),
        lambda: api.lend("0" * 32).get_bytes(theirs),
    ]
    for call in calls:
        with pytest.raises(StorageRefused):
            call()
    assert api.storage.get_bytes(theirs) == b"theirs"


def ask(host: LeaseStorage, method: str, path: str, **what: Any) -> httpx.Response:
    """A request as a host makes it that keeps to no rule of ours."""
    headers = {"Authorization": f"Bearer {TOKEN}"} | what.pop("headers", {})
    return httpx.request(method, host._url + path, headers=headers, trust_env=False, **what)


def allowed(host: LeaseStorage, data: bytes) -> dict[str, Any]:
    order = {"key": source_key(JOB), "content_type": "image/png", "size": len(data)}
    answer = ask(host, "POST", "/uploads", json=order)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_upload_takes_one_type_and_one_length(api: Lender, host: LeaseStorage) -> None:
    upload = allowed(host, PNG)
    part = upload["parts"][0]
    assert part["headers"] == {"Content-Type": "image/png"}
    for data, content_type in ((PNG + b"x", "image/png"), (PNG[:-1], "image/png"), (PNG, "a/b")):
        answer = httpx.put(part["url"], content=data, headers={"Content-Type": content_type})
        assert answer.status_code == 403
    early = ask(host, "POST", "/uploads/done", json={"upload": upload["upload"]})
    assert early.status_code == 404
    assert list(api.storage.list("")) == []
    assert httpx.put(part["url"], content=PNG, headers=part["headers"]).status_code == 200
    assert [i.key.rpartition("/")[0] for i in api.storage.list("")] == [f"temp/{JOB}"]
    for _ in range(2):
        done = ask(host, "POST", "/uploads/done", json={"upload": upload["upload"]})
        assert done.json()["key"] == source_key(JOB)
    assert api.storage.get_bytes(source_key(JOB)) == PNG


def test_a_url_that_is_used_again_changes_nothing_that_others_read(
    api: Lender, host: LeaseStorage
) -> None:
    upload = allowed(host, PNG)
    part = upload["parts"][0]
    httpx.put(part["url"], content=PNG, headers=part["headers"]).raise_for_status()
    ask(host, "POST", "/uploads/done", json={"upload": upload["upload"]}).raise_for_status()
    evil = PNG[:-1] + b"!"
    httpx.put(part["url"], content=evil, headers=part["headers"]).raise_for_status()
    ask(host, "POST", "/uploads/done", json={"upload": upload["upload"]})
    assert api.storage.get_bytes(source_key(JOB)) == PNG


def test_after_the_lease_nothing_is_open(api: Lender, host: LeaseStorage) -> None:
    api.storage.put_bytes(f"inputs/{JOB}/input.png", PNG, content_type="image/png")
    upload = allowed(host, PNG)
    part = upload["parts"][0]
    httpx.put(part["url"], content=PNG, headers=part["headers"]).raise_for_status()
    api.door.is_revoked = True
    for method, path, what in (
        ("GET", "/object", {"params": {"key": f"inputs/{JOB}/input.png"}}),
        ("GET", "/objects", {"params": {"prefix": f"inputs/{JOB}/"}}),
        ("GET", "/link", {"params": {"key": f"inputs/{JOB}/input.png", "seconds": 60}}),
        ("PUT", "/object", {"params": {"key": source_key(JOB)}, "content": PNG}),
        ("POST", "/uploads", {"json": {"key": source_key(JOB), "content_type": "a", "size": 1}}),
        ("POST", "/uploads/done", {"json": {"upload": upload["upload"]}}),
        ("DELETE", "/object", {"params": {"key": source_key(JOB)}}),
    ):
        answer = ask(host, method, path, headers={"Content-Type": "image/png"}, **what)
        assert (answer.status_code, answer.json()["code"]) == (401, "lease_refused"), path
    assert api.storage.head(source_key(JOB)) is None


def test_a_run_that_was_taken_away_ends_no_job(
    api: Lender, host: LeaseStorage, clip: Encoded
) -> None:
    video = output_key(JOB, "output.mp4")
    arrive(api, clip)
    api.door.is_taken = True
    with pytest.raises((StorageRefused, StaleExecution)):
        put_receipt(host, clip)
    assert api.storage.head(output_key(JOB, "receipt.json")) is None
    assert host.get_bytes(video, limit=10**8) == clip.video.read_bytes()


@pytest.mark.parametrize("token", ["", "lease_other", "Basic x"])
def test_without_its_token_nobody_comes_in(api: Lender, host: LeaseStorage, token: str) -> None:
    assert host is not None
    run_id = api.door.hand(JOB, SPEC)
    url = f"{api.url}/lease/storage/{run_id}/objects"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    params = {"prefix": f"inputs/{JOB}/"}
    assert httpx.get(url, headers=headers, params=params).status_code == 401


@pytest.mark.parametrize(
    "path", ["/../storage", "/object/../objects", "//objects", "/OBJECTS", "/%2e%2e/x", "/other"]
)
def test_odd_paths_lead_nowhere(api: Lender, host: LeaseStorage, path: str) -> None:
    assert api.url in host._url
    answer = ask(host, "GET", path, params={"prefix": "", "key": output_key(OTHER, "x")})
    assert answer.status_code in (403, 404, 405, 422)


def test_a_body_that_is_too_large_is_refused(host: LeaseStorage) -> None:
    params = {"key": output_key(JOB, "receipt.json")}
    headers = {"Content-Type": "application/json"}
    large = ask(host, "PUT", "/object", params=params, headers=headers, content=bytes(200_000))
    assert large.status_code == 413
    order = {"key": source_key(JOB), "content_type": "image/png", "size": 10**12}
    assert ask(host, "POST", "/uploads", json=order).status_code == 403


# --- results of tasks ---------------------------------------------------------------------------


def result_key(host: LeaseStorage, task: str) -> str:
    return f"results/{task}-2-{host._url.rpartition('/')[2]}-0a1b"


def prepared(**changes: Any) -> Prepared:
    shot = resolve(SPEC, get_model("preview"), job_id=JOB, image_size=(160, 90))
    source = SourceImage(
        key=source_key(JOB), width=160, height=90, sha256="0" * 64, original_sha256="1" * 64
    )
    if "key" in changes:
        source = source.model_copy(update={"key": changes.pop("key")})
    return Prepared(shot=shot.model_copy(update=changes), source=source, seconds=1.0)


def latents(**changes: Any) -> Latents:
    given = {"key": lent_key(JOB, DIGEST), "sha256": "0" * 64, "size": 9, "seconds": {"gpu": 1}}
    return Latents.model_validate({**given, **changes})


def test_a_result_is_written_anew(api: Lender, host: LeaseStorage) -> None:
    from prefect.results import ResultRecord

    for task, value in (("fetch-image", prepared()), ("infer", latents())):
        key = result_key(host, task)
        data = record_of(value, f"stillreel.job.{type(value).__name__}", storage_key="any")
        host.put_bytes(key, data, content_type="application/octet-stream")
        record = ResultRecord.deserialize(api.storage.get_bytes(key))
        ours = {"host": "rented-1", "host_price": 0.5} if task == "infer" else {}
        assert record.result == value.model_copy(update=ours)
        assert host.get_bytes(key) != data


@pytest.mark.parametrize("metadata", [[1], "x", None, 7])
def test_what_a_record_says_about_itself_counts_for_nothing(
    api: Lender, host: LeaseStorage, metadata: Any
) -> None:
    record = json.loads(record_of(latents(), "stillreel.job.Latents"))
    key = result_key(host, "infer")
    data = json.dumps(record | {"metadata": metadata}).encode()
    host.put_bytes(key, data, content_type="application/octet-stream")
    stored = json.loads(api.storage.get_bytes(key))["metadata"]
    assert stored["storage_key"] == key.rpartition("/")[2]


EVIL = "subprocess.getoutput"


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("infer", record_of(["touch /tmp/taken"], EVIL)),
        ("infer", record_of(prepared(), "stillreel.job.Prepared")),
        ("infer", b"\x80\x04\x95"),
        ("infer", b"[" * 50_000),
        ("infer", b"{}"),
        ("infer", json.dumps({"result": "\ud800"}).encode()),
        ("infer", record_of(latents(dtype="x"), "stillreel.job.Latents").replace(b"x", b"\\ud800")),
        ("infer", record_of({"seconds": {"\ud800": "x"}}, "stillreel.job.Latents")),
        ("infer", json.dumps({"result": '{"__exc_type__": "x", "message": ""}'}).encode()),
        ("infer", record_of({"key": {"__class__": EVIL}}, "stillreel.job.Latents")),
        ("infer", record_of(latents(key=lent_key(OTHER, DIGEST)), "stillreel.job.Latents")),
        ("infer", record_of(latents(key=f"inputs/{OTHER}/input.png"), "stillreel.job.Latents")),
        ("infer", record_of(latents(key=f"latents/{JOB}/../x"), "stillreel.job.Latents")),
        ("infer", record_of(latents(reused_from=OTHER), "stillreel.job.Latents")),
        ("infer", record_of(latents(seconds={"gpu": -1}), "stillreel.job.Latents")),
        ("infer", record_of(latents(seconds={"gpu": 3600}), "stillreel.job.Latents")),
        ("infer", record_of(latents(warnings=["x" * 9999]), "stillreel.job.Latents")),
        ("fetch-image", record_of(prepared(key=source_key(OTHER)), "stillreel.job.Prepared")),
        ("fetch-image", record_of(prepared(frames=10**9), "stillreel.job.Prepared")),
        ("fetch-image", record_of(prepared(prompt="another"), "stillreel.job.Prepared")),
        ("fetch-image", record_of(prepared(crop_width=0), "stillreel.job.Prepared")),
    ],
)
def test_a_result_that_is_none_is_refused(
    api: Lender, host: LeaseStorage, task: str, data: bytes
) -> None:
    with pytest.raises(ResultRefused):
        host.put_bytes(result_key(host, task), data, content_type="application/octet-stream")
    assert list(api.storage.list("")) == []


def test_why_a_result_is_never_stored_as_it_came() -> None:
    """Prefect's decoder calls what a record names: this is what another host would run."""
    from prefect.serializers import JSONSerializer

    told = JSONSerializer().loads(json.dumps({"__class__": EVIL, "data": ["echo taken"]}).encode())
    assert told == "taken"


def test_the_token_is_not_shown(host: LeaseStorage) -> None:
    assert TOKEN not in f"{host} {host!r}"
    with pytest.raises(ObjectMissing) as caught:
        host.get_bytes(f"inputs/{JOB}/none.png")
    assert TOKEN not in str(caught.value)


def test_a_link_ends_soon(host: LeaseStorage) -> None:
    url = host.download_url(output_key(JOB, "output.mp4"), seconds=7 * 86400)
    import time

    assert int(parse_qs(urlsplit(url).query)["expires"][0]) <= time.time() + 900
