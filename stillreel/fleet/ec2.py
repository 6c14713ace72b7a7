"""EC2: machines of our own account, which end by powering off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
)

from stillreel.errors import (
    CreateUnknown,
    OfferGone,
    ProviderRefused,
    ProviderUnavailable,
    SettingsInvalid,
)
from stillreel.fleet.cloud_init import user_data
from stillreel.fleet.labels import parse_label
from stillreel.fleet.provider import Boot, Host, HostState, Leftover, Need, Offer
from stillreel.settings import FleetSettings

TAG = "stillreel:label"
EXPIRES_TAG = "stillreel:expires"
SPOT = "/spot"
GB_PER_MIB = 1.048576e-3
DISK_USD_PER_GB_HOUR = 0.08 / 730
"""gp3 in us-east-1; other regions differ little."""
USD_PER_GB_UP = 0.09
INET_DOWN = 2000.0
"""Mb/s; a cautious figure, for these types are sold as "up to 10 Gb/s"."""
CALL_SECONDS = 30

_COSTING = ["pending", "running", "stopping", "stopped"]
_STATES = {
    "pending": HostState.BOOTING,
    "running": HostState.RUNNING,
    "stopping": HostState.STOPPED,
    "stopped": HostState.STOPPED,
}
_NO_ROOM = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "SpotMaxPriceTooLow",
        "MaxSpotInstanceCountExceeded",
        "Unsupported",
    }
)
_PASSING = frozenset({"RequestLimitExceeded", "Throttling", "ThrottlingException"})
_MISSING = frozenset({"InvalidInstanceID.NotFound", "InvalidVolume.NotFound"})


class Ec2:
    """The provider EC2, in one region."""

    name = "ec2"
    is_trusted = True

    def __init__(self, fleet: FleetSettings) -> None:
        self._fleet = fleet
        self._ec2 = self._client("ec2", tries=5)
        self._once = self._client("ec2", tries=1)
        """For creates, which nobody may send twice behind our back."""

    def close(self) -> None:
        """Give the connections back."""
        self._ec2.close()
        self._once.close()

    def offers(self, need: Need, *, interruptible: bool = False) -> list[Offer]:
        """The one machine type of this need: at its on-demand price, or at today's spot price."""
        kind = self._fleet.ec2_instance_type or need.instance_type
        if not kind:
            raise SettingsInvalid(
                f"STILLREEL_EC2_INSTANCE_TYPE: we know no EC2 machine for {need.model}; set one "
                "with a GPU that is large enough"
            )
        with _answers():
            found = self._ec2.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
            price = self._spot_price(kind) if interruptible else self._fleet.ec2_usd_per_hour
        if not found or price is None:
            return []
        disk = need.disk_gb * DISK_USD_PER_GB_HOUR
        gpus = found[0].get("GpuInfo", {}).get("Gpus", [])
        return [
            Offer(
                id=kind + (SPOT if interruptible else ""),
                provider=self.name,
                usd_per_hour=price + disk,
                gpu_name=gpus[0]["Name"] if gpus else "",
                gpu_count=sum(gpu["Count"] for gpu in gpus) if gpus else 1,
                gpu_gb=gpus[0]["MemoryInfo"]["SizeInMiB"] * GB_PER_MIB if gpus else 0.0,
                ram_gb=found[0]["MemoryInfo"]["SizeInMiB"] * GB_PER_MIB,
                disk_gb=float(need.disk_gb),  # as large as we ask for
                cuda=need.cuda,  # of the image, which we choose
                inet_down=INET_DOWN,
                usd_per_gb_up=USD_PER_GB_UP,
                is_interruptible=interruptible,
                usd_per_hour_at_most=self._fleet.usd_per_hour_max + disk if interruptible else 0.0,
            )
        ]

    def create(self, offer: Offer, boot: Boot) -> Host:
        """Start an instance by one call; its ClientToken is the label, so EC2 makes one at most."""
        order = self._launch(offer, boot)
        with _answers(creating=True):
            (made,) = self._once.run_instances(**order)["Instances"]
        return Host(
            made["InstanceId"],
            self.name,
            boot.label,
            HostState.BOOTING,
            offer.usd_per_hour,
            created_at=made["LaunchTime"],
        )

    def get(self, host_id: str) -> Host | None:
        """The host now; None when it is terminated, or being so, and billed no more.

        One that has lost our tag is not gone: it costs, so that is ProviderUnavailable.
        """
        try:
            with _answers():
                answer = self._ec2.describe_instances(InstanceIds=[host_id])
        except _Missing:
            return None
        rows = [row for group in answer["Reservations"] for row in group["Instances"]]
        if not rows or rows[0]["State"]["Name"] not in _COSTING:
            return None
        if host := _host_of(rows[0]):
            return host
        raise ProviderUnavailable(f"EC2 shows instance {host_id} without our tag")

    def list(self, prefix: str) -> list[Host]:
        """Our instances, by tag."""
        filters = [
            {"Name": f"tag:{TAG}", "Values": [f"{prefix}*"]},
            {"Name": "instance-state-name", "Values": _COSTING},
        ]
        with _answers():
            pages = self._ec2.get_paginator("describe_instances").paginate(Filters=filters)
            rows = [
                row
                for page in pages
                for group in page["Reservations"]
                for row in group["Instances"]
            ]
        return [host for host in map(_host_of, rows) if host and str(host.label).startswith(prefix)]

    def destroy(self, host_id: str) -> None:
        """Terminate it; fine when it is gone."""
        try:
            with _answers():
                self._ec2.terminate_instances(InstanceIds=[host_id])
        except _Missing:
            return

    def leftovers(self, prefix: str) -> list[Leftover]:
        """Disks that no instance has, and spot requests that may still start one."""
        tag = {"Name": f"tag:{TAG}", "Values": [f"{prefix}*"]}
        free = {"Name": "status", "Values": ["available"]}
        pending = {"Name": "state", "Values": ["open"]}
        with _answers():
            volumes = self._ec2.describe_volumes(Filters=[tag, free])["Volumes"]
            requests = self._ec2.describe_spot_instance_requests(Filters=[tag, pending])
        found = [("volume", row["VolumeId"], row) for row in volumes]
        found += [
            ("spot request", row["SpotInstanceRequestId"], row)
            for row in requests["SpotInstanceRequests"]
        ]
        labelled = ((kind, name, parse_label(_tag(row))) for kind, name, row in found)
        return [
            Leftover(name, kind, label)
            for kind, name, label in labelled
            if label and str(label).startswith(prefix)
        ]

    def remove(self, leftover: Leftover) -> None:
        """Delete the disk, or cancel the request; fine when it is gone."""
        try:
            with _answers():
                if leftover.kind == "volume":
                    self._ec2.delete_volume(VolumeId=leftover.id)
                else:
                    self._ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[leftover.id])
        except _Missing:
            return

    def start(self, instance_id: str) -> None:
        """Start the instance that is kept, with its weights on its disk; fine when it runs."""
        with _answers():
            self._ec2.start_instances(InstanceIds=[instance_id])

    def stop(self, instance_id: str) -> None:
        """Stop it: only its disk costs from then on; fine when it is stopped."""
        with _answers():
            self._ec2.stop_instances(InstanceIds=[instance_id])

    def _launch(self, offer: Offer, boot: Boot) -> dict[str, Any]:
        fleet, label = self._fleet, str(boot.label)
        tags = [
            {"Key": TAG, "Value": label},
            {"Key": EXPIRES_TAG, "Value": boot.deadline.isoformat()},
            {"Key": "Name", "Value": label},
        ]
        kinds = ["instance", "volume", *(["spot-instances-request"] * offer.is_interruptible)]
        network: dict[str, Any] = {"DeviceIndex": 0, "AssociatePublicIpAddress": True}
        if fleet.ec2_subnet:
            network["SubnetId"] = fleet.ec2_subnet
        if fleet.ec2_security_group:
            network["Groups"] = [fleet.ec2_security_group]
        order: dict[str, Any] = {
            "ImageId": self._image(),
            "InstanceType": offer.id.removesuffix(SPOT),
            "MinCount": 1,
            "MaxCount": 1,
            "ClientToken": label,
            "InstanceInitiatedShutdownBehavior": "terminate",
            "UserData": user_data(boot, image=fleet.worker_image),
            "MetadataOptions": {
                "HttpTokens": "required",
                "HttpPutResponseHopLimit": 1,
                "HttpEndpoint": "enabled",
            },
            "NetworkInterfaces": [network],
            "BlockDeviceMappings": [
                {
                    "DeviceName": "/dev/sda1",
                    "Ebs": {
                        "VolumeSize": boot.disk_gb,
                        "VolumeType": "gp3",
                        "Encrypted": True,
                        "DeleteOnTermination": True,
                    },
                }
            ],
            "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in kinds],
        }
        if fleet.ec2_profile:
            order["IamInstanceProfile"] = {"Name": fleet.ec2_profile}
        if offer.is_interruptible:
            # One-time: a persistent request starts another machine by itself, for ever.
            order["InstanceMarketOptions"] = {
                "MarketType": "spot",
                "SpotOptions": {
                    # Its price moves; this is the most that any host of ours may cost.
                    "MaxPrice": f"{fleet.usd_per_hour_max:.4f}",
                    "SpotInstanceType": "one-time",
                    "InstanceInterruptionBehavior": "terminate",
                },
            }
        return order

    def _image(self) -> str:
        named = self._fleet.ec2_ami
        if named.startswith("ami-"):
            return named
        ssm = self._client("ssm", tries=5)
        try:
            with _answers():
                return ssm.get_parameter(Name=named)["Parameter"]["Value"]
        finally:
            ssm.close()

    def _spot_price(self, kind: str) -> float | None:
        answer = self._ec2.describe_spot_price_history(
            InstanceTypes=[kind],
            ProductDescriptions=["Linux/UNIX"],
            StartTime=datetime.now(UTC) - timedelta(minutes=5),
        )
        prices = [float(row["SpotPrice"]) for row in answer["SpotPriceHistory"]]
        return max(prices) if prices else None  # which zone we get is not known yet

    def _client(self, service: str, *, tries: int) -> Any:
        return boto3.client(
            service,
            region_name=self._fleet.ec2_region,
            endpoint_url=self._fleet.ec2_endpoint or None,
            config=Config(
                connect_timeout=10,
                read_timeout=CALL_SECONDS,
                retries={"total_max_attempts": tries, "mode": "standard"},
            ),
        )


