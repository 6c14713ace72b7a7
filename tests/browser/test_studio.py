"""The studio in a real browser on a real stack: order, watch, play, cancel, retry, count."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

import pytest
from playwright.sync_api import expect

from stillreel.scene import draw_scene
from tests.browser.audit import barriers, faint, overflowing
from tests.stack import KEY, Stack, running_stack

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route

    from tests.browser.conftest import Shoot

pytestmark = pytest.mark.timeout(900)
"""The first of them waits for a whole stack and for the model's server too."""

PATIENCE_SECONDS = 300
STEP_SECONDS = "0.4"
"""Of the model: long enough to be seen."""
STAGES = ("Fetch", "Infer", "Encode", "Upload", "Notify")


class Source:
    """A server of one image, which is not there until `found` is set."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/lake.jpg"
        self.found = False


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "lake.jpg"
    draw_scene(960, 540, seed=4).save(path, quality=88)
    return path


@pytest.fixture(scope="module")
def source(picture: Path) -> Iterator[Source]:
    with serve(picture.read_bytes()) as source:
        yield source


@pytest.fixture(scope="module")
def stack(browser: Browser, source: Source) -> Iterator[Stack]:
    address = source.url.split("/")[2]
    with running_stack(
        STILLREEL_PREVIEW_SECONDS_PER_STEP=STEP_SECONDS,
        STILLREEL_HOST_PRICE="0.66",
        STILLREEL_ALLOW_ADDRESSES=address,
        STILLREEL_PREFECT_SECONDS="20",
    ) as stack:
        yield stack


@pytest.fixture(scope="module")
def made(stack: Stack) -> str:
    """The id of a job that completed, made through the API; after it the model is loaded."""
    order = {"prompt": "a scene that was made before", "duration": 1}
    job_id = stack.shim.post("/api/v1/generate", json=order).raise_for_status().json()["job_id"]
    run_id = stack.shim.get(f"/api/v1/jobs/{job_id}").json()["run_id"]
    assert stack.wait(run_id, timeout=PATIENCE_SECONDS)["state_type"] == "COMPLETED"
    return job_id


class Studio:
    """The page after signing in, and all that went wrong in its console."""

    def __init__(self, page: Page, stack: Stack) -> None:
        self.page, self.stack = page, stack
        self.faults: list[str] = []
        self.asked: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def _hear(self, line: Any) -> None:
        # A server under load answers 503 now and then, and the page asks again.
        if line.type == "error" and "503 (Service Unavailable)" not in line.text:
            self.faults.append(line.text)

    def open(self, path: str = "") -> Page:
        self.page.goto(f"{self.stack.shim_url}/{path}")
        self.page.get_by_label("API key").fill(KEY)
        self.page.get_by_role("button", name="Open the studio").click()
        return self.page

    def order(self, prompt: str, *, picture: Path | None = None, duration: float = 1) -> None:
        """Fill the form in, and click twice as impatient people do."""
        if picture:
            self.page.locator("#field-image").set_input_files(picture)
            self.page.get_by_alt_text(f"Your image, {picture.name}").wait_for()
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        self.page.get_by_label("Duration").fill(str(duration))
        self.page.get_by_role("button", name="Make video").dblclick()

    def card(self, prompt: str) -> Locator:
        return self.page.locator(".card").filter(has_text=prompt)

    def jobs(self, prompt: str) -> list[dict[str, Any]]:
        answer = self.stack.shim.get("/api/v1/jobs", params={"q": prompt}).raise_for_status()
        return answer.json()["jobs"]


@pytest.fixture
def studio(stack: Stack, page: Page) -> Iterator[Studio]:
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    page.set_default_timeout(PATIENCE_SECONDS * 1000)
    studio = Studio(page, stack)
    yield studio
    elsewhere = [
        url for url in studio.asked if not url.startswith((stack.shim_url, "blob:", "data:"))
    ]
    assert (elsewhere, studio.faults) == ([], [])
    assert not [url for url in studio.asked if KEY in url]


def test_a_wall_without_videos_says_what_to_do(studio: Studio, shoot: Shoot) -> None:
    page = studio.open()
    expect(page.get_by_text("Your videos appear here")).to_be_visible()
    shoot("studio-empty")


def test_an_image_becomes_a_video_that_plays(
    studio: Studio, made: str, picture: Path, shoot: Shoot
) -> None:
    page, prompt = studio.open(), "slow zoom in over the lake"
    studio.order(prompt, picture=picture)

    card = studio.card(prompt)
    expect(card).to_have_count(1)
    expect(card.locator(".doing")).to_have_text(re.compile(r"Inference, denoising \d of 8"))
    shoot("studio-working")
    bar = card.get_by_role("progressbar")
    assert 3 < int(bar.get_attribute("aria-valuenow") or 0) < 100

    expect(card.locator("img.poster")).to_be_visible()
    assert [job["status"] for job in studio.jobs(prompt)] == ["completed"]
    card.hover()
    plays(card.locator("video.teaser.on"))
    shoot("studio-wall")

    card.get_by_role("link", name=prompt).click()
    expect(page.get_by_role("heading", name=prompt)).to_be_focused()
    page.locator("video.player").evaluate("player => { player.muted = true; player.play() }")
    plays(page.locator("video.player"))
    chart = page.get_by_role("img", name=re.compile("^Stages: "))
    for stage in STAGES:
        expect(chart).to_have_accessible_name(re.compile(stage))
    page.get_by_text("Receipt", exact=True).click()
    (job,) = studio.jobs(prompt)
    expect(page.get_by_label("Receipt as JSON")).to_contain_text(job["video"]["sha256"])
    assert overflowing(page) == 0
    expect(page.get_by_role("link", name="Prefect run")).to_have_attribute(
        "href", f"{studio.stack.url}/v2/runs/flow-run/{job['run_id']}"
    )
    shoot("studio-job")

    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download").click()
    assert waiting.value.path().stat().st_size == job["video"]["size"]
    assert re.fullmatch(r"slow-zoom-in-over-the-lake-\w+\.mp4", waiting.value.suggested_filename)


def test_an_order_that_is_sent_again_keeps_its_key_while_its_writer_types_on(
    studio: Studio,
) -> None:
    page, prompt = studio.open(), "pan right while the line breaks"
    tries: list[Route] = []

    def hold_first(route: Route) -> None:
        tries.append(route)
        if len(tries) > 1:
            route.continue_()

    page.route("**/api/v1/generate", hold_first)
    field = page.get_by_label("Prompt", exact=True)
    field.fill(prompt)
    with page.expect_request("**/api/v1/generate"):
        page.get_by_role("button", name="Make video").click()
    field.fill(f"{prompt} and on")
    tries[0].abort()

    expect(studio.card(prompt)).to_have_count(1)
    first, second = (route.request.headers["idempotency-key"] for route in tries)
    assert re.fullmatch(r"[0-9a-f]{32}", first)
    assert second == first
    assert [job["prompt"] for job in studio.jobs(prompt)] == [prompt]
    studio.card(prompt).get_by_role("button", name="Cancel").click()
    studio.faults = [fault for fault in studio.faults if "ERR_FAILED" not in fault]


def test_a_job_is_cancelled_and_tried_again(studio: Studio) -> None:
    page, prompt = studio.open(), "tilt up to the sky"
    studio.order(prompt, duration=2)
    card = studio.card(prompt)
    card.get_by_role("button", name="Cancel").click()
    expect(card.locator(".chip-status")).to_have_text("Cancelled")
    assert [job["status"] for job in studio.jobs(prompt)] == ["cancelled"]

    card.get_by_role("button", name="Retry").click()
    expect(card.locator("img.poster")).to_be_visible()
    page.get_by_role("button", name="Done").click()
    expect(card).to_be_visible()


def test_a_failed_job_says_why_and_is_tried_again(
    studio: Studio, source: Source, shoot: Shoot
) -> None:
    prompt = "pan left where nothing was"
    order = {"prompt": prompt, "image_url": source.url, "duration": 1}
    job_id = studio.stack.shim.post("/api/v1/generate", json=order).json()["job_id"]
    page = studio.open(f"#/jobs/{job_id}")
    expect(page.locator(".chip-status")).to_have_text("Failed")
    expect(page.get_by_text("image_unavailable")).to_be_visible()
    shoot("studio-failed")

    source.found = True
    page.get_by_role("button", name="Retry").click()
    page.locator("video.player").wait_for()
    (job,) = studio.jobs(prompt)
    assert (job["status"], job["round"]) == ("completed", 2)


def test_what_the_api_refuses_stands_at_its_field(studio: Studio, shoot: Shoot) -> None:
    page = studio.open()
    page.get_by_label("Prompt", exact=True).fill("zoom out")
    page.get_by_label("Seed", exact=True).fill("-7")
    wrong = page.locator("[data-field=seed]").get_by_role("alert")
    expect(wrong).to_have_text(re.compile("greater than or equal to -1"))
    expect(page.get_by_label("Seed", exact=True)).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Seed", exact=True).fill("7")
    expect(wrong).to_be_hidden()

    page.get_by_label("Size").select_option("own")
    page.get_by_label("Width in pixels").fill("5000")
    page.get_by_label("Height in pixels").fill("720")
    expect(page.locator("[data-field=size]").get_by_role("alert")).to_have_text(
        re.compile("less than or equal to 4096")
    )
    page.get_by_role("button", name="Make video").click()
    expect(page.get_by_label("Size")).to_have_attribute("aria-invalid", "true")
    shoot("studio-refused")
    studio.faults = [fault for fault in studio.faults if "422" not in fault]


def test_a_wrong_key_is_refused_and_a_right_one_is_forgotten_at_the_end(studio: Studio) -> None:
    page = studio.page
    page.goto(studio.stack.shim_url)
    page.get_by_label("API key").fill("not-a-key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Invalid API key. Paste another one.")
    assert all("401" in fault for fault in studio.faults)
    studio.faults.clear()

    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Videos")).to_be_visible()
    stored = "[Object.values(sessionStorage), Object.values(localStorage), document.cookie]"
    assert page.evaluate(stored) == [[KEY], [], ""]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate(stored) == [[], [], ""]


def test_the_usage_is_drawn_and_told_in_numbers(studio: Studio, shoot: Shoot) -> None:
    made = studio.stack.shim.get("/api/v1/usage").json()["total"]["videos"]
    page = studio.open("#/usage")
    for title in ("Videos a day", "US$ a day", "US$ per video", "GPU time a day", "Waiting before"):
        expect(page.get_by_role("img", name=re.compile(re.escape(title)))).to_be_visible()
    expect(page.locator(".tile").filter(has_text="Videos").locator("dd")).to_contain_text(str(made))
    page.get_by_text("The numbers").click()
    expect(page.locator("tbody td").first).to_have_text(str(made))
    shoot("studio-usage")
    page.get_by_role("button", name="7 days").click()
    expect(page.get_by_role("button", name="7 days")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_and_use_it(
    studio: Studio, made: str, scheme: Literal["light", "dark"], width: int, shoot: Shoot
) -> None:
    """By axe; and `studio` has heard of no violation of the page's policy meanwhile."""
    page, url = studio.page, studio.stack.shim_url
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(url)
    page.get_by_label("API key").wait_for()
    assert barriers(page) == []
    studio.open()
    pages = {"wall": ("#/", ".card .poster"), "usage": ("#/usage", "figure")}
    for name, (path, sign) in {**pages, "job": (f"#/jobs/{made}", "video.player")}.items():
        page.goto(f"{url}/{path}")
        page.locator(sign).first.wait_for()
        page.get_by_text("More settings").click() if name == "wall" else None
        shoot(f"studio-{name}-{scheme}-{width}")
        assert (barriers(page), faint(page), overflowing(page)) == ([], [], 0), name


