"""Health: what a probe is told about Prefect, storage and the newest host that lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from stillreel import __version__
from stillreel.host_report import HostReport, tell
from stillreel.prefect_api import PrefectApi
from stillreel.recent import Recent
from tests.api.background import eventually, prefect_client
from tests.api.conftest import KEY, Api, StartApi
from tests.api.outside import prefect_behind_a_door

Host = Callable[..., str]
NOTHING_KNOWN = (None, False)


def look(api: Api) -> httpx.Response:
    """What a load balancer gets, which has no key."""
    return httpx.get(f"{api.url}/health", timeout=30, trust_env=False)


def look_anew(api: Api) -> dict[str, Any]:
    """The same half a minute later."""
    for recent in vars(api.app.state.checks).values():
        if isinstance(recent, Recent):
            recent._ended_at = float("-inf")
    answer = look(api)
    assert answer.status_code == 200, answer.text
    return answer.json()


def gpu_and_model(api: Api) -> tuple[str | None, bool]:
    told = look_anew(api)
    return told["gpu"], told["model_loaded"]


@pytest.fixture
def host(prefect_api: str, api: Api) -> Iterator[Host]:
    """`host(gpu="A10G")` is a host that has reported itself; `is_alive=False`: and is gone."""
    workers: list[str] = []
    with prefect_client(prefect_api) as prefect:

        def make(*, is_alive: bool = True, **facts: Any) -> str:
            worker, path = f"Host {uuid4().hex[:8]}", "/work_pools/local/workers"
            if is_alive:
                workers.append(f"{path}/{worker}")
                prefect.post(f"{path}/heartbeat", json={"name": worker}).raise_for_status()
            report(prefect_api, HostReport(worker, "local", **facts))
            return worker

        yield make
        for path in workers:
            prefect.delete(path).raise_for_status()
    look_anew(api)


def report(url: str, said: HostReport) -> None:
    async def write() -> None:
        prefect = PrefectApi(url, patience=30)
        try:
            await tell(prefect, said)
        finally:
            await prefect.aclose()

    asyncio.run(write())


def test_a_service_without_hosts_is_healthy(api: Api) -> None:
    told = look_anew(api)
    queue = told.pop("queue")
    assert told == {
        "status": "ok",
        "api": "ok",
        "redis": "not_used",
        "database": "ok",
        "storage": "ok",
        "gpu": None,
        "model_loaded": False,
        "version": __version__,
    }
    assert queue.keys() == {"pending", "processing"}


def test_a_redis_that_is_configured_is_named(start_api: StartApi) -> None:
    api = start_api(REDIS_URL="redis://user:very-secret@127.0.0.1:6379")
    answer = look(api)
    assert answer.json()["redis"] == "configured"
    assert "secret" not in answer.text


def test_a_live_host_tells_its_gpu_and_model(api: Api, host: Host) -> None:
    host(gpu="A10G", models=("wan-2.2",))
    assert gpu_and_model(api) == ("A10G", True)


def test_a_host_that_loads_still_has_no_model(api: Api, host: Host) -> None:
    host(gpu="A10G")
    assert gpu_and_model(api) == ("A10G", False)


def test_a_machine_without_a_gpu_can_have_a_model(api: Api, host: Host) -> None:
    host(models=("preview",))
    assert gpu_and_model(api) == (None, True)


def test_a_host_that_is_gone_is_not_told(api: Api, host: Host) -> None:
    host(gpu="A10G", models=("wan-2.2",), is_alive=False)
    assert gpu_and_model(api) == NOTHING_KNOWN


def test_the_newest_host_that_lives_is_told(api: Api, host: Host) -> None:
    host(gpu="A10G", models=("wan-2.2",))
    host(gpu="A100-SXM4-40GB")
    host(gpu="H200", models=("ltx-2",), is_alive=False)
    assert gpu_and_model(api) == ("A100-SXM4-40GB", False)


def test_a_report_of_a_pool_that_the_host_has_left_is_not_told(
    api: Api, host: Host, prefect_api: str
) -> None:
    worker = host()
    report(prefect_api, HostReport(worker, "g5", gpu="A10G"))
    assert gpu_and_model(api) == NOTHING_KNOWN


def test_a_host_that_loads_its_model_is_told_anew(api: Api, host: Host, prefect_api: str) -> None:
    worker = host(gpu="A10G")
    assert gpu_and_model(api) == ("A10G", False)
    report(prefect_api, HostReport(worker, "local", gpu="A10G", models=("wan-2.2",)))
    assert gpu_and_model(api) == ("A10G", True)


def test_strangers_read_no_names_addresses_or_secrets(api: Api, host: Host) -> None:
    worker = host(gpu="A10G", models=("wan-2.2",), usd_per_hour=1.006)
    look_anew(api)
    text = look(api).text
    assert "A10G" in text
    for hidden in (worker, KEY, "wan-2.2", "1.006", "127.0.0.1", str(api.settings.host.home)):
        assert hidden not in text


def test_the_line_is_counted(api: Api) -> None:
    before = look_anew(api)["queue"]["pending"]
    made = [api.submit()["job_id"] for _ in range(2)]
    assert look_anew(api)["queue"]["pending"] == before + 2
    for job_id in made:
        api.client.post(f"/api/v1/jobs/{job_id}/cancel")


def test_a_storage_that_is_away_degrades_the_service(start_api: StartApi) -> None:
    api = start_api(
        S3_BUCKET="nothing",
        S3_ENDPOINT="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="tests",
        AWS_SECRET_ACCESS_KEY="tests-secret",
    )
    answer = look(api)
    told = answer.json()
    assert (answer.status_code, told["status"], told["storage"]) == (200, "degraded", "unavailable")
    assert told["database"] == "ok"
    assert "127.0.0.1" not in answer.text


def test_where_prefect_is_away_health_says_so(prefect_api: str, start_api: StartApi) -> None:
    with prefect_behind_a_door(prefect_api) as door:
        api = start_api(STILLREEL_PREFECT_SECONDS="1")
        assert look_anew(api)["database"] == "ok"
        door.shut()
        for attempt in eventually():
            with attempt:
                answer = look(api)
                assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        told = answer.json()
        assert (told["status"], told["api"], told["database"]) == (
            *("unavailable", "ok"),
            "unavailable",
        )
        assert (told["queue"], told["gpu"], told["model_loaded"]) == (None, None, False)
        assert "127.0.0.1" not in answer.text
        door.open()
        for attempt in eventually():
            with attempt:
                assert look(api).status_code == 200
