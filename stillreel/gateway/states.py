"""What of a state, and of a task run, reaches Prefect.

Prefect's recorder makes task runs of events, some hundred at once, and drops all of them where one
cannot be read; so what it reads is checked here by the same schemas, and by its columns' bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from stillreel.errors import NotLeased
from stillreel.gateway import bounds
from stillreel.prefect_api import Json
from stillreel.result_storage import is_result_of

_DETAILS = frozenset({"retriable", "transition_id", "refresh_cache", "untrackable_result"})
_NAMES = ("name", "task_key", "dynamic_key")
_TEXTS = ("cache_key", "task_version")
_TIMES = (
    *("cache_expiration", "expected_start_time", "next_scheduled_start_time"),
    *("start_time", "end_time"),
)
_COUNTS = ("run_count", "flow_run_run_count")
_SCHEMED = ("tags", "task_inputs", "total_run_time")
_INPUTS_MOST = 100
_LONGEST = timedelta(days=365)


def known_details(details: Mapping[str, Any]) -> Json:
    """What of a state's details reaches Prefect; the rest is another run's, or a pause's."""
    return {n: value for n, value in details.items() if n in _DETAILS and value is not None}


def known_data(data: Any, run_id: str) -> Json | None:
    """Where a result of this run lies, if whoever reads it runs no code: as JSON, in no block.

    Only its name: the control side deletes what is named here, in its own folder.
    """
    if not isinstance(data, dict) or data.get("storage_block_id") is not None:
        return None
    serializer, key = data.get("serializer"), data.get("storage_key")
    if not isinstance(serializer, dict) or serializer.get("type") != "json":
        return None
    name = key.rpartition("/")[2] if isinstance(key, str) else ""
    if not is_result_of(name, run_id):
        return None
    expires, version = data.get("expiration"), data.get("prefect_version")
    return {
        "storage_key": name,
        "expiration": None if expires is None else bounds.instant(expires).isoformat(),
        "prefect_version": bounds.text_or_none(version, "a version", most=40),
        "serializer": {"type": "json"},
    }


def task_run_payload(payload: Any, run_id: str) -> Json:
    """What Prefect's server makes a task run and its state of. Raises NotLeased."""
    if not isinstance(payload, dict):
        raise NotLeased("This is no event of a task run.")
    task_run, state = payload.get("task_run"), payload.get("validated_state")
    if not isinstance(task_run, dict) or not isinstance(state, dict):
        raise NotLeased("This is no event of a task run.")
    made: Json = {"task_run": _task_run(task_run), "validated_state": _state(state, run_id)}
    intended = payload.get("intended")
    if isinstance(intended, dict):
        made["intended"] = {n: bounds.cut(intended.get(n), 40) for n in ("from", "to")}
    return made


def _task_run(given: Mapping[str, Any]) -> Json:
    from prefect.client.schemas.objects import TaskRun

    kept: Json = {name: bounds.text(given.get(name), f"a {name}") for name in _NAMES}
    kept |= {n: bounds.text(given[n], n) for n in _TEXTS if given.get(n) is not None}
    kept |= {n: bounds.instant(given[n]).isoformat() for n in _TIMES if given.get(n) is not None}
    kept |= {n: int(bounds.number(given[n], n)) for n in _COUNTS if given.get(n) is not None}
    kept |= {n: given[n] for n in _SCHEMED if given.get(n) is not None}
    if given.get("labels") is not None:
        kept["labels"] = bounds.scalars(given["labels"], "labels")
    tags, inputs = kept.get("tags", []), kept.get("task_inputs", {})
    if not isinstance(tags, list) or not isinstance(inputs, dict):
        raise NotLeased("This is no task run.")
    if len(tags) > _INPUTS_MOST or len(inputs) > _INPUTS_MOST:
        raise NotLeased("This task run has too many tags or inputs.")
    for tag in tags:
        bounds.text(tag, "tags")
    made = _valid(TaskRun, kept)
    if not timedelta(0) <= made.total_run_time <= _LONGEST:
        raise NotLeased("This is no task run.")
    return kept


def _state(given: Mapping[str, Any], run_id: str) -> Json:
    from prefect.client.schemas.objects import State

    details = given.get("state_details") or {}
    if not isinstance(details, dict):
        raise NotLeased("This is no state.")
    scheduled = details.get("scheduled_time")
    details = known_details(details)
    if scheduled is not None:
        details["scheduled_time"] = bounds.instant(scheduled).isoformat()
    kept: Json = {
        "type": bounds.text(given.get("type"), "a type of state"),
        "name": bounds.text(given.get("name"), "names of states"),
        "message": bounds.cut(given.get("message")),
        "state_details": details,
    }
    _valid(State, kept)
    return kept | {"data": known_data(given.get("data"), run_id)}


def _valid(schema: Any, values: Json) -> Any:
    """What Prefect's own schema makes of these values. Raises NotLeased."""
    try:
        return schema.model_validate(values, strict=False)
    except (ValueError, TypeError, OverflowError) as exc:
        raise NotLeased("This is no task run, or no state, that Prefect can read.") from exc
