"""The operator's own say: asked before inference and after encoding whether a job may go on.

Off unless STILLREEL_SAFETY_URL or STILLREEL_SAFETY_CALLABLE is set on the host. Only an answer
that allows lets a job go on; no answer is none.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from io import BytesIO
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import av
import httpx
from av.error import FFmpegError
from PIL import Image

from stillreel.errors import (
    AddressRefused,
    ContentRefused,
    EncodeFailed,
    SafetyUnavailable,
    SettingsInvalid,
)
from stillreel.guard import EVERYWHERE, guarded_client, wait_for
from stillreel.job import Clip, JobSpec, Prepared
from stillreel.settings import Settings
from stillreel.storage import Storage

log = logging.getLogger("stillreel.safety")

FRAMES = 6
"""Of a clip that are shown, the first and the last among them."""
SIDE_LIMIT = 1280
"""Pixels of the longer side of a picture that is shown."""
FRAME_QUALITY = 85
ANSWER_LIMIT = 10_000
"""Bytes."""
REASON_LIMIT = 300
"""Characters."""

Question = dict[str, Any]
Ask = Callable[[Question], Any]


def check_order(
    job_id: str, spec: JobSpec, prepared: Prepared, *, storage: Storage, settings: Settings
) -> None:
    """Nothing, when this may be made into a video, or nobody is to be asked.

    Raises ContentRefused with the reason, SafetyUnavailable when there is no answer (a later try
    may bring one), SettingsInvalid, and what storage raises.
    """
    if asked := _asked(settings):
        png = storage.get_bytes(prepared.source.key) if prepared.source else None
        question = _question("before", job_id, spec)
        question["image_base64"] = None if png is None else _text(_shrink(png))
        _ask(question, asked)


def check_clip(job_id: str, spec: JobSpec, clip: Clip, *, settings: Settings) -> None:
    """The same for the encoded video, before anything of it is stored."""
    if asked := _asked(settings):
        frames = sample_frames(Path(clip.video_path), clip.frames)
        question = _question("after", job_id, spec) | {
            "frames_base64": [_text(jpeg) for jpeg in frames],
            "seconds": clip.seconds,
            "width": clip.width,
            "height": clip.height,
        }
        _ask(question, asked)


def sample_frames(path: Path, frames: int, count: int = FRAMES) -> list[bytes]:
    """At most `count` frames of a video that has `frames`, evenly spread, as JPEG.

    Raises EncodeFailed when they cannot be read.
    """
    wanted = {round(n * (frames - 1) / (count - 1)) for n in range(count)}
    try:
        with av.open(str(path)) as movie:
            stream = movie.streams.video[0]
            stream.thread_type = "AUTO"
            return [
                _jpeg(frame.to_image())
                for number, frame in enumerate(movie.decode(stream))
                if number in wanted
            ]
    except (FFmpegError, OSError) as exc:
        raise EncodeFailed("The encoded video cannot be read again; start it again.") from exc


def clean_reason(reason: object) -> str:
    """The reason of a refusal as a caller may read it: one short line of printable text."""
    text = " ".join(reason.split()) if isinstance(reason, str) else ""
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= REASON_LIMIT else f"{text[: REASON_LIMIT - 1]}…"


def _asked(settings: Settings) -> list[Ask]:
    """Everybody who has a say, the function of this host first."""
    api, asked = settings.api, list[Ask]()
    if api.safety_callable:
        function = _function(api.safety_callable)
        asked.append(lambda question: _call(function, question, api.safety_seconds))
    if api.safety_url:
        asked.append(lambda q: wait_for(_post(api.safety_url, q, api.safety_seconds)))
    return asked


def _question(when: str, job_id: str, spec: JobSpec) -> Question:
    return {
        "when": when,
        "job_id": job_id,
        "owner": spec.owner,
        "model": spec.model,
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt,
    }


def _ask(question: Question, asked: Sequence[Ask]) -> None:
    for ask in asked:
        answer = ask(question)
        allow = answer.get("allow") if isinstance(answer, Mapping) else None
        if allow is True:
            continue
        if allow is not False:
            raise SafetyUnavailable(
                'The safety check does not answer as it should: {"allow": true}, or '
                '{"allow": false, "reason": "..."}.'
            )
        log.info("the safety check refuses job %s (%s)", question["job_id"], question["when"])
        reason = clean_reason(answer.get("reason"))
        raise ContentRefused(f"The safety check refuses this content: {reason}" if reason else "")


def _function(name: str) -> Ask:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise SettingsInvalid(
            f"STILLREEL_SAFETY_CALLABLE: {name[:80]!r} cannot be imported on this host; give "
            "`module:function`, and put the module on its PYTHONPATH"
        ) from exc
    if not callable(found):
        raise SettingsInvalid(f"STILLREEL_SAFETY_CALLABLE: {name[:80]!r} is not a function")
    return found


def _call(function: Ask, question: Question, seconds: float) -> Any:
    """What the function gives within `seconds`; a thread that takes longer is left behind."""
    given: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            given.put((function(dict(question)), None))
        except Exception as exc:  # the operator's code may raise anything
            given.put((None, exc))

    Thread(target=copy_context().run, args=(run,), name="safety", daemon=True).start()
    try:
        answer, error = given.get(timeout=seconds)
    except Empty:
        raise _late(seconds) from None
    if error is not None:
        log.warning("the safety check failed", exc_info=error)
        raise SafetyUnavailable("The safety check failed; the host's log tells why.") from error
    return answer


async def _post(url: str, question: Question, seconds: float) -> Any:
    """The answer of the endpoint; it is the operator's own, so it may be at any address."""
    body = json.dumps(question, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    try:
        async with (
            asyncio.timeout(seconds),
            guarded_client(EVERYWHERE) as client,
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise SafetyUnavailable(f"The safety check answers {response.status_code}.")
            return json.loads(await _read(response))
    except TimeoutError as exc:
        raise _late(seconds) from exc
    except (httpx.HTTPError, httpx.InvalidURL, AddressRefused, OSError) as exc:
        raise SafetyUnavailable("The connection to the safety check failed.") from exc
    except (ValueError, RecursionError) as exc:
        raise SafetyUnavailable("The safety check does not answer with JSON.") from exc


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > ANSWER_LIMIT:
            raise SafetyUnavailable(f"The safety check answers more than {ANSWER_LIMIT:,} bytes.")
    return bytes(body)


def _late(seconds: float) -> SafetyUnavailable:
    return SafetyUnavailable(f"The safety check did not answer in {seconds:g} s.")


def _shrink(png: bytes) -> bytes:
    """The picture as PNG, no larger than what is shown."""
    with Image.open(BytesIO(png)) as image:
        if max(image.size) <= SIDE_LIMIT:
            return png
        image.thumbnail((SIDE_LIMIT, SIDE_LIMIT))
        small = BytesIO()
        image.save(small, "PNG")
    return small.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    image.thumbnail((SIDE_LIMIT, SIDE_LIMIT))
    data = BytesIO()
    image.save(data, "JPEG", quality=FRAME_QUALITY)
    return data.getvalue()


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")
