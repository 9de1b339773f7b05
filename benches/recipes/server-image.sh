#!/bin/bash
# server-image.sh ROOTFS.tar SITE OUT.img SIZE WORK
# An unpartitioned ext4 image of the server's root with a web site in it. No mount needed.
set -euo pipefail
TAR=$1 SITE=$2 OUT=$3 SIZE=$4 R=$5/root
rm -rf "$R"; mkdir -p "$R"
tar xf "$TAR" -C "$R" --xattrs --xattrs-include='*' --numeric-owner
mkdir -p "$R/srv"; mv "$SITE" "$R/srv/site"; chown -R 0:0 "$R/srv/site"
rm -f "$OUT"
mke2fs -q -t ext4 -L root -m 0 -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -d "$R" "$OUT" "$SIZE"
rm -rf "$R"
