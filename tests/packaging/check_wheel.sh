#!/usr/bin/env bash
# The built wheel, installed away from this directory, has to carry the whole project.
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD
wheel=$(ls dist/stillreel-*.whl)
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT

.venv/bin/python -m venv "$away/venv"
"$away/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  -c constraints.txt "$top/$wheel"
cd "$away"
export STILLREEL_HOME="$away/home"
"$away/venv/bin/python" - <<'PYTHON'
import importlib.util
import sys
from pathlib import Path

from stillreel.api.studio import page_files
from stillreel.deploy import check_entrypoint, read_plan
from stillreel.project import project_dir

directory = project_dir()
assert Path(sys.prefix) in directory.parents, f"{directory} is not in the wheel's environment"
for name in ("flows", "tasks", "deployments"):
    assert importlib.util.find_spec(name) is None, f"{name} is a global name"
entrypoints = {d["entrypoint"] for d in read_plan(directory).deployments}
for entrypoint in entrypoints:
    properties = check_entrypoint(entrypoint, directory)
    print(f"wheel: {entrypoint} loads with {len(properties)} parameters")
assert {"index.html", "app.js", "studio.css", "icon.svg"} <= page_files().keys(), page_files().keys()
print(f"wheel: the studio has its {len(page_files())} files")
PYTHON
"$away/venv/bin/stillreel" generate --scene --duration 1 --width 320 --height 180 -o "$away/out.mp4"
test -s "$away/out.mp4"
echo "wheel: a video was made outside the checkout"
