"""Storage by lease on a real Prefect server: whose run it is decides, and for how long."""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr

from stillreel.errors import StaleExecution, StorageRefused
from stillreel.fleet.calls import prefect_calls
from stillreel.gateway.lease import revoke
from stillreel.job import Latents
from stillreel.jobs import marks
from stillreel.keys import lent_key, source_key
from stillreel.storage_lease import LeaseStorage
from tests.api.background import eventually
from tests.api.conftest import Api, png
from tests.api.lessee import USD_PER_HOUR, Lessee, lessee, waiting_job


def lend(host: Lessee, run_id: str) -> LeaseStorage:
    url = f"{host.api.url}/lease"
    return LeaseStorage(url, SecretStr(host.token), run_id, attempts=2)


def result(job_id: str) -> bytes:
    """Of the task infer, from a host that tells of another one."""
    said = Latents(
        key=lent_key(job_id, "0" * 32), sha256="0" * 64, size=9, seconds={"gpu": 0.1},
        host="another", host_price=99.0,
    )  # fmt: skip
    value = {"__class__": "stillreel.job.Latents", "data": said.to_json()}
    return json.dumps({"metadata": {}, "result": json.dumps(value)}).encode()


def test_a_host_has_the_storage_of_the_runs_that_it_claimed(
    gateway: Api, host: Lessee, other: Lessee
) -> None:
    job_id, run_id = waiting_job(gateway)
    key = f"inputs/{job_id}/input.png"
    gateway.storage.put_bytes(key, png(), content_type="image/png")
    for each in (host, other):
        with pytest.raises(StorageRefused, match="not_leased"):
            lend(each, run_id).get_bytes(key)

    assert host.claim(run_id) == "ACCEPT"

    mine, theirs = lend(host, run_id), lend(other, run_id)
    assert mine.get_bytes(key) == png()
    mine.put_bytes(source_key(job_id), png(), content_type="image/png")
    key_of_result = f"results/infer-2-{run_id}-0a1b"
    mine.put_bytes(key_of_result, result(job_id), content_type="application/octet-stream")
    told = json.loads(json.loads(mine.get_bytes(key_of_result))["result"])["data"]
    assert (told["host"], told["host_price"]) == (str(host.label), USD_PER_HOUR)
    assert gateway.storage.get_bytes(source_key(job_id)) == png()
    with pytest.raises(StorageRefused, match="not_leased"):
        theirs.put_bytes(source_key(job_id), png(), content_type="image/png")
    with pytest.raises(StorageRefused, match="not_leased"):
        theirs.get_bytes(key)


def test_a_revoked_lease_opens_nothing(gateway: Api) -> None:
    job_id, run_id = waiting_job(gateway)
    gateway.storage.put_bytes(source_key(job_id), png(), content_type="image/png")
    with lessee(gateway) as host:
        assert host.claim(run_id) == "ACCEPT"
        storage = lend(host, run_id)
        assert storage.head(source_key(job_id)) is not None
        with prefect_calls() as calls:
            calls.patch(f"/flow_runs/{host.label.run_id}/labels", revoke(host.label.number))
        for attempt in eventually():  # what is known of a lease is two seconds old at most
            with attempt:
                assert "lease_refused" in refusal(storage, source_key(job_id))


@pytest.mark.parametrize("mark", [marks.SETTLED, marks.DELETED])
def test_nothing_of_a_job_that_has_ended_is_stored(gateway: Api, host: Lessee, mark: str) -> None:
    job_id, run_id = waiting_job(gateway)
    assert host.claim(run_id) == "ACCEPT"
    mine = lend(host, run_id)
    mine.put_bytes(source_key(job_id), png(), content_type="image/png")
    gateway.storage.delete(source_key(job_id))
    with prefect_calls() as calls:
        calls.patch(f"/flow_runs/{run_id}/labels", {mark: 1})
    with pytest.raises(StaleExecution, match="has ended"):
        mine.put_bytes(source_key(job_id), png(), content_type="image/png")
    assert gateway.storage.head(source_key(job_id)) is None


def refusal(storage: LeaseStorage, key: str) -> str:
    try:
        storage.get_bytes(key)
    except StorageRefused as exc:
        return exc.message
    return ""
