#!/bin/bash
# tools.sh OUT.tar DEBS MIRROR SUITE: a root with the tools that say what needs a restart. DEBS keeps the
# packages.
set -euo pipefail
OUT=$1 DEBS=$2 MIRROR=$3 SUITE=$4
exec mmdebstrap --quiet --variant=minbase --format=tar --mode=root \
  --skip=essential/unlink,cleanup/apt \
  --setup-hook='mkdir -p "$1"/var/cache/apt/archives' \
  --setup-hook="cp -a '$DEBS'/. \"\$1\"/var/cache/apt/archives/" \
  --customize-hook="cp -an \"\$1\"/var/cache/apt/archives/*.deb '$DEBS'/" \
  --customize-hook='rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
  --include=needrestart,debian-goodies,python3,lsof,procps \
  --dpkgopt='force-unsafe-io' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
  "$SUITE" "$OUT" "$MIRROR"
