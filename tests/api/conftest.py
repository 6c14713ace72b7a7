"""The API as a real server on loopback, with a real Prefect server behind it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from uuid import UUID

import httpx
import pytest
import uvicorn
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL
from prefect.states import Pending
from prefect.testing.utilities import prefect_test_harness

from stillreel.api.server import KEEP_ALIVE_SECONDS
from stillreel.settings import Settings, get_settings
from stillreel.storage import Storage, open_storage
from tests.api.control import Control, Listen
from tests.api.lessee import Lessee, lessee, prefect
from tests.api.outside import Door, assert_serves, prefect_behind_a_door
from tests.receiver import Receiver, receiver
from tests.stack import free_port

KEY = "the-first-owners-key"
SMALL: dict[str, Any] = {"width": 128, "height": 72, "duration": 0.5, "seed": 7}
START_SECONDS = 60


def png(width: int = 160, height: int = 90) -> bytes:
    """A picture that is not one colour."""
    buffer = BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Api:
    """A running API: its address, its settings, and a client with the first owner's key."""

    url: str
    settings: Settings
    client: httpx.Client
    app: Any

    @property
    def storage(self) -> Storage:
        return open_storage(self.settings.storage, self.settings.host.home)

    def submit(self, **values: Any) -> dict[str, Any]:
        """A small job, as the API answers its order."""
        body = SMALL | {"prompt": "slow zoom in"} | values
        answer = self.client.post("/api/v1/generate", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/api/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def forget(self) -> None:
        """Have the API ask Prefect again, as it does when its answers are a second old."""
        reader = self.app.state.services.reader
        reader._kept.clear()
        reader._receipts.clear()

    def execute(self, job_id: str) -> Any:
        """Work on the job in this process, as the engine of a worker does; its final state."""
        from flows.generate_video import generate_video

        run_id = UUID(self.job(job_id)["run_id"])
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Pending(), force=True)
            run = client.read_flow_run(run_id)
        state = run_flow(
            generate_video, flow_run=run, parameters=run.parameters, return_type="state"
        )
        self.forget()
        return state


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The address of a Prefect server with our deployments."""
    from stillreel.deploy import deploy

    with prefect_test_harness(server_startup_timeout=280):
        url = str(PREFECT_API_URL.value())
        os.environ["PREFECT_API_URL"] = url  # `prefect deploy` is a process of its own
        get_settings.cache_clear()
        asyncio.run(deploy(get_settings()))
        yield url
        del os.environ["PREFECT_API_URL"]


@pytest.fixture(scope="session")
def inference_server() -> Iterator[None]:
    """The model's server, for tests that `execute` a job."""
    import subprocess

    from stillreel.host import inference_argv
    from stillreel.inference.client import socket_path

    get_settings.cache_clear()
    home = get_settings().host.home
    process = subprocess.Popen(inference_argv(socket_path(home)), stderr=subprocess.DEVNULL)
    yield
    process.kill()
    process.wait()


@contextmanager
def running_api(env: Mapping[str, str]) -> Iterator[Api]:
    """An API server in a thread, with these settings on top of the tests' own.

    It waits long for a Prefect server that shares busy cores with the tests, but not behind a door.
    With a storage of its own its keeper never leads: the jobs of others would end without a video.
    """
    port = free_port()
    more = {"STILLREEL_API_KEY": KEY, "STILLREEL_API_PORT": str(port), **env}
    if env.keys() & {"S3_BUCKET", "STILLREEL_STORAGE_DIR"}:
        more.setdefault("STILLREEL_KEEPER_LEADS", "false")
    if str(PREFECT_API_URL.value()) == os.environ.get("PREFECT_API_URL"):
        more.setdefault("STILLREEL_PREFECT_SECONDS", "20")
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    get_settings.cache_clear()
    try:
        from stillreel.api.app import create_app

        settings = get_settings()
        app = create_app(settings)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        get_settings.cache_clear()
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = _Server(config)
    # The test harness keeps its Prefect settings in this context.
    thread = threading.Thread(target=copy_context().run, args=(server.run,))
    thread.start()
    assert server.tried.wait(START_SECONDS)
    assert server.started, "the API did not start; see the log"
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False
    ) as client:
        try:
            yield Api(url, settings, client, app)
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)


