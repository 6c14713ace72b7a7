"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack

import anyio
import httpx
import stamina

from stillreel.client import steps
from stillreel.client.answers import (
    Batch,
    BatchAnswer,
    Estimate,
    Job,
    Looks,
    ModelInfo,
    Redelivery,
    Upload,
    Usage,
)
from stillreel.client.calls import NO_PROXY, PATIENCE, RETRIES, Call, Server, check
from stillreel.client.events import Event, OnProgress, Story, Watch
from stillreel.client.failures import ApiFailure, ApiUnreachable, backoff
from stillreel.client.files import Saving, Variant
from stillreel.client.steps import Filters, Image, Item, Options, Steps
from stillreel.errors import StillreelError

T = TypeVar("T")


class AsyncClient:
    """`stillreel.client.Client` for asyncio: the same methods, to be awaited.

    `list` and `events` are for `async for`. `on_progress` is a plain function. `http` is an
    `httpx.AsyncClient` of yours; you close it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        patience: float = PATIENCE,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._server = Server.find(base_url, api_key)
        self._retries: dict[str, Any] = {**RETRIES, "timeout": patience}
        self._is_own = http is None
        self._http = http or httpx.AsyncClient(mounts=NO_PROXY)

    def __repr__(self) -> str:
        return f"AsyncClient({self.base_url!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return self._server.url

    async def aclose(self) -> None:
        """Close the connections."""
        if self._is_own:
            await self._http.aclose()

    async def submit(
        self,
        prompt: str = "",
        image: Image = None,
        *,
        wait: bool | float = False,
        on_progress: OnProgress | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """See `Client.submit`."""
        job = await self._run(steps.submit(prompt, image, idempotency_key, options))
        if wait is False:
            return job
        timeout = None if wait is True else wait
        return await self.wait(job.job_id, timeout=timeout, on_progress=on_progress)

    async def submit_batch(
        self,
        items: Sequence[Item],
        *,
        idempotency_key: str | None = None,
        **defaults: Unpack[Options],
    ) -> BatchAnswer:
        """See `Client.submit_batch`."""
        return await self._run(steps.submit_batch(items, idempotency_key, defaults))

    async def upload(self, image: Path | str | bytes) -> Upload:
        """See `Client.upload`."""
        return await self._run(steps.upload(image))

    async def get(self, job_id: str) -> Job:
        """See `Client.get`."""
        return await self._run(steps.get(job_id))

    async def list(
        self, *, limit: int | None = None, **filters: Unpack[Filters]
    ) -> AsyncIterator[Job]:
        """See `Client.list`."""
        left, cursor = limit, None
        while left is None or left > 0:
            size = steps.PAGE if left is None else min(left, steps.PAGE)
            page = await self._run(steps.page(filters, size, cursor))
            for job in page.jobs:
                yield job
            left = None if left is None else left - len(page.jobs)
            if not (cursor := page.next_cursor):
                return

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as the other client has it
        on_progress: OnProgress | None = None,
    ) -> Job:
        """See `Client.wait`."""
        watch = Watch(job_id, timeout, on_progress)
        if watch.may_stream:
            with suppress(ApiFailure, ApiUnreachable):
                async with aclosing(self.events(job_id)) as events:
                    async for event in events:
                        watch.see(event.job)
                        if not watch.may_stream:
                            break
        while not (job := watch.see(await self.get(job_id))).has_ended:  # noqa: ASYNC110
            await anyio.sleep(watch.pause())
        return job

    async def events(self, job_id: str) -> AsyncGenerator[Event, None]:
        """See `Client.events`."""
        story = Story(job_id)
        while not story.has_ended:
            cause = None
            try:
                async with self._stream(story.call()) as response:
                    story.begin(response)
                    async for chunk in response.aiter_bytes():
                        for event in story.take(chunk):
                            yield event
                        if story.has_ended:
                            return
            except (httpx.TransportError, ApiFailure) as exc:
                cause = exc
            if not story.has_ended:
                with self._server.telling():
                    await anyio.sleep(story.pause(cause))

    async def cancel(self, job_id: str) -> Job:
        """See `Client.cancel`."""
        return await self._run(steps.cancel(job_id))

    async def retry(self, job_id: str) -> Job:
        """See `Client.retry`."""
        return await self._run(steps.retry(job_id))

    async def redeliver(self, job_id: str) -> Redelivery:
        """See `Client.redeliver`."""
        return await self._run(steps.redeliver(job_id))

    async def delete(self, job_id: str) -> bool:
        """See `Client.delete`."""
        return await self._run(steps.delete(job_id))

    async def download(
        self, job_id: str, path: Path | str | None = None, *, variant: Variant = "video"
    ) -> Path:
        """See `Client.download`."""
        saving: Saving | None = None
        try:
            with self._server.telling():
                async for attempt in stamina.retry_context(on=backoff, **self._retries):
                    with attempt:
                        job = await self.get(job_id)
                        saving = saving or Saving(job, variant, path)
                        async with self._stream(saving.call(job)) as response:
                            saving.begin(response)
                            async for chunk in response.aiter_raw():
                                saving.take(chunk)
                        return saving.finish()
        finally:
            if saving:
                saving.close()
        raise AssertionError("unreachable")

    async def batch(self, batch_id: str, *, cursor: str | None = None) -> Batch:
        """See `Client.batch`."""
        return await self._run(steps.batch(batch_id, cursor))

    async def cancel_batch(self, batch_id: str) -> Batch:
        """See `Client.cancel_batch`."""
        return await self._run(steps.cancel_batch(batch_id))

    async def models(self) -> Sequence[ModelInfo]:
        """See `Client.models`."""
        return await self._run(steps.models())

    async def styles(self) -> Looks:
        """See `Client.styles`."""
        return await self._run(steps.styles())

    async def estimate(self, prompt: str = "", **options: Unpack[Options]) -> Estimate:
        """See `Client.estimate`."""
        return await self._run(steps.estimate({"prompt": prompt or None, **options}))

    async def usage(
        self,
        *,
        first: date | str | None = None,
        last: date | str | None = None,
        group_by: Sequence[str] = (),
        owner: str | None = None,
    ) -> Usage:
        """See `Client.usage`."""
        return await self._run(steps.usage(first, last, group_by, owner))

    async def _run(self, work: Steps[T]) -> T:
        """What the steps come to, with their calls made."""
        go_on: Any = partial(next, work)
        while True:
            try:
                call = go_on()
            except StopIteration as end:
                return end.value
            try:
                go_on = partial(work.send, await self._send(call))
            except StillreelError as exc:
                go_on = partial(work.throw, exc)

    async def _send(self, call: Call) -> httpx.Response:
        again = partial(backoff, repeatable=call.repeatable)
        with self._server.telling():
            async for attempt in stamina.retry_context(on=again, **self._retries):
                with attempt:
                    return check(await self._http.request(**self._server.arguments(call)))
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def _stream(self, call: Call) -> AsyncIterator[httpx.Response]:
        async with self._http.stream(**self._server.arguments(call)) as response:
            if not response.is_success:
                await response.aread()
            yield check(response)
