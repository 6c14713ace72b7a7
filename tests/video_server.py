"""A whole video server on loopback, in OpenAI's and in Replicate's shape, as bad as it is told.

It is checked against the official clients of both in tests/unit/test_remote_clients.py.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Condition, Thread
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np

KEY = "the-key-of-the-video-server"
SECONDS = 20.0

Step = tuple[str, int]
DEFAULT_STEPS: tuple[Step, ...] = (("queued", 0), ("in_progress", 40), ("completed", 100))
_AT_REPLICATE = {
    "queued": "starting",
    "in_progress": "processing",
    "completed": "succeeded",
    "cancelled": "canceled",
}
_ROUTE = re.compile(
    r"/v1/(?:(?:models|deployments)/[^/]+/[^/]+/)?(videos|predictions|files|films)"
    r"(?:/([^/]+))?(?:/(content|cancel))?"
)


def make_film(
    width: int = 64,
    height: int = 48,
    *,
    fps: int = 24,
    frames: int = 24,
    sound: bool = False,
    kind: str = "mp4",
) -> bytes:
    """A film whose frame n is grey of level 16 + 8 n; with sound, a tone of its length."""
    buffer = BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "8", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=44100, layout="mono") if sound else None
        for n in range(frames):
            grey = np.full((height, width, 3), min(16 + 8 * n, 235), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            frame.pts, frame.time_base = n, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            times = np.arange(44100 * frames // fps) / 44100
            tone = (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
            piece = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
            piece.sample_rate, piece.pts, piece.time_base = 44100, 0, Fraction(1, 44100)
            container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    return buffer.getvalue()


@dataclass(frozen=True)
class Seen:
    """One call as it came; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Job:
    """One order at this server."""

    id: str
    shape: str
    fields: dict[str, Any]
    image: bytes | None
    steps: list[Step]
    cancelled: bool = False

    def look(self) -> Step:
        """Where it stands now; each look but the last moves it on."""
        if self.cancelled:
            return "cancelled", 0
        return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]


