"""Which models this installation offers, and the deployment that makes a video with each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from stillreel.errors import ModelUnavailable
from stillreel.job import ModelName
from stillreel.jobs import marks
from stillreel.models.registry import MODELS, is_available
from stillreel.models.weights import has_weights
from stillreel.prefect_api import PAGE, PrefectApi
from stillreel.settings import InferenceSettings

FRESH_SECONDS = 15.0


@dataclass(frozen=True)
class Deployment:
    """Where jobs of one model go."""

    id: str
    flow_id: str
    name: str
    model: ModelName
    pool: str
    queue: str = ""


class Deployments:
    """The deployments of Prefect, read again when older than 15 s.

    Those of the `chosen` models or, where none is chosen, of all that this machine could run.
    """

    def __init__(
        self, api: PrefectApi, inference: InferenceSettings, chosen: Sequence[str] = ()
    ) -> None:
        self._api = api
        self._inference = inference
        self._chosen = chosen
        self._found: dict[str, Deployment] = {}
        self._read_at = float("-inf")

    async def offered(self) -> dict[str, Deployment]:
        """Deployments by model, the installation's default first."""
        if time.monotonic() - self._read_at > FRESH_SECONDS:
            self._found = await self._read()
            self._read_at = time.monotonic()
        return self._found

    async def choose(self, named: str | None, default: str) -> Deployment:
        """The deployment of the model that was named, else of the route's default.

        A default that this installation does not have falls back to the installation's own; a
        model that was named never does. Raises ModelUnavailable naming those that there are.
        """
        offered = await self.offered()
        if found := offered.get(named or default):
            return found
        if not named and offered:
            return next(iter(offered.values()))
        there = ", ".join(offered) or "none yet; run `stillreel deploy`"
        raise ModelUnavailable(
            f"The model {(named or default)[:40]!r} is not offered here; choose one of: {there}."
        )

    async def _read(self) -> dict[str, Deployment]:
        body = {"flows": {"name": {"any_": [marks.FLOW]}}, "limit": PAGE, "sort": "NAME_ASC"}
        found: dict[str, Deployment] = {}
        for item in await self._api.ask("/deployments/filter", body):
            model = (item.get("parameters") or {}).get("model", "preview")
            if model in MODELS and item.get("work_pool_name"):
                made = Deployment(
                    item["id"],
                    item["flow_id"],
                    item["name"],
                    model,
                    item["work_pool_name"],
                    item["work_queue_name"] or "",
                )
                found.setdefault(model, made)
        order = self._chosen or [name for name in MODELS if self._runs_here(name)]
        return {name: found[name] for name in order if name in found}

    def _runs_here(self, name: ModelName) -> bool:
        spec = MODELS[name]
        return is_available(spec) and has_weights(spec, self._inference)
