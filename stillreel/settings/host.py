"""Settings of the machine that works."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from stillreel.settings.concern import Concern, absolute_path


class HostSettings(Concern):
    """This machine: where files lie and how much work it takes."""

    home: Path = Field(
        Path("~/.stillreel"),
        description="Directory of everything this machine keeps: work files, local storage, "
        "Prefect's database in the one-machine setup.",
    )
    host_name: str = Field(
        default_factory=socket.gethostname, description="Name of this host in results and logs."
    )
    limit: int = Field(
        3,
        ge=1,
        le=32,
        description="Jobs that a host works on at once; one infers, the others encode and upload.",
    )
    gpus: int = Field(1, ge=1, le=16, description="Inference servers on a host, one per GPU.")
    encode_threads: int = Field(
        default_factory=lambda: max(
            1,
            min(
                8,
                len(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else os.cpu_count() or 1,
            ),
        ),
        ge=1,
        le=64,
        description="Threads of one encode.",
    )
    nvenc: bool = Field(
        False,
        description="Encode H.264 on the GPU where it can (an A10G can, an A100 cannot); else, and "
        "where that fails, on the CPU.",
    )
    host_price: float = Field(
        0.0, ge=0, description="US$ per hour of this host, for the cost in each result."
    )
    embed_prompt: bool = Field(
        True,
        description="Write prompt, style and camera into the file and the receipt; false leaves "
        "them out whatever an order says. The same on all hosts.",
    )
    c2pa_cert: Path | None = Field(
        None,
        description="PEM file of the certificate, and of those up to its root, with which Content "
        "Credentials (C2PA) are signed into each video (docs/provenance.md).",
    )
    c2pa_key: Path | None = Field(None, description="PEM file of that certificate's private key.")
    c2pa_timestamp_url: str = Field(
        "",
        description="Time stamp authority (RFC 3161) that is asked for each signature, so that it "
        "outlives its certificate.",
    )
    spot_notice: bool = Field(
        False,
        description="This host is an EC2 spot instance: when AWS gives the two minutes' notice, it "
        "hands its jobs back and ends. Name it in STILLREEL_RENTED_ENV for rented hosts.",
    )

    styles: Path | None = Field(
        None,
        description="File of your own styles (docs/styles.md), the same on the API's machine and "
        "on all hosts.",
    )

    @field_validator("home", "styles", "c2pa_cert", "c2pa_key")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value and absolute_path(value)

    @field_validator("c2pa_timestamp_url")
    @classmethod
    def _authority(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("it is no http or https address")
        if parts.username or parts.password or parts.query:
            raise ValueError("an address with a password or a query is not taken: it is logged")
        return value

    @property
    def work_dir(self) -> Path:
        """Files of running jobs; may be deleted when nothing runs."""
        return self.home / "work"
