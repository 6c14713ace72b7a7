"""What can go wrong at the hub, said so that a person knows what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stillreel.errors import (
    DiskFull,
    DownloadFailed,
    ModelUnavailable,
    OutputUnwritable,
    is_disk_full,
)
from stillreel.models.base import Repository

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


@contextmanager
def explaining(repository: Repository, endpoint: str) -> Iterator[None]:
    """Say what the hub's client raises in our words; its own hold the addresses of files."""
    from huggingface_hub import errors as hub

    try:
        yield
    except (hub.HTTPError, OSError, hub.XetDownloadError) as exc:
        raise _explained(exc, repository, endpoint) from exc


def _explained(exc: Exception, repository: Repository, endpoint: str) -> Exception:
    from huggingface_hub import errors as hub

    # Of much that goes wrong the client says "not in the cache", and keeps the reason as its cause.
    hidden = isinstance(exc, hub.LocalEntryNotFoundError | hub.DryRunError)
    reason = exc.__cause__ if hidden else exc
    if isinstance(reason, hub.HfHubHTTPError):
        return _refused(reason, repository, f"{endpoint}/{repository.repo_id}")
    if isinstance(reason, hub.OfflineModeIsEnabled):
        return DownloadFailed(
            "The hub may not be asked, because HF_HUB_OFFLINE is set. Unset it to fetch weights."
        )
    if is_disk_full(exc):
        return DiskFull(
            "The disk of the hub's cache is full. Free some space, or set HF_HOME to a directory "
            "on a larger disk; what came whole is kept."
        )
    if isinstance(exc, PermissionError | FileExistsError | NotADirectoryError):
        return OutputUnwritable(
            f"The hub's cache cannot be written: {exc.strerror}. Set HF_HOME to a directory that "
            "can be."
        )
    return DownloadFailed(
        f"The hub at {endpoint} cannot be reached, or the connection to it broke, for "
        f"{repository.repo_id}. Run the command again; what came whole is kept."
    )


def _refused(answer: HfHubHTTPError, repository: Repository, page: str) -> Exception:
    from huggingface_hub import get_token
    from huggingface_hub.errors import RevisionNotFoundError

    status = answer.response.status_code
    token = (
        "A token was sent; it is wrong, or its account has no access yet."
        if get_token()
        else "HF_TOKEN is not set."
    )
    if isinstance(answer, RevisionNotFoundError):
        return ModelUnavailable(
            f"The hub's {repository.repo_id} has no revision {repository.revision}, which this "
            "release of stillreel takes. Install another release."
        )
    if status in (401, 403):
        return ModelUnavailable(
            f"The hub does not give {repository.repo_id} ({status}). Its licence is: "
            f"{repository.licence}. Log in at {page}, accept its terms where it asks for that, and "
            "run the command again with HF_TOKEN set to a Read token of that account. " + token
        )
    if status == 404:
        return ModelUnavailable(
            f"The hub has no {repository.repo_id}, or does not show it to everybody: {page} "
            f"answers 404. {token}"
        )
    return DownloadFailed(
        f"The hub answered {status} for {repository.repo_id}. Run the command again later; what "
        "came whole is kept."
    )
