"""What machines boot from, as the tools read it that know the format."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from stillreel.bucket_rules import CORS_NAME, with_cors, with_lifecycle
from stillreel.fleet.cloud_init import user_data
from stillreel.fleet.labels import Label
from stillreel.fleet.provider import Boot
from stillreel.project import project_dir
from stillreel.settings import StorageSettings

Require = Callable[[str, bool], None]
INFRA = project_dir() / "infra"
SCRIPTS = sorted(INFRA.rglob("*.sh"))


def rented_host() -> str:
    """The user data of a rented EC2 host."""
    until = datetime.now(UTC) + timedelta(hours=4)
    boot = Boot(Label("main", str(uuid4()), 1), "g5", "wan-2.2", until, {"A": "1"}, 100)
    return user_data(boot, image="a/b@sha256:1")


def test_systemd_has_nothing_to_say_about_the_hosts_unit(require: Require, tmp_path: Path) -> None:
    written = yaml.safe_load(rented_host())["write_files"]
    (unit,) = [file for file in written if file["path"].endswith(".service")]
    path = tmp_path / Path(unit["path"]).name
    path.write_text(unit["content"].replace("/usr/bin/docker", "/bin/true"))
    assert_verified(require, path)


def test_systemd_has_nothing_to_say_about_the_one_machines_unit(
    require: Require, tmp_path: Path
) -> None:
    text = (INFRA / "ec2" / "stillreel.service").read_text()
    path = tmp_path / "stillreel.service"
    path.write_text(text.replace("/opt/stillreel/venv/bin/stillreel", "/bin/true"))
    assert_verified(require, path)
    scored = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert scored.returncode == 0, scored.stdout  # 4.0 or better


def test_a_command_on_the_one_machine_runs_as_its_service_does() -> None:
    """The page's systemd-run: the same user, settings and programs as the unit's."""
    unit = (INFRA / "ec2" / "stillreel.service").read_text()
    page = (project_dir() / "docs" / "operations.md").read_text().replace("\\\n", " ")
    words = shlex.split(found(r"^(sudo systemd-run .*)$", page))
    told = [words[n + 1] for n, word in enumerate(words) if word == "-p"]
    assert {name.partition("=")[0] for name in told} == {
        *("User", "UMask", "EnvironmentFile", "Environment")
    }
    for line in told:
        name, _, values = line.partition("=")
        for value in values.split():
            wanted = rf"^{name}=(.* )?{re.escape(value)}( |$)"
            assert re.search(wanted, unit, re.MULTILINE), line
    assert words[-3:] == [*found(r"^ExecStart=(\S+)", unit).split(), "storage", "init"]


def test_cloud_init_takes_the_user_data_of_a_rented_host(require: Require, tmp_path: Path) -> None:
    require("cloud-init (tests/services/install.sh)", bool(shutil.which("cloud-init")))
    path = tmp_path / "user-data"
    path.write_text(rented_host())
    done = subprocess.run(
        ["cloud-init", "schema", "--config-file", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid" in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_script_has_no_fault_that_shellcheck_knows(require: Require, path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    require("shellcheck (tests/services/install.sh)", bool(shutil.which("shellcheck")))
    done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert os.access(path, os.X_OK)


RAILWAY_FILES = [project_dir() / "railway.toml", *sorted((INFRA / "railway").glob("*.toml"))]
RAILWAY: dict[str, dict[str, Any]] = {
    "build": {
        "builder": lambda v: v in ("RAILPACK", "DOCKERFILE"),
        "dockerfilePath": lambda v: (project_dir() / v).is_file(),
        "watchPatterns": lambda v: all(isinstance(text, str) for text in v),
    },
    "deploy": {
        "preDeployCommand": lambda v: isinstance(v, list),
        "startCommand": lambda v: v.startswith("stillreel "),
        "healthcheckPath": lambda v: v.startswith("/"),
        "healthcheckTimeout": lambda v: 0 < v <= 3600,
        "restartPolicyType": lambda v: v in ("ON_FAILURE", "ALWAYS", "NEVER"),
        "restartPolicyMaxRetries": lambda v: v > 0,
        "drainingSeconds": lambda v: v >= 0,
    },
}
"""The part of Railway's configuration as code that we use, as its reference has it in 2026-11."""


@pytest.mark.parametrize("path", RAILWAY_FILES, ids=lambda path: path.name)
def test_railway_files_say_what_railway_knows(path: Path) -> None:
    found = tomllib.loads(path.read_text())
    assert set(found) == set(RAILWAY)
    for part, values in found.items():
        for name, value in values.items():
            assert RAILWAY[part][name](value), f"{part}.{name} = {value!r}"


def test_on_railway_the_deployments_are_made_where_the_account_is_and_nowhere_else() -> None:
    """`stillreel deploy` switches the schedules off where it finds no account to rent from."""
    commands = {
        part["startCommand"]: part.get("preDeployCommand")
        for part in (tomllib.loads(path.read_text())["deploy"] for path in RAILWAY_FILES)
    }
    assert commands == {
        "stillreel api": None,
        "stillreel server": None,
        "stillreel control": ["stillreel deploy"],
    }


TERRAFORM = INFRA / "terraform"


def test_terraform_is_formatted() -> None:
    if not shutil.which("terraform"):
        pytest.skip("terraform is in no package registry, so it is here by luck only")
    done = terraform("fmt", "-check", "-diff", folder=TERRAFORM)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_terraform_finds_the_static_part_valid(tmp_path: Path) -> None:
    if not shutil.which("terraform"):
        pytest.skip("terraform is in no package registry, so it is here by luck only")
    shutil.copytree(TERRAFORM, tmp_path / "static")
    init = terraform("init", "-backend=false", "-input=false", folder=tmp_path / "static")
    if init.returncode:
        pytest.skip("terraform's AWS provider is in no package registry, and is not here")
    done = terraform("validate", folder=tmp_path / "static")
    assert done.returncode == 0, done.stdout + done.stderr


def test_terraform_and_storage_init_set_the_same_rules() -> None:
    """Else each would undo what the other has done."""
    text = "".join(path.read_text() for path in sorted(TERRAFORM.glob("*.tf")))
    settings = StorageSettings()
    days = {
        rule["ID"].removeprefix("stillreel-"): rule["Expiration"]["Days"]
        for rule in with_lifecycle([], settings)
        if "Expiration" in rule
    }
    assert days == {
        "temp": int(found(r"temp +?= (\d+)", text)),
        "latents": int(found(r'"latents_days" \{\n.*\n +default +?= (\d+)', text)),
        "results": int(found(r'"results_days" \{\n.*\n +default +?= (\d+)', text)),
    }
    [cors] = with_cors([], settings)
    assert found(r' id +?= "(stillreel-browsers)"', text) == CORS_NAME
    for name, key in (
        ("allowed_methods", "AllowedMethods"),
        ("allowed_headers", "AllowedHeaders"),
        ("expose_headers", "ExposeHeaders"),
    ):
        assert re.findall(r'"([^"]+)"', found(rf"{name} +?= \[(.*)\]", text)) == cors[key]


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match, pattern
    return match[1]


def terraform(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"CHECKPOINT_DISABLE": "1"}
    config = env.get("TF_CLI_CONFIG_FILE", "")
    if config and not Path(config).exists():
        env["TF_CLI_CONFIG_FILE"] = os.devnull
    return subprocess.run(
        ["terraform", *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def assert_verified(require: Require, path: Path) -> None:
    require("systemd-analyze", bool(shutil.which("systemd-analyze")))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # it only warns of mistakes
