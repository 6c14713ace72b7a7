"""What tests of the API from outside need: problems checked, other owners, raw sockets, a door."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPResponse
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from stillreel.owner_store import OwnerStore
from stillreel.owners import (
    add_key,
    add_receiver,
    add_salt,
    make_key,
    make_owner,
    new_key_text,
    new_salt,
)
from stillreel.prefect_api import PrefectApi
from stillreel.settings import get_settings
from tests.api.background import eventually
from tests.receiver import Receiver, answer

if TYPE_CHECKING:
    from tests.api.conftest import Api

UNKNOWN_ID = "job_00000000000000000000000000"
INNER_WORDS = (
    *("Traceback", "site-packages", "stillreel.", "sqlite", " at 0x"),
    *(gettempdir(), str(Path.cwd()), str(Path.home())),
)
"""What no caller is to read in an error."""
WAIT_SECONDS = 60.0


# --- answers ----------------------------------------------------------------------------------


def assert_problem(
    response: httpx.Response, status: int | tuple[int, ...], *says: str
) -> dict[str, Any]:
    """The problem of an answer, once it is one in full and its detail holds all of `says`."""
    allowed = (status,) if isinstance(status, int) else status
    assert response.status_code in allowed, (response.status_code, response.text[:500])
    assert response.headers["content-type"].startswith("application/problem+json")
    problem = response.json()
    for name in ("type", "title", "detail", "instance", "code", "error", "request_id"):
        assert isinstance(problem[name], str), name
        assert problem[name], name
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "\n" not in problem["error"]
    assert len(response.content) < 10_000, "what was sent is not sent back"
    for word in says:
        assert word.lower() in problem["detail"].lower(), (word, problem["detail"])
    for word in INNER_WORDS:
        assert word not in problem["detail"], (word, problem["detail"])
    return problem


def assert_serves(api: Api) -> None:
    """A good order is taken and found again; a busy Prefect server may need a second try."""
    for attempt in eventually():
        with attempt:
            made = api.submit(prompt="after all that")
    for attempt in eventually():
        with attempt:
            assert api.job(made["job_id"])["status"] == "queued"


def stored(api: Api, job_id: str) -> list[str]:
    """The names of all objects of this job."""
    return [
        info.key
        for kind in ("inputs", "latents", "outputs")
        for info in api.storage.list(f"{kind}/{job_id}/")
    ]


def count_runs(key: str) -> int:
    """How many flow runs Prefect has under this idempotency key."""
    body = {"flow_runs": {"idempotency_key": {"any_": [key]}}}
    return httpx.post(
        f"{PREFECT_API_URL.value()}/flow_runs/count", json=body, timeout=30, trust_env=False
    ).json()


# --- owners -----------------------------------------------------------------------------------


@contextmanager
def another_owner(
    api: Api,
    *,
    scopes: Iterable[str] = ("generate", "read"),
    receiver: str = "",
    name: str = "",
) -> Iterator[httpx.Client]:
    """A client with a key of an owner that was made just now, and is told at `receiver`."""
    name, text = name or f"other-{uuid4().hex[:8]}", new_key_text()

    async def make() -> None:
        prefect = PrefectApi(str(PREFECT_API_URL.value()), patience=30.0)
        try:
            now = datetime.now(UTC)
            key = make_key(text, scopes=scopes, at=now)
            owner = add_key(make_owner(name), key, at=now)
            store = OwnerStore(prefect, api.settings)
            if receiver:
                owner = add_receiver(owner, receiver, default=True)
                owner = add_salt(owner, new_salt(store.secret, name))
            await store.create(owner)
        finally:
            await prefect.aclose()

    asyncio.run(make())
    headers = {"Authorization": f"Bearer {text}"}
    with httpx.Client(base_url=api.url, headers=headers, timeout=60, trust_env=False) as client:
        for attempt in eventually():  # the API knows keys that are half a second old
            with attempt:
                assert client.get("/api/v1/queue/stats").status_code != 401
        yield client


# --- images -----------------------------------------------------------------------------------


@contextmanager
def image_server(content: bytes, content_type: str = "image/png") -> Iterator[tuple[str, str]]:
    """The address of an image on loopback, and the pair to allow."""
    with Receiver((answer(body=content, Content_Type=content_type),)) as server:
        yield f"{server.url}image.png", f"127.0.0.1:{server.port}"


@contextmanager
def work_with(monkeypatch: pytest.MonkeyPatch, **env: str) -> Iterator[None]:
    """Settings of the process that works on jobs, which is this one (`api.execute`)."""
    with monkeypatch.context() as patch:
        for key, value in env.items():
            patch.setenv(key, value)
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


# --- sockets ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What came back over a raw socket, and how many bytes of the body had been sent by then."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent: int

    @property
    def response(self) -> httpx.Response:
        return httpx.Response(self.status, headers=dict(self.headers), content=self.body)


def exchange(
    api: Api,
    target: str,
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    body: Iterable[bytes] = (),
    pace: float = 0.0,
) -> Said:
    """The answer to a request as it is written here, sent part by part until it comes.

    `pace` is how long to listen for an answer before each next part, in seconds.
    """
    at = urlsplit(api.url)
    assert at.hostname
    assert at.port
    key = api.client.headers["authorization"]
    named = {"Host": at.netloc, "Authorization": key, "Content-Type": "application/json"}
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in (named | dict(headers or {})).items()]
    with closing(socket.create_connection((at.hostname, at.port), timeout=WAIT_SECONDS)) as sock:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        sent = 0
        with suppress(ConnectionError):
            for part in body:
                if select.select([sock], [], [], pace)[0]:
                    break
                sock.sendall(part)
                sent += len(part)
        with HTTPResponse(sock, method=method) as reply:
            reply.begin()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return Said(reply.status, found, reply.read(), sent)


# --- a door in front of Prefect ---------------------------------------------------------------


class Door:
    """Another address of the Prefect server, which can be shut, or deaf on one side.

    `shut`: no connection is taken. `mute`: requests reach Prefect, and its answers to what
    changes anything never come back.
    """

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        self._to = (at.hostname or "", at.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self._port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._shut, self._closing, self.mute = False, threading.Event(), False
        self.swallowed = 0
        """Answers that Prefect gave and nobody got."""
        self.heard: list[bytes] = []
        """What was said to Prefect."""
        self.url = f"http://127.0.0.1:{self._port}{at.path}"
        self._threads = [threading.Thread(target=self._take)]
        self._threads[0].start()

    def shut(self) -> None:
        self._shut = True
        for sock in list(self._open):
            _end(sock)

    def open(self) -> None:
        self._shut, self.mute = False, False

    def close(self) -> None:
        self._closing.set()
        self.shut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _take(self) -> None:
        while not self._closing.is_set():
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            if self._shut:
                near.close()
                continue
            self._threads.append(threading.Thread(target=self._serve, args=(near,)))
            self._threads[-1].start()

    def _serve(self, near: socket.socket) -> None:
        with suppress(OSError), closing(near), closing(socket.create_connection(self._to)) as far:
            pair = {near, far}
            self._open |= pair
            try:
                if not self._shut:  # it may have been shut since this connection was taken
                    self._relay(near, far)
            finally:
                self._open -= pair

    def _relay(self, near: socket.socket, far: socket.socket) -> None:
        losing = False
        while True:
            for sock in select.select([near, far], [], [])[0]:
                data = sock.recv(65536)
                if not data:
                    return
                if sock is near:
                    self.heard.append(data)
                    losing = self.mute and (losing or _changes(data))
                    far.sendall(data)
                elif losing:
                    self.swallowed += 1
                    return
                else:
                    near.sendall(data)


@contextmanager
def prefect_behind_a_door(prefect_api: str) -> Iterator[Door]:
    """A door, and Prefect's address in this context is the door's: start an API inside."""
    door = Door(prefect_api)
    try:
        with temporary_settings(updates={PREFECT_API_URL: door.url}):
            yield door
    finally:
        door.close()


def _end(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _changes(data: bytes) -> bool:
    """Whether this is the beginning of a request that makes or changes something."""
    line = data.partition(b"\r\n")[0]
    return line.startswith((b"POST", b"PATCH")) and not line.partition(b" HTTP")[0].endswith(
        (b"/filter", b"/count")
    )
