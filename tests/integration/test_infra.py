"""What rented machines boot from, as systemd itself reads it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import yaml

from stillreel.fleet.cloud_init import user_data
from stillreel.fleet.labels import Label
from stillreel.fleet.provider import Boot


def test_systemd_has_nothing_to_say_about_the_hosts_unit(
    require: Callable[[str, bool], None], tmp_path: Path
) -> None:
    require("systemd-analyze", bool(shutil.which("systemd-analyze")))
    until = datetime.now(UTC) + timedelta(hours=4)
    boot = Boot(Label("main", str(uuid4()), 1), "g5", "wan-2.2", until, {"A": "1"}, 100)
    written = yaml.safe_load(user_data(boot, image="a/b@sha256:1"))["write_files"]
    (unit,) = [file for file in written if file["path"].endswith(".service")]
    path = tmp_path / Path(unit["path"]).name
    path.write_text(unit["content"].replace("/usr/bin/docker", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # it only warns of mistakes
