#!/usr/bin/env bash
# On the machine that infra/ec2/setup.sh has set up: stops the service; jobs are handed back first.
# Elsewhere: stops the EC2 instance that is kept (STILLREEL_EC2_KEPT_INSTANCE), as the second design
# document does by hand each day; from then on only its disk costs.
set -euo pipefail
if systemctl cat stillreel.service >/dev/null 2>&1; then
  exec systemctl stop stillreel.service
fi
exec stillreel fleet stop
