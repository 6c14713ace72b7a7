"""`stillreel models`: what can be ordered, which weights are on this machine, and fetching them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillreel.cli_bench import bench_models
from stillreel.command import api_client
from stillreel.errors import SettingsInvalid, Unauthorized
from stillreel.terminal import JsonFlag, print_facts, print_json, print_rows, say

if TYPE_CHECKING:
    from stillreel.client.answers import ModelInfo
    from stillreel.models.base import ModelSpec

models = typer.Typer(no_args_is_help=True, help="Models and their weights.")
models.command("bench")(bench_models)


@models.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """List the models that can be ordered, and the weights on this machine.

    Where no API is set up or answers, the weights alone.

    Example: stillreel models list --json
    """
    from stillreel.models.registry import MODELS

    offered = _ask_api()
    weights = {name: _weights_of(spec) for name, spec in MODELS.items()}
    if as_json:
        facts = [model.model_dump(mode="json") for model in offered] or [
            {"id": spec.name, "title": spec.title, "licence": spec.licence}
            for spec in MODELS.values()
        ]
        print_json([model | {"weights": weights.get(model["id"], [])} for model in facts])
        return
    print_rows([_offer(model) for model in offered], False)
    if offered:
        typer.echo()
    print_rows([_shown(row) for rows in weights.values() for row in rows], False)


@models.command("pull")
def pull_weights(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="E.g. wan-2.2, ltx-2, ltx-2.5.")],
    preset: Annotated[
        str, typer.Option(help="The weights of this preset; empty: of the model's first.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Fetch the weights of a model into the hub's cache; repeat it after an interruption.

    Example: stillreel models pull wan-2.2 --preset fast
    """
    from stillreel.models.pull import pull, size_text
    from stillreel.models.registry import get_model
    from stillreel.settings import get_settings

    spec = get_model(name)
    done = pull(spec, get_settings().inference, preset=preset, tell=say)
    facts: dict[str, Any] = {
        "model": spec.name,
        "presets": list(spec.presets_of(done.repository.repo_id)),
        "repository": done.repository.repo_id,
        "revision": done.repository.revision,
        "commit": done.commit,
        "licence": done.repository.licence,
        "gate": done.repository.gate,
        "files": done.files,
        "bytes": done.size,
        "fetched_bytes": done.fetched,
        "path": str(done.folder),
        "beside": [other.repository.repo_id for other in done.beside],
    }
    if as_json:
        print_json(facts)
        return
    sizes = f"{size_text(done.size)}, of which {size_text(done.fetched)} were fetched now"
    shown = facts | {
        "presets": ", ".join(facts["presets"]),
        "size": sizes,
        "beside": ", ".join(facts["beside"]),
    }
    print_facts({k: v for k, v in shown.items() if not k.endswith("bytes")})


def _ask_api() -> list[ModelInfo]:
    """What can be ordered; a machine that only runs models has no API to ask."""
    from stillreel.client import ApiUnreachable

    try:
        with api_client() as client:
            return list(client.models())
    except (ApiUnreachable, SettingsInvalid) as exc:
        if isinstance(exc.__cause__, Unauthorized):
            raise
        say(f"only the weights here, because what can be ordered is not known: {exc.message}")
        return []


def _weights_of(spec: ModelSpec) -> list[dict[str, Any]]:
    from stillreel.models.installed import find_installed
    from stillreel.settings import get_settings

    rows: list[dict[str, Any]] = []
    for repository in spec.repositories:
        found = find_installed(spec, repository, get_settings().inference)
        rows.append(
            {
                "model": spec.name,
                "presets": list(spec.presets_of(repository.repo_id)),
                "installed": found is not None,
                "bytes": found.size if found else 0,
                "repository": repository.repo_id,
                "revision": repository.revision,
                "commit": found.commit if found else "",
                "licence": repository.licence,
                "gate": (found.note.gate if found and found.note else "") or repository.gate,
            }
        )
    return rows


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a person: the size in GB, commits short."""
    is_named = row["commit"] and row["commit"] != row["revision"]
    at = f" ({row['commit'][:12]})" if is_named else ""
    return {
        "weights of": row["model"],
        "presets": row["presets"],
        "installed": row["installed"],
        "size": f"{row['bytes'] / 1e9:.1f} GB" if row["bytes"] else "",
        "revision": f"{row['revision'][:12]}{at}",
        "gate": row["gate"],
        "repository": row["repository"],
        "licence": row["licence"],
    }


def _offer(model: ModelInfo) -> dict[str, Any]:
    return {
        "model": model.id,
        "title": model.title,
        "default": model.default,
        "host": model.available,
        "text": model.text_to_video,
        "audio": model.audio,
        "licence": model.licence,
    }