@dataclass
class VideoServer:
    """Orders by id. The lists of faults are used up one per call of their kind, then all is well.

    Faults: a status (429, 500, 503...), `drop` (takes the call in, carries it out, then breaks the
    connection), `html`; of a film also `cut` (half of it, as if it were all), `short` (less than
    its Content-Length), `huge` (no end), `->ADDRESS` (a redirect).
    """

    film: bytes = field(default_factory=make_film)
    steps: tuple[Step, ...] = DEFAULT_STEPS
    error: dict[str, Any] | str | None = None
    says: dict[str, Any] = field(default_factory=lambda: {"error": {"message": "As it was told."}})
    """The body of what is answered with a status of a fault."""
    idempotent: bool = True
    creates: list[Any] = field(default_factory=list)
    looks: list[Any] = field(default_factory=list)
    films: list[Any] = field(default_factory=list)
    cancels: list[Any] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    """With every answer."""
    extra: dict[str, Any] = field(default_factory=dict)
    """With every order that is shown."""
    output: Any = None
    """What Replicate's shape gives; None: the address of the film here."""
    calls: list[Seen] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    port: int = 0

    def __post_init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._changed = Condition()
        self._closing = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def of(self, method: str, ending: str = "") -> list[Seen]:
        """The calls of one kind so far."""
        return [c for c in self.calls if c.method == method and c.path.endswith(ending)]

    def only_job(self) -> Job:
        (job,) = self.jobs.values()
        return job

    def wait_for_calls(self, method: str, ending: str, count: int = 1) -> None:
        """Return once so many calls of this kind have come."""
        with self._changed:
            done = self._changed.wait_for(lambda: len(self.of(method, ending)) >= count, SECONDS)
        assert done, f"{count} x {method} ...{ending} never came: {self.calls}"

    def finish(self) -> None:
        """All orders are done from now on."""
        self.steps = (("completed", 100),)
        for job in self.jobs.values():
            job.steps[:] = [("completed", 100)]

    def take(self, handler: _Handler) -> None:
        length = int(handler.headers.get("Content-Length", "0"))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        call = Seen(
            handler.command, urlsplit(handler.path).path, headers, handler.rfile.read(length)
        )
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
        found = _ROUTE.fullmatch(call.path)
        if call.headers.get("authorization") != f"Bearer {KEY}" and call.path != "/v1/films/open":
            handler.say(401, {"error": {"message": f"Not a key: {call.headers}", "code": "key"}})
        elif not found:
            handler.say(404, {"detail": "Not Found"})
        else:
            self._route(handler, call, *found.groups())

    def _route(
        self, handler: _Handler, call: Seen, kind: str, name: str | None, what: str | None
    ) -> None:
        if kind == "films":
            self._give(handler)
        elif kind == "files" and call.method == "POST":
            _, image = _parts(call)
            self.files["f1"] = image or b""
            handler.say(201, self._file(len(self.files["f1"])))
        elif call.method == "POST" and name is None:
            self._create(handler, call, kind)
        elif (job := self.jobs.get(name or "")) is None:
            handler.say(404, {"error": {"message": "no such order"}})
        elif call.method == "DELETE" or what == "cancel":
            if not self._spoil(handler, self.cancels):
                job.cancelled = True
                gone = {"id": job.id, "deleted": True, "object": "video.deleted"}
                handler.say(200, gone if call.method == "DELETE" else self._show(job, job.look()))
        elif what == "content":
            self._give(handler)
        elif not self._spoil(handler, self.looks):
            handler.say(200, self._show(job, job.look()))

    def _create(self, handler: _Handler, call: Seen, kind: str) -> None:
        fault = self.creates.pop(0) if self.creates else None
        if fault not in (None, "drop", "html"):
            handler.say(fault, self.says)
            return
        fields, image = _parts(call) if kind == "videos" else (json.loads(call.body), None)
        wrong = _mistake(kind, call, fields)
        if wrong:
            handler.say(422, {"detail": [{"loc": ["body", wrong], "msg": "is not as it must be"}]})
            return
        key = call.headers.get("idempotency-key", "")
        known = self._keys.get(key) if self.idempotent and key else None
        job_id = known or f"{kind[:5]}-{len(self.jobs) + 1}"
        if not known:
            self.jobs[job_id] = Job(job_id, kind, fields, image, list(self.steps))
            self._keys[key] = job_id
        if fault == "drop":
            handler.drop()
        elif fault == "html":
            handler.raw(200, b"<html>Welcome</html>", "text/html")
        else:
            handler.say(201, self._show(self.jobs[job_id], ("queued", 0)))

    def _show(self, job: Job, at: Step) -> dict[str, Any]:
        status, percent = at
        if job.shape == "videos":
            return {
                "id": job.id,
                "object": "video",
                "model": job.fields.get("model", "a-model"),
                "status": "failed" if status == "cancelled" else status,
                "progress": percent,
                "created_at": 1,
                "seconds": job.fields.get("seconds", "4"),
                "size": job.fields.get("size", "720x1280"),
                "error": self.error if status == "failed" else None,
                **self.extra,
            }
        done = status == "completed"
        return {
            "id": job.id,
            "model": "owner/name",
            "version": "v1",
            "status": _AT_REPLICATE.get(status, status),
            "input": job.fields["input"],
            "output": (self.output or f"{self.url}/films/1") if done else None,
            "error": self.error if status == "failed" else None,
            "logs": "",
            "metrics": {},
            "created_at": "2026-11-28T00:00:00Z",
            "started_at": None,
            "completed_at": None,
            "urls": {"get": f"{self.url}/predictions/{job.id}"},
            **self.extra,
        }

    def _file(self, size: int) -> dict[str, Any]:
        return {
            "id": "f1",
            "name": "image.png",
            "content_type": "image/png",
            "size": size,
            "etag": "e",
            "checksums": {},
            "metadata": {},
            "created_at": "2026-11-28T00:00:00Z",
            "expires_at": None,
            "urls": {"get": f"{self.url}/files/f1"},
        }

    def _give(self, handler: _Handler) -> None:
        fault = self.films.pop(0) if self.films else None
        if isinstance(fault, str) and fault.startswith("->"):
            handler.raw(302, b"", "text/plain", {"Location": fault[2:]})
        elif fault == "cut":
            handler.raw(200, self.film[: len(self.film) // 2], "video/mp4")
        elif fault == "short":
            handler.raw(200, self.film[:100], "video/mp4", length=len(self.film))
            handler.drop()
        elif fault == "huge":
            handler.raw(200, b"", "video/mp4", length=None)
            while not self._closing:
                handler.wfile.write(bytes(65536))
        elif fault == "html":
            handler.raw(200, b"<html>Welcome</html>", "text/html")
        elif fault == "drop":
            handler.drop()
        elif fault is not None:
            handler.say(fault, self.says)
        else:
            handler.raw(200, self.film, "video/mp4")

    def _spoil(self, handler: _Handler, faults: list[Any]) -> bool:
        fault = faults.pop(0) if faults else None
        if fault == "drop":
            handler.drop()
        elif fault == "html":
            handler.raw(200, b"<html>Welcome</html>", "text/html")
        elif fault is not None:
            handler.say(fault, self.says)
        return fault is not None


@contextmanager
def video_server(**told: Any) -> Iterator[VideoServer]:
    """A VideoServer that listens on loopback for the block."""
    owner = VideoServer(**told)
    handler = type("Handler", (_Handler,), {"owner": owner})
    server = ThreadingHTTPServer(("127.0.0.1", owner.port), handler)
    owner.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield owner
    finally:
        owner._closing = True
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: VideoServer
    timeout = 10

    def do_GET(self) -> None:
        with suppress(OSError):
            self.owner.take(self)

    def do_POST(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()

    def say(self, status: int, body: Any) -> None:
        self.raw(status, json.dumps(body).encode(), "application/json")

    def raw(
        self,
        status: int,
        body: bytes,
        kind: str,
        headers: dict[str, str] = {},  # noqa: B006 - never changed
        *,
        length: int | None = -1,
    ) -> None:
        self.send_response(status)
        stated = len(body) if length == -1 else length
        if stated is not None:
            self.send_header("Content-Length", str(stated))
        for name, value in {"Content-Type": kind, **self.owner.headers, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def drop(self) -> None:
        """Break the connection off with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Keeps test output clean."""


def _parts(call: Seen) -> tuple[dict[str, Any], bytes | None]:
    """The text fields and the one file of a multipart body."""
    kind = call.headers.get("content-type", "")
    message = BytesParser(policy=HTTP).parsebytes(
        f"Content-Type: {kind}\r\n\r\n".encode() + call.body
    )
    fields: dict[str, Any] = {}
    image: bytes | None = None
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        if part.get_filename():
            image = content
        else:
            fields[str(name)] = content.decode()
    return fields, image


def _mistake(kind: str, call: Seen, fields: dict[str, Any]) -> str:
    """The name of the first field that the strictest of the open servers would refuse."""
    if kind == "predictions":
        return "" if isinstance(fields.get("input"), dict) else "input"
    if "multipart/form-data" not in call.headers.get("content-type", ""):
        return "content-type"
    rules = {"prompt": r"(?s).+", "seconds": r"[1-9]\d*", "size": r"\d+x\d+", "fps": r"\d+"}
    for name, rule in rules.items():
        needed = name == "prompt"
        if (needed or name in fields) and not re.fullmatch(rule, fields.get(name, "")):
            return name
    return ""
