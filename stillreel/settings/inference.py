"""Settings of the models."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from stillreel.settings.concern import names
from stillreel.settings.remote import RemoteSettings


class InferenceSettings(RemoteSettings):
    """The resident inference server."""

    model_path: str = Field(
        "",
        validation_alias=names("MODEL_PATH", "MODEL_PATH"),
        description="Directory of model weights: one pipeline folder, or several that are called "
        "like their repositories; empty uses the hub's cache.",
    )
    preview_seconds_per_step: float = Field(
        0.0, ge=0, le=60, description="Waiting time of a `preview` step, for load tests."
    )
    inference_socket: Path | None = Field(
        None, description="Socket of the inference server to use; empty: those of this host."
    )
    claim_seconds: float = Field(
        120.0, gt=0, description="An inference that nobody asks for is cancelled after this time."
    )
    server_wait_seconds: float = Field(
        600.0, ge=0, description="How long a job waits for its host's inference server to return."
    )
    stall_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds without a step after which an inference counts as stuck, for hosts "
        "that are slower than the model's own limit expects; 0: that limit.",
    )
