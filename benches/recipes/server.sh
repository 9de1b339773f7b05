#!/bin/bash
# server.sh OUT.tar DEBS MIRROR SUITE
# The root of a server as administrators have it, with documentation and manuals, from the packages of
# one suite alone, so that an upgrade to the security and updates suites is real update material. DEBS
# keeps the packages.
set -euo pipefail
OUT=$1 DEBS=$2 MIRROR=$3 SUITE=$4
PACKAGES=systemd,systemd-sysv,udev,dbus,kmod,iproute2,nginx,openssh-server,e2fsprogs,curl,procps,ca-certificates,less,file
PACKAGES+=,postgresql-15,python3,php-fpm,openssl,sudo,vim,git,rsync,man-db,bind9-dnsutils,linux-image-cloud-amd64,initramfs-tools
# Unpacking in memory halves the time, where there is memory for it.
if [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt 4000000 ] 2>/dev/null; then export TMPDIR=/dev/shm; fi
exec mmdebstrap --quiet --variant=minbase --format=tar --mode=root \
  --skip=essential/unlink,cleanup/apt \
  --setup-hook='mkdir -p "$1"/var/cache/apt/archives' \
  --setup-hook="cp -a '$DEBS'/. \"\$1\"/var/cache/apt/archives/" \
  --customize-hook="cp -an \"\$1\"/var/cache/apt/archives/*.deb '$DEBS'/" \
  --customize-hook='rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
  --include="$PACKAGES" \
  --dpkgopt='force-unsafe-io' \
  --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
  "$SUITE" "$OUT" "$MIRROR"
