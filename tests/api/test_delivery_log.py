"""Every attempt to tell the end of a job stands in the job, and no writer overwrites another's."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from stillreel.api.services import Services
from stillreel.jobs import delivery_log
from stillreel.jobs.delivery_log import SHOWN, DeliveryAttempt
from stillreel.prefect_api import PrefectApi
from tests.api.background import eventually, keep
from tests.api.control import Control, Listen
from tests.api.test_metrics import of, scrape
from tests.receiver import answer, reset


def test_all_attempts_of_the_newest_rounds_stand_in_the_job(
    control: Control, listen: Listen
) -> None:
    api = control.api
    heard = listen(answer(500), reset, answer(204), answer(410))
    before = scrape(api).get("stillreel_webhook_attempts_total", {})
    job_id = control.cancelled(webhook_url=heard.url)
    for attempts in (1, 2):
        control.wait(job_id, "waiting", attempts=attempts)
        control.pass_time(job_id)
    control.wait(job_id, "delivered", attempts=3)
    assert api.client.post(f"/api/v1/jobs/{job_id}/retry").is_success
    assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    control.wait(job_id, "failing", attempts=1)

    delivery = delivery_of(control, job_id, attempts=4)
    told = [(a["round"], a["status_code"], a["error_code"]) for a in delivery["history"]]
    assert told == [
        (2, 410, "receiver_gone"),
        (1, 204, None),
        (1, None, "receiver_unavailable"),
        (1, 500, "receiver_unavailable"),
    ]
    times = [datetime.fromisoformat(a["at"]) for a in delivery["history"]]
    assert times == sorted(times, reverse=True)
    assert all(a["seconds"] >= 0 for a in delivery["history"])
    assert heard.url not in str(delivery)
    after = scrape(api)["stillreel_webhook_attempts_total"]
    counts = {"delivered": 1, "receiver_gone": 1, "receiver_unavailable": 2}
    assert {n: after[of(n)] - before.get(of(n), 0) for n in counts} == counts


def test_a_redelivery_keeps_the_attempts_before_it(control: Control, listen: Listen) -> None:
    heard = listen()
    job_id = control.cancelled(webhook_url=heard.url)
    control.wait(job_id, "delivered")
    delivery_of(control, job_id, attempts=1)
    assert control.api.client.post(f"/api/v1/jobs/{job_id}/redeliver").status_code == 202
    delivery = delivery_of(control, job_id, attempts=2)
    assert [a["status_code"] for a in delivery["history"]] == [200, 200]


def test_processes_that_write_at_once_lose_no_attempt(control: Control) -> None:
    """Two patches of the labels at once lose one of them; each of these is a row of its own."""
    job_id = control.cancelled()
    control.wait(job_id, "none")
    run_id = control.read(job_id).record.run_id
    began = datetime.now(UTC)

    async def write(api: PrefectApi, first: int) -> None:
        made = [
            DeliveryAttempt(1, began + timedelta(seconds=n), float(n)) for n in range(first, 16, 2)
        ]
        await asyncio.gather(*(delivery_log.append(api, run_id, one) for one in made))

    async def both(services: Services) -> None:
        await asyncio.gather(
            write(services.api, 0),
            asyncio.to_thread(control.run, write(control.services.api, 1)),
        )

    keep(control.api, both)
    found = control.run(delivery_log.read(control.services.api, [run_id]))[run_id]
    assert [a.seconds for a in found] == [float(n) for n in reversed(range(16))]


def test_the_newest_are_told_and_what_is_none_of_ours_hides_nothing(control: Control) -> None:
    job_id, api = control.cancelled(), control.services.api
    control.wait(job_id, "none")
    run_id = control.read(job_id).record.run_id
    began = datetime.now(UTC)
    for n in range(SHOWN + 2):
        made = DeliveryAttempt(1, began + timedelta(seconds=n), float(n), 200)
        control.run(delivery_log.append(api, run_id, made))
    for data in (None, "text", {"id": "x"}, {"id": "x", "at": "yesterday", "status_code": 1}):
        body = {"type": delivery_log.TYPE, "flow_run_id": run_id, "data": data}
        control.run(api.post("/artifacts/", body))
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    for row in control.run(api.ask("/artifacts/filter", wanted)):  # all sent again
        body = {"type": delivery_log.TYPE, "flow_run_id": run_id, "data": row["data"]}
        control.run(api.post("/artifacts/", body))
    control.label(job_id, TRIED=True)
    for attempt in eventually():
        with attempt:
            history = control.api.job(job_id)["delivery"]["history"]
            assert [a["seconds"] for a in history] == [float(n) for n in range(SHOWN + 1, 1, -1)]


def test_what_is_deleted_leaves_no_attempt(control: Control, listen: Listen) -> None:
    heard = listen()
    job_id = control.cancelled(webhook_url=heard.url)
    control.wait(job_id, "delivered")
    run_id = control.read(job_id).record.run_id
    delivery_of(control, job_id, attempts=1)
    assert control.api.client.delete(f"/api/v1/jobs/{job_id}").is_success
    for attempt in eventually():
        with attempt:
            assert control.run(delivery_log.read(control.services.api, [run_id])) == {}


def delivery_of(control: Control, job_id: str, *, attempts: int) -> dict[str, Any]:
    """What the job says of its delivery once so many are logged: the row comes after the mark."""
    for attempt in eventually():
        with attempt:
            control.api.forget()
            delivery = control.api.job(job_id)["delivery"]
            assert len(delivery["history"]) == attempts
    return delivery
