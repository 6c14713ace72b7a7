"""What this host knows of an order at a remote server: kept on disk before anything is waited for.

A video that is paid for is found again by it, whatever ends in between.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from stillreel.errors import DiskFull, RemoteError, is_disk_full

log = logging.getLogger("stillreel.inference")


class _Facts(BaseModel):
    server: str
    attempt: int = 0
    sent: bool = False
    remote_id: str = ""
    finished: bool = False


@dataclass
class Note:
    """The note at `path` about an order at `server`; one of another server counts as none.

    Raises DiskFull or RemoteError where it cannot be written: then nothing may be ordered.
    """

    path: Path
    server: str
    _facts: _Facts = field(init=False)

    def __post_init__(self) -> None:
        self._facts = self._read() or _Facts(server=self.server)

    @property
    def key(self) -> str:
        """The Idempotency-Key: the same for an attempt of a job on every host."""
        parts = (self.path.parent.name, self.path.name, str(self._facts.attempt))
        return "stillreel-" + hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]

    @property
    def is_sent(self) -> bool:
        """Whether an order was sent; without a `remote_id` nobody knows what became of it."""
        return self._facts.sent

    @property
    def remote_id(self) -> str:
        """What the server calls it; empty where that is not known."""
        return self._facts.remote_id

    @property
    def is_finished(self) -> bool:
        """Whether the server has said that the video is there."""
        return self._facts.finished

    def send(self) -> None:
        """From now on an order may be at the server."""
        self._write(sent=True, remote_id="", finished=False)

    def take(self, remote_id: str) -> None:
        """The server has the order, under this id."""
        self._write(remote_id=remote_id)

    def finish(self) -> None:
        """The server has the video."""
        self._write(finished=True)

    def unsend(self) -> None:
        """The order did not reach the server after all."""
        self._write(sent=False)

    def forget(self) -> None:
        """What was ordered is of no use any more; the next order is another one."""
        facts = self._facts
        self._write(attempt=facts.attempt + 1, sent=False, remote_id="", finished=False)

    def _read(self) -> _Facts | None:
        try:
            facts = _Facts.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as exc:
            raise RemoteError(
                "What this host has noted about the order at the remote server cannot be read, so "
                "it is not known whether there is one. Look there, then order the video anew."
            ) from exc
        if facts.server != self.server:
            log.warning("an order at another remote server is left to itself")
            return None
        return facts

    def _write(self, **change: object) -> None:
        facts = self._facts.model_copy(update=change)
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            if not self._facts.sent:  # later on only a job that was cancelled has no folder
                self.path.parent.mkdir(parents=True, exist_ok=True)
            elif not self.path.parent.exists():
                self._facts = facts
                return
            with part.open("w", encoding="utf-8") as file:
                file.write(facts.model_dump_json())
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except OSError as exc:
            if is_disk_full(exc):
                raise DiskFull from exc
            raise RemoteError(
                "This host cannot note what it orders at the remote server; see STILLREEL_HOME."
            ) from exc
        self._facts = facts
