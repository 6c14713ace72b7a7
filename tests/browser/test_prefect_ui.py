"""A person starts a video from a form in the Prefect UI, watches it and sees what it made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pytest
import stamina
from PIL import Image
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from stillreel.job import JobSpec
from stillreel.models.motions import MOTIONS
from stillreel.models.styles import get_styles
from tests.browser.conftest import SCREENSHOTS, WAIT_SECONDS
from tests.services.postgres import create_database
from tests.stack import Stack, running_stack

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect, Locator, Page, ViewportSize

    from tests.browser.conftest import Shoot

CHOICES = {
    "style": ["", *get_styles()],
    "model": ["preview", "wan-2.2", "ltx-2", "ltx-2.3", "ltx-2.5", "remote"],
    "codec": ["h264", "av1"],
    "quality": ["standard", "high"],
}
TASKS = ["fetch-image", "infer", "encode", "upload", "notify"]
PROMPT = "slow pan right over the lake"
TALL: ViewportSize = {"width": 1280, "height": 1300}
"""A window that holds a run's whole page: a picture of more resizes it, and a graph slips away."""


class NotYet(Exception):
    """The graph is not where it will be."""


@pytest.fixture(scope="module")
def stack(browser: Browser) -> Iterator[Stack]:
    with running_stack() as stack:
        yield stack


@pytest.fixture(scope="module")
def run_id(stack: Stack) -> str:
    """A run that completed, made through the API."""
    run_id = stack.submit({"prompt": PROMPT, "duration": 1})
    assert stack.wait(run_id)["state_type"] == "COMPLETED"
    return run_id


def test_the_form_shows_every_field_of_an_order(stack: Stack, page: Page, shoot: Shoot) -> None:
    open_form(page, stack)
    shoot("prefect-form")

    labels = page.locator("form label").all_inner_texts()
    fields = [label.removesuffix(" (Optional)") for label in labels if "(Optional)" in label]
    assert fields == list(JobSpec.model_fields)
    for name, field in JobSpec.model_fields.items():
        assert described(page, name) == (field.description or described(page, name)) != "", name


@pytest.mark.parametrize(("name", "choices"), CHOICES.items(), ids=CHOICES)
def test_a_field_with_choices_is_a_list(
    stack: Stack, page: Page, name: str, choices: list[str]
) -> None:
    open_form(page, stack)
    open_choices(page, name)

    assert page.get_by_role("option").all_inner_texts() == choices


def test_the_camera_is_a_list_of_motions_or_words(stack: Stack, page: Page) -> None:
    open_form(page, stack)
    field_of(page, "camera").get_by_role("tab", name="one motion").click()
    field_of(page, "camera").get_by_role("button", name="Select").click()
    assert page.get_by_role("option").all_inner_texts() == ["", *MOTIONS]
    page.keyboard.press("Escape")
    field_of(page, "camera").get_by_role("tab", name="in words").click()
    field_of(page, "camera").get_by_role("textbox").fill("slow pan left and tilt up")


def test_a_video_is_made_from_the_form(stack: Stack, page: Page) -> None:
    make_from_form(page, stack)


def test_a_video_is_made_from_the_form_on_postgres(postgres: str, page: Page, shoot: Shoot) -> None:
    with running_stack(DATABASE_URL=create_database(postgres, "form")) as stack:
        make_from_form(page, stack)
        shoot("prefect-run-postgres")


def test_the_page_of_a_run_shows_its_five_tasks(
    stack: Stack, run_id: str, page: Page, shoot: Shoot
) -> None:
    page.set_viewport_size(TALL)
    page.goto(f"{stack.url}/v2/runs/flow-run/{run_id}?tab=TaskRuns")
    page.get_by_text(re.compile("^notify-")).first.wait_for()

    page.get_by_text("5 Task runs").first.wait_for()
    for task in TASKS:
        page.get_by_text(re.compile(f"^{task}-")).first.wait_for()
    page.locator("canvas").first.wait_for()  # the graph
    lay_out_graph(page)
    shoot("prefect-run")
    graph = bounds(page.locator("canvas").first)
    page.screenshot(path=SCREENSHOTS / "prefect-graph.png", clip=graph)


