#!/usr/bin/env bash
# The first time on a rented machine without our image (the first design document's setup.sh): installs
# stillreel with its models from this clone and fetches the weights. May be run again, also after an
# interruption. Then: bash infra/vast/start_worker.sh --pool a100 --model ltx-2
#
# MODEL (ltx-2) and PRESET say which weights; WORKSPACE (/workspace) is where all of it lies. The weights
# of ltx-2 are behind a gate: HF_TOKEN. stillreel drain rents machines that need none of this.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
workspace="${WORKSPACE:-/workspace}"
model="${MODEL:-ltx-2}"
export HF_HOME="${HF_HOME:-$workspace/hub}" STILLREEL_HOME="${STILLREEL_HOME:-$workspace/stillreel}"

say() { echo "setup: $*" >&2; }

say "== stillreel =="
bash "$here/install.sh" "$workspace/venv" models
ln -sfn "$workspace/venv/bin/stillreel" "${BIN:-/usr/local/bin}/stillreel"
ln -sfn "$here/vast/start_worker.sh" "$workspace/start_worker.sh"

say "== weights of $model =="
"$workspace/venv/bin/stillreel" models pull "$model" ${PRESET:+--preset "$PRESET"} >&2

say "== done: HF_HOME=$HF_HOME bash $workspace/start_worker.sh --pool a100 --model $model =="
