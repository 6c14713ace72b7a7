"""What `stillreel generate` makes plays in a browser: it loads, plays, seeks to the exact frame."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copyfile
from threading import Thread
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image

from tests.stack import env_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.browser.conftest import Shoot

GENERATE_SECONDS = 240
FPS, FRAMES, SIZE = 24, 121, (1280, 720)
TOLERANCE = 15
"""Code values that Chromium's colours may be off by on a plain area, 12 measured."""
SMALL = (320, 180)
"""Frames are compared at a quarter of their size, where both ways to scale chroma agree."""
PAGE = """<!doctype html><title>stillreel</title><style>body {margin: 0}</style>
<video id="v" controls muted playsinline preload="auto"></video><img id="i">"""


@dataclass(frozen=True)
class Site:
    """Where the files lie and where the browser finds them."""

    folder: Path
    url: str


@pytest.fixture(scope="module")
def site(browser: Browser) -> Iterator[Site]:
    """h264.mp4, its poster, teaser.mp4 and av1.mp4 of a pan over our scene, served with Range."""
    with tempfile.TemporaryDirectory(prefix="sr-") as home:
        folder = Path(home, "site")
        folder.mkdir()
        made = generate(Path(home), folder / "h264.mp4")
        generate(Path(home), folder / "av1.mp4", "--codec", "av1", "--duration", "1")
        stored = Path(home, "storage", "outputs", made["job_id"])
        copyfile(stored / "teaser.mp4", folder / "teaser.mp4")
        (folder / "index.html").write_text(PAGE)
        with serve(folder) as url:
            yield Site(folder, url)


@pytest.mark.parametrize(
    ("name", "size", "seconds"),
    [
        pytest.param("h264.mp4", SIZE, FRAMES / FPS, id="h264"),
        pytest.param("av1.mp4", SIZE, 25 / FPS, id="av1"),
        pytest.param("teaser.mp4", (320, 180), FRAMES / FPS, id="teaser"),
    ],
)
def test_a_video_loads_and_plays_to_its_end(
    site: Site, page: Page, name: str, size: tuple[int, int], seconds: float
) -> None:
    load(page, site, name)
    assert evaluate(page, "[v.videoWidth, v.videoHeight]") == [*size]
    assert evaluate(page, "v.duration") == pytest.approx(seconds, abs=0.1)

    page.evaluate("document.getElementById('v').play()")
    page.wait_for_function("document.getElementById('v').ended")

    assert evaluate(page, "v.error") is None
    assert evaluate(page, "v.currentTime") == pytest.approx(evaluate(page, "v.duration"), abs=0.05)
    shown = evaluate(page, "v.getVideoPlaybackQuality()", "totalVideoFrames")
    dropped = evaluate(page, "v.getVideoPlaybackQuality()", "droppedVideoFrames")
    assert shown - dropped > 0


def test_the_time_moves_on_while_it_plays(site: Site, page: Page, shoot: Shoot) -> None:
    load(page, site, "h264.mp4")
    assert evaluate(page, "v.currentTime") == 0

    page.evaluate("document.getElementById('v').play()")
    page.wait_for_function("document.getElementById('v').currentTime > 1")

    assert evaluate(page, "v.paused") is False
    shoot("playback")


@pytest.mark.parametrize("name", ["h264.mp4", "av1.mp4"])
def test_a_seek_shows_exactly_that_frame(site: Site, page: Page, name: str) -> None:
    frames = decode(site.folder / name)
    load(page, site, name)

    for part in (0.6, 0.25, 0.8, 0.4):  # not near the ends, where the camera hardly moves
        index = round(part * len(frames))
        seen = seek(page, (index + 0.5) / FPS)
        off = {i: np.abs(seen - frames[i]).mean() for i in range(index - 4, index + 5)}
        assert min(off, key=lambda i: off[i]) == index, off
        assert np.percentile(np.abs(seen - frames[index]), 99) <= TOLERANCE
        # A wrong frame would be seen: even the next one is clearly farther away.
        assert min(off[index - 1], off[index + 1]) > 1.2 * off[index], off


