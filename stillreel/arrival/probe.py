"""A process of its own that opens a stranger's file, in a jail, and prints the facts as JSON.

`python -I probe.py`, with a socket as its stdin. It imports the decoders and waits there for one
order, `[KIND, FRAMES, SIDE, CPU_SECONDS, MEMORY_BYTES]` with KIND `film` or `still`; the file and
what the facts are written to come with it. It imports nothing of ours: the less there is in it, the
less there is to take.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import json
import math
import os
import pkgutil
import resource
import socket
import struct
import sys
from typing import Any

ORDER_BYTES, OUTPUT_BYTES = 1024, 65_536
_CREATE, _RESTRICT, _NO_NEW_PRIVILEGES = 444, 446, 38
"""Numbers of Landlock's calls on every kind of machine, and of an option of prctl."""

_ALL_FILES = ((1, 13), (2, 14), (3, 15), (5, 16))
"""Landlock: from which version on how many rights over files there are (landlock(7))."""


def main() -> None:
    """Write what is in the file, or `{"fault": ...}`."""
    _prepare()
    with socket.socket(fileno=0) as line:
        text, files, *_ = socket.recv_fds(line, ORDER_BYTES, 2)
        line.detach()
    if not text:  # nobody has an order any more
        return
    kind, frames, side, cpu_seconds, memory = json.loads(text)
    for number, given in enumerate(files):  # in the place of the socket, and of stdout
        os.dup2(given, number)
        os.close(given)
    look = _film if kind == "film" else _still
    file = io.BufferedReader(io.FileIO(0))
    try:
        confine(cpu_seconds, memory)
    except OSError as exc:
        sys.stdout.write(json.dumps({"unconfined": str(exc)}))
        return
    try:
        facts = look(file, frames, side)
    except MemoryError:
        facts = {"fault": "it needs more memory than is given to it"}
    except Exception as exc:  # the file is a stranger's: whatever it brings about is its fault
        facts = {"fault": f"it is damaged or cut off ({type(exc).__name__})"}
    sys.stdout.write(json.dumps(facts))


def confine(cpu_seconds: int, memory: int) -> None:
    """Leave this process no file, no connection and no other process, for good.

    It has so many seconds of a processor from now on. Raises OSError where the kernel has the means
    for it and does not apply them.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    until = math.ceil(sum(os.times()[:2])) + cpu_seconds
    # First SIGXCPU, and what does not heed it is killed; a kill alone comes from somebody else.
    resource.setrlimit(resource.RLIMIT_CPU, (until, until + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES, OUTPUT_BYTES))
    if sys.platform == "linux":  # elsewhere much is mapped that takes no memory
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # root is let nevertheless
        _lock_in()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # what is open stays; sockets count too


def landlock_version() -> int:
    """Of the Landlock that this kernel has and lets us use; less than 1: none."""
    if sys.platform != "linux":
        return 0
    return ctypes.CDLL(None).syscall(_CREATE, None, 0, 1)


def _lock_in() -> None:
    """Landlock, where the kernel has it: without a rule all that it handles is forbidden."""
    version = landlock_version()
    if version < 1:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    files = (1 << max(n for since, n in _ALL_FILES if version >= since)) - 1
    tcp, signals_and_sockets = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    fields = struct.pack("QQQ", files, tcp, signals_and_sockets)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_CREATE, fields, size, 0)
    if ruleset < 0 or libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "Landlock cannot be used")
    if libc.syscall(_RESTRICT, ruleset, 0) < 0:
        raise OSError(ctypes.get_errno(), "Landlock is not applied")
    os.close(ruleset)


def _prepare() -> None:
    """Import all that may be needed, for later no file can be read."""
    from PIL import Image, MpoImagePlugin  # noqa: F401 - some JPEGs are its

    Image.preinit()
    import av
    import av.logging

    for found in pkgutil.walk_packages(av.__path__, "av."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    av.logging.set_level(av.logging.PANIC)


def _film(file: Any, frames: int, side: int) -> dict[str, Any]:
    """Every frame is decoded, and none after one more than `frames`."""
    import av

    opened: Any = av.open(file, format="mp4")
    with opened as film:
        facts: dict[str, Any] = {
            "seconds": (film.duration or 0) / 1_000_000,
            "streams": [_stream(stream) for stream in film.streams],
            "frames": 0,
            "media_bytes": 0,
            "changes_size": False,
        }
        if len(film.streams.video) != 1 or len(film.streams) > 2:
            return facts
        stream = film.streams.video[0]
        size = stream.codec_context.width, stream.codec_context.height
        if max(size) > side or min(size) < 1:
            return facts
        stream.codec_context.thread_count = 1
        sound_packets = 0
        for packet in film.demux():
            facts["media_bytes"] += packet.size
            if packet.stream.type != "video":
                sound_packets += 1
                if sound_packets > 100 * (frames + 100):
                    return {"fault": "its sound does not end"}
                continue
            for frame in packet.decode():
                facts["frames"] += 1
                facts["changes_size"] |= (frame.width, frame.height) != size
                if facts["frames"] > frames:
                    return facts
    return facts


def _stream(stream: Any) -> dict[str, Any]:
    context = stream.codec_context
    known = {"kind": stream.type, "codec": context.name if context else ""}
    if stream.type != "video":
        return known
    return known | {
        "width": context.width,
        "height": context.height,
        "pixels": str(context.pix_fmt),
        "fps": float(stream.average_rate or 0),
    }


def _still(file: Any, frames: int, side: int) -> dict[str, Any]:  # noqa: ARG001
    from PIL import Image

    with Image.open(file, formats=["JPEG"]) as image:
        facts = {"width": image.width, "height": image.height}
        if max(image.size) <= side:
            image.load()
        return facts


if __name__ == "__main__":
    main()
