"""The API's side of storage by lease, on loopback and without Prefect: who may come in is given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from stillreel.api import files, lease_storage
from stillreel.api.error_handlers import install_problems
from stillreel.api.middleware import install_middleware
from stillreel.api.services import build_services
from stillreel.errors import LeaseRefused, NotLeased, StaleExecution
from stillreel.gateway.access import Access, RunAccess, Slot
from stillreel.gateway.intake import Intake
from stillreel.gateway.visit import Terms, Visit
from stillreel.job import JobSpec
from stillreel.prefect_api import PrefectApi
from stillreel.settings import CONCERNS, Settings, StorageSettings
from stillreel.storage import Storage
from stillreel.storage_lease import LeaseStorage
from tests.stack import free_port

TOKEN = "lease_token-of-this-host"


class OpenAccess:
    """All of storage, and nobody looks: for what is the same in every storage."""

    def read(self, key: str) -> None: ...

    def list(self, prefix: str) -> None: ...

    def write(self, key: str, content_type: str, size: int) -> Slot:  # noqa: ARG002
        return Slot("any", content_type, 10**12)

    def delete(self, key: str) -> None: ...


class GivenDoor:
    """Opens by one token, to the jobs that are given, until it is shut."""

    def __init__(self) -> None:
        self.orders: dict[str, tuple[str, JobSpec]] = {}
        """Job and order of each run that was handed to this host."""
        self.access: Callable[[str, str, JobSpec], Access] = _own
        self.is_revoked = self.is_taken = False
        self.lease = "lease-1"
        self.claimed_at = datetime.now(UTC) - timedelta(minutes=1)

    def hand(self, job_id: str, spec: JobSpec) -> str:
        """A run of this job, which is the host's from now on."""
        run_id = str(uuid4())
        self.orders[run_id] = (job_id, spec)
        return run_id

    async def enter(self, token: str, run_id: str, *, writes: bool = False) -> Visit:
        if token != TOKEN or self.is_revoked:
            raise LeaseRefused
        if run_id not in self.orders or (writes and self.is_taken):
            raise NotLeased("This run was not handed to this lease.")
        job_id, spec = self.orders[run_id]
        return Visit(
            self.lease, run_id, job_id, self.access(run_id, job_id, spec), lambda: spec, token
        )

    async def is_current(self, visit: Visit) -> None:
        if self.is_taken:
            raise StaleExecution("another host has the run")
        await self.enter(visit.token, visit.run_id)

    async def terms(self, visit: Visit) -> Terms:  # noqa: ARG002
        return Terms("rented-1", 0.5, self.claimed_at)


class Lender:
    """A running API, as far as storage by lease goes."""

    def __init__(self, url: str, storage: Storage, door: GivenDoor) -> None:
        self.url, self.storage, self.door = url, storage, door

    def lend(self, run_id: str, *, token: str = TOKEN, attempts: int = 1) -> LeaseStorage:
        """Storage as a host has it that works on this run."""
        return LeaseStorage(f"{self.url}/lease", SecretStr(token), run_id, attempts=attempts)

    def open(self) -> LeaseStorage:
        """Storage as a host would have it that may do everything."""
        self.door.access = lambda *_: OpenAccess()
        return self.lend(self.door.hand("job_01234567", JobSpec(prompt="any")))


def _own(run_id: str, job_id: str, spec: JobSpec) -> Access:
    return RunAccess(run_id, job_id, spec.image_key)


@contextmanager
def lender(storage: StorageSettings, home: Path) -> Iterator[Lender]:
    """The API on this storage, with a home of its own."""
    others = {name: concern() for name, concern in CONCERNS.items() if name != "storage"}
    others["host"] = CONCERNS["host"].model_validate({"home": home})
    others["api"] = CONCERNS["api"].model_validate({"requests_per_minute": 100_000})
    settings = Settings.model_validate({**others, "storage": storage})
    services = build_services(settings, PrefectApi("http://127.0.0.1:9/api"), on_submitted=_ignore)
    door, port = GivenDoor(), free_port()

    @asynccontextmanager
    async def closing(app: FastAPI) -> AsyncIterator[None]:
        yield
        await app.state.intake.aclose()

    app = FastAPI(lifespan=closing)
    install_problems(app)
    install_middleware(app, body_max_bytes=1_000_000, body_seconds=60)
    app.include_router(lease_storage.router)
    app.include_router(files.router)
    app.state.services = services
    app.state.intake = Intake(services.storage, settings, door)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        yield Lender(f"http://127.0.0.1:{port}", services.storage, door)
    finally:
        server.should_exit = True
        thread.join(60)


def _ignore(record: object) -> None: ...
