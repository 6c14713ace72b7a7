"""The reaper: rented hosts that no living drain looks after are destroyed."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from stillreel.fleet import flows
from stillreel.settings import get_settings

DryRun = Annotated[bool, Field(description="Only tell what would be destroyed")]


@flow(name="reap-hosts", flow_run_name="reap hosts")
def reap_hosts(dry_run: DryRun = False) -> list[dict[str, Any]]:
    """Destroy rented hosts and leftovers without a living lease, at all providers in use.

    Says too how much of the month's budget is spent, each level once.

    Args:
        dry_run: Only tell what would be destroyed
    """
    settings = get_settings()
    try:
        return [found.to_json() for found in flows.reap_all(settings, dry_run=dry_run)]
    finally:
        flows.tell_budget(settings)
