"""What every request passes; bodies are sent to a real server, over plain sockets."""

from __future__ import annotations

import io
import json
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPResponse, IncompleteRead
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient

from stillreel.api.body_limit import BodyLimit
from stillreel.api.error_handlers import install_problems
from stillreel.api.middleware import AccessLog, RequestIds, install_logging, install_middleware
from stillreel.errors import Unauthorized

MAX_BYTES = 100_000
SECRET = "sk-do-not-tell"
log = logging.getLogger("stillreel.api.test")


def make_app(*, seconds: float = 60) -> FastAPI:
    app = FastAPI()
    install_problems(app)
    install_middleware(app, body_max_bytes=MAX_BYTES, body_seconds=seconds)
    app.state.calls = 0

    @app.post("/size")
    @app.post("/v1/size")
    @app.put("/files/big")
    async def size(request: Request) -> int:
        app.state.calls += 1
        return len(await request.body())

    @app.post("/parsed")
    async def parsed(body: dict[str, Any]) -> int:
        return len(body)

    @app.post("/unread")
    async def unread() -> str:
        raise Unauthorized

    @app.get("/jobs/{job_id}")
    async def job(job_id: str, request: Request) -> str:
        request.state.job_id = job_id
        request.state.owner = "acme"
        log.info("looked", extra={"found": True})
        return request.state.request_id

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.get("/limited")
    async def limited(request: Request, fail: bool = False) -> str:
        request.state.response_headers = {"RateLimit": "r=1", "Referrer-Policy": "origin"}
        if fail:
            raise Unauthorized
        return "ok"

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("oops")

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})

    app.mount("/echo", echo)

    @app.websocket("/socket")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(socket.state.request_id)
        await socket.close()

    return app


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """A uvicorn in a thread; its port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return make_app()


@pytest.fixture(scope="module")
def port(app: FastAPI) -> Iterator[int]:
    with serving(app) as port:
        yield port


@pytest.fixture(scope="module")
def hasty_port() -> Iterator[int]:
    """Of a server that gives a body 0.3 s."""
    with serving(make_app(seconds=0.3)) as port:
        yield port


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        yield connection


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


def read_answer(connection: socket.socket) -> tuple[HTTPResponse, Any]:
    answer = HTTPResponse(connection)
    answer.begin()
    return answer, json.loads(answer.read())


def is_closed(connection: socket.socket) -> bool:
    """Whether the server hangs up: nothing comes any more but the end."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def is_kept(connection: socket.socket) -> bool:
    connection.sendall(head("/health", method="GET"))
    return read_answer(connection)[0].status == 200


# --- bodies that are too large --------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/size", "/parsed", "/unread", "/nowhere"])
def test_a_body_that_says_it_is_too_large_is_not_even_read(
    app: FastAPI, port: int, path: str
) -> None:
    before = app.state.calls
    with connected(port) as connection:
        connection.sendall(head(path, "Content-Length: 50000000", "X-Request-Id: r-1"))
        answer, problem = read_answer(connection)
        assert (answer.status, problem["code"]) == (413, "body_too_large")
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.headers["x-request-id"], problem["request_id"]) == ("r-1", "r-1")
        assert answer.headers["connection"] == "close"
        assert str(MAX_BYTES) in problem["detail"]
        assert is_closed(connection)
    assert app.state.calls == before


