"""The set-up scripts, run with tools that only write down what they are asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stillreel.project import project_dir

INFRA = project_dir() / "infra"
SAY = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >>"$LOG"\n'
INSTALL = """#!/usr/bin/env bash
words=() dir=
while (($#)); do
  case "$1" in
    --directory) dir=yes ;;
    --owner | --group | --mode) shift ;;
    *) words+=("$1") ;;
  esac
  shift
done
if [[ -n "$dir" ]]; then mkdir -p "${words[@]}"; else cp "${words[@]}"; fi
"""
OLD = "#!/bin/sh\nexit 1\n"
"""A Python that is too old for all that it is asked."""


class Tools:
    """A machine's commands: those that are named here, then the real ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.bin.mkdir()
        self.log.touch()

    def add(self, name: str, text: str, folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o700)

    def environment(self, target: Path) -> None:
        """A virtual environment that is there already."""
        self.add("pip", SAY, target / "bin")
        self.add("stillreel", SAY, target / "bin")
        (target / "bin" / "python").symlink_to(sys.executable)

    def run(self, script: str, *words: str, **env: str) -> list[str]:
        """What the tools were asked for by this run; it has to end with 0."""
        self.log.write_text("")
        done = subprocess.run(
            ["bash", str(INFRA / script), *words],
            env={"PATH": f"{self.bin}:{os.environ['PATH']}", "LOG": str(self.log), **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return self.log.read_text().splitlines()


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    made = Tools(tmp_path)
    made.add("dpkg-query", "#!/bin/sh\necho install ok installed\n")
    made.add("apt-get", SAY)
    return made


def test_install_takes_the_machines_own_python_where_it_will_do(
    tools: Tools, tmp_path: Path
) -> None:
    target = tmp_path / "venv"
    made = (
        f'#!/usr/bin/env bash\n[[ "$1" == -c ]] && exit 0\necho "python $*" >>"$LOG"\n'
        f"mkdir -p {target}/bin\ncp {tools.bin}/pip-said {target}/bin/pip\n"
        f"cp {tools.bin}/pip-said {target}/bin/stillreel\n"
    )
    tools.add("pip-said", SAY)
    for name in ("python3.13", "python3.12", "python3"):
        tools.add(name, OLD)
    tools.add("python3.11", made)
    asked = tools.run("install.sh", str(target))
    assert asked[0] == f"python -m venv {target}"
    assert asked[1].startswith("pip install --quiet --constraint ")
    assert asked[1].endswith(str(project_dir()))
    assert asked[2] == "stillreel version"
    assert not any("apt-get" in line for line in asked)


def test_install_brings_a_python_where_all_are_too_old(tools: Tools, tmp_path: Path) -> None:
    target = tmp_path / "venv"
    for name in ("python3.13", "python3.12", "python3.11"):
        tools.add(name, OLD)
    tools.add("said", SAY)
    copies = f"for n in pip stillreel; do cp {tools.bin}/said {target}/bin/$n; done\n"
    uv = f"{SAY}mkdir -p {target}/bin\n{copies}"
    tools.add("uv", uv)
    tools.add(
        "python3",
        '#!/usr/bin/env bash\n[[ "$1" == -c ]] && exit 1\n'
        f'mkdir -p "$3/bin"\ncp {tools.bin}/uv "$3/bin/uv"\ncp {tools.bin}/said "$3/bin/pip"\n',
    )
    asked = tools.run("install.sh", str(target), "models")
    assert asked[0].startswith("pip install --quiet uv==")
    assert asked[1].startswith("uv venv ")
    assert asked[1].endswith(f"--managed-python --python 3.11 {target}")
    assert asked[2].endswith(f"{project_dir()}[models]")


def test_install_again_keeps_the_environment(tools: Tools, tmp_path: Path) -> None:
    target = tmp_path / "venv"
    tools.environment(target)
    asked = tools.run("install.sh", str(target), "models")
    assert [line.split()[0] for line in asked] == ["pip", "stillreel"]


def test_packages_that_are_missing_are_installed(tools: Tools, tmp_path: Path) -> None:
    tools.environment(tmp_path / "venv")
    tools.add("dpkg-query", "#!/bin/sh\nexit 1\n")
    asked = tools.run("install.sh", str(tmp_path / "venv"))
    assert asked[1] == "apt-get install -y -qq --no-install-recommends ca-certificates curl"


def test_vast_setup_installs_fetches_and_puts_everything_in_the_workspace(
    tools: Tools, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    tools.environment(workspace / "venv")
    env = {"WORKSPACE": str(workspace), "BIN": str(tools.bin), "PRESET": "fast"}
    for _ in range(2):
        asked = tools.run("vast/setup.sh", MODEL="wan-2.2", **env)
        assert asked[-1] == "stillreel models pull wan-2.2 --preset fast"
    assert (workspace / "start_worker.sh").resolve() == INFRA / "vast" / "start_worker.sh"
    assert (tools.bin / "stillreel").resolve() == workspace / "venv" / "bin" / "stillreel"


@pytest.fixture
def machine(tools: Tools, tmp_path: Path) -> dict[str, str]:
    """An EC2 machine on which we are root."""
    tools.add("id", "#!/bin/sh\necho 0\n")
    tools.add("install", INSTALL)
    tools.add("getent", "#!/bin/sh\n[ $1 = group ]\n")
    tools.add("setpriv", f'{SAY}while [[ "$1" != env ]]; do shift; done\nexec "$@"\n')
    for name in ("useradd", "usermod", "chown", "systemctl"):
        tools.add(name, SAY)
    tools.environment(tmp_path / "venv")
    (tmp_path / "units").mkdir()
    return {
        "DATA": str(tmp_path / "data"),
        "TARGET": str(tmp_path / "venv"),
        "UNITS": str(tmp_path / "units"),
    }


def test_ec2_setup_makes_one_service_and_keeps_what_is_there(
    tools: Tools, machine: dict[str, str], tmp_path: Path
) -> None:
    asked = tools.run("ec2/setup.sh", **machine)
    env = tmp_path / "data" / ".env"
    first = env.read_text()
    [key] = [line for line in first.splitlines() if line.startswith("API_SECRET_KEY=")]
    assert len(key) == len("API_SECRET_KEY=") + 48
    assert env.stat().st_mode & 0o777 == 0o640
    assert any(line.startswith("useradd --system") for line in asked)
    assert "usermod --append --groups video stillreel" in asked
    assert "stillreel models pull wan-2.2" in asked
    assert asked[-3:] == [
        "systemctl daemon-reload",
        "systemctl enable --quiet stillreel.service",
        "systemctl restart stillreel.service",
    ]
    unit = (tmp_path / "units" / "stillreel.service").read_text()
    assert unit == (INFRA / "ec2" / "stillreel.service").read_text()

    again = tools.run("ec2/setup.sh", PULL="no", **machine)
    assert env.read_text() == first
    assert "stillreel models pull wan-2.2" not in again


def test_ec2_setup_says_that_it_needs_root(tools: Tools) -> None:
    tools.add("id", "#!/bin/sh\necho 1000\n")
    done = subprocess.run(
        ["bash", str(INFRA / "ec2" / "setup.sh")],
        env={"PATH": f"{tools.bin}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs root: sudo" in done.stderr


@pytest.mark.parametrize("word", ["start", "stop"])
def test_start_and_stop_are_the_services_on_its_machine_and_the_instances_elsewhere(
    tools: Tools, word: str
) -> None:
    tools.add("stillreel", SAY)
    tools.add("systemctl", SAY)
    assert tools.run(f"ec2/{word}.sh")[-1] == f"systemctl {word} stillreel.service"
    tools.add("systemctl", OLD)
    assert tools.run(f"ec2/{word}.sh") == [f"stillreel fleet {word}"]


SAY_PASSWORD = """#!/usr/bin/env bash
echo "$(basename "$0") $* / $PGPASSWORD" >>"$LOG"
while (($#)); do
  case "$1" in
    --file) touch "$2" ;;
    --command) echo 0 ;;
  esac
  shift
done
"""


@pytest.mark.parametrize("script", ["backup.sh", "restore.sh"])
@pytest.mark.parametrize(
    ("password", "written"),
    [("s3cret", "s3cret"), ("a@b/c%d:e", "a%40b%2Fc%25d:e"), ("back\\slash+", "back\\slash+")],
)
def test_the_databases_password_is_in_no_command_line(
    tools: Tools, tmp_path: Path, script: str, password: str, written: str
) -> None:
    for name in ("pg_dump", "pg_restore", "psql"):
        tools.add(name, SAY_PASSWORD)
    asked = tools.run(
        script,
        str(tmp_path / "dump"),
        DATABASE_URL=f"postgresql://me:{written}@db:5432/prefect?sslmode=require",
    )
    assert len(asked) >= 2
    for line in asked:
        argv, _, told = line.rpartition(" / ")
        assert told == password
        assert written not in argv
        assert "--dbname" not in argv or "postgresql://me@db:5432/prefect?sslmode=require" in argv


def test_an_address_without_a_password_stays_as_it_is(tools: Tools, tmp_path: Path) -> None:
    for name in ("pg_dump", "pg_restore"):
        tools.add(name, SAY_PASSWORD)
    [dump, _] = tools.run(
        "backup.sh", str(tmp_path / "dump"), DATABASE_URL="postgresql://db/prefect"
    )
    assert dump.endswith("--dbname postgresql://db/prefect / ")


def test_a_password_at_another_place_is_refused(tools: Tools, tmp_path: Path) -> None:
    tools.add("pg_dump", SAY_PASSWORD)
    done = subprocess.run(
        ["bash", str(INFRA / "backup.sh"), str(tmp_path / "dump")],
        env={
            "PATH": f"{tools.bin}:{os.environ['PATH']}",
            "LOG": str(tools.log),
            "DATABASE_URL": "postgresql://me@db/prefect?password=s3cret",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "write it there" in done.stderr
    assert "s3cret" not in done.stderr
    assert tools.log.read_text() == ""
