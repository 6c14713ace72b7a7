"""The API's own services in the API's own loop, for tests of who is told what and when."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any

import httpx

from stillreel.api.services import Services
from stillreel.jobs import marks
from stillreel.jobs.reader import Snapshot
from stillreel.notifications import deliver_due
from stillreel.owners import add_receiver, add_salt, new_salt, remove_receiver
from tests.receiver import Receiver

if TYPE_CHECKING:
    from tests.api.conftest import Api

SECONDS = 30.0
OWNER = "default"
OTHER_SECRET = "whsec_" + b64encode(b"x" * 32).decode()

Listen = Callable[..., Receiver]


@dataclass(frozen=True)
class Control:
    """The API's own services, worked with in the API's own loop."""

    api: Api
    loop: asyncio.AbstractEventLoop

    @property
    def services(self) -> Services:
        return self.api.app.state.services

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def read(self, job_id: str) -> Snapshot:
        return self.run(self.services.reader.get(job_id, fresh=True))

    def label(self, job_id: str, **labels: Any) -> None:
        named = {getattr(marks, name): value for name, value in labels.items()}
        self.run(self.services.actions.label(self.read(job_id).record.run_id, named))

    def register(self, url: str, **how: bool) -> None:
        change = self.services.owners.change
        self.run(change(OWNER, lambda owner: add_receiver(owner, url, **how), "test"))

    def unregister(self, url: str) -> None:
        change = self.services.owners.change
        self.run(change(OWNER, lambda owner: remove_receiver(owner, url), "test"))

    def rotate(self) -> list[str]:
        """Both webhook secrets, the new one first."""
        owners = self.services.owners
        salt = new_salt(owners.secret, OWNER)
        self.run(owners.change(OWNER, lambda owner: add_salt(owner, salt), "test"))
        return self.run(owners.webhook_secrets(OWNER))

    def wait(self, job_id: str, status: str, *, attempts: int | None = None) -> dict[str, Any]:
        """The job, once its delivery is as wanted; the keeper works meanwhile."""
        job: dict[str, Any] = {}
        deadline = monotonic() + SECONDS
        while monotonic() < deadline:
            self.run(deliver_due(self.services))
            self.services.reader.forget(job_id)
            job = self.api.job(job_id)
            found = job["delivery"] or {}
            if found.get("status") == status and attempts in (None, found["attempts"]):
                return job
            Event().wait(0.1)
        raise AssertionError(f"not {status}: {job['status']} {job['delivery']}")

    def wait_until_untagged(self, job_id: str, tag: str) -> None:
        """Return when the run has lost the tag: that is the last thing that a delivery does."""
        deadline = monotonic() + SECONDS
        while tag in self.read(job_id).record.tags:
            assert monotonic() < deadline, f"{job_id} still has the tag {tag}"
            Event().wait(0.1)

    def pass_time(self, job_id: str) -> None:
        """The next attempt is due now."""
        self.label(job_id, NEXT_ATTEMPT="")

    def cancelled(self, **values: Any) -> str:
        """The id of a job that was cancelled while it waited: the quickest of all ends."""
        job_id = self.api.submit(**values)["job_id"]
        assert self.api.client.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 200
        return job_id


def wait_for_requests(heard: Receiver, count: int) -> None:
    """Return when it has got so many; AssertionError when that takes too long."""
    deadline = monotonic() + SECONDS
    while len(heard.requests) < count:
        assert monotonic() < deadline, f"{len(heard.requests)} requests, not {count}"
        Event().wait(0.05)


def token_of(control: Control, job_id: str) -> str:
    """What the job's run proves itself with."""
    return str(control.read(job_id).record.labels[marks.TOKEN])


def say(control: Control, job_id: str, headers: dict[str, str], **body: Any) -> httpx.Response:
    """The answer to a host that says this job has its video."""
    said = {"job_id": job_id, "status": "completed", "video_url": "https://evil.example/a.mp4"}
    url = f"{control.api.url}/webhook/complete"
    return httpx.post(url, json=said | body, headers=headers, trust_env=False, timeout=30)
