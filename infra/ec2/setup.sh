#!/usr/bin/env bash
# Sets up the one machine of the second design document on a g5.xlarge, as root: stillreel with its models,
# the weights of WAN 2.2, and a service that starts with the machine: API on port 8000, Prefect, host. Data,
# weights and .env are in /data. May be run again, also after an interruption or to install a new release.
#
# Without PULL=no it fetches about 34 GB of weights.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
data="${DATA:-/data}"
target="${TARGET:-/opt/stillreel/venv}"
units="${UNITS:-/etc/systemd/system}"
readonly user=stillreel

say() { echo "setup: $*" >&2; }

[[ "$(id -u)" == 0 ]] || { say "needs root: sudo $0"; exit 1; }

say "== user and $data =="
getent passwd "$user" >/dev/null ||
  useradd --system --home-dir "$data" --no-create-home --shell /usr/sbin/nologin "$user"
for group in video render; do  # who owns the GPU's device files
  if getent group "$group" >/dev/null; then usermod --append --groups "$group" "$user"; fi
done
install --directory --owner "$user" --group "$user" --mode 0750 "$data"
for folder in stillreel hub; do
  install --directory --owner "$user" --group "$user" --mode 0700 "$data/$folder"
done
if [[ ! -e "$data/.env" ]]; then
  key="$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
  (umask 077 && sed "s/^API_SECRET_KEY=.*/API_SECRET_KEY=$key/" "$here/ec2/env.example" >"$data/.env")
  say "wrote $data/.env with a new API_SECRET_KEY; put your bucket there"
fi
chown root:"$user" "$data/.env"
chmod 0640 "$data/.env"

say "== stillreel =="
bash "$here/install.sh" "$target" models

if [[ "${PULL:-yes}" != no ]]; then
  say "== weights of wan-2.2 =="
  setpriv --reuid "$user" --regid "$user" --init-groups env HOME="$data" HF_HOME="$data/hub" \
    STILLREEL_HOME="$data/stillreel" "$target/bin/stillreel" models pull wan-2.2 >&2
fi

say "== service =="
install --mode 0644 "$here/ec2/stillreel.service" "$units/stillreel.service"
systemctl daemon-reload
systemctl enable --quiet stillreel.service
systemctl restart stillreel.service
say "== done: journalctl -fu stillreel; curl -s localhost:8000/health =="
