"""The one tree of errors; each has a code for callers, a retry verdict and an HTTP status.

A class docstring is the default message. Give a message that says what was wrong, what is allowed
and what to do; it reaches the caller, so it holds no secret, no path of a host, no inner address.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class StillreelError(Exception):
    """Something went wrong inside stillreel."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500
    ends_attempt: ClassVar[bool] = False
    """Whether no task tries it again: the execution ends, and the keeper counts it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().partition("\n")[0])

    @property
    def message(self) -> str:
        return str(self.args[0])


# --- what a caller sent -----------------------------------------------------------------------


class RequestRejected(StillreelError):
    """The order cannot be carried out as it stands."""

    code, retryable, http_status = "request_rejected", False, 422


class ImageError(RequestRejected):
    """The image cannot be used."""

    code = "image_error"


class ImageRejected(ImageError):
    """The image is not one we can use (type, size or content)."""

    code = "image_rejected"


class ImageTooLarge(ImageError):
    """The image is larger than allowed (bytes or pixels)."""

    code, http_status = "image_too_large", 413


class ImageUnavailable(ImageError):
    """The image's address answers that it is not there."""

    code = "image_unavailable"


class AddressRefused(RequestRejected):
    """The address is not one we call: only public http and https addresses are allowed."""

    code = "address_refused"


class ImageFetchFailed(StillreelError):
    """The image could not be fetched now; a later try may succeed."""

    code, retryable, http_status = "image_fetch_failed", True, 502


# --- how we are set up ------------------------------------------------------------------------


class SettingsInvalid(StillreelError):
    """The settings are not usable."""

    code = "settings_invalid"


class DeploymentInvalid(StillreelError):
    """A deployment cannot be made as described in prefect.yaml."""

    code = "deployment_invalid"


class ModelUnavailable(StillreelError):
    """This installation cannot run the model that was asked for."""

    code, http_status = "model_unavailable", 422


class PrefectUnavailable(StillreelError):
    """The Prefect server does not answer now; a later try may succeed."""

    code, retryable, http_status = "prefect_unavailable", True, 503


class PrefectRefused(StillreelError):
    """The Prefect server refuses what it was asked."""

    code, http_status = "prefect_refused", 502
    status = 0
    """What it answered."""


class DownloadFailed(StillreelError):
    """The weights could not be fetched now; a later try may succeed."""

    code, retryable, http_status = "download_failed", True, 502


# --- storage ----------------------------------------------------------------------------------


class StorageError(StillreelError):
    """Storage did not do what was asked."""

    code, http_status = "storage_error", 502


class ObjectMissing(StorageError):
    """There is no object under this key."""

    code, http_status = "object_missing", 404


class StorageRefused(StorageError):
    """Storage refuses: credentials, permissions or bucket name are wrong."""

    code = "storage_refused"


class VideoChanged(StorageError):
    """The stored video is not the one that its receipt is about; nothing is signed for it."""

    code, http_status = "video_changed", 409


class StorageUnavailable(StorageError):
    """Storage does not answer now; a later try may succeed."""

    code, retryable, http_status = "storage_unavailable", True, 503


class DiskFull(StillreelError):
    """The disk of the host is full; free some space, or set STILLREEL_HOME to a larger disk."""

    code, retryable, http_status = "disk_full", True, 507


# --- inference --------------------------------------------------------------------------------


class InferenceError(StillreelError):
    """The inference did not succeed."""

    code = "inference_error"


class InferenceFailed(InferenceError):
    """The model failed on this job."""

    code, retryable, ends_attempt = "inference_failed", True, True


class MemoryTooSmall(InferenceError):
    """This host's GPU has too little memory for this video."""

    code, http_status = "memory_too_small", 507


class InferenceServerAway(InferenceError):
    """The inference server of this host does not answer."""

    code, retryable, http_status = "inference_server_away", True, 503


class InferenceServerDied(InferenceError):
    """The inference server of this host died under this job."""

    code, retryable, ends_attempt = "inference_server_died", True, True


class InferenceStalled(InferenceError):
    """The inference made no progress for the model's stall limit."""

    code, retryable, ends_attempt = "inference_stalled", True, True


