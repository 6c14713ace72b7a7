"""Notify: have the receiver of a job told that its round ended, in the way that this host may.

A run that the API made has a token: the host tells the API, which delivers from state with the
owner's secret. What a host does not tell, the keeper finds. Only where no API is configured does
the host deliver itself, with the installation's secret.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectException

from stillreel.errors import ObjectMissing
from stillreel.job import JobStatus, Stage, job_id_of
from stillreel.jobs import marks
from stillreel.keys import output_key
from stillreel.progress import report
from stillreel.settings import Settings
from stillreel.storage import Storage, open_storage
from stillreel.webhook import deliver, make_notification, tell_api

log = logging.getLogger("stillreel.notify")


def notify(
    run: FlowRun, status: JobStatus, *, at: datetime, error: str = "", settings: Settings
) -> str:
    """The URL that was told; empty when nobody is to be told, or the keeper does it.

    `at` is when the round ended. Raises ReceiverUnavailable (a later try may succeed),
    ReceiverRefused or AddressRefused.
    """
    report(Stage.NOTIFY, step=0, steps=1)
    token, api = str(run.labels.get(marks.TOKEN) or ""), api_address(settings)
    told = ""
    if token and api:
        job_id = job_id_of(run.id, run.idempotency_key)
        seconds = settings.webhook.webhook_seconds
        tell_api(api, token, job_id=job_id, status=status, seconds=seconds)
        told = api
    elif not token and not api:
        told = _tell_receiver(run, status, at=at, error=error, settings=settings)
    report(Stage.NOTIFY, step=1, steps=1)
    return told


def api_address(settings: Settings) -> str:
    """Where a run's end is told to the API; empty where none is configured."""
    api = settings.api
    return api.api_webhook_url or (f"{api.api_url}/webhook/complete" if api.api_url else "")


def _tell_receiver(
    run: FlowRun, status: JobStatus, *, at: datetime, error: str, settings: Settings
) -> str:
    # The order may be one we refused, so what it names need not be a text.
    url = str(run.parameters.get("webhook_url") or "") or settings.webhook.webhook_url
    if not url:
        return ""
    storage = open_storage(settings.storage, settings.host.home)
    job_id = job_id_of(run.id, run.idempotency_key)
    receipt = _receipt(storage, job_id)
    if receipt and status is not JobStatus.COMPLETED:
        return ""  # the job is completed, whatever came after
    number = int(run.labels.get(marks.ROUND) or 1)
    notification = make_notification(
        job_id,
        number,
        status,
        at=at,
        receipt=receipt,
        error=error,
        url=lambda key: _public_url(storage, key, settings),
    )
    deliver(url, notification, settings.webhook, settings.fetch)
    _remember(run, number)
    return url


def _receipt(storage: Storage, job_id: str) -> dict[str, Any] | None:
    try:
        return json.loads(storage.get_bytes(output_key(job_id, "receipt.json")))
    except ObjectMissing:
        return None


def _public_url(storage: Storage, key: str, settings: Settings) -> str | None:
    """A URL that a receiver can use; a directory of this host is none of its business."""
    url = storage.download_url(key, seconds=settings.storage.download_url_seconds)
    return url if url.startswith(("http://", "https://")) else None


def _remember(run: FlowRun, number: int) -> None:
    """Label the round as told, so that a keeper does not tell it again."""
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(run.id, {marks.DELIVERED: number, marks.ATTEMPTS: 1})
    except (httpx.HTTPError, PrefectException) as exc:
        log.warning("run %s was told, but its label is missing: %s", run.id, type(exc).__name__)
