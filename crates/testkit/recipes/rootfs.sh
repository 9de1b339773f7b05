#!/bin/bash
# rootfs.sh OUT.tar DEBS MIRROR SUITE RECIPES [MORE_PACKAGES]
# The guest's root as a tar archive, from the packages of one suite alone (so that an upgrade to
# the security suite is real update material) and then customised. DEBS keeps the packages;
# MORE_PACKAGES is a list with commas.
set -euo pipefail
OUT=$1 DEBS=$2 MIRROR=$3 SUITE=$4 RECIPES=$5 MORE=${6:-}
PACKAGES=systemd,systemd-sysv,dbus,iproute2,nginx-light,openssh-server,e2fsprogs,curl,procps,ca-certificates,attr,acl,kmod${MORE:+,$MORE}
MORE_KB=${MORE:+3000000}
# Unpacking in memory halves the time, where there is memory for it.
if [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt $((MORE_KB + 1500000)) ] 2>/dev/null; then export TMPDIR=/dev/shm; fi
exec mmdebstrap --quiet --variant=minbase --format=tar --mode=root \
  --skip=essential/unlink,cleanup/apt \
  --setup-hook='mkdir -p "$1"/var/cache/apt/archives' \
  --setup-hook="cp -a '$DEBS'/. \"\$1\"/var/cache/apt/archives/" \
  --customize-hook="cp -an \"\$1\"/var/cache/apt/archives/*.deb '$DEBS'/" \
  --customize-hook='rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
  --customize-hook="bash '$RECIPES'/customize.sh \"\$1\"" \
  --include="$PACKAGES" \
  --dpkgopt='force-unsafe-io' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
  "$SUITE" "$OUT" "$MIRROR"