class InferenceAbandoned(InferenceError):
    """Nobody asked for this work any more, so it was cancelled."""

    code, retryable = "inference_abandoned", True


class InferenceCancelled(InferenceError):
    """The inference was cancelled."""

    code, http_status = "cancelled", 409


class InferenceInterrupted(InferenceCancelled):
    """The inference server stops; whoever follows the work starts it again at the next one."""

    code, retryable, http_status = "interrupted", True, 503


class RemoteError(InferenceError):
    """The remote video server did not do what was asked."""

    code, http_status = "remote_error", 502
    status = 0
    """What it answered; 0: nothing."""


class RemoteUnavailable(RemoteError):
    """The remote video server does not answer now; a later try may succeed."""

    code, retryable, http_status = "remote_unavailable", True, 503
    retry_after: float | None = None
    """Seconds that the server asked for."""
    sent = True
    """Whether anything may have reached the server."""


class RemoteRefused(RemoteError):
    """The remote video server refuses this order."""

    code, http_status = "remote_refused", 422


class RemoteAccountRefused(RemoteError):
    """The remote video server refuses our account: its key, its rights or its credit."""

    code = "remote_account_refused"


class RemoteOutcomeUnknown(RemoteError):
    """The remote video server may have taken this order, and never said so."""

    code = "remote_outcome_unknown"


class RemoteVideoLost(RemoteError):
    """The remote video server does not have the finished video any more."""

    code = "remote_video_lost"


class RemoteVideoUnusable(RemoteError):
    """What the remote video server made is no video that can be read."""

    code = "remote_video_unusable"


# --- encode, upload, notify -------------------------------------------------------------------


class EncodeFailed(StillreelError):
    """The video could not be encoded."""

    code, retryable = "encode_failed", True


class CredentialsFailed(StillreelError):
    """The Content Credentials could not be written into the video, which is not given out bare."""

    code, retryable = "credentials_failed", True


class ClipMissing(StillreelError):
    """The encoded clip is not on this host any more."""

    code, retryable = "clip_missing", True


class OutputUnwritable(StillreelError):
    """The output path cannot be written."""

    code = "output_unwritable"


class ReceiverError(StillreelError):
    """The webhook receiver did not take the notification."""

    code, http_status = "receiver_error", 502
    answered: int | None = None
    """The status of its answer; None where none came."""


class ReceiverUnavailable(ReceiverError):
    """The webhook receiver does not answer now; a later try may succeed."""

    code, retryable = "receiver_unavailable", True
    retry_after: float | None = None
    """Seconds that the receiver asked for."""


class ReceiverRefused(ReceiverError):
    """The webhook receiver refuses the notification."""

    code = "receiver_refused"


class ReceiverGone(ReceiverRefused):
    """The webhook receiver says that it is gone for good."""

    code = "receiver_gone"


class StaleExecution(StillreelError):
    """This execution is not the current one of its job; it leaves without work."""

    code, http_status = "stale_execution", 409


class NotVerified(StillreelError):
    """What was to be verified is not what it says that it is."""

    code, http_status = "not_verified", 422


class JobFailed(StillreelError):
    """The job did not end with a video."""

    code = "job_failed"


class JobCancelled(StillreelError):
    """The job was cancelled."""

    code, http_status = "job_cancelled", 409


class JobExpired(StillreelError):
    """The job was not started before its deadline."""

    code, http_status = "job_expired", 409


class ContentRefused(StillreelError):
    """The safety check of this installation refuses this content."""

    code, http_status = "content_refused", 422


class SafetyUnavailable(StillreelError):
    """The safety check of this installation gives no answer; nothing goes on without one."""

    code, retryable, http_status = "safety_unavailable", True, 503


# --- rented hosts -----------------------------------------------------------------------------


class FleetError(StillreelError):
    """Something went wrong with a rented host."""

    code, http_status = "fleet_error", 502


class ProviderUnavailable(FleetError):
    """The provider of hosts does not answer now; a later try may succeed."""

    code, retryable, http_status = "provider_unavailable", True, 503


class ProviderRefused(FleetError):
    """The provider of hosts refuses what it was asked."""

    code = "provider_refused"


