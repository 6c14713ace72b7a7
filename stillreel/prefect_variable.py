"""Prefect variables: what only one process can make, the base of locks and of leadership."""

from __future__ import annotations

from typing import Any

from stillreel.errors import PrefectRefused
from stillreel.prefect_api import PrefectApi


async def make_variable(api: PrefectApi, name: str, value: str) -> dict[str, Any] | None:
    """The new variable; None when there is one of this name. Raises PrefectUnavailable."""
    return await _unless(409, api.post("/variables/", {"name": name, "value": value}))


async def read_variable(api: PrefectApi, name: str) -> dict[str, Any] | None:
    """The variable of this name; None without one. Raises PrefectUnavailable."""
    return await _unless(404, api.get(f"/variables/name/{name}"))


async def write_variable(api: PrefectApi, variable_id: str, value: str) -> bool:
    """Whether it was written; False when it is not there any more. Raises PrefectUnavailable."""
    written = api.patch(f"/variables/{variable_id}", {"value": value})
    return await _unless(404, written, default=False) is not False


async def delete_variable(api: PrefectApi, variable_id: str) -> None:
    """By its id, so that nobody's later variable of the same name goes; gone is fine."""
    await _unless(404, api.delete(f"/variables/{variable_id}"))


async def _unless(status: int, call: Any, *, default: Any = None) -> Any:
    try:
        return await call
    except PrefectRefused as exc:
        if exc.status != status:
            raise
        return default
