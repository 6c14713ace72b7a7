"""The work files of jobs on this host's disk."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from stillreel.settings import Settings

KEPT_DAYS = 3
"""A job that failed may be tried again; its files help for this long."""


def job_dir(job_id: str, *, settings: Settings) -> Path:
    """Where the work files of a job lie."""
    return settings.host.work_dir / job_id


def clean(job_id: str, *, settings: Settings) -> None:
    """Delete the work files of a job that needs them no more, and those nobody came back to."""
    shutil.rmtree(job_dir(job_id, settings=settings), ignore_errors=True)
    sweep(settings)


def sweep(settings: Settings) -> None:
    """Delete work files that nothing touched for days: of jobs that failed or ended elsewhere."""
    oldest = time.time() - KEPT_DAYS * 86400
    folder = settings.host.work_dir
    for job in folder.iterdir() if folder.exists() else ():
        with suppress(FileNotFoundError):  # a job that ends now deletes its own
            if job.stat().st_mtime < oldest:
                shutil.rmtree(job, ignore_errors=True)
