"""Opens a stranger's file in a process that can take nothing and harm nobody."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

from stillreel.arrival.boxes import media_bytes
from stillreel.arrival.film import Film, FilmOrder, differences, film_of
from stillreel.arrival.probe import OUTPUT_BYTES, landlock_version
from stillreel.arrival.ready import ready_probe
from stillreel.errors import ArrivalUnread, ResultRefused

MEMORY_BYTES = 1_500_000_000
"""Of address space, the code of the decoders among it."""
CPU_SECONDS, CPU_SECONDS_A_FRAME = 15, 0.25
"""For an order; a frame of 1080p takes about 0.01."""
WALL_FACTOR, WALL_SECONDS = 4, 60.0
"""How many times as long it may take on a busy machine, and the start of the process."""
STILL_BYTES = 8_000_000

log = logging.getLogger("stillreel.arrival")


def inspect_film(path: Path, order: FilmOrder, *, cpu_seconds: float = 0.0) -> Film:
    """What is in the file, which is as ordered in every respect.

    Raises ResultRefused, which says what is not; nothing that the file does gets further. Raises
    ArrivalUnread where this machine could not look.
    """
    size = path.stat().st_size
    if size > order.bytes_max:
        raise ResultRefused(f"it has {size:,} bytes, more than {order.bytes_max:,} for this order")
    media = media_bytes(path, order.frames)
    seconds = cpu_seconds or CPU_SECONDS + CPU_SECONDS_A_FRAME * order.frames
    told = ask(path, "film", frames=order.frames, side=order.side_max, cpu_seconds=seconds)
    film = film_of(told)
    if wrong := differences(film, order, media_bytes=media):
        raise ResultRefused("; ".join(wrong))
    return film


def inspect_still(path: Path, size: tuple[int, int]) -> None:
    """Nothing, when the file is a JPEG of this size. Raises ResultRefused, ArrivalUnread."""
    if path.stat().st_size > STILL_BYTES:
        raise ResultRefused(f"it has more than {STILL_BYTES:,} bytes")
    with path.open("rb") as file:
        if file.read(3) != b"\xff\xd8\xff":
            raise ResultRefused("it is no JPEG")
        file.seek(-2, os.SEEK_END)
        if file.read() != b"\xff\xd9":
            raise ResultRefused("it does not end where its picture ends")
    told = ask(path, "still", frames=1, side=max(size), cpu_seconds=CPU_SECONDS)
    if fault := told.get("fault"):
        raise ResultRefused(str(fault)[:200])
    if (told.get("width"), told.get("height")) != size:
        found = f"{told.get('width')}x{told.get('height')}"[:40]
        raise ResultRefused(f"it is {found} instead of {size[0]}x{size[1]}")


def warn_where_unconfined() -> None:
    """Say in the log where only limits hold what looks at the files of rented hosts."""
    if landlock_version() < 1:
        log.warning(
            "this kernel has no Landlock, or does not let us use it: files of rented hosts are "
            "decoded in a process that only limits hold (docs/security.md)"
        )


def ask(
    path: Path, kind: Literal["film", "still"], *, frames: int, side: int, cpu_seconds: float
) -> dict[str, Any]:
    """What the probe says of the file, in so many seconds of a processor.

    Raises ResultRefused, ArrivalUnread where that is no fault of the file.
    """
    seconds = round(cpu_seconds + 0.5) or 1
    with path.open("rb") as file, tempfile.TemporaryFile() as answer, ready_probe() as probe:
        probe.order([kind, frames, side, seconds, MEMORY_BYTES], file, answer)
        try:
            code = probe.process.wait(timeout=WALL_FACTOR * seconds + WALL_SECONDS)
        except subprocess.TimeoutExpired:
            raise ArrivalUnread("This machine is too busy to look at it; send it again.") from None
        finally:
            probe.end()
        answer.seek(0)
        text = answer.read(OUTPUT_BYTES)
    if code == -signal.SIGKILL:  # by the kernel, when memory is short
        raise ArrivalUnread("The process that looked at it was killed; send it again.")
    if code == -signal.SIGXCPU:
        raise ResultRefused(f"looking at it takes longer than {seconds} s of a processor")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    if code != 0 or not isinstance(told, dict):
        raise ResultRefused("it ends the process that looks at it")
    if "unconfined" in told:
        log.error("arrivals cannot be looked at safely: %s", str(told["unconfined"])[:200])
        raise ArrivalUnread
    return told
