#!/usr/bin/env bash
# Installs stillreel from this clone: infra/install.sh TARGET [EXTRA]. Makes or renews the virtual
# environment TARGET with a Python of its own where the machine's is too old (Ubuntu 22.04 has 3.10).
# May be run again: what is right stays. Needs Debian or Ubuntu, and root for missing packages.
set -euo pipefail

target="${1:?where to install, e.g. /opt/stillreel/venv}"
extra="${2:-}"
source="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly uv=0.13.9
export PIP_DISABLE_PIP_VERSION_CHECK=1 DEBIAN_FRONTEND=noninteractive

say() { echo "install: $*" >&2; }

# good PYTHON: whether it is 3.11 or later and can make environments.
good() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# packages NAME...: those of Debian's or Ubuntu's that are missing.
packages() {
  local missing=() name
  for name in "$@"; do
    dpkg-query --show --showformat='${Status}' "$name" 2>/dev/null | grep -q '^install ok' ||
      missing+=("$name")
  done
  if ((${#missing[@]} == 0)); then return; fi
  say "installs ${missing[*]}"
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# The newest Python of this machine that will do; else none.
own_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3; do
    if command -v "$name" >/dev/null && good "$name"; then
      command -v "$name"
      return
    fi
  done
}

make_environment() {
  local python
  python="${STILLREEL_PYTHON:-$(own_python)}"
  if [[ -n "$python" ]]; then
    say "uses $python"
    "$python" -m venv "$target"
    return
  fi
  say "there is no Python 3.11 here; fetches one beside $target"
  packages python3-venv
  python3 -m venv "$target.tools"
  "$target.tools/bin/pip" install --quiet "uv==$uv"
  UV_PYTHON_INSTALL_DIR="$target.python" "$target.tools/bin/uv" venv --quiet --seed --clear \
    --managed-python --python 3.11 "$target"
}

packages ca-certificates curl
mkdir -p "$(dirname "$target")"
if ! good "$target/bin/python" || ! [[ -x "$target/bin/pip" ]]; then
  make_environment
fi
say "installs stillreel${extra:+ with $extra} into $target (minutes, gigabytes with models)"
"$target/bin/pip" install --quiet --constraint "$source/constraints.txt" \
  --upgrade --upgrade-strategy only-if-needed "$source${extra:+[$extra]}"
"$target/bin/stillreel" version >&2
