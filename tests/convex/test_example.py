"""The example's page in a real browser, on the real API: a picture goes in, a video plays."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.api.background import eventually
from tests.api.conftest import png
from tests.browser.conftest import browser, page, shoot  # noqa: F401 - fixtures
from tests.convex.conftest import Deployment, deployment
from tests.convex.openapi import PACKAGE
from tests.stack import KEY, Stack, free_port, running_stack

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import Shoot

pytestmark = pytest.mark.timeout(600)  # `stillreel up` may need minutes on a busy machine

SECRET = "the-secret-that-signs-webhooks"


@pytest.fixture(scope="module")
def built(node: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, built as for a real site but for its client of Convex."""
    folder = tmp_path_factory.mktemp("page")
    subprocess.run(
        ["npx", "--no-install", "vite", "build", "example", "--outDir", str(folder)],
        cwd=PACKAGE,
        env=os.environ | {"LOOPBACK": "1"},
        capture_output=True,
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def site(node: str, built: Path) -> Iterator[tuple[Deployment, Stack]]:
    """The example app and `stillreel up`, each of which knows where the other is."""
    port = free_port()
    with running_stack(
        WEBHOOK_SECRET=SECRET,
        STILLREEL_ALLOW_ADDRESSES=f"127.0.0.1:{port}",
        STILLREEL_PREVIEW_SECONDS_PER_STEP="0.5",  # so that there is progress to be seen
    ) as stack:
        env = {
            "VIDEO_API_URL": stack.shim_url,
            "VIDEO_API_KEY": KEY,
            "VIDEO_WEBHOOK_SECRET": SECRET,
        }
        with deployment(node, "example", built, port=port, env=env) as app:
            yield app, stack


@pytest.fixture
def opened(site: tuple[Deployment, Stack], page: Page) -> Page:  # noqa: F811 - the fixture
    page.goto(f"{site[0].url}/loopback.html")
    return page


def test_a_picture_is_uploaded_and_its_video_plays(
    opened: Page,
    site: tuple[Deployment, Stack],
    shoot: Shoot,  # noqa: F811
) -> None:
    app, stack = site
    picture = {"name": "photo.png", "mimeType": "image/png", "buffer": png(1280, 720)}
    opened.get_by_label("Picture").set_input_files(picture)  # pyright: ignore[reportArgumentType]
    opened.get_by_label("What should happen").fill("slow zoom in")
    opened.get_by_label("Seconds").fill("2")
    opened.get_by_role("button", name="Make the video").click()

    opened.locator("section[data-status=processing]").wait_for()
    opened.wait_for_function("document.querySelector('progress').value > 0")
    shoot("convex-progress")

    opened.locator("section[data-status=completed]").wait_for()
    assert opened.evaluate("document.querySelector('progress').value") == 100
    [job] = app.query("videos:list")["jobs"]
    for attempt in eventually():  # what is told of the end is one more word about the video
        with attempt:
            told = stack.shim.get(f"/api/v1/jobs/{job['externalId']}").raise_for_status().json()
            assert told["delivery"]["status"] == "delivered"
    opened.wait_for_function("document.querySelector('video').readyState >= 3")
    opened.evaluate("document.querySelector('video').play()")
    opened.wait_for_function("document.querySelector('video').currentTime > 0.5")
    size = "[v => v.videoWidth, v => v.videoHeight].map(f => f(document.querySelector('video')))"
    assert opened.evaluate(size) == [1280, 720]
    shoot("convex-video")

    assert told["job_id"] == job["order"]["uploadId"]


def test_what_is_no_picture_is_refused_in_words(opened: Page) -> None:
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    opened.get_by_label("Picture").set_input_files(text)  # pyright: ignore[reportArgumentType]
    opened.get_by_role("button", name="Make the video").click()
    alert = opened.get_by_role("alert")
    alert.wait_for()
    assert "not one of images that we read" in alert.inner_text()


def test_cancel_and_try_again(opened: Page, site: tuple[Deployment, Stack]) -> None:
    opened.get_by_label("What should happen").fill("tilt up")
    opened.get_by_role("button", name="Make the video").click()
    opened.get_by_role("button", name="Cancel").click()
    opened.locator("section[data-status=cancelled]").wait_for()
    opened.get_by_role("button", name="Try again").click()
    opened.locator("section[data-status=completed]").wait_for()
    opened.locator("video").wait_for()
