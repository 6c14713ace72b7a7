"""Which objects a rented host may read and write for a run of its own: rules, and no storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from stillreel.errors import NotLeased
from stillreel.keys import output_key, source_key
from stillreel.result_storage import RESULT_FOLDER, RESULT_VERSIONS
from stillreel.storage import checked_key

Content = Literal["image", "latents", "film", "still", "teaser", "receipt", "result", "any"]
"""What an object has to be; `any`: nobody looks."""

SMALL_BYTES = 65_536
"""So much is sent with the request itself; for more there are signed URLs."""
TEMP_FOLDER = "temp/"
"""Where what arrives lies until it was looked at."""
BY_UPLOAD = ("video/mp4", "image/jpeg")
"""What is decoded comes by an upload, however small: it waits for its turn, and no request does."""
SHARED_RESULTS = ("fetch-image", "infer")
"""Tasks whose results another host goes on with. Those of encode name files of their own host, and
a job whose upload has ended is completed."""

_MB = 1_000_000
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")
"""Of names that are read: nothing that one server decodes and another does not."""
_DIGEST = re.compile(r"[0-9a-f]{32}")
_RESULT = re.compile(
    rf"{RESULT_FOLDER}/(?P<task>{'|'.join(SHARED_RESULTS)})-({'|'.join(map(str, RESULT_VERSIONS))})"
    r"-(?P<run>[0-9a-f-]{36})-[0-9a-f]{1,64}"
)


@dataclass(frozen=True)
class Slot:
    """What may be written under a key."""

    content: Content
    content_type: str
    bytes_max: int


class Access(Protocol):
    """What one host may do in storage, for one run. Every method raises NotLeased for the rest."""

    def read(self, key: str) -> None:
        """Nothing, when this object may be read."""
        ...

    def list(self, prefix: str) -> None:
        """Nothing, when the objects with this prefix may be listed."""
        ...

    def write(self, key: str, content_type: str, size: int) -> Slot:
        """What an object of this key, type and length has to be."""
        ...

    def delete(self, key: str) -> None:
        """Nothing, when this object may be deleted."""
        ...


@dataclass(frozen=True)
class RunAccess:
    """The rights of a host on the objects of one job, whose run it was handed."""

    run_id: str
    job_id: str
    image_key: str = ""
    """What the order names as its image; it counts where it lies under inputs/."""

    def read(self, key: str) -> None:
        checked_key(key)
        is_image = key == self.image_key and key.startswith("inputs/")
        is_own = key.startswith(self._folders) and _PLAIN.fullmatch(key)
        if not (is_image or is_own or result_task(key, self.run_id)):
            raise NotLeased("This object belongs to no run of this lease.")

    def list(self, prefix: str) -> None:
        if not prefix.startswith(self._folders) or not _PLAIN.fullmatch(prefix):
            raise NotLeased("Only what belongs to this job can be listed.")
        checked_key(prefix.removesuffix("/"))

    def write(self, key: str, content_type: str, size: int) -> Slot:
        checked_key(key)
        slot = self._slot(key)
        if slot is None:
            raise NotLeased("Nothing can be stored under this key for this run.")
        if content_type != slot.content_type:
            raise NotLeased(f"What is stored here is {slot.content_type} and nothing else.")
        if size > slot.bytes_max:
            raise NotLeased(f"At most {slot.bytes_max:,} bytes are taken here.")
        return slot

    def delete(self, key: str) -> None:
        checked_key(key)
        raise NotLeased("A rented host deletes nothing.")

    @property
    def _folders(self) -> tuple[str, ...]:
        return tuple(f"{name}/{self.job_id}/" for name in ("inputs", "latents", "outputs"))

    def _slot(self, key: str) -> Slot | None:
        outputs = {
            "output.mp4": Slot("film", "video/mp4", 2000 * _MB),
            "teaser.mp4": Slot("teaser", "video/mp4", 50 * _MB),
            "poster.jpg": Slot("still", "image/jpeg", 8 * _MB),
            "receipt.json": Slot("receipt", "application/json", SMALL_BYTES),
        }
        for name, slot in outputs.items():
            if key == output_key(self.job_id, name):
                return slot
        if key == source_key(self.job_id):
            return Slot("image", "image/png", 200 * _MB)
        name = key.removeprefix(f"latents/{self.job_id}/lent/")
        if name != key and _DIGEST.fullmatch(name.removesuffix(".safetensors")):
            latents = Slot("latents", "application/octet-stream", 2000 * _MB)
            return latents if name.endswith(".safetensors") else None
        if result_task(key, self.run_id):
            return Slot("result", "application/octet-stream", SMALL_BYTES)
        return None


def result_task(key: str, run_id: str) -> str:
    """The task of this run whose shared result lies there; empty for any other key."""
    found = _RESULT.fullmatch(key)
    return found["task"] if found and found["run"] == run_id else ""


def temp_prefix(job_id: str) -> str:
    """Where what arrives for a job lies until it was looked at; it vanishes after a day."""
    return f"{TEMP_FOLDER}{job_id}/"
