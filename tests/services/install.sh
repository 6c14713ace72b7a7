#!/usr/bin/env bash
# Installs the servers that some integration tests need, where they are missing (Debian, Ubuntu):
# Ceph's radosgw with a monitor and a disk daemon (S3), Postgres with its extensions, Redis; and what
# looks at the files that machines boot from: shellcheck, systemd-analyze, cloud-init; promtool; openssl.
set -euo pipefail

missing=()
for package in radosgw ceph-mon ceph-osd; do
  command -v "$package" >/dev/null || missing+=("$package")
done
# Debian's `postgresql-<version>` holds contrib, which has the pg_trgm that Prefect asks for.
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
# command:package
for pair in redis-server:redis-server shellcheck:shellcheck systemd-analyze:systemd cloud-init:cloud-init \
  promtool:prometheus openssl:openssl; do
  command -v "${pair%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
${as_root[@]+"${as_root[@]}"} apt-get update -qq
${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
