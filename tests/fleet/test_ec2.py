"""Our driver of EC2: call shapes against moto, faults through botocore's Stubber.

What moto cannot show: that a ClientToken makes a second call harmless, that a disk goes with its
instance, that powering off terminates.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import boto3
import pytest
import yaml
from botocore.exceptions import ReadTimeoutError
from botocore.stub import Stubber

from stillreel.errors import (
    CreateUnknown,
    OfferGone,
    ProviderRefused,
    ProviderUnavailable,
    SettingsInvalid,
)
from stillreel.fleet.cloud_init import user_data
from stillreel.fleet.ec2 import TAG, Ec2
from stillreel.fleet.labels import Label, installation_prefix
from stillreel.fleet.needs import NEEDS
from stillreel.fleet.provider import Boot, HostState, Leftover, Offer
from stillreel.fleet.ranking import misfit
from stillreel.settings import get_settings

logging.getLogger("werkzeug").setLevel(logging.WARNING)
NEED = NEEDS["wan-2.2"]
MAIN = installation_prefix("main")
OFFER = Offer("g5.xlarge", "ec2", 1.01)
AMI = "ami-12c6146b"


@pytest.fixture
def aws(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests-secret",
        "STILLREEL_EC2_ENDPOINT": moto_url,
        "STILLREEL_EC2_AMI": "/stillreel/tests/ami",
        "STILLREEL_WORKER_IMAGE": "registry.example/stillreel@sha256:0123",
        "STILLREEL_EC2_PROFILE": "stillreel-host",
    }.items():
        monkeypatch.setenv(name, value)
    ssm = client(moto_url, "ssm")
    ssm.put_parameter(Name="/stillreel/tests/ami", Value=AMI, Type="String", Overwrite=True)
    iam = client(moto_url, "iam")
    if not iam.list_instance_profiles()["InstanceProfiles"]:
        iam.create_instance_profile(InstanceProfileName="stillreel-host")
    return client(moto_url, "ec2")


@pytest.fixture
def ec2(aws: Any) -> Iterator[Ec2]:
    driver = Ec2(get_settings().fleet)
    yield driver
    for host in driver.list("stillreel-"):
        driver.destroy(host.id)
    driver.close()


def client(endpoint: str, service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="tests",
        aws_secret_access_key="tests-secret",
    )


def boot_of(number: int = 1, *, installation: str = "main") -> Boot:
    return Boot(
        label=Label(installation, str(uuid4()), number),
        pool="g5",
        model="wan-2.2",
        deadline=datetime.now(UTC) + timedelta(hours=4),
        env={"STILLREEL_HOST_NAME": "h", "PREFECT_API_AUTH_STRING": "it's $ecret"},
        disk_gb=100,
    )


def test_an_instance_is_launched_so_that_it_cannot_outlive_its_work(ec2: Ec2, aws: Any) -> None:
    boot = boot_of()
    made = ec2.create(OFFER, boot)

    (row,) = aws.describe_instances(InstanceIds=[made.id])["Reservations"][0]["Instances"]
    assert (row["InstanceType"], row["ImageId"], row["ClientToken"]) == (
        "g5.xlarge",
        AMI,
        str(boot.label),
    )
    assert row["IamInstanceProfile"]["Arn"].endswith("/stillreel-host")
    assert row["MetadataOptions"]["HttpTokens"] == "required"
    assert row["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert "InstanceLifecycle" not in row
    ends = aws.describe_instance_attribute(
        InstanceId=made.id, Attribute="instanceInitiatedShutdownBehavior"
    )
    assert ends["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    (volume,) = aws.describe_volumes(Filters=[{"Name": f"tag:{TAG}", "Values": [str(boot.label)]}])[
        "Volumes"
    ]
    assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (100, "gp3", True)
    sent = aws.describe_instance_attribute(InstanceId=made.id, Attribute="userData")
    text = base64.b64decode(sent["UserData"]["Value"]).decode()
    assert yaml.safe_load(text)["bootcmd"][0].startswith("systemd-run --on-active=14")


def test_a_host_is_seen_and_given_back(ec2: Ec2, aws: Any) -> None:
    boot = boot_of()
    made = ec2.create(OFFER, boot)
    (listed,) = ec2.list(MAIN)
    assert (listed.id, listed.label) == (made.id, boot.label)
    assert listed.state in (HostState.BOOTING, HostState.RUNNING)
    assert listed.created_at
    assert ec2.get(made.id)
    ec2.destroy(made.id)
    ec2.destroy(made.id)
    assert ec2.get(made.id) is None
    assert ec2.list(MAIN) == []
    assert ec2.get("i-0123456789abcdef0") is None
    ec2.destroy("i-0123456789abcdef0")


def test_nobody_elses_instances_are_seen(ec2: Ec2, aws: Any) -> None:
    aws.run_instances(ImageId=AMI, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    other = ec2.create(OFFER, boot_of(installation="mainframe"))
    mine = ec2.create(OFFER, boot_of())
    assert [host.id for host in ec2.list(MAIN)] == [mine.id]
    assert ec2.get(other.id)


def test_a_spot_instance_is_one_time_and_ends_when_it_is_taken_back(ec2: Ec2, aws: Any) -> None:
    (offer,) = ec2.offers(NEED, interruptible=True)
    assert offer.usd_per_hour_at_most == pytest.approx(1.2 + 100 * 0.08 / 730)
    made = ec2.create(offer, boot_of())
    (row,) = aws.describe_instances(InstanceIds=[made.id])["Reservations"][0]["Instances"]
    assert row["InstanceLifecycle"] == "spot"
    market = ec2._launch(offer, boot_of())["InstanceMarketOptions"]["SpotOptions"]
    assert market == {
        "MaxPrice": "1.2000",  # STILLREEL_USD_PER_HOUR_MAX
        "SpotInstanceType": "one-time",
        "InstanceInterruptionBehavior": "terminate",
    }


def test_the_offer_of_a_g5_fits_what_wan_needs(ec2: Ec2) -> None:
    (offer,) = ec2.offers(NEED)
    assert misfit(offer, NEED, usd_per_hour_max=1.2) == ""
    assert (offer.gpu_name, offer.gpu_count) == ("A10G", 1)
    assert offer.usd_per_hour == pytest.approx(1.01 + 100 * 0.08 / 730)


def test_nothing_is_let_in_where_a_group_is_set(aws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_EC2_SECURITY_GROUP", "sg-1")
    monkeypatch.setenv("STILLREEL_EC2_SUBNET", "subnet-1")
    get_settings.cache_clear()
    driver = Ec2(get_settings().fleet)
    (network,) = driver._launch(OFFER, boot_of())["NetworkInterfaces"]
    assert (network["Groups"], network["SubnetId"]) == (["sg-1"], "subnet-1")
    driver.close()


def test_a_disk_that_was_left_behind_is_found_and_removed(ec2: Ec2, aws: Any) -> None:
    labels = {name: str(boot_of(installation=name).label) for name in ("main", "other")}
    ids = {
        name: aws.create_volume(
            AvailabilityZone="us-east-1a",
            Size=1,
            TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": TAG, "Value": label}]}],
        )["VolumeId"]
        for name, label in labels.items()
    }
    (found,) = ec2.leftovers(MAIN)
    assert (found.id, found.kind, str(found.label)) == (ids["main"], "volume", labels["main"])
    ec2.remove(found)
    ec2.remove(found)
    assert ec2.leftovers(MAIN) == []
    assert len(ec2.leftovers(installation_prefix("other"))) == 1


def test_a_kept_instance_is_stopped_and_started(ec2: Ec2, aws: Any) -> None:
    made = ec2.create(OFFER, boot_of())
    ec2.stop(made.id)
    ec2.stop(made.id)
    stopped = ec2.get(made.id)
    assert stopped
    assert stopped.state is HostState.STOPPED
    ec2.start(made.id)
    running = ec2.get(made.id)
    assert running
    assert running.state in (HostState.BOOTING, HostState.RUNNING)


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("InsufficientInstanceCapacity", 500, OfferGone),
        ("SpotMaxPriceTooLow", 400, OfferGone),
        ("MaxSpotInstanceCountExceeded", 400, OfferGone),
        ("VcpuLimitExceeded", 400, ProviderRefused),
        ("UnauthorizedOperation", 403, ProviderRefused),
        ("RequestLimitExceeded", 503, ProviderUnavailable),
        ("InternalError", 500, CreateUnknown),
        ("Unavailable", 503, CreateUnknown),
    ],
)
def test_a_launch_that_fails_says_how(
    ec2: Ec2, code: str, status: int, error: type[Exception]
) -> None:
    with Stubber(ec2._once) as stub:
        stub.add_client_error("run_instances", code, "text", status)
        with pytest.raises(error):
            ec2.create(OFFER, boot_of())
        stub.assert_no_pending_responses()


def test_a_launch_without_an_answer_is_not_known(ec2: Ec2, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(**_: Any) -> Any:
        raise ReadTimeoutError(endpoint_url="ec2")

    monkeypatch.setattr(ec2._once, "run_instances", silent)
    with pytest.raises(CreateUnknown):
        ec2.create(OFFER, boot_of())


def test_a_region_that_is_away_has_made_nothing(aws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_EC2_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("STILLREEL_EC2_AMI", AMI)
    get_settings.cache_clear()
    driver = Ec2(get_settings().fleet)
    with pytest.raises(ProviderUnavailable):
        driver.create(OFFER, boot_of())
    driver.close()


def test_the_timer_comes_first_and_needs_nothing_of_ours() -> None:
    boot = boot_of()
    text = user_data(boot, image="a/b@sha256:1", now=boot.deadline - timedelta(seconds=5000))
    config = yaml.safe_load(text)
    assert text.startswith("#cloud-config\n")
    (command,) = config["bootcmd"]
    assert "--on-active=5000s" in command
    assert command.endswith("|| systemctl poweroff --force")
    env, unit = config["write_files"]
    assert env["permissions"] == "0600"
    assert base64.b64decode(env["content"]).decode() == (
        "PREFECT_API_AUTH_STRING=it's $ecret\nSTILLREEL_HOST_NAME=h\n"
    )
    assert "a/b@sha256:1 --pool g5 --model wan-2.2\n" in unit["content"]
    for action in ("FailureAction=poweroff", "SuccessAction=poweroff"):
        assert action in unit["content"]


@pytest.mark.parametrize("image", ["", "a b", "a;poweroff", "$(x)", "-v", "a\nb"])
def test_an_image_that_is_more_than_a_name_is_refused(image: str) -> None:
    with pytest.raises(SettingsInvalid, match="STILLREEL_WORKER_IMAGE"):
        user_data(boot_of(), image=image)


def test_a_leftover_of_another_kind_is_cancelled_as_a_request(ec2: Ec2) -> None:
    label = boot_of().label
    with Stubber(ec2._ec2) as stub:
        stub.add_response(
            "cancel_spot_instance_requests",
            {"CancelledSpotInstanceRequests": []},
            {"SpotInstanceRequestIds": ["sir-1"]},
        )
        ec2.remove(Leftover("sir-1", "spot request", label))
        stub.assert_no_pending_responses()


def test_a_model_without_a_machine_at_ec2_is_named(ec2: Ec2) -> None:
    with pytest.raises(SettingsInvalid, match=r"STILLREEL_EC2_INSTANCE_TYPE.*ltx-2"):
        ec2.offers(NEEDS["ltx-2"])


def test_an_instance_without_our_tag_is_not_gone(ec2: Ec2, aws: Any) -> None:
    host = ec2.create(OFFER, boot_of())
    aws.delete_tags(Resources=[host.id], Tags=[{"Key": TAG}])
    with pytest.raises(ProviderUnavailable, match="without our tag"):
        ec2.get(host.id)
    ec2.destroy(host.id)
    assert ec2.get(host.id) is None
