#!/usr/bin/env bash
# Stop the EC2 instance that is kept (STILLREEL_EC2_KEPT_INSTANCE); from then on only its disk costs.
set -euo pipefail
exec stillreel fleet stop
