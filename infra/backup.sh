#!/usr/bin/env bash
# Writes Prefect's database, which is all that stillreel knows of its jobs, into a file: infra/backup.sh FILE.
# Takes DATABASE_URL (postgresql://...); the server may run meanwhile. Objects in the bucket are not in it.
set -euo pipefail
umask 077
file="${1:?the file to write, e.g. stillreel-$(date -u +%F).dump}"
# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"
url=''
address_of_database
part="$file.part"
trap 'rm -f "$part"' EXIT
pg_dump --format=custom --no-owner --no-privileges --file "$part" --dbname "$url"
pg_restore --list "$part" >/dev/null # whole, or not at all
mv "$part" "$file"
echo "backup: $(du -h "$file" | cut -f1) in $file" >&2
