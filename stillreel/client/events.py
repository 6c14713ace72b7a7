"""Reads a job's event stream, whatever way its bytes come in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from stillreel.client.answers import Job, parse, path_of
from stillreel.client.calls import Call
from stillreel.client.failures import ApiFailure, WaitedTooLong, backoff

OnProgress = Callable[[Job], object]
"""Called with the job each time that more is known about it."""

SILENCE_SECONDS = 40.0
"""The API says something every 15 s; a stream that is silent for longer is broken."""
LONGEST_PAUSE = 10.0
PATIENCE = 4
"""Streams in a row that may end without an event."""
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Event:
    """Something that happened to a job: `status`, `progress` or `end`, and the job by then."""

    id: str
    kind: str
    data: Mapping[str, Any]
    job: Job


class Story:
    """What the events told so far; it goes on over broken connections."""

    def __init__(self, job_id: str) -> None:
        self._path = path_of(job_id) + "/events"
        self._known: dict[str, Any] = {"job_id": job_id}
        self._last_id = ""
        self._pause = 1.0
        self._fruitless = 0
        self._lines = _Lines()
        self.has_ended = False

    def call(self) -> Call:
        """The request for what comes next."""
        self._lines = _Lines()
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        return Call("GET", self._path, headers=headers, read_seconds=SILENCE_SECONDS)

    def begin(self, response: httpx.Response) -> None:
        """Look at the stream's head. Raises ApiFailure for what is no stream."""
        kind = response.headers.get("content-type", "")
        if response.status_code == httpx.codes.NO_CONTENT:
            self.has_ended = True
        elif not kind.startswith("text/event-stream"):
            raise ApiFailure.about(f"The answer is no event stream but {kind or 'nothing'}.")

    def take(self, chunk: bytes) -> Iterator[Event]:
        """The events that these bytes end."""
        for kind, data in self._lines.take(chunk):
            self._last_id = self._lines.last_id or self._last_id
            if event := self._event(kind, data):
                yield event

    def pause(self, cause: httpx.TransportError | ApiFailure | None = None) -> float:
        """Seconds until the next request. Raises the cause when that would not help, or no more."""
        self._fruitless += 1
        # Too many streams: others must end first, and reading the job does as well.
        is_final = isinstance(cause, ApiFailure) and (
            cause.status == httpx.codes.TOO_MANY_REQUESTS or not backoff(cause)
        )
        if is_final or self._fruitless > PATIENCE:
            raise cause or ApiFailure.about("The event stream ends again and again.")
        if self._lines.retry_seconds is not None:
            self._pause = self._lines.retry_seconds
        return min(self._pause * self._fruitless, LONGEST_PAUSE)

    def _event(self, kind: str, data: Mapping[str, Any]) -> Event | None:
        self._fruitless = 0
        match kind:
            case "end":
                self._known = dict(data)
            case "status":  # without the job where it was missed
                self._known |= data.get("job") or {"status": data.get("status")}
            case _:
                self._known |= data
        if not self._known.get("status"):
            return None
        job = parse(Job, self._known)
        self.has_ended = kind == "end"
        return Event(self._last_id, kind, data, job)


@dataclass
class Watch:
    """Follows a job for a caller who may have only so much time (seconds)."""

    job_id: str
    timeout: float | None
    on_progress: OnProgress | None
    _began: float = field(default_factory=time.monotonic)
    _last: Job | None = None

    @property
    def may_stream(self) -> bool:
        """Whether there is time enough for a stream, which may be silent for seconds."""
        return self.timeout is None or self._left > SILENCE_SECONDS

    def see(self, job: Job) -> Job:
        """Tell the caller, unless it was told the same or the end before; the job."""
        is_news = job != self._last and not (self._last and self._last.has_ended)
        if self.on_progress and is_news:
            self.on_progress(job)
        self._last = job
        return job

    def pause(self) -> float:
        """Seconds until the job is to be read again. Raises WaitedTooLong."""
        if self.timeout is None:
            return POLL_SECONDS
        if self._left <= 0:
            status = self._last.status if self._last else "not known yet"
            raise WaitedTooLong(
                f"{self.job_id} has not ended within {self.timeout:g} s (it is {status}); it goes "
                "on, and you can wait for it again."
            )
        return min(POLL_SECONDS, self._left)

    @property
    def _left(self) -> float:
        return (self.timeout or 0.0) - (time.monotonic() - self._began)


class _Lines:
    """Puts an event stream's lines together (WHATWG HTML, 9.2.6); they end in LF or CR LF.

    Splitting is done on bytes: in text, Python and httpx see line ends that JSON may hold as they
    are, like U+2028.
    """

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_seconds: float | None = None
        self._rest = b""
        self._kind = ""
        self._data: list[str] = []

    def take(self, chunk: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if text := line.removesuffix(b"\r").decode(errors="replace"):
                self._field(text)
            elif found := self._dispatch():
                yield found

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._kind = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self.last_id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_seconds = int(value) / 1000

    def _dispatch(self) -> tuple[str, Mapping[str, Any]] | None:
        kind, text = self._kind or "message", "\n".join(self._data)
        self._kind, self._data = "", []
        if not text:
            return None
        try:
            data = json.loads(text)
        except ValueError as exc:
            raise ApiFailure.about("An event of the stream is not JSON.") from exc
        return (kind, data) if isinstance(data, dict) else None
