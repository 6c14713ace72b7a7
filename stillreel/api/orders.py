"""From a client's order to a durable job: checked, its image stored, submitted once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from stillreel import guard, keys
from stillreel.api.auth import INVALID
from stillreel.api.bodies import decode_image
from stillreel.api.schemas import GenerateRequest
from stillreel.api.services import Services
from stillreel.audit import audit
from stillreel.errors import (
    Forbidden,
    IdConflict,
    ImageUnavailable,
    JobDeleted,
    JobUnknown,
    KeyReused,
    RequestRejected,
    Unauthorized,
)
from stillreel.images import probe_picture
from stillreel.job import JobSpec, Priority, spec_of
from stillreel.jobs import marks
from stillreel.jobs.ids import derive, mint, minted_at
from stillreel.jobs.reader import Snapshot
from stillreel.jobs.record import Record
from stillreel.jobs.submit import Order, Submitted
from stillreel.models.registry import get_model
from stillreel.models.shots import check
from stillreel.owners import Caller, Owner
from stillreel.server_secret import sign
from stillreel.storage import ObjectInfo, guess_type

SEED_1_MODEL, SEED_2_MODEL = "ltx-2", "wan-2.2"
"""What a job is made with that names no model, by the route that it came by."""
DEADLINE_LIMIT = timedelta(days=90)

_ORDER_ONLY = {"image_base64", "job_id", "model", "priority", "deadline"}
"""Fields of a request that the JobSpec of a draft does not have."""
_KEY = re.compile(r'"([\x21\x23-\x7e]{1,255})"|([\x21\x23-\x7e]{1,255})')


@dataclass(frozen=True)
class Draft:
    """What was asked for, before a look at anything that may be otherwise the next time."""

    request: GenerateRequest
    spec: JobSpec
    """Without the model, which is chosen, and without the key of its image."""
    image: bytes | None
    sha256: str
    key: str
    digest: str
    """What was asked for, hashed; a replay has the same."""


async def accept(
    services: Services,
    caller: Caller,
    request: GenerateRequest,
    *,
    default_model: str,
    idempotency_key: str | None = None,
    image: bytes | None = None,
    batch: str = "",
) -> Submitted:
    """The durable job of this order, or the one that the same key made before.

    Raises RequestRejected and its kind for what cannot be made, KeyReused for another order under
    the same key, IdConflict, QuotaExceeded, PrefectUnavailable.
    """
    draft = await _draft(caller, request, image, key_of(idempotency_key))
    job_id = _job_id(services, caller, draft)
    if earlier := await _earlier(services, caller, draft, job_id):
        return _replay(earlier, draft)
    order = await _order(services, caller, draft, job_id, default_model, batch)
    await services.quotas.take(await _owner(services, caller))
    if draft.image is not None:
        key = order.spec.image_key
        await asyncio.to_thread(
            services.storage.put_bytes, key, draft.image, content_type=guess_type(key)
        )
    made = await services.submitter.submit(order)
    services.reader.know(made.record)
    if not made.is_new:  # another order of the same moment came first
        return _replay(made.record, draft)
    audit("submit", owner=caller.owner, key_id=caller.key_id, job_id=job_id)
    services.on_submitted(made.record)
    return made


def key_of(header: str | None) -> str:
    """The key in an Idempotency-Key header, quoted or bare; empty without one.

    Raises RequestRejected for one that is not printable ASCII of 1 to 255 characters.
    """
    if header is None:
        return ""
    found = _KEY.fullmatch(header.strip())
    if not found:
        raise RequestRejected(
            "The Idempotency-Key is not usable; send 1 to 255 printable ASCII characters, e.g. a "
            "UUID."
        )
    return found[1] or found[2]


def token_of(secret: bytes, job_id: str) -> str:
    """What the run of this job shows to `/webhook/complete`."""
    return sign(secret, "run-token", job_id).hex()[:40]


async def _draft(caller: Caller, request: GenerateRequest, image: bytes | None, key: str) -> Draft:
    if image is not None and (request.image_url or request.image_base64 or request.job_id):
        raise RequestRejected("The image is given twice; keep the file or the field.")
    given = request.model_dump(exclude_none=True, exclude=_ORDER_ONLY)
    spec = spec_of(given | {"owner": caller.owner})
    image, sha256 = await asyncio.to_thread(_decode, image, request.image_base64)
    return Draft(request, spec, image, sha256, key, _digest(request, spec, sha256, key))


def _decode(image: bytes | None, text: str | None) -> tuple[bytes | None, str]:
    """The image that came inside the request, and its hash. Raises ImageRejected."""
    if image is None and text:
        image = decode_image(text)
    return image, hashlib.sha256(image).hexdigest() if image is not None else ""


def _digest(request: GenerateRequest, spec: JobSpec, sha256: str, key: str) -> str:
    """Fields that came later count where they are given: a replay may be older than they are."""
    later = {name for name in ("style", "camera") if not getattr(spec, name)}
    facts = spec.model_dump(mode="json", exclude={"owner"} | later)
    facts |= {
        "image": sha256,
        "job_id": request.job_id or "",
        "key": key if request.job_id else "",
        "priority": request.priority or "",
        "deadline": request.deadline.isoformat() if request.deadline else "",
        "model": request.model or "",  # and not the one that a default stands for today
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _job_id(services: Services, caller: Caller, draft: Draft) -> str:
    if draft.request.job_id:
        return draft.request.job_id
    if draft.key:
        return derive(services.secret, caller.owner, draft.key)
    return mint(services.secret, caller.owner, at=datetime.now(UTC))


async def _earlier(services: Services, caller: Caller, draft: Draft, job_id: str) -> Record | None:
    """The job that has this id already. Raises JobUnknown for an id that is not the caller's."""
    if not draft.request.job_id:
        return await _find(services, job_id) if draft.key else None
    found, under_key = await asyncio.gather(
        _find(services, job_id),
        _find(services, derive(services.secret, caller.owner, draft.key) if draft.key else ""),
    )
    is_own = minted_at(services.secret, caller.owner, job_id) is not None
    if not is_own if found is None else found.owner != caller.owner:
        raise JobUnknown(
            "There is no such job_id for this key; take the one that presign/upload gave."
        )
    if under_key is not None:  # an order without an upload
        raise KeyReused
    return found


