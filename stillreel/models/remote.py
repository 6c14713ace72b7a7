"""The model that runs elsewhere: a server that speaks OpenAI's or Replicate's shape makes the film.

What came back is the durable result, so a video is paid once. What is noted on disk before each
step finds an order again, whatever ends in between (docs/adr/0019).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from stillreel.errors import (
    ContentRefused,
    DiskFull,
    InferenceCancelled,
    InferenceFailed,
    InferenceInterrupted,
    InferenceStalled,
    ModelUnavailable,
    RemoteError,
    RemoteOutcomeUnknown,
    RemoteRefused,
    RemoteUnavailable,
    RemoteVideoLost,
    RemoteVideoUnusable,
    StillreelError,
)
from stillreel.guard import wait_for
from stillreel.images import encode_png
from stillreel.job import Phase, Shot
from stillreel.models import remote_film as film
from stillreel.models.base import Decoded, Generated, LatentArrays, ModelSpec, OnStep
from stillreel.models.remote_calls import TICK_SECONDS, Calls, attended, is_refusal
from stillreel.models.remote_note import Note
from stillreel.models.remote_shapes import (
    SHAPES,
    Create,
    Seen,
    State,
    parameters_of,
    values_of,
)
from stillreel.settings import InferenceSettings

log = logging.getLogger("stillreel.inference")

CREATE_SECONDS, CANCEL_SECONDS = 120.0, 10.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a call that failed is made again, doubled each time."""
DOWNLOADS = 3
"""How often a video that does not come over whole is fetched, before the attempt has failed."""
UNKNOWN_POLLS = 5
"""So often in a row, 15 s in all, a server may not know the order; some know it a little late."""


class RemoteBackend:
    """Orders a shot from the server of the settings, waits, and keeps the film that came back.

    The latents are its bytes as `video`, uint8, the start of each frame in seconds as `times`,
    float64, its length in seconds as `seconds`, and whether it has `sound`, uint8.
    """

    def __init__(self, spec: ModelSpec, settings: InferenceSettings) -> None:
        self.spec = spec
        self._settings = settings

    def load(self) -> None:
        """Nothing is loaded. Raises ModelUnavailable where no server is set."""
        if not self._settings.remote_url:
            raise ModelUnavailable(
                "The model remote needs a video server elsewhere, and this host knows none: set "
                "STILLREEL_REMOTE_URL where its inference server runs (docs/models.md)."
            )

    def generate(self, shot: Shot, image: Image.Image | None, on_step: OnStep) -> Generated:
        """As `resume`, without being found again."""
        with TemporaryDirectory(prefix="stillreel-remote-") as folder:
            return self.resume(shot, image, on_step, Path(folder, "note.json"))

    def resume(
        self, shot: Shot, image: Image.Image | None, on_step: OnStep, note: Path
    ) -> Generated:
        """The film of `shot`, ordered now or gone on with; a step is a percent of the server's.

        An InferenceCancelled of `on_step` ends the order at the server too, the end of this
        process does not. Raises the errors of the server in the words of stillreel/errors.py.
        """
        self.load()
        order = _Order(self._settings, shot, image, on_step, Note(note, _server(self._settings)))
        return wait_for(order.carry_out())

    def decode(self, shot: Shot, arrays: LatentArrays) -> Decoded:
        """The film at the shot's frame rate, covering its size, no longer than ordered.

        Raises InferenceFailed when the latents are not those of this model.
        """
        if not {"video", "times", "seconds", "sound", "size"} <= set(arrays):
            raise InferenceFailed("The stored latents are not of a remote film; generate it again.")
        data = arrays["video"].tobytes()
        width, height = (int(side) for side in arrays["size"])
        found = film.Film(
            width, height, arrays["times"], float(arrays["seconds"][0]), bool(arrays["sound"][0])
        )
        frames = film.count_frames(found, shot)
        size = film.covering((width, height), (shot.width, shot.height))
        sound = film.read_sound(data, frames / shot.fps) if shot.audio and found.has_sound else None
        return Decoded(
            *size,
            frames=frames,
            chunks=film.play(data, size, film.picks(found.times, frames, shot.fps)),
            pixel_format="yuv420p",
            audio=sound,
            sample_rate=film.SAMPLE_RATE if sound is not None else 0,
        )

    def close(self) -> None:
        """Nothing: an instance keeps nothing between calls."""


