"""Notify: tell the receiver of a job that its round ended; nobody to tell is fine."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from stillreel.job import JobStatus, Notification, Stage, Video
from stillreel.progress import report
from stillreel.settings import Settings
from stillreel.storage import Storage
from stillreel.webhook import deliver

FIRST_ROUND = 1


def notify(
    job_id: str,
    receiver: str,
    status: JobStatus,
    *,
    at: datetime,
    video: Video | None = None,
    error: str = "",
    storage: Storage,
    settings: Settings,
) -> str:
    """The receiver's URL once it took the notification; empty when there is nobody to tell.

    `receiver` is the URL that the order names, if any; `at` is when the round ended. Raises
    ReceiverUnavailable (a later try may succeed), ReceiverRefused or AddressRefused.
    """
    url = receiver or settings.webhook.webhook_url
    report(Stage.NOTIFY, step=0, steps=1)
    if not url:
        report(Stage.NOTIFY, step=1, steps=1)
        return ""
    data: dict[str, Any] = {}
    if video is not None:
        data = {
            "video": video.to_json(),
            "poster_url": _public_url(storage, video.poster_key, settings) or None,
            "cost_usd": video.cost_usd,
            "warnings": list(video.warnings),
        }
    notification = Notification(
        id=f"{job_id}-r{FIRST_ROUND}",
        job_id=job_id,
        at=at,
        status=status,
        error=error,
        data=data,
        video_url=_public_url(storage, video.key, settings) if video else "",
    )
    deliver(url, notification, settings.webhook, settings.fetch)
    report(Stage.NOTIFY, step=1, steps=1)
    return url


def _public_url(storage: Storage, key: str, settings: Settings) -> str:
    """A URL that a receiver can use; a directory of this host is none of its business."""
    url = storage.download_url(key, seconds=settings.storage.download_url_seconds)
    return url if url.startswith(("http://", "https://")) else ""
