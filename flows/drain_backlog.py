"""The drain: rent a host when it pays, let it work off its pool, and have it gone."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run as runtime_run
from pydantic import Field

from stillreel.fleet import flows
from stillreel.settings import get_settings

Pool = Annotated[str, Field(description="The work pool to drain")]
Now = Annotated[bool, Field(description="One waiting job is enough: somebody asks for it")]


def run_name() -> str:
    """The name of the run that is about to begin."""
    return f"drain {runtime_run.parameters.get('pool', 'a100')}"


@flow(name="drain-backlog", flow_run_name=run_name)
def drain_backlog(pool: Pool = "a100", now: Now = False) -> dict[str, Any]:
    """Drain one pool's backlog on a rented host.

    Args:
        pool: The work pool to drain
        now: One waiting job is enough: somebody asks for it
    """
    settings = get_settings()
    report, at = flows.drain(settings, run_id=str(runtime_run.id), pool=pool, now=now)
    flows.tell_budget(settings, is_used_up=report.is_over_budget)
    create_markdown_artifact(
        report.to_markdown(at), key=f"drain-{pool}", description="What this drain did and cost"
    )
    return report.to_json(at)
