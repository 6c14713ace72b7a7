#!/usr/bin/env bash
# Writes infra/.env (or the file named) for infra/compose.yaml: a new random value for each secret that
# it lacks. What stands there already stays, so it may be run again. Keep a copy where secrets are kept:
# without STILLREEL_SERVER_SECRET and PREFECT_ENCRYPTION_KEY a restored database is of little use.
set -euo pipefail
umask 077
file="${1:-$(dirname "$0")/.env}"
touch "$file"
chmod 600 "$file"

has() { grep -q "^$1=" "$file"; }
put() { has "$1" || printf '%s=%s\n' "$1" "$2" >>"$file"; }
hex() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

put POSTGRES_PASSWORD "$(hex)"
put REDIS_PASSWORD "$(hex)"
put PREFECT_AUTH "stillreel:$(hex)"
# 32 bytes in URL-safe base64 encrypt the secrets that Prefect keeps in its database.
put PREFECT_ENCRYPTION_KEY "$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')"
put STILLREEL_SERVER_SECRET "$(hex)"
put STILLREEL_API_KEY "$(hex)"
echo "$file is ready; add your bucket to it (S3_BUCKET ... or R2_BUCKET ...)" >&2
