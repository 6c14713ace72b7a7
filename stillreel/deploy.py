"""Makes work pools, queues and deployments, again and again with the same result."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from stillreel.errors import DeploymentInvalid, SettingsInvalid, StillreelError
from stillreel.job import JobSpec
from stillreel.project import FLOW_ENTRYPOINT, project_dir
from stillreel.result_storage import save_result_block
from stillreel.settings import Settings


@dataclass(frozen=True)
class Plan:
    """What prefect.yaml and pools.yaml describe."""

    deployments: list[dict[str, Any]]
    pools: dict[str, str]
    """Descriptions by name."""
    models: dict[str, str]
    """The model that each pool's hosts have, by pool."""
    queues: dict[str, int]
    job_configuration: dict[str, Any]


def read_plan(directory: Path) -> Plan:
    """The plan in a project directory; DeploymentInvalid when the two files do not fit."""
    try:
        project = yaml.safe_load((directory / "prefect.yaml").read_text())
        pools = yaml.safe_load((directory / "deployments" / "pools.yaml").read_text())
        plan = Plan(
            deployments=project["deployments"],
            pools={name: pool["description"] for name, pool in pools["pools"].items()},
            models={name: pool["model"] for name, pool in pools["pools"].items()},
            queues=pools["queues"],
            job_configuration=pools["job_configuration"],
        )
        wanted = [(d["name"], d["entrypoint"], *_place(d)) for d in plan.deployments]
    except KeyError as exc:
        raise DeploymentInvalid(f"prefect.yaml or pools.yaml lacks {exc}") from exc
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as exc:
        raise DeploymentInvalid(f"prefect.yaml or pools.yaml cannot be read: {exc}") from exc
    for name, _, pool, queue in wanted:
        if pool not in plan.pools or queue not in plan.queues:
            raise DeploymentInvalid(
                f"deployment {name} names pool {pool} and queue {queue}; "
                f"pools.yaml has {sorted(plan.pools)} and {sorted(plan.queues)}"
            )
    return plan


def check_entrypoint(entrypoint: str, directory: Path) -> dict[str, Any]:
    """The parameter schema of the flow at `entrypoint`, by property.

    Prefect deploys a flow that it cannot import, with an empty schema and without a word, so this
    raises DeploymentInvalid instead; also when a video's schema is not exactly JobSpec's fields.
    """
    try:
        with chdir(directory):
            flow = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except Exception as exc:  # whatever a module can raise while it is imported
        raise DeploymentInvalid(f"{entrypoint} cannot be imported: {exc}") from exc
    properties = parameter_schema(flow).properties
    if entrypoint == FLOW_ENTRYPOINT and set(properties) != set(JobSpec.model_fields):
        wrong = sorted(set(properties) ^ set(JobSpec.model_fields))
        raise DeploymentInvalid(f"the parameters of {entrypoint} and JobSpec differ in {wrong}")
    return properties


async def deploy(settings: Settings, *, directory: Path | None = None) -> list[str]:
    """Make everything that the plan describes; gives the deployments' full names.

    Raises DeploymentInvalid when something is wrong in the project or came out wrong,
    SettingsInvalid when the Prefect server refuses us, StillreelError when it does not answer.
    """
    directory = directory or project_dir()
    plan = read_plan(directory)
    for deployment in plan.deployments:
        known = check_entrypoint(deployment["entrypoint"], directory)
        if unknown := set(deployment.get("parameters", {})) - set(known):
            raise DeploymentInvalid(f"{deployment['name']} sets unknown {sorted(unknown)}")
    try:
        async with get_client() as client:
            for name, description in plan.pools.items():
                await _make_pool(client, name, description, plan.job_configuration)
                for queue, priority in plan.queues.items():
                    await _make_queue(client, name, queue, priority)
            await save_result_block(settings)
            _run_prefect_deploy(directory)
            names = [await _check_deployed(client, made) for made in plan.deployments]
            for name in names:
                fleet = settings.fleet
                active = bool(fleet.accounts)
                await _set_schedules(client, name, active=active, auto=fleet.drain_auto)
            return names
    except httpx.HTTPStatusError as exc:
        raise _refusal(exc.response.status_code) from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise StillreelError(
            f"the Prefect server does not answer ({type(exc).__name__}); check PREFECT_API_URL, "
            "and that the server runs"
        ) from exc


