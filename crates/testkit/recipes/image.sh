#!/bin/bash
# image.sh ROOTFS.tar OUT.img SIZE WORK PUBKEY WEB [AGENT UNIT...]
# An unpartitioned ext4 image of the guest's root with what belongs to this build put in: the key
# that logs in, the web content, and, if given, the agent with its units enabled. No mount needed.
set -euo pipefail
TAR=$1 OUT=$2 SIZE=$3 WORK=$4 PUBKEY=$5 WEB=$6 AGENT=${7:-}
R=$WORK/root
rm -rf "$R"; mkdir -p "$R"
tar xf "$TAR" -C "$R" --xattrs --xattrs-include='*' --numeric-owner
install -m600 "$PUBKEY" "$R/root/.ssh/authorized_keys"
rm -rf "$R/var/www/html"; cp -r --no-preserve=ownership "$WEB/." "$R/"
if [ -n "$AGENT" ]; then
  # Without debugging information, as a package would have it; what is no ELF file goes as it is.
  strip --strip-debug -o "$R/usr/bin/vireo-agent" "$AGENT" 2>/dev/null || cp "$AGENT" "$R/usr/bin/vireo-agent"
  chmod 755 "$R/usr/bin/vireo-agent"; chown 0:0 "$R/usr/bin/vireo-agent"
  install -m644 "${@:8}" "$R/usr/lib/systemd/system/"
  install -d -m700 "$R/var/lib/vireo"   # its state; the directory itself is part of the version
  for unit in "${@:8}"; do chroot "$R" env SYSTEMD_OFFLINE=1 systemctl -q enable "${unit##*/}"; done
fi
rm -f "$OUT"
mke2fs -q -t ext4 -L root -m 0 -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -d "$R" "$OUT" "$SIZE"
rm -rf "$R"
