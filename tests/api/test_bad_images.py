"""Bad images get a clear error, in whichever way they come; what is fetched fails its job."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.api.background import eventually
from tests.api.calls import PNG_BASE64, ask_upload, order, put
from tests.api.conftest import Api, StartApi, png
from tests.api.outside import assert_problem, stored
from tests.receiver import Answer, Receiver, answer, endless, redirect

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


def bomb(side: int = 12_000) -> bytes:
    """A small, valid PNG of 144 million black pixels."""
    pack = zlib.compressobj(9)
    row = bytes(side + 1)
    data = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


BOMB = bomb()
NO_IMAGES = {
    "text": b"This is not an image at all.",
    "html": b"<!doctype html><title>Log in</title>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "pdf": b"%PDF-1.7\n",
    "a head alone": png()[:40],
    "mp4": b"\0\0\0\x20ftypisom" + bytes(100),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}


@pytest.mark.parametrize("content", NO_IMAGES.values(), ids=NO_IMAGES)
@pytest.mark.parametrize("way", ["base64", "data url", "form", "upload"])
def test_what_is_no_image(api: Api, way: str, content: bytes) -> None:
    problem = assert_problem(send_image(api, way, content), (413, 415, 422), "image")
    assert problem["code"].startswith("image_")


@pytest.mark.parametrize("way", ["base64", "data url", "form", "upload"])
def test_an_image_bomb(api: Api, way: str) -> None:
    assert len(BOMB) < 1_000_000
    assert_problem(send_image(api, way, BOMB), (413, 422), "64,000,000", "pixels")


@pytest.mark.parametrize(
    "text",
    ["", "!!!!", "abc", "data:", "data:image/png,abc", "data:image/png;base64", "\u20ac\u20ac",
     "data:image/png;base64,", "https://example.com/a.png", PNG_BASE64[:-3] + "*"],
)  # fmt: skip
def test_what_is_no_base64(api: Api, text: str) -> None:
    told = api.client.post("/generate", json={"image_base64": text, "duration": 1})
    assert_problem(told, 422, "image")


def test_an_image_that_is_too_small(api: Api) -> None:
    told = send_image(api, "base64", png(1, 1))
    if told.status_code != 200:
        assert_problem(told, 422, "image", "pixel")


def test_two_images_in_a_form(api: Api) -> None:
    told = api.client.post(
        "/api/v1/generate",
        data={"image_url": "https://8.8.8.8/a.png"},
        files={"image": ("a.png", png(), "image/png")},
    )
    assert_problem(told, 422, "image")


def send_image(api: Api, way: str, content: bytes) -> httpx.Response:
    text = base64.b64encode(content).decode()
    match way:
        case "base64":
            return order(api, image_base64=text)
        case "data url":
            return order(api, image_base64=f"data:image/png;base64,{text}")
        case "form":
            return api.client.post(
                "/api/v1/generate",
                data={"prompt": "a cat"},
                files={"image": ("a.png", content, "image/png")},
            )
    target = ask_upload(api, content_type="image/png")
    assert put(target, content).is_success
    return order(api, job_id=target["job_id"])


def test_a_page_of_a_browser_is_no_problem(api: Api) -> None:
    """What a picture may be, is sniffed; what a browser shows, is not ours to guess."""
    buffer = BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "GIF")
    text = base64.b64encode(buffer.getvalue()).decode()
    told = order(api, image_base64=f"data:text/html;base64,{text}")
    if told.status_code == 200:
        [key] = stored(api, told.json()["job_id"])
        assert key.endswith(".gif")
    else:
        assert_problem(told, 422, "image")


# --- images that are fetched or decoded -------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "code", "says"),
    [
        (answer(404), "image_unavailable", "404"),
        (answer(403), "image_unavailable", "403"),
        (answer(body=b"<html>no</html>", Content_Type="image/png"), "image_rejected", "image"),
        (answer(body=b"", Content_Type="image/png"), "image_rejected", "image"),
        (answer(body=BOMB, Content_Type="image/png"), "image_too_large", "pixels"),
        (endless, "image_too_large", "bytes"),
        (redirect("http://169.254.169.254/latest/meta-data/"), "address_refused", "public"),
        (redirect("http://127.0.0.1:1/a.png"), "address_refused", "public"),
        (redirect("http://2130706433:1/a.png"), "address_refused", "public"),
        (redirect("file:///etc/passwd"), "address_refused", "public"),
        (redirect("/again"), "image_unavailable", "redirects"),
    ],
    ids=["404", "403", "html", "empty", "bomb", "endless", "metadata", "port", "decimal", "file",
         "loop"],
)  # fmt: skip
def test_an_address_without_an_image(
    start_api: StartApi, act: Answer, code: str, says: str
) -> None:
    """It is known when it is fetched, soon after the order: then the job fails, and says why."""
    with Receiver((act,)) as server:
        api = start_api(
            STILLREEL_ALLOW_ADDRESSES=f"127.0.0.1:{server.port}",
            STILLREEL_IMAGE_MAX_BYTES="1000000",
        )
        job_id = api.submit(image_url=f"{server.url}image.png")["job_id"]
        job: dict[str, Any] = {}
        for attempt in eventually():
            with attempt:
                job = api.job(job_id)
                assert (job["status"], job["error_code"]) == ("failed", code)
    assert says in job["error"]
    assert "127.0.0.1" not in job["error"]
    assert "169.254" not in job["error"]
    assert job["result_url"] is None


def test_half_an_image_fails_and_says_so(api: Api, inference_server: None) -> None:
    """Its head is good; that the rest is missing shows when it is decoded."""
    told = send_image(api, "base64", png()[: len(png()) // 2])
    if told.status_code != 200:
        assert_problem(told, 422, "image")
        return
    job_id = told.json()["job_id"]
    assert not api.execute(job_id).is_completed()
    job = api.job(job_id)
    assert (job["status"], job["error_code"]) == ("failed", "image_rejected")
