#!/usr/bin/env bash
# On the machine that infra/ec2/setup.sh has set up: starts the service. Elsewhere: starts the EC2
# instance that is kept (STILLREEL_EC2_KEPT_INSTANCE), as the second design document does by hand each
# day. What it runs starts with it.
set -euo pipefail
if systemctl cat stillreel.service >/dev/null 2>&1; then
  exec systemctl start stillreel.service
fi
exec stillreel fleet start