def resting_schedules(settings: Settings, *, directory: Path | None = None) -> list[str]:
    """The deployments whose schedules `deploy` leaves off, for there is no account to rent from.

    Raises DeploymentInvalid.
    """
    if settings.fleet.accounts:
        return []
    plan = read_plan(directory or project_dir())
    return [_full_name(made) for made in plan.deployments if made.get("schedules")]


def _refusal(status: int) -> StillreelError:
    if status in (401, 403):
        return SettingsInvalid(
            f"the Prefect server refuses us ({status}); check PREFECT_API_KEY or "
            "PREFECT_API_AUTH_STRING"
        )
    return StillreelError(f"the Prefect server answers {status}; see its log")


def _place(deployment: dict[str, Any]) -> tuple[str, str]:
    return deployment["work_pool"]["name"], deployment["work_pool"]["work_queue_name"]


async def _make_pool(
    client: PrefectClient, name: str, description: str, configuration: dict[str, Any]
) -> None:
    template = _template(configuration)
    try:
        await client.read_work_pool(name)
    except ObjectNotFound:
        await client.create_work_pool(
            WorkPoolCreate(
                name=name, type="process", description=description, base_job_template=template
            )
        )
    else:
        await client.update_work_pool(
            name, WorkPoolUpdate(description=description, base_job_template=template)
        )


def _template(configuration: dict[str, Any]) -> dict[str, Any]:
    """A process template with these values and without variables; a deployment may still set `env`.

    For every run that it creates Prefect (3.8.8) checks the schema of all variables, and each
    default in it, anew: half of the time of a create with the standard schema.
    """
    standard = ProcessWorker.get_default_base_job_template()["job_configuration"]
    if unknown := sorted(set(configuration) - set(standard)):
        raise DeploymentInvalid(f"pools.yaml configures unknown {unknown}; known: {list(standard)}")
    return {
        "job_configuration": {"env": {}} | configuration,
        "variables": {"type": "object", "properties": {}},
    }


async def _make_queue(client: PrefectClient, pool: str, name: str, priority: int) -> None:
    try:
        queue = await client.read_work_queue_by_name(name, work_pool_name=pool)
    except ObjectNotFound:
        queue = await client.create_work_queue(name, work_pool_name=pool, priority=priority)
    if queue.priority != priority:
        await client.update_work_queue(queue.id, priority=priority)


async def _set_schedules(
    client: PrefectClient, name: str, *, active: bool, auto: bool = False
) -> None:
    """Schedules run where there is an account to rent from; elsewhere nobody would serve them.

    Of the two of a drain, by their slugs, `auto` says which.
    """
    made = await client.read_deployment_by_name(name)
    for schedule in made.schedules:
        wanted = active and {"auto": auto, "weekly": not auto}.get(schedule.slug or "", True)
        if schedule.active != wanted:
            await client.update_deployment_schedule(made.id, schedule.id, active=wanted)


def _run_prefect_deploy(directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=directory,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()[-12:]
        raise DeploymentInvalid("prefect deploy failed:\n" + "\n".join(lines))


def _full_name(deployment: dict[str, Any]) -> str:
    flow_name = deployment["entrypoint"].rpartition(":")[2].replace("_", "-")
    return f"{flow_name}/{deployment['name']}"


async def _check_deployed(client: PrefectClient, wanted: dict[str, Any]) -> str:
    name = _full_name(wanted)
    try:
        made = await client.read_deployment_by_name(name)
    except ObjectNotFound as exc:
        raise DeploymentInvalid(f"{name} is not there after `prefect deploy`") from exc
    schema = made.parameter_openapi_schema or {}
    if not schema.get("properties"):
        raise DeploymentInvalid(f"{name} was deployed with an empty parameter schema")
    if (made.work_pool_name, made.work_queue_name) != _place(wanted):
        raise DeploymentInvalid(f"{name} was deployed to pool {made.work_pool_name}")
    return name
