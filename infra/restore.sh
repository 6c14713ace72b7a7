#!/usr/bin/env bash
# Brings a file of infra/backup.sh back into an empty database: infra/restore.sh FILE. Takes DATABASE_URL.
# Stop API, servers and services first, and empty Redis; docs/operations.md#restore-the-database.
set -euo pipefail
file="${1:?the file that infra/backup.sh wrote}"
# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"
url=''
address_of_database
tables="$(psql --no-psqlrc --tuples-only --no-align --dbname "$url" \
  --command "select count(*) from pg_tables where schemaname = 'public'")"
if ((tables > 0)); then
  echo "restore: the database has $tables tables already; make an empty one (createdb) and name that" >&2
  exit 1
fi
pg_restore --no-owner --no-privileges --exit-on-error --single-transaction --dbname "$url" "$file"
psql --no-psqlrc --quiet --dbname "$url" --command "analyze"
echo "restore: done" >&2