class OfferGone(FleetError):
    """Somebody else has rented this offer, or it cannot be had now; take another."""

    code, retryable, http_status = "offer_gone", True, 503


class CreateUnknown(FleetError):
    """It is not known whether the provider has made this host; it is looked for by its label."""

    code, http_status = "create_unknown", 502


class HostFailed(FleetError):
    """A rented host did not come to work."""

    code, retryable, http_status = "host_failed", True, 502


class LeaseLost(FleetError):
    """This drain is not to go on: it was cancelled, or Prefect was away for too long."""

    code, http_status = "lease_lost", 409


class LeaseTaken(LeaseLost):
    """Another process has gone on with this drain, and its hosts are that one's now."""

    code = "lease_taken"


class HostUndestroyed(FleetError):
    """A rented host is not known to be gone and may still cost money; destroy it by hand."""

    code, retryable, http_status = "host_undestroyed", True, 502


class ResultRefused(FleetError):
    """What a rented host has made is not what was ordered."""

    code, retryable, http_status, ends_attempt = "result_refused", True, 422, True


class ArrivalUnread(FleetError):
    """What has arrived from a rented host could not be looked at now; a later try may succeed."""

    code, retryable, http_status = "arrival_unread", True, 503


# --- the HTTP API -----------------------------------------------------------------------------


class ApiError(StillreelError):
    """The request cannot be answered as it was asked."""

    code, http_status = "api_error", 400
    retry_after: float | None = None
    """Seconds after which the same request may succeed."""


class Unauthorized(ApiError):
    """Invalid API key."""

    code, http_status = "unauthorized", 401


class Forbidden(ApiError):
    """This key may not do that."""

    code, http_status = "forbidden", 403


class LeaseRefused(ApiError):
    """This is no token of a lease that lives."""

    code, http_status = "lease_refused", 401


class NotLeased(ApiError):
    """A lease gives no right to this."""

    code, http_status = "not_leased", 403


class JobUnknown(ApiError):
    """There is no such job; check the id, and that the key belongs to the job's owner."""

    code, http_status = "job_unknown", 404


class NotThere(ApiError):
    """There is nothing at this address."""

    code, http_status = "not_found", 404


class JobDeleted(ApiError):
    """The job was deleted with everything that it made."""

    code, http_status = "job_deleted", 410


class JobConflict(ApiError):
    """The job is not in a state in which this can be done."""

    code, http_status = "job_conflict", 409


class IdConflict(ApiError):
    """This job_id has been used."""

    code, http_status = "job_id_used", 409


class KeyReused(ApiError):
    """This Idempotency-Key was used with another request body."""

    code, http_status = "idempotency_key_reused", 422


class BodyTooLarge(ApiError):
    """The request body is larger than allowed."""

    code, http_status = "body_too_large", 413


class BodyTooSlow(ApiError):
    """The request body did not arrive in time."""

    code, http_status = "body_too_slow", 408


class QuotaExceeded(ApiError):
    """The owner's quota is used up."""

    code, http_status = "quota_exceeded", 429


class TooManyRequests(ApiError):
    """Too many requests at once."""

    code, http_status = "too_many_requests", 429


class NotImplementedHere(ApiError):
    """This installation does not do that."""

    code, http_status = "not_implemented", 501


def is_disk_full(error: Exception) -> bool:
    """Whether this error says that there is no room left: on the disk, or in our share of it."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def error_of(code: str, message: str) -> StillreelError:
    """The error of the tree that has this code, for errors that crossed a process boundary."""
    return _BY_CODE.get(code, StillreelError)(message)


def error_named(name: str, message: str) -> StillreelError | None:
    """The error of the tree whose class has this name; None when it is not one of ours."""
    found = _BY_NAME.get(name)
    return found(message) if found else None


def _tree(base: type[StillreelError]) -> list[type[StillreelError]]:
    return [base, *(cls for child in base.__subclasses__() for cls in _tree(child))]


_BY_CODE = {cls.code: cls for cls in reversed(_tree(StillreelError))}
_BY_NAME = {cls.__name__: cls for cls in _tree(StillreelError)}
