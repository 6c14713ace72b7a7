"""The production server of infra/compose.yaml: its commands and environments, as real processes."""

from __future__ import annotations

import base64
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import stamina
import yaml

from stillreel.project import project_dir
from stillreel.settings import CONCERNS
from tests.compose import FILE, PACKAGES, Compose, make_env, read_services, running_compose
from tests.s3 import Bucket
from tests.services import postgres as postgres_service
from tests.services import redis as redis_service
from tests.services.redis import redis_cli

WAIT_SECONDS = 240.0
UI = "https://prefect.example.com"
OURS = ("STILLREEL_", "R2_", "S3_", "AWS_", "VAST_")


@pytest.fixture(scope="module")
def compose(require: Callable[[str, bool], None], bucket: Bucket) -> Iterator[Compose]:
    """Prefect server and services, two replicas of the API, and a host with `preview`."""
    require("Postgres (tests/services/install.sh)", postgres_service.is_installed())
    require("Redis (tests/services/install.sh)", redis_service.is_installed())
    require("prefect-redis (make services)", (PACKAGES / "prefect_redis").is_dir())
    bucket.client.create_bucket(Bucket="compose")  # one bucket, one installation
    env = bucket.env | {"S3_BUCKET": "compose", "PREFECT_UI_ORIGIN": UI}
    with running_compose(STILLREEL_MODELS="preview", **env) as made:
        made.start("prefect")
        made.start("services")
        for replica in ("1", "2"):
            made.start("api", instance=replica, wait=False)
        made.start("host")
        for replica in ("1", "2"):
            made.wait("api", instance=replica)
        yield made


@pytest.mark.timeout(900)
def test_a_job_is_ordered_at_one_replica_and_watched_at_the_other(compose: Compose) -> None:
    with client(compose, "api1") as first, client(compose, "api2") as second:
        order = {
            "prompt": "zoom in",
            "duration": 0.5,
            "width": 128,
            "height": 72,
            "model": "preview",
        }
        headers = {"Idempotency-Key": "one-and-the-same"}

        made = first.post("/api/v1/generate", json=order, headers=headers)
        again = second.post("/api/v1/generate", json=order, headers=headers)

        assert made.is_success, made.text
        job_id = made.json()["job_id"]
        assert again.json()["job_id"] == job_id
        job = wait_for(lambda: second.get(f"/api/v1/jobs/{job_id}").json(), "completed")
        video = httpx.get(job["result_url"], trust_env=False)
        assert video.content[4:8] == b"ftyp"
        assert first.get(f"/api/v1/jobs/{job_id}").json()["status"] == "completed"
    # what the servers tell each other goes by Redis, and their docket too
    keys = redis_cli(compose.ports["redis"], compose.env["REDIS_PASSWORD"], "keys", "*")
    assert "prefect" in keys