def test_all_is_done_by_keyboard(studio: Studio, made: str) -> None:
    page, prompt = studio.open(), "dolly in by keyboard"
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type(prompt)
    page.keyboard.press("Control+Enter")
    card = studio.card(prompt)
    tab_to(page, card.get_by_role("link", name=prompt))
    page.keyboard.press("Tab")
    expect(card.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(card.locator(".chip-status")).to_have_text("Cancelled")
    tab_to(page, page.locator(f".card[data-job={made}] .card-link"))
    plays(page.locator(f".card[data-job={made}] video.teaser.on"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.locator("video.player").wait_for()
    page.go_back()
    expect(card).to_be_visible()


def plays(video: Locator) -> None:
    """Return when its time has moved on twice; without eval, which the page's policy forbids."""
    moved = """video => new Promise((done) => {
        let before = video.currentTime
        video.addEventListener('timeupdate', () => {
            if (before > 0 && video.currentTime > before) done()
            before = video.currentTime
        })
    })"""
    video.evaluate(moved)


def tab_to(page: Page, wanted: Locator, *, most: int = 120) -> None:
    """Press Tab until this has the focus."""
    wanted.wait_for()
    for _ in range(most):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{wanted} is not reached by Tab")


@contextmanager
def serve(content: bytes) -> Iterator[Source]:
    """A server whose image answers 404 until it is `found`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if source.found else 404)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(content) if source.found else 0))
            self.end_headers()
            if source.found:
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
            """Keeps test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    source = Source(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield source
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