class _Server(uvicorn.Server):
    """Says when it has started, or has not."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.tried = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.tried.set()


@pytest.fixture(scope="session")
def api(prefect_api: str) -> Iterator[Api]:
    """One API for all tests that change no settings.

    Its keeper never leads: the keepers of other APIs, on the same Prefect server, have other
    settings, and the wrong one would deliver or fetch.
    """
    with running_api({"STILLREEL_KEEPER_LEADS": "false"}) as running:
        yield running


@pytest.fixture(scope="session")
def gateway(prefect_api: str) -> Iterator[Api]:
    """The same for rented hosts, with more patience: they are many."""
    env = {"STILLREEL_KEEPER_LEADS": "false", "STILLREEL_PREFECT_SECONDS": "20"}
    with running_api(env) as running:
        yield running


@pytest.fixture(scope="module")
def server(prefect_api: str) -> Iterator[httpx.Client]:
    """Prefect itself, as its operator speaks to it."""
    with prefect(prefect_api) as client:
        yield client


@pytest.fixture(scope="module")
def host(gateway: Api) -> Iterator[Lessee]:
    """A rented host with a lease of its own."""
    with lessee(gateway) as made:
        yield made


@pytest.fixture(scope="module")
def other(gateway: Api) -> Iterator[Lessee]:
    """Another one."""
    with lessee(gateway) as made:
        yield made


@pytest.fixture
def client(api: Api) -> httpx.Client:
    return api.client


StartApi = Callable[..., Any]


@pytest.fixture
def start_api(prefect_api: str) -> Iterator[StartApi]:
    """`start_api(STILLREEL_BATCH_MAX="3")`: another API with other settings, for one test."""
    with ExitStack() as stack:
        yield lambda **env: stack.enter_context(running_api(env))


@pytest.fixture
def door(prefect_api: str) -> Iterator[Door]:
    """A door in front of Prefect; an API that is started now goes through it."""
    with prefect_behind_a_door(prefect_api) as door:
        yield door


@pytest.fixture(scope="module")
def earlier_job(api: Api) -> str:
    """The id of a job that waits since before the module's tests."""
    return api.submit(prompt="before all that")["job_id"]


@pytest.fixture
def nothing_is_lost(api: Api, earlier_job: str) -> Iterator[None]:
    """After the test a good order is taken, and the earlier job still waits."""
    yield
    assert_serves(api)
    api.forget()
    assert api.job(earlier_job)["status"] == "queued"


@pytest.fixture(scope="session")
def control(api: Api) -> Control:
    """The services of the API, in its loop."""
    return control_of(api)


def control_of(api: Api) -> Control:
    """The services of this API, in its loop."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def note() -> None:
        loops.append(asyncio.get_running_loop())

    api.app.add_api_route("/loop-of-this-app", note, include_in_schema=False)
    api.client.get("/loop-of-this-app").raise_for_status()
    return Control(api, loops[0])


@pytest.fixture(scope="module")
def secret(control: Control) -> str:
    """What the default owner's notifications are signed with."""
    return control.rotate()[0]


@pytest.fixture
def listen(control: Control, secret: str) -> Iterator[Listen]:
    """`listen(answer(500), answer(), plain=True)`: a registered receiver that answers so."""
    with ExitStack() as stack:

        def start(*answers: Any, host: str = "127.0.0.1", port: int = 0, **how: bool) -> Receiver:
            heard = stack.enter_context(receiver(*answers, host=host, port=port))
            control.register(heard.url, **how)
            stack.callback(control.unregister, heard.url)
            return heard

        yield start
