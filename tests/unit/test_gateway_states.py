"""What of states and task runs passes the gateway: what Prefect's recorder can read, in bounds."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from stillreel.errors import NotLeased
from stillreel.gateway.states import known_data, task_run_payload
from tests.api.lessee import task_run_event

RUN = str(uuid4())
JSON = {"serializer": {"type": "json"}, "storage_key": f"/srv/results/infer-2-{RUN}-ab-host"}


def payload(task_run: dict[str, Any] | None = None, **state: Any) -> dict[str, Any]:
    made = task_run_event(RUN, str(uuid4()), **(task_run or {}))["payload"]
    made["validated_state"] |= state
    return made


def test_what_an_engine_says_of_a_task_run_passes() -> None:
    given = payload(
        {"labels": {"prefect.flow.id": "x", "n": 1}, "tags": ["a"], "total_run_time": 1.5,
         "start_time": "2026-11-28T12:00:00.5Z", "task_inputs": {"spec": []},
         "empirical_policy": {"retries": 2, "retry_delay": [1, 2]}, "cache_key": "infer-2-x"},
        message="m" * 5_000, data=JSON,
    )  # fmt: skip

    made = task_run_payload(given, RUN)

    assert made["task_run"].keys() == given["task_run"].keys() - {"empirical_policy"}
    assert made["task_run"]["labels"] == {"prefect.flow.id": "x", "n": 1}
    assert len(made["validated_state"]["message"]) == 2_000
    assert made["validated_state"]["data"]["storage_key"] == f"infer-2-{RUN}-ab-host"
    assert made["intended"] == {"from": "PENDING", "to": "RUNNING"}


@pytest.mark.parametrize("wrong", [
    {"name": ""}, {"name": None}, {"name": 5}, {"name": "n" * 201}, {"task_key": None},
    {"task_key": "k" * 201}, {"dynamic_key": None}, {"dynamic_key": ["a"]}, {"cache_key": 5},
    {"labels": {"a": None}}, {"labels": {"a": []}}, {"labels": {"a": {"b": 1}}}, {"labels": []},
    {"labels": {"a": float("nan")}}, {"labels": {"a" * 201: "b"}}, {"run_count": 2**40},
    {"run_count": -1}, {"run_count": "x"}, {"flow_run_run_count": True}, {"tags": "a"},
    {"tags": [None]}, {"tags": ["a"] * 200}, {"start_time": "soon"}, {"end_time": "9999-12-31"},
    {"total_run_time": 1e12}, {"total_run_time": -5}, {"task_inputs": []},
    {"task_inputs": {"a": [{"input_type": "nothing"}]}},
])  # fmt: skip
def test_a_task_run_that_would_drop_a_whole_batch_does_not(wrong: dict[str, Any]) -> None:
    with pytest.raises(NotLeased):
        task_run_payload(payload(wrong), RUN)


@pytest.mark.parametrize("wrong", [
    {"type": "ENDED"}, {"type": None}, {"type": "running"}, {"name": None}, {"name": "n" * 201},
    {"state_details": ["a"]}, {"state_details": {"scheduled_time": "9999-12-31T23:59:59Z"}},
    {"state_details": {"transition_id": "x"}}, {"state_details": {"retriable": "perhaps"}},
])  # fmt: skip
def test_neither_does_such_a_state(wrong: dict[str, Any]) -> None:
    with pytest.raises(NotLeased):
        task_run_payload(payload(**wrong), RUN)


@pytest.mark.parametrize("wrong", [
    None, [], {}, {"task_run": {}}, {"validated_state": {"type": "RUNNING", "name": "Running"}},
    {"task_run": [], "validated_state": []},
])  # fmt: skip
def test_neither_does_half_an_event(wrong: Any) -> None:
    with pytest.raises(NotLeased):
        task_run_payload(wrong, RUN)


@pytest.mark.parametrize("key", [
    f"infer-2-{uuid4()}-ab", "../" * 20 + "etc/passwd", f"x-{RUN}-/..", "a" * 31, "a" * 32 + "/",
    f"infer-2-{RUN}-" + "a" * 300, f"infer-2-{RUN}-a b", "", None, 5, ["a"],
])  # fmt: skip
def test_a_result_of_another_name_is_not_believed(key: Any) -> None:
    assert known_data({**JSON, "storage_key": key}, RUN) is None


def test_a_result_in_a_block_or_a_pickle_is_not_believed() -> None:
    assert known_data({**JSON, "storage_block_id": str(uuid4())}, RUN) is None
    assert known_data({**JSON, "serializer": {"type": "pickle"}}, RUN) is None
    assert known_data({**JSON, "storage_key": "a" * 32}, RUN) == {
        "storage_key": "a" * 32,
        "expiration": None,
        "prefect_version": None,
        "serializer": {"type": "json"},
    }


@pytest.mark.parametrize("wrong", [
    {"expiration": "never"}, {"expiration": 5}, {"prefect_version": ["3"]},
    {"prefect_version": "3" * 41},
])  # fmt: skip
def test_what_else_is_said_of_a_result_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(NotLeased):
        known_data(JSON | wrong, RUN)
