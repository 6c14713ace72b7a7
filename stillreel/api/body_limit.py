"""The bound of every request's body, in bytes and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillreel.api.problems import answer_of
from stillreel.errors import BodyTooLarge, BodyTooSlow, StillreelError

LINGER_SECONDS = 1.0
"""How long a refused body is still read. Closing on unread bytes resets the connection, and with
it the answer may be lost on its way."""


class BodyLimit:
    """Refuses bodies that are larger (413) or take longer (408) than allowed, and hangs up then.

    Paths that begin as one of `exempt` have limits of their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        seconds: float,
        exempt: Sequence[str] = ("/files/",),
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._exempt = tuple(exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._exempt):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length in ("", "0") and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._max_bytes, self._seconds)
        if length.isdecimal() and int(length) > self._max_bytes:
            await exchange.refuse(exchange.too_large())
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            if not exchange.refused:
                raise
        if exchange.refused:
            await exchange.refuse(exchange.refused)


class _Exchange:
    """A request whose body is counted and timed, and its answer."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, max_bytes: int, seconds: float
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max_bytes, self._seconds = max_bytes, seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._size = 0
        self._arrived = False
        self._ahead: Message | None = None
        self._begun = False
        self._closing = False
        self.refused: StillreelError | None = None

    async def receive(self) -> Message:
        """What the server has for the app; raises BodyTooLarge and BodyTooSlow."""
        message, self._ahead = self._ahead, None
        if message is None and self._arrived:
            return await self._receive()
        if message is None:
            try:
                async with asyncio.timeout_at(self._deadline):
                    message = await self._next()
            except TimeoutError as exc:
                self.refused = self._too_slow()
                raise self.refused from exc
        if self._size > self._max_bytes:
            self.refused = self.too_large()
            raise self.refused
        return message

    async def send(self, message: Message) -> None:
        """Pass the app's answer on, unless it is refused: frameworks make a 400 of our errors."""
        if self._begun or not self.refused:
            await self._answer(message)

    async def refuse(self, error: StillreelError) -> None:
        """Answer in the app's place, unless it has begun to."""
        if not self._begun:
            await answer_of(error, self._scope)(self._scope, self._receive, self._answer)

    def too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The request body is larger than {self._max_bytes} bytes; upload a larger image to "
            "the address that POST /api/v1/presign/upload gives."
        )

    def _too_slow(self) -> BodyTooSlow:
        return BodyTooSlow(
            f"The request body did not arrive within {self._seconds:g} s; send it again, or "
            "upload the image to the address that POST /api/v1/presign/upload gives."
        )

    async def _answer(self, message: Message) -> None:
        """Send; where the body has not been read, hang up after the answer."""
        if message["type"] == "http.response.start":
            self._begun = True
            await self._look_ahead()
            self._closing = not self._arrived
            if self._closing:
                MutableHeaders(scope=message).append("connection", "close")
        elif self._closing and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _look_ahead(self) -> None:
        """Learn whether the rest of the body is here already, as small ones are."""
        # To one who waits for "100 Continue", reading is an invitation to send.
        if self._arrived or self._ahead or "expect" in Headers(scope=self._scope):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                self._ahead = await self._next()

    async def _linger(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._arrived:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self._arrived = not message.get("more_body", False)
        return message
