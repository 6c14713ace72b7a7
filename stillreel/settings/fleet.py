"""Settings of rented hosts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from stillreel.settings.concern import Concern, names
from stillreel.settings.texts import comma_separated


class FleetSettings(Concern):
    """Hosts that are rented while there is work: when, where, and for how much at most."""

    installation: str = Field(
        "main",
        pattern=r"^[a-z0-9]{1,16}$",
        description="Name of this installation in the labels of its rented hosts; no other on the "
        "same account may have it.",
    )
    fleet_provider: Literal["", "vast", "ec2"] = Field(
        "",
        description="Who rents hosts to us, of several accounts: `vast` or `ec2`; empty: by the "
        "model.",
    )
    ec2: bool = Field(
        False,
        description="There is an AWS account to rent from; its credentials are found as AWS's own "
        "tools find them.",
    )
    allow_untrusted_hosts: bool = Field(
        False,
        description="With STILLREEL_RENTED_VIA=direct: rent from a provider whose machine owners "
        "can read what lies there (Vast.ai), although such a host gets the Prefect server's "
        "password.",
    )
    usd_per_hour_max: float = Field(
        1.2, gt=0, le=100, description="Most that a rented host may cost, in US$ per hour."
    )
    month_budget_usd: float = Field(
        50.0, ge=0, description="Most that rented hosts may cost in a month (UTC), in US$."
    )
    drain_threshold: int = Field(10, ge=1, description="A drain rents when so many jobs wait.")
    drain_oldest_hours: float = Field(
        168.0, gt=0, description="A drain rents when a job has waited so long."
    )
    drain_deadline_hours: float = Field(
        24.0, gt=0, description="A drain rents when the deadline of a waiting job is so near."
    )
    drain_auto: bool = Field(
        False,
        description="The schedules of drains ask the rule every five minutes rather than weekly.",
    )
    hosts_per_pool: int = Field(
        1, ge=1, le=50, description="Most hosts that one pool may have rented at once."
    )
    work_hours_per_host: float = Field(
        2.0,
        gt=0,
        description="A drain rents another host when those that it has need longer than so many "
        "hours for what is open, as far as one pool may have more.",
    )
    rent_interruptible: bool = Field(
        False,
        description="Rent interruptible (spot) hosts, and on-demand ones where there are none.",
    )
    boot_minutes: float = Field(
        20.0, gt=0, le=120, description="A rented host that is not at work by then is destroyed."
    )
    host_hours: float = Field(
        4.0, gt=0, le=48, description="Longest life of a rented host; then it is destroyed."
    )
    idle_minutes: float = Field(
        5.0, gt=0, le=120, description="A rented host without work ends itself after this time."
    )
    contact_minutes: float = Field(
        15.0,
        gt=0,
        le=120,
        description="A rented host that cannot reach the Prefect server for so long ends itself.",
    )
    progress_minutes: float = Field(
        45.0,
        gt=0,
        description="A rented host under which no job ends for so long is destroyed; longer than "
        "the longest job.",
    )
    rented_via: Literal["direct", "gateway"] = Field(
        "gateway",
        description="How rented hosts reach Prefect and storage: `gateway`, at `/lease` of "
        "STILLREEL_API_URL, by a token that ends with the lease and opens their own jobs only "
        "(docs/security.md), or `direct`, with the Prefect server's own password and the bucket's "
        "keys. The same on the API and on the control worker.",
    )
    rented_api_url: str = Field(
        "",
        description="Address of the Prefect API as rented hosts that go `direct` reach it; empty: "
        "PREFECT_API_URL.",
    )
    rented_env: Annotated[tuple[str, ...], NoDecode] = Field(
        ("S3_BUCKET", "S3_REGION", "S3_ENDPOINT"),
        description="Variables of the control side that rented hosts get too, comma-separated. "
        "Name no secret here that a stranger's machine may not have; with the gateway names of "
        "secrets (KEY, SECRET, TOKEN, PASSWORD, AUTH in them) are refused.",
    )
    rented_hf_token: bool = Field(
        False,
        description="Rented hosts get HF_TOKEN with the gateway too, for weights behind a gate; "
        "it has to be a Read token, of an account that has nothing else.",
    )
    vast_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=names("VAST_API_KEY", "VAST_API_KEY"),
        description="Key of your Vast.ai account; stays on the control side.",
    )
    vast_url: str = Field("https://console.vast.ai", description="Address of Vast.ai's API.")
    worker_image: str = Field(
        "",
        description="Container image of rented hosts, best by digest; its entrypoint is "
        "`infra/vast/start_worker.sh`.",
    )
    ec2_region: str = Field(
        "us-east-1",
        validation_alias=names("EC2_REGION"),
        description="Region of rented EC2 hosts; look first whether it has the instance type.",
    )
    ec2_endpoint: str = Field("", description="Address of an EC2-compatible server; empty for AWS.")
    ec2_ami: str = Field(
        "/aws/service/deeplearning/ami/x86_64/"
        "base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
        description="Machine image: an id (`ami-...`), or the SSM parameter that holds it.",
    )
    ec2_instance_type: str = Field("", description="Empty: by the model (`g5.xlarge`).")
    ec2_usd_per_hour: float = Field(
        1.01, gt=0, description="Price of that type; EC2's API does not tell it for on-demand."
    )
    ec2_profile: str = Field("", description="Instance profile: the role of rented EC2 hosts.")
    ec2_subnet: str = Field("", description="Subnet of rented EC2 hosts; empty: the default one.")
    ec2_security_group: str = Field(
        "", description="Security group of rented EC2 hosts; one that lets nothing in."
    )
    ec2_kept_instance: str = Field(
        "", description="Instance that `stillreel fleet start` and `stop` start and stop."
    )

    rented_until: float = Field(
        0.0,
        ge=0,
        description="When this host has to be gone, in seconds since 1970; set by us on rented "
        "hosts. 0: this host is not rented.",
    )

    @property
    def accounts(self) -> tuple[Literal["vast", "ec2"], ...]:
        """The providers that we have an account at; nowhere else are hosts rented or reaped."""
        vast: tuple[Literal["vast"], ...] = ("vast",) * bool(self.vast_api_key.get_secret_value())
        return (*vast, "ec2") if self.ec2 else vast

    @field_validator("rented_env", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return comma_separated(value)

    @field_validator("rented_api_url", "vast_url", "ec2_endpoint")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("is not an http or https address")
        return value.rstrip("/")
