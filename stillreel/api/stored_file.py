"""Objects of the local storage as answers, whole or in ranges."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from stillreel.api.problems import problem_response

RANGES: dict[int | str, dict[str, Any]] = {
    206: {"description": "The range that was asked for."},
    416: problem_response("The range lies outside of the object.", "Content-Range"),
}
"""For `responses=` of a route that answers with a StoredFile."""

_REFUSED = {
    400: "The header Range cannot be read; it has the form bytes=0-99.",
    416: "The range lies outside of the object; Content-Range says how long that is.",
}


class StoredFile(FileResponse):
    """A file, or the ranges of it that are asked for; a Range that it refuses is a problem."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in _REFUSED:
                raise _refusal(message)
            await send(message)

        await super().__call__(scope, receive, watch)


def _refusal(start: Message) -> HTTPException:
    size = Headers(raw=start["headers"]).get("content-range")
    headers = {"Content-Range": size} if size else None
    return HTTPException(start["status"], _REFUSED[start["status"]], headers)
