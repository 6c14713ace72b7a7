"""A TCP proxy before a server: it notes each request, and can hold one back until it is let go."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

_REQUEST = re.compile(rb"(?:GET|HEAD|PUT|POST|PATCH|DELETE) \S+ HTTP/1\.1")
_BYTES = 65536


@dataclass
class Held:
    """A request that is to be held back: the first that matches."""

    pattern: re.Pattern[str]
    reached: Event = field(default_factory=Event)
    opened: Event = field(default_factory=Event)

    def open(self) -> None:
        """Let it go on, and all after it."""
        self.opened.set()


class Gate:
    """Listens on a port of loopback and passes on to the port that `target` gives.

    Use as a context manager. A client that sends a request is taken to begin a chunk with it.
    """

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self._lock = Lock()
        self._held: Held | None = None
        self._open: set[socket.socket] = set()
        self.requests: list[str] = []
        """The first line of each, without the protocol."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hold(self, pattern: str) -> Held:
        """Hold back the next request whose first line matches; one at a time."""
        self._held = Held(re.compile(pattern))
        return self._held

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = Thread(target=self._accept)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._held:
            self._held.open()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # closed
                return
            Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target()))
        except OSError:  # away, and so are we
            client.close()
            return
        with self._lock:
            self._open |= {client, server}
        back = Thread(target=_pump, args=(server, client, lambda _: None), daemon=True)
        back.start()
        _pump(client, server, self._look)
        back.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _look(self, chunk: bytes) -> None:
        found = _REQUEST.match(chunk)
        if not found:
            return
        line = found[0].decode(errors="replace").rpartition(" ")[0]
        held = self._held
        with self._lock:
            self.requests.append(line)
        if held and not held.opened.is_set() and held.pattern.search(line):
            held.reached.set()
            held.opened.wait()


def _pump(source: socket.socket, sink: socket.socket, look: Callable[[bytes], None]) -> None:
    with suppress(OSError):
        while chunk := source.recv(_BYTES):
            look(chunk)
            sink.sendall(chunk)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