async def _find(services: Services, job_id: str) -> Record | None:
    try:
        return (await services.reader.get(job_id, fresh=True)).record
    except JobUnknown:
        return None


def _replay(earlier: Record, draft: Draft) -> Submitted:
    """The earlier job, where the same order came again under its key.

    Raises IdConflict, KeyReused, JobDeleted.
    """
    if not draft.key or earlier.labels.get(marks.REQUEST) != draft.digest:
        if draft.request.job_id:
            raise IdConflict("This job_id was used by an earlier order; get a new one.")
        raise KeyReused
    if earlier.is_deleted:
        raise JobDeleted
    return Submitted(earlier, is_new=False)


async def _order(
    services: Services,
    caller: Caller,
    draft: Draft,
    job_id: str,
    default_model: str,
    batch: str,
) -> Order:
    """The order of a new job, all of it checked. Raises RequestRejected and its kind, Forbidden."""
    request = draft.request
    deployment = await services.deployments.choose(request.model, default_model)
    spec = draft.spec.model_copy(update={"model": deployment.model})
    has_image = draft.image is not None or bool(request.job_id)
    # The real key is not known yet; what matters here is that there is an image.
    seen = spec.model_copy(update={"image_key": "inputs/x"}) if has_image else spec
    check(seen, get_model(spec.model))
    queue = _queue(caller, request.priority)
    _check_deadline(request.deadline)
    if spec.image_url:
        await guard.check_url(spec.image_url, services.settings.fetch.allow_addresses)
    if spec.webhook_url:
        await _check_receiver(services, caller, spec.webhook_url)
    if draft.image is not None:
        extension = await asyncio.to_thread(probe_picture, draft.image, services.settings.fetch)
        key = keys.inline_key(job_id, draft.sha256, extension)
        spec = spec.model_copy(update={"image_key": key})
    elif request.job_id:
        key = await _uploaded(services, job_id, caller.owner)
        spec = spec.model_copy(update={"image_key": key})
    return Order(
        job_id=job_id,
        spec=spec,
        deployment=deployment,
        queue=queue,
        request=draft.digest,
        token=token_of(services.secret, job_id),
        key_id=caller.key_id,
        batch=batch,
        deadline=request.deadline,
    )


def _queue(caller: Caller, priority: Priority | None) -> Priority:
    wanted = priority or "default"
    if caller.may_use(wanted):
        return wanted
    if priority is None:
        return caller.ceiling
    raise Forbidden(f"This key may not use the priority {priority}; its best is {caller.ceiling}.")


def _check_deadline(deadline: datetime | None) -> None:
    if deadline is None:
        return
    now = datetime.now(UTC)
    if not now < deadline <= now + DEADLINE_LIMIT:
        raise RequestRejected(
            f"The deadline is to lie in the future, {DEADLINE_LIMIT.days} days ahead at most."
        )


async def _owner(services: Services, caller: Caller) -> Owner:
    owner = await services.owners.get(caller.owner)
    if owner is None:
        raise Unauthorized(INVALID)
    return owner


async def _check_receiver(services: Services, caller: Caller, url: str) -> None:
    if url in (receiver.url for receiver in await services.owners.receivers(caller.owner)):
        return  # the operator registered it, so it may be private
    await guard.check_url(url, services.settings.fetch.allow_addresses)


async def _uploaded(services: Services, job_id: str, owner: str) -> str:
    """The key of the image that was uploaded for this id. Raises ImageUnavailable and its kind."""
    minted = minted_at(services.secret, owner, job_id)
    lifetime = timedelta(seconds=services.settings.storage.upload_claim_seconds)
    if minted is None or datetime.now(UTC) > minted + lifetime:
        raise ImageUnavailable("The upload has expired; get a new job_id and upload again.")
    prefix = keys.inputs_prefix(job_id)
    found: list[ObjectInfo] = await asyncio.to_thread(lambda: list(services.storage.list(prefix)))
    if not found:
        raise ImageUnavailable(
            "Nothing was uploaded for this job_id; PUT the image to the upload_url first."
        )
    newest = max(found, key=lambda info: info.modified)
    limit = services.settings.fetch.image_max_bytes
    if newest.size > limit:
        raise ImageUnavailable(f"The uploaded image has more than {limit:,} bytes; send a smaller.")
    data = await asyncio.to_thread(services.storage.get_bytes, newest.key, limit=limit)
    await asyncio.to_thread(probe_picture, data, services.settings.fetch)
    return newest.key


def owned(snapshot: Snapshot, caller: Caller) -> Snapshot:
    """The snapshot, when the caller may see it. Raises JobUnknown, JobDeleted."""
    owner = snapshot.record.owner
    if owner != caller.owner and not caller.may("admin"):
        raise JobUnknown
    if snapshot.record.is_deleted:
        raise JobDeleted
    return snapshot
