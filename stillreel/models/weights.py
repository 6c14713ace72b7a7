"""Where the weights of a model lie on this host; nothing is ever downloaded here."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from stillreel.errors import ModelUnavailable
from stillreel.models.base import ModelSpec, Repository
from stillreel.models.random_weights import fill, is_hollow
from stillreel.settings import InferenceSettings

INDEX = "model_index.json"


def find_weights(spec: ModelSpec, settings: InferenceSettings, *, repo_id: str = "") -> Path:
    """The pipeline folder of `repo_id`, by default the model's own repository.

    With MODEL_PATH it is that folder itself, or the folder in it that is called like the
    repository; without, the newest one in the hub's cache. Raises ModelUnavailable when there is
    none, or when it holds a pipeline of another family: that one would load, and fail in use.
    """
    repo_id = repo_id or spec.repo_id
    if settings.model_path:
        folder = _in_model_path(Path(settings.model_path).expanduser(), spec, repo_id)
    else:
        folder = _in_cache(spec, repo_id)
    _check_class(folder, spec, repo_id)
    return folder


def find_preset(spec: ModelSpec, settings: InferenceSettings) -> str:
    """The first preset whose weights are on this host; raises ModelUnavailable for none."""
    missing: list[ModelUnavailable] = []
    for name, preset in spec.presets.items():
        try:
            find_weights(spec, settings, repo_id=preset.repo_id)
        except ModelUnavailable as exc:
            missing.append(exc)
        else:
            return name
    raise missing[0]


def find_beside(spec: ModelSpec, settings: InferenceSettings, preset: str) -> list[Path]:
    """The folders of the repositories beside that of a preset, as far as they are on this host."""
    found: list[Path] = []
    for repo_id in spec.presets[preset].beside:
        with suppress(ModelUnavailable):
            found.append(find_weights(spec, settings, repo_id=repo_id))
    return found


def has_weights(spec: ModelSpec, settings: InferenceSettings) -> bool:
    """Whether the weights of one of its presets are on this host; true where there are none.

    For a model elsewhere: whether this host knows where.
    """
    if spec.elsewhere:
        return bool(settings.remote_url)
    if not spec.pipelines:
        return True
    with suppress(ModelUnavailable):
        find_preset(spec, settings)
        return True
    return False


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of one part of a pipeline folder, e.g. "transformer".

    Raises ModelUnavailable when it is not there or cannot be read.
    """
    return _read_json(folder / part / "config.json")


def load_part(kind: Any, folder: Path, part: str, **options: Any) -> Any:
    """One part of a pipeline folder, made by the class `kind` of diffusers or transformers.

    From a folder of random weights the numbers are made here. Raises ModelUnavailable when files
    are missing or broken.
    """
    try:
        loaded = kind.from_pretrained(folder / part, local_files_only=True, **options)
    except (OSError, ValueError, SafetensorError) as exc:
        raise ModelUnavailable(
            f"The weights on this host are not whole: {folder.name}/{part} cannot be loaded. "
            "Fetch them again."
        ) from exc
    if is_hollow(folder):
        fill(loaded)
    return loaded


def missing_package(spec: ModelSpec, package: str) -> ModelUnavailable:
    """The error for a Python package that a model cannot do without."""
    return ModelUnavailable(
        f"The model {spec.name} needs the Python package {package!r}, which cannot be imported "
        "here. Install the extra: pip install 'stillreel[models]'."
    )


def _in_model_path(path: Path, spec: ModelSpec, repo_id: str) -> Path:
    name = repo_id.rpartition("/")[2]
    if (path / INDEX).exists() and (repo_id == spec.repo_id or path.name == name):
        return path
    if (path / name / INDEX).exists():
        return path / name
    raise ModelUnavailable(
        f"MODEL_PATH holds no weights of {repo_id} for the model {spec.name}: neither is it a "
        f"pipeline folder with {INDEX} itself, nor is there one called {name} in it. Put them "
        f"there, or unset MODEL_PATH and run: {_pull_of(spec, repo_id)}"
    )


def _in_cache(spec: ModelSpec, repo_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as exc:
        raise missing_package(spec, exc.name or "huggingface_hub") from exc
    repository = spec.repository(repo_id)
    try:
        # Without the patterns, what was not asked for would count as missing.
        found = snapshot_download(
            repo_id,
            revision=repository.revision,
            allow_patterns=list(repository.files),
            local_files_only=True,
        )
        return Path(found)
    except LocalEntryNotFoundError as exc:
        raise ModelUnavailable(
            f"The weights of {repo_id} for the model {spec.name} are not on this host, or not all "
            f"of them{_other_commits(repository)}. Run: {_pull_of(spec, repo_id)}, or set "
            "MODEL_PATH to the folder that has them."
        ) from exc


def _other_commits(repository: Repository) -> str:
    """What the cache has of a repository instead of the revision that is looked for."""
    from huggingface_hub import constants

    name = f"models--{repository.repo_id.replace('/', '--')}"
    snapshots = Path(constants.HF_HUB_CACHE).expanduser() / name / "snapshots"
    there = sorted(path.name for path in snapshots.glob("*") if path.name != repository.revision)
    if not there:
        return ""
    return (
        f": this release takes {repository.revision[:12]}, and {', '.join(c[:12] for c in there)} "
        "is there, of which a pull keeps what is the same"
    )


def _pull_of(spec: ModelSpec, repo_id: str) -> str:
    """The command that fetches the weights of this repository."""
    presets = spec.presets_of(repo_id)
    is_default = not presets or next(iter(spec.presets)) in presets
    option = "" if is_default else f" --preset {presets[0]}"
    return f"stillreel models pull {spec.name}{option}"


def _check_class(folder: Path, spec: ModelSpec, repo_id: str) -> None:
    found = _read_json(folder / INDEX).get("_class_name")
    own = [known.pipelines for known in spec.repositories if known.repo_id == repo_id]
    allowed = next(filter(None, own), spec.pipelines)
    if found not in allowed:
        raise ModelUnavailable(
            f"The weights found for the model {spec.name} are a {found}, and it needs a "
            f"{' or a '.join(allowed)}: this is the folder of another family. Run: "
            f"stillreel models pull {spec.name}, or set MODEL_PATH to the right folder."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ModelUnavailable(
            f"The weights on this host are not whole: {path.parent.name}/{path.name} cannot be "
            "read. Fetch them again."
        ) from exc
    if not isinstance(found, dict):
        raise ModelUnavailable(f"{path.parent.name}/{path.name} is no configuration of a model.")
    return found
