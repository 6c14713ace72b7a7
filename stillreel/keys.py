"""Names of objects in storage, all derived from the job's id."""

from __future__ import annotations

SIGNED_RECEIPT = "receipt.signed.json"
"""The name of the signed receipt, beside the receipt."""


def input_key(job_id: str, extension: str) -> str:
    """Where the bytes are kept that the caller sent; `extension` without a dot."""
    return f"inputs/{job_id}/input.{extension}"


def inline_key(job_id: str, sha256: str, extension: str) -> str:
    """The same for bytes that came inside a request: another request cannot write over them."""
    return f"inputs/{job_id}/input-{sha256[:16]}.{extension}"


def inputs_prefix(job_id: str) -> str:
    """What the key of an image begins with that was put or copied there for this job."""
    return f"inputs/{job_id}/input."


def source_key(job_id: str) -> str:
    """Where the decoded and fitted image is kept."""
    return f"inputs/{job_id}/source.png"


def latents_key(job_id: str, digest: str) -> str:
    """Where the latents of a job are kept."""
    return f"latents/{job_id}/{digest}.safetensors"


def lent_key(job_id: str, digest: str) -> str:
    """Where latents are kept that a host with lent storage made; other hosts take none from there.

    What such a file says of itself is its host's word. What another host goes by is the result of
    the task, which was compared with the order.
    """
    return f"latents/{job_id}/lent/{digest}.safetensors"


def reuse_key(owner: str, digest: str) -> str:
    """Where the latest latents of an owner with this digest are noted."""
    folder = f"owners/{owner}" if owner else "nobody"
    return f"latents/index/{folder}/{digest}.json"


def output_key(job_id: str, name: str) -> str:
    """Where a result is kept: output.mp4, poster.jpg, teaser.mp4 or receipt.json."""
    return f"outputs/{job_id}/{name}"