@dataclass
class _Order:
    """One shot on its way through the server."""

    settings: InferenceSettings
    shot: Shot
    image: Image.Image | None
    on_step: OnStep
    note: Note

    def __post_init__(self) -> None:
        self.calls = Calls(self.settings)
        self.shape = SHAPES[self.settings.remote_shape]
        self.began = time.monotonic()
        self.at: tuple[Phase, int] = (Phase.QUEUED, 0)
        self.ticked = 0.0

    @property
    def _is_idempotent(self) -> bool:
        return self.settings.remote_idempotent

    async def carry_out(self) -> Generated:
        try:
            seen = await self._end_of(await self._order())
            data, found = await self._fetch(seen)
        except InferenceInterrupted:
            raise  # the order goes on, and the note finds it again
        except (InferenceCancelled, InferenceStalled):
            await self._cancel()
            raise
        return Generated(
            arrays={
                "video": np.frombuffer(data, np.uint8),
                "times": found.times,
                "seconds": np.array([found.seconds]),
                "size": np.array([found.width, found.height]),
                "sound": np.array([found.has_sound], np.uint8),
            },
            seconds={"remote": time.monotonic() - self.began},
            dtype="uint8",
            warnings=film.differences(found, self.shot),
            usd=self._usd(seen, found),
        )

    # --- order ----------------------------------------------------------------------------

    async def _order(self) -> Seen:
        """The order as it stands at the server, taken there now or by an earlier call."""
        if self.note.remote_id:
            log.info("goes on with the order at the remote server")
            return Seen(self.note.remote_id, State.QUEUED)
        if self.note.is_sent and not self._is_idempotent:
            self.note.forget()
            raise RemoteOutcomeUnknown(_UNKNOWN)
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._create(await self._described())
            except RemoteUnavailable as exc:
                wait = exc.retry_after or pause
                pause = min(2 * pause, LONGEST_PAUSE)
                if self._left() < wait:
                    raise
                log.warning("%s Again in %.0f s.", exc.message, wait)
            await self._sleep(wait)

    async def _described(self) -> Create:
        values = values_of(self.shot, self.settings.remote_model)
        values["image"] = await self._image()
        return self.shape.create(parameters_of(self.settings, values), self.settings.remote_model)

    async def _image(self) -> bytes | str | None:
        if self.image is None:
            return None
        png = encode_png(self.image)
        upload = self.shape.upload(png)
        if upload is None:
            return png
        answer = await attended(self.calls.ask("POST", upload.path, files=upload.files), self._tick)
        urls = answer.body.get("urls") if isinstance(answer.body, dict) else None
        url = urls.get("get") if isinstance(urls, dict) else None
        if not isinstance(url, str):
            raise RemoteError("The remote video server took the image and gives no address for it.")
        return url

    async def _create(self, create: Create) -> Seen:
        """Order once. Raises RemoteUnavailable only where the server has no order, or the key."""
        self._tick()
        self.note.send()
        try:
            answer = await self.calls.ask(
                "POST",
                create.path,
                body=create.body,
                files=create.files,
                headers={"Idempotency-Key": self.note.key},
                seconds=CREATE_SECONDS,
            )
            seen = self.shape.read(answer.body)
        except RemoteUnavailable as exc:
            if not exc.sent or exc.status in (429, 503):
                self.note.unsend()
            elif not self._is_idempotent:
                self.note.forget()
                raise RemoteOutcomeUnknown(_UNKNOWN) from exc
            raise
        except StillreelError as exc:
            if isinstance(exc, RemoteRefused) and exc.status == 409 and self._is_idempotent:
                raise RemoteUnavailable("The remote server still takes this very order.") from exc
            self.note.forget()
            if type(exc) is RemoteError:  # it took something, and cannot say what
                raise RemoteOutcomeUnknown(f"{exc.message} {_UNKNOWN}") from exc
            raise
        self.note.take(seen.id)
        log.info("the remote server has taken the order")
        return seen

    # --- wait -----------------------------------------------------------------------------

    async def _end_of(self, seen: Seen) -> Seen:
        """The order once its film is there. Raises what the server says instead."""
        wait = min(FIRST_PAUSE, self.settings.remote_poll_seconds)
        pause, unknown = FIRST_PAUSE, 0
        while seen.state is not State.DONE:
            if seen.state is State.FAILED:
                self.note.forget()
                raise self._failure(seen)
            self._show(seen)
            await self._sleep(wait)
            try:
                path = self.shape.look(self.note.remote_id)
                answer = await attended(self.calls.ask("GET", path), self._tick)
                seen = self.shape.read(answer.body)
            except RemoteUnavailable as exc:
                wait = exc.retry_after or pause
                pause = min(2 * pause, LONGEST_PAUSE)
                if self._left() < wait:
                    raise
            except RemoteRefused as exc:
                unknown += 1
                if exc.status not in (404, 410) or unknown >= UNKNOWN_POLLS:
                    raise self._unknown(exc) from exc
                wait, pause = pause, min(2 * pause, LONGEST_PAUSE)
            else:
                wait = answer.wait_seconds or self.settings.remote_poll_seconds
                pause, unknown = FIRST_PAUSE, 0
                if self._left() <= 0 and seen.state in (State.QUEUED, State.RUNNING):
                    raise InferenceStalled(
                        "The remote video server did not finish within "
                        f"{self.settings.remote_seconds:.0f} s, and was told to stop."
                    )
        return seen

    def _failure(self, seen: Seen) -> StillreelError:
        reason = self.calls.clean(seen.message) or "it gives no reason"
        if is_refusal(seen.code, seen.message):
            return ContentRefused(f"The remote video server refuses this content: {reason}")
        if seen.code == "cancelled":
            return InferenceFailed("The order was cancelled at the remote video server.")
        return InferenceFailed(f"The remote video server could not make the video: {reason}")

    def _unknown(self, exc: RemoteRefused) -> StillreelError:
        """It took the order, and does not know it any more, or will not say."""
        if exc.status not in (404, 410):
            return exc
        finished = self.note.is_finished
        self.note.forget()
        if finished:
            return RemoteVideoLost(_LOST)
        return InferenceFailed(
            "The remote video server does not know the order any more; it was restarted, perhaps."
        )

    # --- fetch ----------------------------------------------------------------------------

    async def _fetch(self, seen: Seen) -> tuple[bytes, film.Film]:
        self.note.finish()
        for place in seen.places:
            try:
                return await self._download(place)
            except RemoteVideoUnusable:
                self.note.forget()
                raise
            except RemoteRefused as exc:
                log.warning("a place of the remote video does not have it: %s", exc.message)
        self.note.forget()
        raise RemoteVideoLost(_LOST)

    async def _download(self, place: str) -> tuple[bytes, film.Film]:
        """The film at this place; one that is cut off may only have come over badly."""
        problem: StillreelError = RemoteVideoLost(_LOST)
        for tried in range(DOWNLOADS):
            if tried:
                await self._sleep(FIRST_PAUSE * 2 ** (tried - 1))
            try:
                data = await attended(self.calls.download(place), self._tick)
                return data, film.inspect(data, self.shot.seconds, self._tick)
            except (RemoteUnavailable, RemoteVideoUnusable) as exc:
                problem = exc
        raise problem

    # --- and all the time -----------------------------------------------------------------

    def _show(self, seen: Seen) -> None:
        """Tell where the server is; what it once counted as done stays so."""
        if seen.state is State.QUEUED and self.at[0] is Phase.QUEUED:
            return
        step = min(seen.percent, 99) * self.shot.steps // 100
        self.at = (Phase.DENOISE, max(step, self.at[1]))

    def _tick(self) -> None:
        """What ends the work passes through here, within a second."""
        now = time.monotonic()
        if now - self.ticked >= TICK_SECONDS:
            self.ticked = now
            self.on_step(*self.at, self.shot.steps)

    async def _sleep(self, seconds: float) -> None:
        self.ticked = 0.0
        self._tick()
        await attended(asyncio.sleep(seconds), self._tick)

    def _left(self) -> float:
        return self.settings.remote_seconds - (time.monotonic() - self.began)

    async def _cancel(self) -> None:
        """End the order at the server; where it does not answer, the note keeps it findable."""
        if not self.note.remote_id:
            return
        method, path = self.shape.cancel(self.note.remote_id)
        try:
            await self.calls.ask(method, path, seconds=CANCEL_SECONDS)
        except RemoteUnavailable as exc:
            log.warning("the order at the remote server may go on: %s", exc.message)
            return
        except StillreelError as exc:
            log.warning("the remote server did not cancel the order: %s", exc.message)
        else:
            log.info("the order at the remote server is cancelled")
        with suppress(DiskFull, RemoteError):  # that it was cancelled says more
            self.note.forget()

    def _usd(self, seen: Seen, found: film.Film) -> float:
        """By the operator's prices, else what the server says; 0 where neither is known."""
        settings = self.settings
        price = settings.remote_price + settings.remote_price_per_second * found.seconds
        return round(price or seen.usd or 0.0, 6)


_LOST = (
    "The remote video server made the video and does not have it any more. It may have to be paid: "
    "order it anew if you want it."
)
_UNKNOWN = (
    "The remote video server may have taken the order, and its answer was lost. The order is not "
    "sent again by itself, because it could be paid twice: look there, then try the job again. "
    "Where the server honours Idempotency-Key, set STILLREEL_REMOTE_IDEMPOTENT=true."
)


def _server(settings: InferenceSettings) -> str:
    chosen = (settings.remote_url, settings.remote_shape, settings.remote_model)
    return hashlib.sha256(" ".join(chosen).encode()).hexdigest()[:16]