def test_who_asks_before_sending_is_not_told_to_go_on(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(head("/size", "Content-Length: 50000000", "Expect: 100-continue"))
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_who_asks_before_sending_a_small_body_is_told_to_go_on(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(head("/size", "Content-Length: 2", "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(b"hi")
        assert read_answer(connection)[1] == 2


@pytest.mark.parametrize("path", ["/size", "/parsed"])
def test_an_endless_body_ends_in_413_and_the_answer_arrives(port: int, path: str) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with connected(port) as connection:
        connection.sendall(
            head(path, "Transfer-Encoding: chunked", "Content-Type: application/json")
        )
        send_until(connection, chunk)
        answer, problem = read_answer(connection)
        assert (answer.status, problem["code"]) == (413, "body_too_large")
        assert answer.headers["connection"] == "close"
        send_until(connection, chunk)


def send_until(connection: socket.socket, chunk: bytes) -> None:
    """Send until there is something to read, or the end; but not for ever."""
    with suppress(ConnectionError):
        for _ in range(100_000):
            if select.select([connection], [], [], 0)[0]:
                return
            connection.sendall(chunk)
        pytest.fail("the server takes 6 GB")


def test_under_v1_the_refusal_is_in_openais_envelope(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(head("/v1/size", "Content-Length: 50000000"))
        answer, body = read_answer(connection)
        assert answer.headers["content-type"] == "application/json"
        assert body["error"]["code"] == "body_too_large"


def test_files_have_a_limit_of_their_own(port: int) -> None:
    body = b"x" * (MAX_BYTES * 3)
    with connected(port) as connection:
        connection.sendall(head("/files/big", f"Content-Length: {len(body)}", method="PUT") + body)
        assert read_answer(connection)[1] == len(body)


@pytest.mark.parametrize("size", [0, 1, MAX_BYTES - 1, MAX_BYTES, MAX_BYTES + 1])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_limit_is_exact(port: int, size: int, chunked: bool) -> None:
    body = b"x" * size
    header = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    if chunked:
        body = (b"%x\r\n%b\r\n" % (size, body) if size else b"") + b"0\r\n\r\n"
    with connected(port) as connection:
        connection.sendall(head("/size", header) + body)
        answer, told = read_answer(connection)
        assert (answer.status, told) == (200, size) if size <= MAX_BYTES else answer.status == 413


# --- bodies that are too slow ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "header", "drip"),
    [
        ("/size", "Content-Length: 90000", b""),
        ("/size", "Transfer-Encoding: chunked", b"1\r\nx\r\n"),
        ("/parsed", "Content-Length: 90000", b"x"),
    ],
)
def test_a_slow_body_ends_in_408(hasty_port: int, path: str, header: str, drip: bytes) -> None:
    with connected(hasty_port) as connection:
        connection.sendall(head(path, header, "Content-Type: application/json"))
        for _ in range(1000):
            if select.select([connection], [], [], 0.02)[0]:
                break
            connection.sendall(drip)
        answer, problem = read_answer(connection)
        assert (answer.status, problem["code"]) == (408, "body_too_slow")
        assert answer.headers["connection"] == "close"
        assert is_closed(connection)


def test_time_for_the_answer_is_not_time_for_the_body() -> None:
    released = threading.Event()
    app = make_app(seconds=0.1)

    @app.post("/slow")
    def slow(body: dict[str, Any]) -> bool:
        return released.wait(0.3)

    with serving(app) as port, connected(port) as connection:
        connection.sendall(
            head("/slow", "Content-Length: 2", "Content-Type: application/json") + b"{}"
        )
        assert read_answer(connection)[0].status == 200


# --- bodies that nobody reads ---------------------------------------------------------------------


def test_a_small_body_that_nobody_reads_costs_no_connection(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(head("/unread", "Content-Length: 2") + b"hi")
        assert read_answer(connection)[0].status == 401
        assert is_kept(connection)


def test_an_endless_body_that_nobody_reads_is_hung_up_on(port: int) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with connected(port) as connection:
        connection.sendall(head("/unread", "Transfer-Encoding: chunked") + chunk)
        answer, _ = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        send_until(connection, chunk)


def test_who_waits_for_permission_is_answered_without_it(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(head("/unread", "Content-Length: 20", "Expect: 100-continue"))
        answer, _ = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (401, "close")


def test_an_answer_that_has_begun_is_broken_off(port: int) -> None:
    with connected(port) as connection, closing(HTTPResponse(connection)) as answer:
        connection.sendall(head("/echo/", "Transfer-Encoding: chunked") + b"2\r\nhi\r\n")
        answer.begin()
        assert (answer.status, answer.read(2)) == (200, b"hi")
        connection.sendall(b"30000\r\n" + b" " * 0x30000 + b"\r\n")
        with pytest.raises((IncompleteRead, ConnectionError)):
            answer.read()


def test_connections_are_kept_after_bodies(port: int) -> None:
    with connected(port) as connection:
        for _ in range(3):
            connection.sendall(head("/size", "Content-Length: 2") + b"hi")
            answer, told = read_answer(connection)
            assert (answer.status, told) == (200, 2)
            assert answer.headers["connection"] is None


def test_what_an_app_answers_after_a_refusal_is_not_sent() -> None:
    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        try:
            while (await receive())["more_body"]:
                pass
        except Exception:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"fine"})

    client = TestClient(BodyLimit(stubborn, max_bytes=10, seconds=60))
    got = client.post("/", content=iter([b"x" * 8, b"y" * 8]))
    assert (got.status_code, got.json()["code"]) == (413, "body_too_large")


# --- ids, headers, log ----------------------------------------------------------------------------


@pytest.fixture
def client() -> TestClient:
    return TestClient(make_app())


def test_a_sane_id_is_taken_over(client: TestClient) -> None:
    got = client.get("/jobs/job_1", headers={"x-request-id": "Trace-1.a_b"})
    assert got.json() == got.headers["x-request-id"] == "Trace-1.a_b"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a/b", "ü".encode(), "a\tb", '"'])
def test_any_other_is_replaced(client: TestClient, given: str | bytes) -> None:
    got = client.get("/jobs/job_1", headers={b"x-request-id": given})
    assert got.json() == got.headers["x-request-id"]
    assert len(got.json()) == 32
    assert got.json().isalnum()


def test_each_request_has_an_id_of_its_own(client: TestClient) -> None:
    assert len({client.get("/health").headers["x-request-id"] for _ in range(5)}) == 5


@pytest.mark.parametrize("path", ["/nothing", "/broken", "/unread"])
def test_an_error_tells_its_id_and_has_all_headers(client: TestClient, path: str) -> None:
    got = client.get(path)
    assert got.json()["request_id"] == got.headers["x-request-id"]
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("fail", [False, True])
def test_headers_that_a_handler_leaves_reach_every_answer(client: TestClient, fail: bool) -> None:
    got = client.get("/limited", params={"fail": fail})
    assert got.status_code == (401 if fail else 200)
    assert got.headers["ratelimit"] == "r=1"
    assert got.headers.get_list("referrer-policy") == ["origin"]


def test_a_socket_has_an_id_too(client: TestClient) -> None:
    headers = {"x-request-id": "r-2"}
    with client.websocket_connect("/socket", headers=headers) as talking:
        assert talking.receive_text() == "r-2"


Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What our loggers have written, parsed."""
    loggers = [logging.getLogger(name) for name in ("stillreel", "uvicorn")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    stream = io.StringIO()
    install_logging(stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


def test_the_access_log_says_who_asked_what(client: TestClient, lines: Lines) -> None:
    client.get("/jobs/job_1?token=" + SECRET, headers={"authorization": SECRET})
    looked, access = lines()
    assert access.pop("ms") >= 0
    assert access.pop("time").endswith("+00:00")
    assert access == {
        "level": "info",
        "logger": "stillreel.api.access",
        "event": "request",
        "request_id": access["request_id"],
        "owner": "acme",
        "job_id": "job_1",
        "method": "GET",
        "route": "/jobs/{job_id}",
        "status": 200,
    }
    assert SECRET not in json.dumps([looked, access])


def test_lines_of_a_handler_have_the_requests_id_and_job(client: TestClient, lines: Lines) -> None:
    client.get("/jobs/job_1", headers={"x-request-id": "r-3"})
    looked = lines()[0]
    assert (looked["event"], looked["found"]) == ("looked", True)
    assert (looked["request_id"], looked["job_id"], looked["owner"]) == ("r-3", "job_1", "acme")


def test_lines_outside_of_a_request_have_no_id(client: TestClient, lines: Lines) -> None:
    client.get("/health")
    log.info("%s keeps", "the keeper", extra={"job_id": "job_2"})
    (line,) = lines()
    assert "request_id" not in line
    assert (line["event"], line["job_id"]) == ("the keeper keeps", "job_2")


def test_a_failure_is_one_line_with_its_traceback_and_id(client: TestClient, lines: Lines) -> None:
    got = client.get("/broken")
    failure, access = lines()
    assert failure["level"] == "error"
    assert "oops" in failure["traceback"]
    assert failure["request_id"] == access["request_id"] == got.json()["request_id"]
    assert access["status"] == 500


@pytest.mark.parametrize(
    ("path", "logged"), [("/health", None), ("/nothing/" + "x" * 5000, 404), ("/unread", 405)]
)
def test_polls_of_machines_are_not_logged_and_strangers_are_bounded(
    client: TestClient, lines: Lines, path: str, logged: int | None
) -> None:
    client.get(path)
    assert [line["status"] for line in lines()] == ([logged] if logged else [])
    assert len(json.dumps(lines())) < 1000


def test_a_line_stays_one_line_whatever_is_in_it(lines: Lines) -> None:
    log.warning("a\nb\x00\ud800%s", {"c": object()}, extra={"odd": {1, 2}})
    assert len(lines()) == 1


def test_a_socket_is_logged(client: TestClient, lines: Lines) -> None:
    with client.websocket_connect("/socket") as talking:
        talking.receive_text()
    (line,) = lines()
    assert (line["method"], line["status"], line["route"]) == ("WEBSOCKET", 101, "/socket")


def test_one_who_left_before_the_answer_is_logged_as_such(lines: Lines) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    coroutine = RequestIds(AccessLog(silent))(scope, None, None)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert [line["status"] for line in lines()] == [499]


def test_http_exceptions_keep_their_status(lines: Lines) -> None:
    app = make_app()

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "I am a teapot")

    assert TestClient(app).get("/teapot").json()["error"] == "I am a teapot"
    assert lines()[-1]["status"] == 418
