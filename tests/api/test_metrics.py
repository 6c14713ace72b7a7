"""Metrics: what Prometheus reads, also while Prefect is away."""

from __future__ import annotations

import httpx
import pytest
from prefect import flow
from prometheus_client.parser import text_string_to_metric_families

from stillreel.api.metrics import stage_quantiles
from stillreel.fleet.leases import REAPER
from tests.api.conftest import KEY, Api, running_api
from tests.stack import free_port

Samples = dict[frozenset[str], float]


@flow(name=REAPER)
def reaper_flow() -> str:
    """Stands for a round: only its name and its end count here."""
    return "nothing to do"


def of(*values: str) -> frozenset[str]:
    return frozenset(values)


def scrape(api: Api) -> dict[str, Samples]:
    """Values by metric and by the values of its labels."""
    answer = api.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.values())] = sample.value
    return found


def as_new(api: Api) -> None:
    """As a quarter of a minute later."""
    metrics = api.app.state.metrics
    metrics._read_at = metrics._used_at = float("-inf")
    api.app.state.services.estimates._read_at = float("-inf")


def test_jobs_and_queues_are_counted(api: Api) -> None:
    as_new(api)
    before = scrape(api)
    assert before["stillreel_prefect_up"] == {of(): 1}
    made = [api.submit(priority="backlog")["job_id"] for _ in range(3)]
    as_new(api)
    after = scrape(api)
    queued, place = of("queued", "preview"), of("local", "backlog")
    assert after["stillreel_jobs"][queued] == before["stillreel_jobs"][queued] + 3
    depth = "stillreel_queue_depth"
    assert after[depth][place] == before[depth][place] + 3
    assert after["stillreel_queue_oldest_age_seconds"][place] > 0
    for job_id in made:
        api.client.post(f"/api/v1/jobs/{job_id}/cancel")
    as_new(api)
    cancelled = of("cancelled", "preview")
    assert scrape(api)["stillreel_jobs"][cancelled] == before["stillreel_jobs"][cancelled] + 3


def test_stages_and_gpu_seconds_come_from_receipts(api: Api, inference_server: None) -> None:
    as_new(api)
    before = scrape(api).get("stillreel_videos_total", {}).get(of("preview"), 0)
    assert api.execute(api.submit()["job_id"]).is_completed()
    as_new(api)
    found = scrape(api)
    assert found["stillreel_videos_total"][of("preview")] == before + 1
    assert found["stillreel_gpu_seconds_total"][of("preview")] > 0
    medians = {of(stage, "preview", "0.5") for stage in ("fetch", "infer", "encode", "upload")}
    assert medians <= set(found["stillreel_stage_seconds"])


def test_this_months_money_for_rented_hosts_is_told(api: Api) -> None:
    as_new(api)
    usd = scrape(api)["stillreel_fleet_usd"]
    assert usd[of("budget")] == 50.0
    assert usd[of("spent")] >= 0
    assert of("promised") in usd


def test_it_is_told_when_the_reaper_last_came_to_a_good_end(api: Api) -> None:
    reaper_flow()
    as_new(api)
    assert 0 <= scrape(api)["stillreel_reaper_age_seconds"][of()] < 600


def test_scrapes_in_a_row_share_what_was_read(api: Api) -> None:
    as_new(api)
    before = scrape(api)
    job_id = api.submit()["job_id"]
    assert scrape(api)["stillreel_jobs"] == before["stillreel_jobs"]
    as_new(api)
    assert scrape(api)["stillreel_jobs"] != before["stillreel_jobs"]
    api.client.post(f"/api/v1/jobs/{job_id}/cancel")


def test_a_scrape_needs_a_key_with_the_scope(api: Api) -> None:
    assert httpx.get(f"{api.url}/metrics", trust_env=False).status_code == 401


def test_prefect_away_is_a_value_and_no_failure(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    with running_api({"STILLREEL_PREFECT_SECONDS": "0.3"}) as api:
        services = api.app.state.services
        assert api.client.get("/metrics").status_code == 200
        as_new(api)
        monkeypatch.setattr(services.api._client, "base_url", httpx.URL(away))
        found = scrape(api)
    assert found["stillreel_prefect_up"] == {of(): 0}
    assert "stillreel_jobs" not in found
    assert KEY not in str(found)


def test_quantiles_of_few_values_are_among_them() -> None:
    def receipt(seconds: float) -> dict[str, object]:
        took = {"fetch_seconds": seconds, "encode_seconds": 1, "upload_seconds": 1}
        return {"took": took | {"infer_seconds": {"gpu": 2.0}}}

    one = stage_quantiles([("m", receipt(3.0))])
    assert {one["fetch", "m", q] for q in ("0.5", "0.9", "0.99")} == {3.0}
    many = stage_quantiles([("m", receipt(n)) for n in range(101)])
    found = [many["fetch", "m", q] for q in ("0.5", "0.9", "0.99")]
    assert found == pytest.approx([50, 90, 99])
    assert stage_quantiles([]) == {}
