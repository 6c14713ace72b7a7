"""A production installation for the matrix: real servers, each of which can be taken away.

Postgres, Redis, Prefect in parts, API with keeper, one host and radosgw, as infra/compose.yaml has
them. Gates stand before storage and API, so that a drill strikes in the very stage it means.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from threading import Event
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psutil
from PIL import Image

from stillreel.errors import InferenceServerAway
from stillreel.inference.client import InferenceClient, socket_path
from stillreel.inference.entry import Kind
from stillreel.job import Phase
from tests.compose import Compose, running_compose
from tests.gate import Gate, Held
from tests.receiver import Receiver, receiver
from tests.s3 import Bucket
from tests.services.daemon import Daemon
from tests.services.radosgw import Radosgw, running_radosgw

ON_HOST = {
    "worker": "stillreel.host_worker",
    "inference": "stillreel.inference.server",
}
"""What the host restarts by itself, and a word of its command line."""
SERVERS = ("api", "prefect", "postgres", "redis", "storage")
TARGETS = ("flow", *ON_HOST, "host", *SERVERS)
STAGES = ("fetch", "infer", "encode", "upload", "notify")
STAGE_SECONDS = 600.0
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
_SECRET = "whsec_dGhlIG1hdHJpeCBvZiB0aGUgZHJpbGxzIQ=="


class NeverCame(Exception):
    """The stage that was waited for, or the end of a job, did not come."""


@dataclass
class Installation:
    """The running servers, and what a drill does to them and asks of them."""

    compose: Compose
    storage: Radosgw
    bucket: Bucket
    before_storage: Gate
    before_api: Gate
    receiver: Receiver
    api: httpx.Client
    prefect: httpx.Client
    hosts: tuple[str, ...] = ("host",)

    def order(self, *, steps: int = 0) -> str:
        """The id of a new job with a small image and two seconds of video."""
        picture = BytesIO()
        Image.linear_gradient("L").resize((640, 360)).convert("RGB").save(picture, "PNG")
        body = {
            "prompt": "pan left",
            "model": "preview",
            "duration": 2,
            "steps": steps,
            "width": 640,
            "height": 360,
            "quality": "high",
            "image_base64": b64encode(picture.getvalue()).decode(),
            "webhook_url": self.receiver.url,
        }
        headers = {"Idempotency-Key": uuid4().hex}
        for _ in self._patiently("an order"):
            with suppress(httpx.HTTPError):
                answer = self.api.post("/api/v1/generate", json=body, headers=headers)
                assert answer.is_success or answer.is_server_error, answer.text
                if answer.is_success:
                    return answer.json()["job_id"]
        raise AssertionError

    def hold(self, stage: str) -> Held | None:
        """The request by which that stage is held; encode and infer take long by themselves."""
        match stage:
            case "fetch":
                return self.before_storage.hold(rf"GET /{self.bucket.name}/inputs/")
            case "upload":
                return self.before_storage.hold(rf"PUT /{self.bucket.name}/outputs/.*/output\.mp4")
            case "notify":
                return self.before_api.hold("POST /webhook/complete")
            case _:
                return None

    def wait_for_stage(self, stage: str, job_id: str, held: Held | None) -> None:
        """Return when the job is in this stage. Raises NeverCame."""
        if held:
            if not held.reached.wait(STAGE_SECONDS):
                raise NeverCame(f"{stage} of {job_id}")
            return
        kind = Kind.INFERENCE if stage == "infer" else Kind.DECODE
        run_id = self.job(job_id)["run_id"]
        client = InferenceClient(socket_path(self.compose.home("host")), wait_for_server=60)
        try:
            for _ in self._patiently(f"{stage} of {job_id}", pause=0.05):
                with suppress(InferenceServerAway):  # it may be starting, or dead from before
                    entry = client.find(kind, run_id)
                    if entry and (entry.step >= 2 or entry.phase is Phase.DECODE):
                        return
        finally:
            client.close()

    def processes(self, target: str, run_id: str, *, host: str = "host") -> list[psutil.Process]:
        """The processes of a target; for a polite signal the first of them is meant."""
        if target == "flow":
            return self._on_host(host, lambda p: p.environ().get(RUN_VARIABLE) == run_id)
        if word := ON_HOST.get(target):
            return self._on_host(host, lambda p: word in " ".join(p.cmdline()))
        root = psutil.Process(self._daemons()[target].process.pid)
        if target in self.hosts:
            return [root, *self._on_host(target, lambda p: p.pid != root.pid)]
        return [root, *root.children(recursive=True)]

    def runs_on(self, host: str) -> set[str]:
        """The runs that have a process on a host."""
        found = set[str]()
        for process in self._on_host(host, lambda p: RUN_VARIABLE in p.environ()):
            with suppress(psutil.Error, OSError):
                found.add(process.environ()[RUN_VARIABLE])
        return found

    def bring_back(self, target: str) -> None:
        """Start a server or the host again, once its processes have ended."""
        if target in (*SERVERS, *self.hosts):
            self._daemons()[target].again()

    def revive(self) -> list[str]:
        """Start again what has ended by itself, as `restart: unless-stopped` does; their names."""
        daemons = self._daemons()
        ended = [name for name, daemon in daemons.items() if daemon.process.poll() is not None]
        for name in ended:
            daemons[name].again()
        return ended

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as a caller sees it, once somebody answers. Raises NeverCame."""
        for _ in self._patiently(f"an answer about {job_id}"):
            with suppress(httpx.HTTPError):
                return self.api.get(f"/api/v1/jobs/{job_id}").raise_for_status().json()
        raise AssertionError

    def wait_for_end(
        self, job_id: str, *, seconds: float = 2 * STAGE_SECONDS
    ) -> tuple[dict[str, Any], list[str]]:
        """The job once it has ended and its end is delivered, and what had to be revived."""
        revived: list[str] = []
        for _ in self._patiently(f"the end of {job_id}", seconds=seconds):
            revived += self.revive()
            if job := self.ended(job_id):
                return job, revived
        raise AssertionError

    def ended(self, job_id: str) -> dict[str, Any] | None:
        """The job, if it has ended and its end is delivered, and somebody says so."""
        try:
            job = self.api.get(f"/api/v1/jobs/{job_id}").raise_for_status().json()
        except httpx.HTTPError:
            return None
        return job if job["delivery"] and job["delivery"]["status"] != "waiting" else None

    def tasks(self, run_id: str) -> dict[str, int]:
        """How often each task of a run was executed to its end, by Prefect."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200}
        for _ in self._patiently("the tasks"):
            with suppress(httpx.HTTPError):
                found = self.prefect.post("/task_runs/filter", json=body).raise_for_status().json()
                done = [run["name"] for run in found if run["state_name"] == "Completed"]
                return dict(Counter(name.rpartition("-")[0] for name in done))
        raise AssertionError

    def states(self, run_id: str) -> list[dict[str, Any]]:
        """The states of a run, the oldest first."""
        for _ in self._patiently("the states"):
            with suppress(httpx.HTTPError):
                given = {"flow_run_id": run_id}
                found = (
                    self.prefect.get("/flow_run_states/", params=given).raise_for_status().json()
                )
                return sorted(found, key=lambda state: state["timestamp"])
        raise AssertionError

    def inferences(self, run_id: str) -> int:
        """How often one host's inference server has finished the inference of a run, at most."""
        line = f"inferences of run {run_id} finished"
        return max(self.compose.log(host).count(line) for host in self.hosts)

    def videos(self, job_id: str) -> list[str]:
        """The ETags of all versions of the video that were ever stored."""
        found = self.bucket.client.list_object_versions(
            Bucket=self.bucket.name, Prefix=f"outputs/{job_id}/output.mp4"
        )
        return [version["ETag"] for version in found.get("Versions", ())]

    def told(self, job_id: str) -> dict[str, int]:
        """The ids of the notifications about a job, and how often each has come."""
        mine = [r for r in list(self.receiver.requests) if job_id in r.body.decode()]
        return dict(Counter(request.headers["webhook-id"] for request in mine))

    def _daemons(self) -> dict[str, Daemon]:
        compose = self.compose
        return {**compose.beneath, "storage": self.storage.gateway, **compose.daemons}

    def _on_host(
        self, host: str, is_wanted: Callable[[psutil.Process], bool]
    ) -> list[psutil.Process]:
        home, found = str(self.compose.home(host)), list[psutil.Process]()
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get("STILLREEL_HOME") == home and is_wanted(process):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def _patiently(
        self, what: str, *, seconds: float = STAGE_SECONDS, pause: float = 0.5
    ) -> Iterator[None]:
        """Again and again until the caller has what it wants. Raises NeverCame."""
        deadline, ticker = monotonic() + seconds, Event()
        while monotonic() < deadline:
            yield
            ticker.wait(pause)
        raise NeverCame(what)


