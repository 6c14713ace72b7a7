"""A real HTTP server on loopback that records what it is sent and answers as badly as told."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

from standardwebhooks import Webhook

Answer = Callable[["Exchange"], None]
PACE_SECONDS = 0.02


@dataclass(frozen=True)
class Recorded:
    """One request as it came over the wire; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def verify(self, secret: str) -> Any:
        """The message, if its signature is good for `secret` (`whsec_...`).

        Raises standardwebhooks.WebhookVerificationError.
        """
        return Webhook(secret).verify(self.body, dict(self.headers))


@dataclass(frozen=True)
class Exchange:
    """What an answer may do to its client."""

    handler: BaseHTTPRequestHandler
    closing: Event
    """Set when the receiver closes, so that no answer outlives it."""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()

    def write(self, data: bytes) -> None:
        self.handler.wfile.write(data)
        self.handler.wfile.flush()


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Answer:
    """A plain answer; `Retry_After="5"` is the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def act(exchange: Exchange) -> None:
        exchange.head(status, {"Content-Length": str(len(body)), **named})
        exchange.write(body)

    return act


def redirect(url: str, status: int = 302) -> Answer:
    """Sends the client to `url`."""
    return answer(status, Location=url)


def hang(exchange: Exchange) -> None:
    """Takes the request and says nothing."""
    exchange.closing.wait()


def reset(exchange: Exchange) -> None:
    """Breaks the connection off with a TCP reset."""
    exchange.handler.connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    exchange.handler.connection.close()


def drip_body(exchange: Exchange) -> None:
    """Answers 200, then gives a byte now and then, for ever."""
    exchange.head(200, {"Content-Length": "90000"})
    _drip(exchange, b"x")


def drip_headers(exchange: Exchange) -> None:
    """Answers 200, then gives a header now and then, for ever."""
    exchange.write(b"HTTP/1.1 200 OK\r\n")
    _drip(exchange, b"X-Slow: yes\r\n")


def endless(exchange: Exchange) -> None:
    """Answers 200, then as many bytes as the client takes, without a Content-Length."""
    exchange.head(200, {})
    while not exchange.closing.is_set():
        exchange.write(bytes(65536))


def _drip(exchange: Exchange, data: bytes) -> None:
    while not exchange.closing.wait(PACE_SECONDS):
        exchange.write(data)


@dataclass
class Receiver:
    """Gives its answers one per request, in order; the last one again and again.

    Use as a context manager. Listens on a free port of `host` unless a port is given.
    """

    answers: tuple[Answer, ...] = field(default_factory=lambda: (answer(),))
    host: str = "127.0.0.1"
    port: int = 0
    tls: SSLContext | None = None
    requests: list[Recorded] = field(default_factory=list[Recorded])

    @property
    def url(self) -> str:
        """The address of this receiver, with a slash at its end."""
        scheme = "https" if self.tls else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/"

    def __enter__(self) -> Self:
        self._closing = Event()
        self._server = _server_of(self)
        self.port = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        """Records the request of `handler` and answers it."""
        length = int(handler.headers.get("Content-Length", "0"))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        body = handler.rfile.read(length)
        self.requests.append(Recorded(handler.command, handler.path, headers, body))
        act = self.answers[min(len(self.requests), len(self.answers)) - 1]
        with suppress(OSError):  # the client may leave whenever it likes
            act(Exchange(handler, self._closing))


def receiver(*answers: Answer, **options: Any) -> Receiver:
    """A Receiver with these answers."""
    return Receiver(answers or (answer(),), **options)


def _server_of(owner: Receiver) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            owner.take(self)

        def do_HEAD(self) -> None:
            owner.take(self)

        def do_POST(self) -> None:
            owner.take(self)

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
            """Keeps test output clean."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in owner.host else socket.AF_INET
        daemon_threads = False  # closing waits for each, so that no test leaves a thread behind

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            connection.settimeout(10)
            return connection, address

        def finish_request(self, request: Any, client_address: Any) -> None:
            with suppress(OSError):  # a client that refuses our certificate leaves like this
                secured = owner.tls.wrap_socket(request, server_side=True) if owner.tls else request
                super().finish_request(secured, client_address)
                if owner.tls:
                    secured.close()

    return Server((owner.host, owner.port), Handler)
