#!/bin/bash
# many-make.sh NAME BYTES: from the trees NAME-1 and NAME-2 the packages NAME-1.deb and NAME-2.deb, an ext4
# image NAME.img of BYTES in which dpkg has installed the first, and a copy NAME-target.img upgraded to the
# second. Run in a private mount namespace, so that nothing stays mounted whichever way it ends.
set -euo pipefail
NAME=$1 BYTES=$2
for edition in 1 2; do
  mkdir -p "$NAME-$edition/DEBIAN"
  printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: Vireo <vireo@localhost>\nDescription: files\n' \
    "$NAME" "$edition" > "$NAME-$edition/DEBIAN/control"
  # Not compressed: installing is measured, not unpacking.
  dpkg-deb --root-owner-group -Znone --build "$NAME-$edition" "$NAME-$edition.deb" > /dev/null
done
truncate -s "$BYTES" "$NAME.img"
mke2fs -q -t ext4 "$NAME.img"
mkdir -p make
mount -o loop "$NAME.img" make
mkdir -p make/var/lib/dpkg/info make/var/lib/dpkg/updates make/var/log
: > make/var/lib/dpkg/status
dpkg --root="$PWD/make" --log=/dev/null --force-unsafe-io -i "$NAME-1.deb" > /dev/null
umount make
cp --sparse=always "$NAME.img" "$NAME-target.img"
mount -o loop "$NAME-target.img" make
dpkg --root="$PWD/make" --log=/dev/null --force-unsafe-io -i "$NAME-2.deb" > /dev/null
umount make
rmdir make