@contextmanager
def running_installation(
    *, hosts: int = 1, preview_seconds_per_step: float = 0.75
) -> Iterator[Installation]:
    """All of it, ready for orders. Start it from the main thread."""
    with ExitStack() as stack:
        storage = stack.enter_context(running_radosgw())
        storage_port = urlsplit(storage.endpoint).port or 0
        ports: dict[str, int] = {}
        before_storage = stack.enter_context(Gate(lambda: storage_port))
        before_api = stack.enter_context(Gate(lambda: ports["api"]))
        hears = stack.enter_context(receiver())
        bucket = Bucket(before_storage.url, "matrix", storage.access_key, storage.secret_key)
        bucket.create()
        bucket.client.put_bucket_versioning(
            Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"}
        )
        compose = stack.enter_context(
            running_compose(
                STILLREEL_MODELS="preview",
                STILLREEL_API_URL=before_api.url,
                STILLREEL_WEBHOOK_SECRET=_SECRET,
                **bucket.env,
            )
        )
        compose.beside = {
            "STILLREEL_PREVIEW_SECONDS_PER_STEP": str(preview_seconds_per_step),
            "STILLREEL_ENCODE_THREADS": "1",
            "STILLREEL_ALLOW_ADDRESSES": f"127.0.0.1:{hears.port}",
        }
        compose.start("prefect")
        compose.start("services")
        compose.start("api")
        ports["api"] = compose.ports["api"]
        names = tuple(f"host{n}" if n > 1 else "host" for n in range(1, hosts + 1))
        for name in names:
            compose.beside["STILLREEL_HOST_NAME"] = name
            compose.start("host", instance=name.removeprefix("host"))
        key, auth = compose.env["STILLREEL_API_KEY"], compose.env["PREFECT_AUTH"].split(":")
        api = stack.enter_context(
            httpx.Client(
                base_url=f"http://127.0.0.1:{ports['api']}",
                headers={"Authorization": f"Bearer {key}"},
                timeout=60,
                trust_env=False,
            )
        )
        prefect = stack.enter_context(
            httpx.Client(
                base_url=f"http://127.0.0.1:{compose.ports['prefect']}/api",
                auth=(auth[0], auth[1]),
                timeout=60,
                trust_env=False,
            )
        )
        yield Installation(
            compose, storage, bucket, before_storage, before_api, hears, api, prefect, names
        )