def test_the_prefect_server_is_closed_without_the_password(compose: Compose) -> None:
    url = f"http://127.0.0.1:{compose.ports['prefect']}"
    auth = tuple(compose.env["PREFECT_AUTH"].split(":"))
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        assert http.get("/api/health").status_code == 200
        assert http.post("/api/flows/filter", json={}).status_code == 401
        assert http.post("/api/flows/filter", json={}, auth=(auth[0], auth[1])).is_success
        assert http.get("/").status_code == 200  # the UI, which asks for the password
        settings = http.get("/ui-settings").json()
        assert (settings["api_url"], settings["auth"]) == ("/api", "BASIC")
        asked = {"Origin": UI, "Access-Control-Request-Method": "POST"}
        assert http.options("/api/flows/filter", headers=asked).headers[
            "access-control-allow-origin"
        ] in (UI,)
        other = http.options(
            "/api/flows/filter", headers=asked | {"Origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in other.headers


def test_the_servers_have_nothing_to_complain_about(compose: Compose) -> None:
    """E.g. that they look for Redis at another place than the one that they were told."""
    for name in ("prefect", "services"):
        assert "Traceback" not in compose.log(name), compose.log(name)[-3000:]


def test_no_secret_is_in_a_log(compose: Compose) -> None:
    secrets = [compose.env[name] for name in compose.env if is_secret(name)]
    secrets.append(compose.env["PREFECT_AUTH"].partition(":")[2])
    assert len(secrets) >= 6
    for name in compose.daemons:
        assert not [secret for secret in secrets if secret in compose.log(name)], name


# --- the file itself --------------------------------------------------------------------------


def test_it_does_not_start_without_secrets() -> None:
    with pytest.raises(KeyError, match=r"run infra/make-env\.sh"):
        read_services({})


def test_make_env_makes_each_secret_once(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    made = make_env(file)
    assert make_env(file) == made
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(base64.urlsafe_b64decode(made["PREFECT_ENCRYPTION_KEY"])) == 32
    assert len(set(made.values())) == len(made)
    read_services(made)


def test_every_variable_is_one_that_somebody_reads(tmp_path: Path) -> None:
    """A misspelt name would be a setting that silently does nothing."""
    from prefect.settings import Settings as PrefectSettings

    known = {
        choice
        for concern in CONCERNS.values()
        for field, info in concern.model_fields.items()
        for choice in [
            f"STILLREEL_{field.upper()}",
            *map(str, getattr(info.validation_alias, "choices", ())),
        ]
    }
    known |= names_of(PrefectSettings)
    known |= {"PREFECT_SERVER_ENCRYPTION_KEY"}  # read past Prefect's settings
    known |= {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"}  # of Postgres's image
    known |= {"HF_TOKEN"}  # of the hub's client, on rented hosts
    for name, service in read_services(make_env(tmp_path / ".env")).items():
        unknown = set(service.get("environment", {})) - known
        assert not unknown, f"{name}: {sorted(unknown)}"


NOT_PASSED = {
    "STILLREEL_HOME": "the image's",
    "STILLREEL_API_HOST": "the image's",
    "STILLREEL_RENTED_UNTIL": "of a host, set where it is rented",
    "STILLREEL_VAST_URL": "for tests",
    "STILLREEL_EC2_ENDPOINT": "for tests",
}


def test_what_the_pages_tell_people_to_set_reaches_the_services() -> None:
    """Compose passes the names that it lists and nothing else of infra/.env."""
    pages = [project_dir() / "docs" / name for name in ("operations.md", "fleet.md")]
    name_of = re.compile(r"\b(?:STILLREEL|R2|S3)_[A-Z0-9_]*[A-Z0-9]\b(?!_)|\bHF_TOKEN\b")
    told = {name for page in pages for name in name_of.findall(page.read_text())}
    assert {"R2_LOCATION", "HF_TOKEN", "STILLREEL_DRAIN_AUTO"} <= told
    fleet = CONCERNS["fleet"].model_fields
    told |= {
        str(getattr(info.validation_alias, "choices", (f"STILLREEL_{field.upper()}",))[-1])
        for field, info in fleet.items()
    }
    services = yaml.safe_load(FILE.read_text())["services"]
    passed = services["control"]["environment"]
    assert services["deploy"]["environment"] == passed
    assert sorted(told - set(passed)) == sorted(NOT_PASSED)


def test_what_is_not_set_leaves_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compose passes an empty text for it."""
    secrets = make_env(tmp_path / ".env")
    given = read_services(secrets)["control"]["environment"]
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        if name not in secrets and not value:
            monkeypatch.setenv(name, value)
    empty = [concern() for concern in CONCERNS.values()]
    assert len([name for name in given if os.environ.get(name) == ""]) > 40
    for name in given:
        monkeypatch.delenv(name, raising=False)
    assert empty == [concern() for concern in CONCERNS.values()]


def test_no_job_is_forgotten_whose_video_is_kept(tmp_path: Path) -> None:
    services = read_services(make_env(tmp_path / ".env"))
    days = int(services["api"]["environment"]["STILLREEL_OUTPUT_DAYS"] or 0)
    server = services["services"]["environment"]
    vacuumed = server["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"].split(",")
    kept = float(server["PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"]) / 86400
    assert "events" in vacuumed
    assert "flow_runs" not in vacuumed or 0 < days < kept


def test_ours_run_without_root_and_publish_on_loopback_only(tmp_path: Path) -> None:
    for name, service in read_services(make_env(tmp_path / ".env")).items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        if name in ("postgres", "redis"):
            assert "ports" not in service
            continue
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert "/data" in str(service["volumes"]), name


def test_a_wheel_takes_no_secrets_along() -> None:
    """hatch takes whole directories with all that lies there, ignored by git or not."""
    project = tomllib.loads((project_dir() / "pyproject.toml").read_text())
    taken = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert "infra/ec2/cloud-init.yaml" in taken
    for name in taken:
        path = project_dir() / name
        assert path.is_file() or FILE.parent not in (path, *path.parents), name


def test_the_file_names_only_what_it_has() -> None:
    found = yaml.safe_load(FILE.read_text())
    services = found["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        for volume in service.get("volumes", ()):
            assert volume == "/data" or volume.partition(":")[0] in found["volumes"], name


DOCKERFILES = sorted((project_dir() / "infra" / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_as_nobodys_root_and_holds_no_secret(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    assert re.search(r"^ENV .*STILLREEL_HOME=/data", text, re.MULTILINE)
    assert ("VOLUME /data" in text) is (path.name == "worker.Dockerfile")
    assert not re.search(r"^(ENV|ARG).*(KEY|SECRET|PASSWORD|TOKEN)", text, re.MULTILINE)
    for source in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (project_dir() / name).exists(), name


# --- helpers ----------------------------------------------------------------------------------


def client(compose: Compose, called: str) -> httpx.Client:
    return httpx.Client(
        base_url=f"http://127.0.0.1:{compose.ports[called]}",
        headers={"Authorization": f"Bearer {compose.env['STILLREEL_API_KEY']}"},
        trust_env=False,
        timeout=60,
    )


def wait_for(read: Callable[[], dict[str, Any]], status: str) -> dict[str, Any]:
    """The job, once it has this status; AssertionError when that takes too long."""
    for attempt in stamina.retry_context(
        on=AssertionError, attempts=None, timeout=WAIT_SECONDS, wait_initial=0.2, wait_max=1.0
    ):
        with attempt:
            job = read()
            assert job["status"] == status, job
            return job
    raise AssertionError("stamina gives an attempt or raises")


def names_of(settings: type[Any]) -> set[str]:
    """The variables that Prefect reads into these settings and those inside them."""
    prefix = settings.model_config["env_prefix"]
    found: set[str] = set()
    for field, info in settings.model_fields.items():
        choices = getattr(info.validation_alias, "choices", ())
        found |= {str(choice).upper() for choice in choices} | {f"{prefix}{field}".upper()}
        if isinstance(info.annotation, type) and hasattr(info.annotation, "model_fields"):
            found |= names_of(info.annotation)
    return found


def is_secret(name: str) -> bool:
    return any(word in name for word in ("PASSWORD", "SECRET", "KEY", "AUTH"))
