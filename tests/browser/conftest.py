"""A real Chromium; pictures of what it showed go to .screenshots."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Response

WAIT_SECONDS = 120
VIEWPORT = (1280, 1000)
SCREENSHOTS = Path(__file__).parents[2] / ".screenshots"

Shoot = Callable[[str], None]

log = logging.getLogger(__name__)


@pytest.fixture(scope="session")
def browser(require: Callable[[str, bool], None]) -> Iterator[Browser]:
    """Chromium, started once; the variable CHROMIUM names another one than Debian's."""
    path = Path(os.environ.get("CHROMIUM") or "/usr/bin/chromium")
    require(f"Chromium ({path}; the variable CHROMIUM names another)", path.exists())
    require("the Python package playwright", find_spec("playwright") is not None)
    from playwright.sync_api import sync_playwright

    # Prefect's pages call an analytics service, even where analytics are off.
    args = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    args += ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=args)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own, with the patience that a slow machine needs."""
    width, height = VIEWPORT
    with browser.new_context(viewport={"width": width, "height": height}) as context:
        context.set_default_timeout(WAIT_SECONDS * 1000)
        page = context.new_page()
        page.on("response", _log_refusal)
        yield page


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what its page showed: CI leaves words only."""
    report = yield
    page = cast("Page | None", item.funcargs.get("page"))
    if page and call.when == "call" and report.failed:
        report.sections.append((f"{page.url} showed", _text(page)))
    return report


@pytest.fixture
def shoot(page: Page) -> Shoot:
    """`shoot("form")` writes .screenshots/form.png, the whole page."""

    def write(name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    return write


def _log_refusal(response: Response) -> None:
    if not response.ok:
        log.warning("%s of %s %s", response.status, response.request.method, response.url)


def _text(page: Page) -> str:
    from playwright.sync_api import Error

    try:
        return page.locator("body").inner_text(timeout=5000)
    except Error as exc:
        return f"nothing: {exc}"
