"""EC2's instance metadata on loopback: version 2 only, with a token, and a notice when told so."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Self

ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


@dataclass
class InstanceMetadata:
    """Answers as an instance's 169.254.169.254 does. Use as a context manager."""

    asked: list[str] = field(default_factory=list[str])
    """Paths of all requests that had a good token, in order."""
    notice: str = ""
    """`give_notice` sets it; without one the path is not there."""
    trouble: int = 0
    """A status that everything is answered with."""
    tokens: set[str] = field(default_factory=set[str])
    """Those that are good; `tokens.clear()` has them expire."""
    made: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def give_notice(self, action: str = "terminate") -> None:
        self.notice = json.dumps({"action": action, "time": "2026-03-01T12:00:00Z"})

    def __enter__(self) -> Self:
        self._server = _server_of(self)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server_of(owner: InstanceMetadata) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_PUT(self) -> None:
            seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if owner.trouble or self.path != "/latest/api/token":
                return self._say(owner.trouble or 404)
            if not (seconds.isdecimal() and 1 <= int(seconds) <= 21_600):
                return self._say(400)
            owner.made += 1
            owner.tokens.add(token := f"token-{owner.made}")
            return self._say(200, token)

        def do_GET(self) -> None:
            if owner.trouble:
                return self._say(owner.trouble)
            if self.headers.get("X-aws-ec2-metadata-token") not in owner.tokens:
                return self._say(401)
            owner.asked.append(self.path)
            if self.path == REBALANCE:
                return self._say(200, json.dumps({"noticeTime": "2026-03-01T11:00:00Z"}))
            found = owner.notice if self.path == ACTION else ""
            return self._say(200 if found else 404, found)

        def _say(self, status: int, text: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Keeps test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    return server
