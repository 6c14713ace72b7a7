"""Fetches the weights of a model from the hub into its cache, where `find_weights` looks for them.

The commit is resolved once, and everything is asked of that commit. Where the registry names a
branch, its name in the cache is moved last: a pull that ends early leaves what was there in use.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillreel.errors import DiskFull, DownloadFailed, RequestRejected, SettingsInvalid
from stillreel.models.base import ModelSpec, Repository
from stillreel.models.hub_errors import explaining
from stillreel.models.installed import Note, read_note, write_note, write_whole
from stillreel.models.weights import find_weights, missing_package
from stillreel.settings import InferenceSettings

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

Tell = Callable[[str], None]
"""Called with a line for a person, before each part of the work."""

GATES = {"auto": "accept its terms", "manual": "ask for access"}
"""What the hub calls a gate, and what is to be done at it."""


@dataclass(frozen=True)
class Pulled:
    """Weights that are here now, whole and compared with the hub's checksums."""

    repository: Repository
    """With the gate as the hub says it."""
    commit: str
    folder: Path
    files: int
    size: int
    """Bytes of these files."""
    fetched: int
    """Bytes that had to be fetched for it."""
    beside: tuple[Pulled, ...] = ()
    """The further repositories of the preset."""


def pull(
    spec: ModelSpec,
    settings: InferenceSettings,
    *,
    preset: str = "",
    endpoint: str = "",
    tell: Tell = lambda _: None,
) -> Pulled:
    """Have the weights of a preset, by default of the model's first one, in the hub's cache.

    What is there already is not fetched again. The hub's address is `endpoint`, or HF_ENDPOINT, or
    its public one; its token is HF_TOKEN. Raises RequestRejected for a model without weights or a
    preset it does not have, SettingsInvalid with MODEL_PATH, ModelUnavailable for what the hub does
    not have or does not give, DiskFull before anything is fetched, DownloadFailed when a later try
    may succeed.
    """
    repository, *beside = _repositories_of(spec, preset)
    if settings.model_path:
        raise SettingsInvalid(
            "MODEL_PATH is set, so weights are taken from there and never from the hub's cache, "
            "where this command puts them; unset MODEL_PATH, or fetch them into it yourself: "
            f"hf download {repository.repo_id} --local-dir "
            f"MODEL_PATH/{repository.repo_id.rpartition('/')[2]}"
        )
    try:
        from huggingface_hub import constants
    except ImportError as exc:
        raise missing_package(spec, exc.name or "huggingface_hub") from exc
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    pulled: list[Pulled] = []
    for wanted in (*beside, repository):  # the largest last: it alone would not do
        with explaining(wanted, endpoint):
            pulled.append(_pull(wanted, endpoint, cache, tell))
        find_weights(spec, settings, repo_id=wanted.repo_id)
    return replace(pulled[-1], beside=tuple(pulled[:-1]))


def _repositories_of(spec: ModelSpec, preset: str) -> tuple[Repository, ...]:
    if not spec.repositories:
        raise RequestRejected(f"the model {spec.name} has no weights, so there is nothing to pull")
    name = preset or next(iter(spec.presets))
    if name not in spec.presets:
        raise RequestRejected(
            f"the model {spec.name} has no preset {name[:40]!r}; choose one of: "
            f"{', '.join(spec.presets)}"
        )
    return spec.repositories_of(name)


def _pull(repository: Repository, endpoint: str, cache: Path, tell: Tell) -> Pulled:
    from huggingface_hub import HfApi, RepoFile, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    api = HfApi(endpoint=endpoint)
    repo_id, patterns = repository.repo_id, list(repository.files)
    info = api.model_info(repo_id, revision=repository.revision)
    commit = str(info.sha)
    gate = GATES.get(str(info.gated), "none")
    repository = replace(repository, gate=gate)
    at_gate = f"; gate: {gate} there" if gate != "none" else ""
    named = f"{repository.revision}, " if repository.revision != commit else ""
    tell(f"{repo_id}, {named}commit {commit[:12]}")
    tell(f"licence: {repository.licence}; read it at {endpoint}/{repo_id}{at_gate}")

    how: dict[str, Any] = {
        "revision": commit,  # a branch's name would be moved at once, see above
        "allow_patterns": patterns,
        "endpoint": endpoint,
        "cache_dir": cache,
    }
    with _bars(shown=False) as bar:
        plan = snapshot_download(repo_id, dry_run=True, tqdm_class=bar, **how)
    fetched = sum(file.file_size or 0 for file in plan if file.will_download)
    tell(
        f"{len(plan)} files, {size_text(sum(file.file_size or 0 for file in plan))}; "
        f"{size_text(fetched)} are to be fetched"
    )
    _check_room(fetched, cache)
    with _bars() as bar:
        folder = Path(snapshot_download(repo_id, tqdm_class=bar, **how))

    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    entries = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    files = [entries[path] for path in filter_repo_objects(entries, allow_patterns=patterns)]
    note = Note(commit, gate, len(files))
    if fetched or read_note(folder) != note:
        tell("comparing the files with the hub's checksums")
        for file in files:
            _compare(folder / file.path, file)
        write_note(folder, note)
    if repository.revision != commit:
        write_whole(folder.parents[1] / "refs" / repository.revision, commit)
    size = sum(file.size for file in files)
    return Pulled(repository, commit, folder, len(files), size, fetched)


@contextmanager
def _bars(*, shown: bool = True) -> Iterator[type[Any]]:
    """The hub's progress bars, on stderr where that is a terminal; closed when the work is done."""
    from huggingface_hub.utils import tqdm

    made: list[Any] = []

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": None if shown else True})
            made.append(self)

    try:
        yield Bar
    finally:
        for bar in made:
            bar.close()


def _check_room(needed: int, cache: Path) -> None:
    place = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DiskFull(
            f"The weights need {size_text(needed)} more on the disk of the hub's cache, which has "
            f"{size_text(free)} free. Free some space, or set HF_HOME to a directory on a larger "
            "disk."
        )


def _compare(path: Path, file: RepoFile) -> None:
    """Hold a file against the hub's checksum: large files have SHA-256, small ones git's own.

    Raises DownloadFailed, and drops the file so that the next pull fetches it again.
    """
    try:
        with path.open("rb") as stream:
            if file.lfs:
                good = hashlib.file_digest(stream, "sha256").hexdigest() == file.lfs.sha256
            else:
                content = stream.read()
                blob = b"blob %d\0%b" % (len(content), content)
                good = hashlib.sha1(blob, usedforsecurity=False).hexdigest() == file.blob_id
    except FileNotFoundError as exc:
        raise DownloadFailed(f"The file {file.path} did not come. Run the command again.") from exc
    if not good:
        path.resolve().unlink(missing_ok=True)  # a snapshot holds links to blobs
        path.unlink(missing_ok=True)
        raise DownloadFailed(
            f"The file {file.path} is not what the hub says it is: its checksum differs. It was "
            "removed; run the command again to fetch it anew."
        )


def size_text(count: int) -> str:
    """A number of bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
