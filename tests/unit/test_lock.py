"""A lock file is held by one process, and by none that is dead."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stillreel.errors import SettingsInvalid
from stillreel.host import only_host, run_host
from stillreel.lock import only_one
from stillreel.settings import get_settings

HOLD = (
    "import sys; from pathlib import Path; from stillreel.lock import only_one\n"
    "with only_one(Path(sys.argv[1]), taken='taken'):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


def hold(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock now, until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "ended"])
def test_a_lock_is_held_until_its_holder_ends(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / "lock"
    with hold(path) as holder:
        with pytest.raises(SettingsInvalid, match="somebody has it"):
            only_one(path, taken="somebody has it", wait=0.05).__enter__()
        if killed:
            holder.kill()
        else:
            assert holder.stdin
            holder.stdin.close()
        with only_one(path, taken="never", wait=20):
            assert path.exists()
    assert not path.exists()


def test_a_lock_file_that_was_deleted_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with only_one(path, taken="taken"):
        path.unlink()
        with only_one(path, taken="taken"):
            assert path.exists()


def test_an_error_of_the_block_is_not_taken_for_a_held_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), only_one(tmp_path / "lock", taken="taken"):
        raise BlockingIOError


def test_a_second_host_on_one_home_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path / "home"))
    settings = get_settings()
    with only_host(settings), pytest.raises(SettingsInvalid, match="runs on this STILLREEL_HOME"):
        run_host(settings, pool="local", model="")
    for folder in (tmp_path / "home", tmp_path / "home" / "run"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