def test_a_run_shows_its_progress_and_a_page_with_poster_and_facts(
    stack: Stack, run_id: str, page: Page, shoot: Shoot
) -> None:
    artifacts = stack.artifacts(run_id)
    assert set(artifacts) == {"progress", "result"}

    page.goto(f"{stack.url}/v2/runs/flow-run/{run_id}?tab=Artifacts")
    for artifact in artifacts.values():
        page.get_by_text(artifact["key"]).first.wait_for()
    shoot("prefect-artifacts")

    shown = {}
    for name, artifact in artifacts.items():
        page.goto(f"{stack.url}/v2/artifacts/artifact/{artifact['id']}")
        page.get_by_text(artifact["description"]).first.wait_for()
        page.get_by_role("tab", name="Raw").wait_for()
        shoot(f"prefect-artifact-{name}")
        shown[name] = page.locator("main").inner_text()
        if name == "result":
            poster = page.get_by_alt_text("poster")
            assert poster.evaluate("image => image.naturalWidth") == 640
    assert "Progress: 100%" in shown["progress"]
    assert "output.mp4" in shown["result"]
    assert "1280 x 720, 1.04 s at 24 fps" in shown["result"]


def lay_out_graph(page: Page, layout: str = "Dependency grid") -> None:
    """Have all of the graph in view."""
    recenter = page.locator("button:has(svg.lucide-crosshair)")
    recenter.locator("xpath=following::button[2]").click()
    page.get_by_text(layout, exact=True).click()
    page.keyboard.press("Escape")
    page.get_by_text(layout, exact=True).wait_for(state="hidden")
    graph = bounds(page.locator("canvas").first)
    for attempt in stamina.retry_context(on=NotYet, attempts=None, timeout=WAIT_SECONDS):
        with attempt:
            recenter.click()  # again: what was laid out after it is out of view
            if not is_centred(page.screenshot(clip=graph)):
                raise NotYet


def is_centred(picture: bytes) -> bool:
    """Whether the green of finished tasks ends as far from the left as from the right."""
    red, green, blue = np.moveaxis(
        np.asarray(Image.open(BytesIO(picture)).convert("RGB"), int), 2, 0
    )
    columns = np.flatnonzero(((green - red > 60) & (green - blue > 40)).any(axis=0))
    left, right = columns[[0, -1]] if columns.size else (0, 0)
    return left > 0 and abs(left - (red.shape[1] - 1 - right)) <= 8


def bounds(element: Locator) -> FloatRect:
    """Where it is in the window."""
    box = element.bounding_box()
    assert box
    return box


def make_from_form(page: Page, stack: Stack) -> None:
    """Fill the form as a person does, and stay on the run's page until it has completed."""
    open_form(page, stack)
    field_of(page, "prompt").get_by_role("textbox").fill(PROMPT)
    field_of(page, "duration").get_by_role("spinbutton").fill("1")
    open_choices(page, "model")
    page.get_by_role("option", name="preview").click()
    run_id = submit(page)

    page.goto(f"{stack.url}/v2/runs/flow-run/{run_id}")
    run = stack.wait(run_id)

    assert run["state_type"] == "COMPLETED", stack.log
    assert run["parameters"] == JobSpec(prompt=PROMPT, duration=1).to_json()
    page.get_by_text(f"preview: {PROMPT}").first.wait_for()
    page.get_by_text("Completed", exact=True).first.wait_for()


def open_form(page: Page, stack: Stack) -> None:
    """The form for a custom run, reached from the deployment's page.

    The list of deployments asks for its charts without end and, on a slow machine, never rests.
    """
    page.goto(f"{stack.url}/v2/deployments/deployment/{stack.deployment_id()}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    page.get_by_text("owner (Optional)").wait_for()


def field_of(page: Page, name: str) -> Locator:
    """The box around a field's label, description and control."""
    label = page.get_by_text(f"{name} (Optional)", exact=True)
    return page.locator("form div.group").filter(has=label)


def described(page: Page, name: str) -> str:
    """What stands below a field's label."""
    _, *rest = field_of(page, name).locator("xpath=.//label/..").inner_text().splitlines()
    return " ".join(rest).strip()


def open_choices(page: Page, name: str) -> None:
    """Open the list of a field with choices."""
    field_of(page, name).get_by_role("button", name=f"Select {name}").click()
    page.get_by_role("option").first.wait_for()


def submit(page: Page, *, tries: int = 5) -> str:
    """The id of the run that the form makes.

    On a slow machine the page may move away below a click, and SQLite may make Prefect refuse; a
    person submits once more.
    """
    met = list[str]()
    for _ in range(tries):
        try:
            with page.expect_request(re.compile("/create_flow_run$"), timeout=60_000) as sent:
                page.get_by_role("button", name="Submit").click()
        except PlaywrightTimeout:
            met.append("a click without a request")
            continue
        response = sent.value.response()
        assert response, sent.value.failure
        if response.ok:
            return response.json()["id"]
        assert response.status == 503, (response.status, response.text())
        met.append("503")
    raise AssertionError(met)
