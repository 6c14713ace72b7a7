#!/usr/bin/env bash
# Start the EC2 instance that is kept (STILLREEL_EC2_KEPT_INSTANCE), as the second design document does
# by hand each day. What it runs starts with it.
set -euo pipefail
exec stillreel fleet start
