"""The drain: rent a host when it pays, let it work off its pool, and have it gone."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run as runtime_run
from prefect.states import Completed
from pydantic import Field

from stillreel.fleet import flows
from stillreel.fleet.leases import NOT_RENTED
from stillreel.settings import get_settings

Pool = Annotated[str, Field(description="The work pool to drain")]
Now = Annotated[bool, Field(description="One waiting job is enough: somebody asks for it")]


def run_name() -> str:
    """The name of the run that is about to begin."""
    return f"drain {runtime_run.parameters.get('pool', 'a100')}"


def artifact_key(pool: str) -> str:
    """The key of a pool's report; Prefect takes lower-case letters, digits and dashes only."""
    return "drain-" + "".join(c if c.isalnum() else "-" for c in pool.lower())


@flow(name="drain-backlog", flow_run_name=run_name)
def drain_backlog(pool: Pool = "a100", now: Now = False) -> Any:
    """Drain one pool's backlog on rented hosts; gives the facts of its report.

    Args:
        pool: The work pool to drain
        now: One waiting job is enough: somebody asks for it
    """
    settings = get_settings()
    report, at = flows.drain(settings, run_id=str(runtime_run.id), pool=pool, now=now)
    flows.tell_budget(settings, is_used_up=report.is_over_budget)
    facts = report.to_json(at)
    if report.asked:
        text = report.to_markdown(at)
        about = "What this drain did and cost"
        create_markdown_artifact(text, key=artifact_key(pool), description=about)
    # A state by which those that rented nothing are told from the others: they are many.
    return facts if report.asked else Completed(name=NOT_RENTED, data=facts)