class _Missing(ProviderRefused):
    """There is no such thing at EC2."""


@contextmanager
def _answers(*, creating: bool = False) -> Iterator[None]:
    """EC2's errors as ours; a create whose answer is lost may have made a machine."""
    try:
        yield
    except NoCredentialsError as exc:
        raise SettingsInvalid(
            "there are no AWS credentials for renting; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or run where a role gives them"
        ) from exc
    except ClientError as exc:
        code = exc.response.get("Error", {}).get("Code", "")
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        words = f"EC2 answers {code or status}"
        if code in _MISSING:
            raise _Missing(words) from exc
        if code in _NO_ROOM:
            raise OfferGone(f"{words}: there is no such machine to be had now") from exc
        if code in _PASSING:
            raise ProviderUnavailable(words) from exc
        if code == "IncorrectInstanceState":
            raise ProviderUnavailable(f"{words}: it is just starting or stopping") from exc
        if code == "VcpuLimitExceeded":
            raise ProviderRefused(f"{words}: raise the account's quota of G instances") from exc
        if status >= 500:
            raise (CreateUnknown if creating else ProviderUnavailable)(words) from exc
        raise ProviderRefused(f"{words}; check the account's rights and the settings") from exc
    except (EndpointConnectionError, ConnectTimeoutError) as exc:
        raise ProviderUnavailable("EC2 cannot be reached") from exc
    except BotoCoreError as exc:
        raise (CreateUnknown if creating else ProviderUnavailable) from exc


def _host_of(row: dict[str, Any]) -> Host | None:
    label, state = parse_label(_tag(row)), _STATES.get(row["State"]["Name"])
    if label is None or state is None:
        return None
    return Host(
        row["InstanceId"],
        "ec2",
        label,
        state,
        created_at=row["LaunchTime"],
        note=str(row.get("StateTransitionReason") or "")[:200],
    )


def _tag(row: dict[str, Any]) -> str:
    return next((tag["Value"] for tag in row.get("Tags", []) if tag["Key"] == TAG), "")
