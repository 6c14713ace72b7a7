"""The client that blocks."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack

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


class Client:
    """Makes videos through the HTTP API of a stillreel installation.

    Address and key are those of `STILLREEL_API_URL` and `STILLREEL_API_KEY` where they are not
    given; on the machine of `stillreel up`, neither is needed. Calls are repeated where that is
    safe, for `patience` seconds at most. They raise ApiFailure for what the API refuses, which is
    also the error of `stillreel.errors` that has its code, and ApiUnreachable. One client may be
    used by many threads.

    `http` is an `httpx.Client` of yours, e.g. with a proxy or a certificate; you close it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        patience: float = PATIENCE,
        http: httpx.Client | None = None,
    ) -> None:
        self._server = Server.find(base_url, api_key)
        self._retries: dict[str, Any] = {**RETRIES, "timeout": patience}
        self._is_own = http is None
        self._http = http or httpx.Client(mounts=NO_PROXY)

    def __repr__(self) -> str:
        return f"Client({self.base_url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return self._server.url

    def close(self) -> None:
        """Close the connections."""
        if self._is_own:
            self._http.close()

    def submit(
        self,
        prompt: str = "",
        image: Image = None,
        *,
        wait: bool | float = False,
        on_progress: OnProgress | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """The job of a new order, as it is now; with `wait` (for ever, or seconds), as it ended.

        An order has an Idempotency-Key in any case, so that a repeated call makes no second
        video; give your own to repeat it yourself. Raises WaitedTooLong.
        """
        job = self._run(steps.submit(prompt, image, idempotency_key, options))
        if wait is False:
            return job
        timeout = None if wait is True else wait
        return self.wait(job.job_id, timeout=timeout, on_progress=on_progress)

    def submit_batch(
        self,
        items: Sequence[Item],
        *,
        idempotency_key: str | None = None,
        **defaults: Unpack[Options],
    ) -> BatchAnswer:
        """Many orders at once, each with its own result; `defaults` hold for all of them."""
        return self._run(steps.submit_batch(items, idempotency_key, defaults))

    def upload(self, image: Path | str | bytes) -> Upload:
        """Put an image into storage, for one order that comes later."""
        return self._run(steps.upload(image))

    def get(self, job_id: str) -> Job:
        """A job as it is, at most a second old; its URLs are signed now."""
        return self._run(steps.get(job_id))

    def list(self, *, limit: int | None = None, **filters: Unpack[Filters]) -> Iterator[Job]:
        """Jobs, newest first, read page by page as they are taken; at most `limit`."""
        left, cursor = limit, None
        while left is None or left > 0:
            size = steps.PAGE if left is None else min(left, steps.PAGE)
            page = self._run(steps.page(filters, size, cursor))
            yield from page.jobs
            left = None if left is None else left - len(page.jobs)
            if not (cursor := page.next_cursor):
                return

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Job:
        """The job when it has ended, however it did; `job.failure` says why without a video.

        `timeout` is in seconds. Raises WaitedTooLong; the job goes on then.
        """
        watch = Watch(job_id, timeout, on_progress)
        if watch.may_stream:
            # Where a stream is not to be had, the job is read, which tells what is wrong if it is.
            with suppress(ApiFailure, ApiUnreachable), closing(self.events(job_id)) as events:
                for event in events:
                    watch.see(event.job)
                    if not watch.may_stream:
                        break
        while not (job := watch.see(self.get(job_id))).has_ended:
            time.sleep(watch.pause())
        return job

    def events(self, job_id: str) -> Generator[Event, None, None]:
        """What happens to a job, as it happens, until its end; broken streams are resumed."""
        story = Story(job_id)
        while not story.has_ended:
            cause = None
            try:
                with self._stream(story.call()) as response:
                    story.begin(response)
                    for chunk in response.iter_bytes():
                        yield from story.take(chunk)
                        if story.has_ended:
                            return
            except (httpx.TransportError, ApiFailure) as exc:
                cause = exc
            if not story.has_ended:
                with self._server.telling():
                    time.sleep(story.pause(cause))

    def cancel(self, job_id: str) -> Job:
        """End a job that waits or runs; doing it twice is the same as once."""
        return self._run(steps.cancel(job_id))

    def retry(self, job_id: str) -> Job:
        """Open the next round of a job that failed, was cancelled or expired."""
        return self._run(steps.retry(job_id))

    def redeliver(self, job_id: str) -> Redelivery:
        """Have the notification about a job's end sent again."""
        return self._run(steps.redeliver(job_id))

    def delete(self, job_id: str) -> bool:
        """Delete a job and all that it made; False: as soon as its process has ended."""
        return self._run(steps.delete(job_id))

    def download(
        self, job_id: str, path: Path | str | None = None, *, variant: Variant = "video"
    ) -> Path:
        """Save the video, poster or teaser as `path`, or under the job's name in that directory.

        What breaks off is resumed; a video is compared with the checksum of what was made. `path`
        holds the whole file or what it held before. Raises JobConflict where there is no video
        yet, the job's failure where there is none, DownloadDamaged, OutputUnwritable, DiskFull.
        """
        saving: Saving | None = None
        try:
            with self._server.telling():
                for attempt in stamina.retry_context(on=backoff, **self._retries):
                    with attempt:
                        job = self.get(job_id)
                        saving = saving or Saving(job, variant, path)
                        with self._stream(saving.call(job)) as response:
                            saving.begin(response)
                            for chunk in response.iter_raw():
                                saving.take(chunk)
                        return saving.finish()
        finally:
            if saving:
                saving.close()
        raise AssertionError("unreachable")

    def batch(self, batch_id: str, *, cursor: str | None = None) -> Batch:
        """How many jobs of a batch are where, and the jobs themselves."""
        return self._run(steps.batch(batch_id, cursor))

    def cancel_batch(self, batch_id: str) -> Batch:
        """End all jobs of a batch that have not ended."""
        return self._run(steps.cancel_batch(batch_id))

    def models(self) -> Sequence[ModelInfo]:
        """The models of the installation, the default first."""
        return self._run(steps.models())

    def styles(self) -> Looks:
        """What `style` and `camera` may say."""
        return self._run(steps.styles())

    def estimate(self, prompt: str = "", **options: Unpack[Options]) -> Estimate:
        """What a video would take."""
        return self._run(steps.estimate({"prompt": prompt or None, **options}))

    def usage(
        self,
        *,
        first: date | str | None = None,
        last: date | str | None = None,
        group_by: Sequence[str] = (),
        owner: str | None = None,
    ) -> Usage:
        """Videos, GPU seconds and US$ by `day`, `model` and `key`; the last 30 days by default."""
        return self._run(steps.usage(first, last, group_by, owner))

    def _run(self, work: Steps[T]) -> T:
        """What the steps come to, with their calls made."""
        go_on: Any = partial(next, work)
        while True:
            try:
                call = go_on()
            except StopIteration as end:
                return end.value
            try:
                go_on = partial(work.send, self._send(call))
            except StillreelError as exc:
                go_on = partial(work.throw, exc)

    def _send(self, call: Call) -> httpx.Response:
        again = partial(backoff, repeatable=call.repeatable)
        with self._server.telling():
            for attempt in stamina.retry_context(on=again, **self._retries):
                with attempt:
                    return check(self._http.request(**self._server.arguments(call)))
        raise AssertionError("unreachable")

    @contextmanager
    def _stream(self, call: Call) -> Iterator[httpx.Response]:
        with self._http.stream(**self._server.arguments(call)) as response:
            if not response.is_success:
                response.read()
            yield check(response)
