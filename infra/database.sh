#!/usr/bin/env bash
# For backup.sh and restore.sh: address_of_database sets `url` to DATABASE_URL without its
# password, which goes to PGPASSWORD: what stands in a command line, all users of the machine can read.
address_of_database() {
  url="${DATABASE_URL:?set it to the database, postgresql://...}"
  local password
  if [[ "$url" =~ ^([a-z0-9+]+://[^:@/]*):([^@/]*)@(.*)$ ]]; then
    url="${BASH_REMATCH[1]}@${BASH_REMATCH[3]}"
    password="${BASH_REMATCH[2]//\\/\\\\}"
    printf -v PGPASSWORD '%b' "${password//%/\\x}"
    export PGPASSWORD
  fi
  if [[ "$url" == *password=* ]]; then
    echo "DATABASE_URL has its password at another place than postgresql://USER:PASSWORD@HOST/NAME; write it there" >&2
    exit 1
  fi
}
