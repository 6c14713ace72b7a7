"""What the control side writes on a flow run: tags to find it by, labels to remember by.

Prefect replaces tags as a whole and merges labels by read-then-write, neither with any check, so
only the control side writes either once a run exists. A label that is null, a list or a dict makes
every read of its run fail (Prefect 3.8.8), so labels are scalars.
"""

from __future__ import annotations

from typing import Final

FLOW: Final = "generate-video"
TOMBSTONE_FLOW: Final = "deleted-video"

# --- tags ---------------------------------------------------------------------------------------

UNDELIVERED: Final = "undelivered"
"""The end of this job has not been told and accounted for."""
OVER: Final = "over"
"""A round of this job is settled; found on a run that waits or works, it was started in Prefect."""
UNCOPIED: Final = "uncopied"
"""The image of this job still lies at its caller's address only."""
ERASE: Final = "erase"
"""What this job made is to be deleted; on a tombstone: has been, and is looked for once more."""
UNWANTED: Final = "unwanted"
"""The end of this job was asked for; found on a run that waits or works, that was broken off."""
DATED: Final = "deadline"
"""This job has a deadline: there is no filter by label."""


def owner_tag(owner: str) -> str:
    return f"owner:{owner}"


def model_tag(model: str) -> str:
    return f"model:{model}"


def batch_tag(batch_id: str) -> str:
    return f"batch:{batch_id}"


# --- labels -------------------------------------------------------------------------------------

REQUEST: Final = "stillreel.request"
"""Hash of what was asked for, to tell a replay from another request under the same key."""
NONCE: Final = "stillreel.nonce"
"""Which submit made the run: Prefect's bulk create does not tell a replay from a new run."""
TOKEN: Final = "stillreel.token"  # noqa: S105 - a name
"""What the run shows to `/webhook/complete`."""
ROUND: Final = "stillreel.round"
DEADLINE: Final = "stillreel.deadline"
"""ISO time; a job that has not started by then is expired."""
BATCH: Final = "stillreel.batch"
PRIORITY: Final = "stillreel.priority"
CANCELLED: Final = "stillreel.cancelled"
"""ISO time at which somebody asked for the end of the job."""
DELETED: Final = "stillreel.deleted"
"""ISO time at which somebody asked for the deletion; from then on the job is gone for callers."""
DELETED_BY: Final = "stillreel.deleted_by"
"""Which key asked."""
MODEL: Final = "stillreel.model"
OWNER: Final = "stillreel.owner"
KEY_ID: Final = "stillreel.key"
"""Which key of the owner submitted the job; for the audit and the usage by key."""
USD: Final = "stillreel.usd"
GPU_SECONDS: Final = "stillreel.gpu_seconds"
TOOK_SECONDS: Final = "stillreel.took_seconds"
"""From the start of the run to its end."""
SETTLED: Final = "stillreel.settled"
"""The round that has ended for good, and whose cost stands in the labels."""
END: Final = "stillreel.end"
"""How the settled round ended: the first end stands, whatever its run is said to do later."""
END_AT: Final = "stillreel.end_at"
"""When that was, as an ISO time."""
END_CODE: Final = "stillreel.end_code"
END_ERROR: Final = "stillreel.end_error"
"""Code and text of the reason; empty where there is a video."""
ATTEMPT: Final = "stillreel.attempt"
"""`<round>-<attempt>`, to be shown only: what counts stands in the states of the run."""
DELIVERED: Final = "stillreel.delivered"
"""The round whose notification a receiver has taken, or that had no receiver."""
ATTEMPTS: Final = "stillreel.delivery_attempts"
NEXT_ATTEMPT: Final = "stillreel.delivery_next"
DELIVERY_ERROR: Final = "stillreel.delivery_error"
TRIED: Final = "stillreel.delivery_tried"
"""Whether there may be attempts in the delivery log."""

# --- labels of tombstones -----------------------------------------------------------------------

CREATED: Final = "stillreel.created"
ENDED: Final = "stillreel.ended"
"""ISO times of the job, which its tombstone does not have by itself."""
STATUS: Final = "stillreel.status"
"""How the job had ended."""
ERASED_RUN: Final = "stillreel.erased_run"
"""Id of the flow run that was deleted."""