def test_the_poster_loads_and_is_the_first_frame(site: Site, page: Page) -> None:
    load(page, site, "h264.mp4")
    page.evaluate(
        "src => { document.getElementById('i').src = src }", f"{site.url}/h264-poster.jpg"
    )
    page.wait_for_function("document.getElementById('i').complete")

    assert page.evaluate("document.getElementById('i').naturalWidth") == SIZE[0]
    poster = grab(page, "i")
    first, *_, last = decode(site.folder / "h264.mp4")
    assert np.percentile(np.abs(poster - first), 99) <= TOLERANCE
    assert np.abs(poster - last).mean() > 3 * np.abs(poster - first).mean()


def test_the_teaser_is_silent(site: Site) -> None:
    with av.open(site.folder / "teaser.mp4") as container:
        assert not container.streams.audio


def generate(home: Path, output: Path, *options: str) -> dict[str, Any]:
    """What `stillreel generate --json` says after it made a pan over the scene at `output`."""
    command = [sys.executable, "-m", "stillreel.cli", "generate", "--scene", "--json"]
    done = subprocess.run(
        [*command, "--prompt", "pan right", "--seed", "7", "-o", str(output), *options],
        env=env_of(home),
        capture_output=True,
        text=True,
        timeout=GENERATE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def load(page: Page, site: Site, name: str) -> None:
    """Open the page and wait until the whole video can be played."""
    page.goto(f"{site.url}/index.html")
    page.evaluate("src => { document.getElementById('v').src = src }", f"{site.url}/{name}")
    page.wait_for_function("v => v.readyState === 4", arg=page.query_selector("#v"))


def evaluate(page: Page, expression: str, member: str = "") -> Any:
    """What `expression` gives for the video `v`, or a member of it."""
    end = f".{member}" if member else ""
    return page.evaluate(
        f"() => {{ const v = document.getElementById('v'); return ({expression}){end} }}"
    )


def seek(page: Page, seconds: float) -> np.ndarray:
    """The picture at this time, once the browser has presented it; see `grab`."""
    page.evaluate(
        """seconds => new Promise(done => {
            const v = document.getElementById('v')
            v.requestVideoFrameCallback(() => done())
            v.currentTime = seconds
        })""",
        seconds,
    )
    return grab(page, "v")


def grab(page: Page, element: str) -> np.ndarray:
    """The pixels that the browser shows in an element, at SMALL size, as int16."""
    data = page.evaluate(
        """id => {
            const from = document.getElementById(id), canvas = document.createElement('canvas')
            canvas.width = from.videoWidth || from.naturalWidth
            canvas.height = from.videoHeight || from.naturalHeight
            canvas.getContext('2d').drawImage(from, 0, 0)
            return canvas.toDataURL('image/png')
        }""",
        element,
    )
    picture = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
    return shrink(picture.convert("RGB"))


def decode(path: Path) -> list[np.ndarray]:
    """Every frame of the file as PyAV decodes it, at SMALL size, as int16."""
    with av.open(path) as container:
        return [
            shrink(frame.to_image(src_colorspace=Colorspace.ITU709))
            for frame in container.decode(video=0)
        ]


def shrink(picture: Image.Image) -> np.ndarray:
    """This picture at SMALL size, each pixel the mean of what it covers, as int16."""
    return np.asarray(picture.resize(SMALL, Image.Resampling.BOX)).astype(np.int16)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a server of these files that answers Range, without which no seek works."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(folder)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Ranges(SimpleHTTPRequestHandler):
    """Files in whole or in one range (RFC 9110, 14.2), as object stores answer."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        if not asked:
            super().do_GET()
            return
        path = Path(self.translate_path(self.path))
        data = path.read_bytes()
        start, _, end = asked.removeprefix("bytes=").partition("-")
        part = data[int(start) : int(end) + 1 if end else len(data)]
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.copyfile(io.BytesIO(part), self.wfile)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        try:
            super().copyfile(source, outputfile)
        except ConnectionError:  # a browser leaves as soon as it knows enough
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Keeps test output clean."""
