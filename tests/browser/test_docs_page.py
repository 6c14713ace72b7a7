"""The API's reference in a browser that can reach nothing but this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from stillreel.api import docs
from stillreel.api.error_handlers import install_problems
from stillreel.api.middleware import install_middleware
from stillreel.api.problems import PROBLEMS

if TYPE_CHECKING:
    from playwright.sync_api import Page


class Order(BaseModel):
    """What to film."""

    prompt: str = Field(description="What the camera does.", examples=["slow zoom in"])
    duration: float = Field(5.0, ge=1, le=10, description="Seconds of video.")


def make_app() -> FastAPI:
    app = FastAPI(title="stillreel API", docs_url=None, redoc_url=None)
    install_problems(app)
    install_middleware(app, body_max_bytes=1000, body_seconds=10)
    app.include_router(docs.router)

    @app.post("/api/v1/generate", tags=["jobs"], responses=PROBLEMS)
    async def submit(order: Order) -> dict[str, str]:
        """Submit **one** video."""
        return {"job_id": "job_seen"}

    return app


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        config = uvicorn.Config(make_app(), log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_renders_and_tries_requests_without_any_other_server(
    page: Page, address: str, shoot: Callable[[str], None]
) -> None:
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)

    page.goto(f"{address}/docs")
    page.get_by_role("heading", name="stillreel API").wait_for()
    page.get_by_text("Submit one video.").wait_for()
    page.get_by_text("What the camera does.").first.wait_for()
    page.get_by_text("Too many requests, or a quota is used up.").wait_for()
    shoot("docs")

    page.locator("button", has_text="Test Request").first.click()
    page.get_by_role("dialog").locator("button", has_text="Send").first.click()
    page.get_by_text("job_seen").wait_for()
    shoot("docs-request")

    assert f"{address}/openapi.json" in asked
    assert f"{address}/api/v1/generate" in asked
    elsewhere = [url for url in asked if not url.startswith((f"{address}/", "data:", "blob:"))]
    assert (elsewhere, faults) == ([], [])
