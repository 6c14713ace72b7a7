"""Where a rented host keeps what its tasks return: on its disk, and what others need by its lease.

Prefect loads its usual block of result storage from the server, with all keys in it. A rented host
gets none: the block below is made here and never saved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.context import FlowRunContext
from prefect.filesystems import WritableFileSystem
from pydantic import PrivateAttr

from stillreel.errors import ResultRefused, StaleExecution, StorageError
from stillreel.gateway.access import SHARED_RESULTS
from stillreel.result_storage import RESULT_FOLDER
from stillreel.settings import Settings
from stillreel.storage import Storage, open_storage, replacing

log = logging.getLogger("stillreel.results")


class LeaseResults(WritableFileSystem):
    """Results of this host; those that another host goes on with are in storage too."""

    _block_type_name = "Results of a rented host"
    _storage: Storage = PrivateAttr()
    _folder: Path = PrivateAttr()

    @classmethod
    def on(cls, storage: Storage, folder: Path) -> LeaseResults:
        """The block on this storage, with its other files in this folder."""
        block = cls.model_validate({})
        block._storage, block._folder = storage, folder
        return block

    def _resolve_path(self, path: str) -> Path:
        """Prefect asks for it where a block is not saved (3.8.8)."""
        return self._folder / path

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]
        """The result of this name. Raises what storage raises, and OSError."""
        local = self._folder / Path(path).name
        if local.exists() or not _is_shared(path):
            return local.read_bytes()
        return self._storage.get_bytes(_key(path))

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        """Keep the result; a host that cannot share it goes on, another one works again then."""
        with replacing(self._folder / Path(path).name) as file:
            file.write(content)
        if not _is_shared(path):
            return
        try:
            self._storage.put_bytes(_key(path), content, content_type="application/octet-stream")
        except (StorageError, ResultRefused, StaleExecution) as exc:
            log.warning("a result is not shared: %s", exc.message)

    async def aread_path(self, path: str) -> bytes:
        return self.read_path(path)

    async def awrite_path(self, path: str, content: bytes) -> None:
        self.write_path(path, content)


@contextmanager
def shared_results(settings: Settings) -> Iterator[None]:
    """Have the tasks of this flow run share their results by the lease; elsewhere as always."""
    context = FlowRunContext.get()
    if settings.storage.kind != "lease" or context is None or context.result_store is None:
        yield
        return
    storage = open_storage(settings.storage, settings.host.home)
    block = LeaseResults.on(storage, settings.host.home / "results")
    store = context.result_store.model_copy(update={"result_storage": block})
    with context.model_copy(update={"result_store": store}):
        yield


def _is_shared(path: str) -> bool:
    return Path(path).name.startswith(tuple(f"{task}-" for task in SHARED_RESULTS))


def _key(path: str) -> str:
    return f"{RESULT_FOLDER}/{Path(path).name}"
