"""Where the system has no Node, or an old one, the package is tested with one from PyPI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.convex.openapi import PACKAGE

SCRIPT = PACKAGE / "scripts" / "with-node.sh"
ROOT = PACKAGE.parent
OLD = """#!/bin/sh
# Node 18, as far as the script asks.
exit 1
"""


def which_node(path: str) -> Path:
    """Which `node` a command gets that the script runs with this PATH."""
    done = subprocess.run(
        [SCRIPT, "sh", "-c", "node --eval 'console.log(process.execPath)' && npm --version"],
        env=os.environ | {"PATH": path, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Path(done.stdout.splitlines()[0])


def test_the_systems_node_is_used_where_it_is_new_enough(node: str) -> None:
    assert which_node(os.environ["PATH"]).samefile(node)


def test_an_old_node_is_replaced_by_one_from_pypi(tmp_path: Path) -> None:
    old = tmp_path / "node"
    old.write_text(OLD)
    old.chmod(0o755)
    found = which_node(f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert found.is_relative_to(ROOT / ".node")
