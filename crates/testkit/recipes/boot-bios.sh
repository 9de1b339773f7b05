#!/bin/bash
# boot-bios.sh DISK OUT.qcow2 WORK BOOT ROOT
# The disk DISK of boot-kernel.sh as one that a BIOS starts: an MBR partition table, GRUB in the first sector and in the
# gap behind it, /boot and the root in partitions 1 and 2, no EFI system partition; as qcow2. BOOT and ROOT are where the
# file systems lie in DISK: offset and length in bytes with a comma. No mount and no loop device is needed.
set -euo pipefail
DISK=$1 OUT=$2 WORK=$3 BOOT=$4 ROOT=$5
GRUB=/usr/lib/grub/i386-pc
ROOT_UUID=0b007000-0000-4000-8000-000000000003 BOOT_UUID=0b007000-0000-4000-8000-000000000002
piece() { dd if="$DISK" of="$WORK/$1" bs=1M skip=$((${2%,*} >> 20)) count=$((${2#*,} >> 20)) conv=sparse status=none; }
piece boot.img "$BOOT"; piece root.img "$ROOT"

cat > "$WORK/fstab" <<F
UUID=$ROOT_UUID / ext4 rw,relatime 0 0
UUID=$BOOT_UUID /boot ext4 rw,relatime,x-systemd.device-timeout=150 0 0
F
cat > "$WORK/script" <<D
cd etc
rm fstab
write $WORK/fstab fstab
sif fstab mode 0100644
sif fstab uid 0
sif fstab gid 0
sif fstab mtime @1700000000
D
debugfs -w -f "$WORK/script" "$WORK/root.img" > "$WORK/said" 2>&1
if grep -v '^debugfs' "$WORK/said" | grep -i -E 'not found|invalid|usage|error|exists'; then exit 1; fi
e2fsck -fy "$WORK/root.img" > "$WORK/said" 2>&1 || [ $? = 1 ] || { cat "$WORK/said" >&2; exit 1; }

# The image is loaded from the second sector on, which is where the first one looks for it by default.
# shellcheck disable=SC2016
printf 'search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)/grub\nconfigfile $prefix/grub.cfg\n' "$BOOT_UUID" > "$WORK/early.cfg"
grub-mkimage -O i386-pc -p /grub -c "$WORK/early.cfg" -o "$WORK/core.img" \
  biosdisk part_msdos ext2 search search_fs_uuid configfile normal linux serial terminal echo test gzio
test "$(stat -c %s "$WORK/core.img")" -lt $(((1 << 20) - 512))

BOOT_MIB=$((${BOOT#*,} >> 20)) ROOT_MIB=$((${ROOT#*,} >> 20))
truncate -s $((1 + BOOT_MIB + ROOT_MIB))M "$WORK/disk.img"
sfdisk -q --no-reread --no-tell-kernel "$WORK/disk.img" <<T
label: dos
start=1MiB, size=${BOOT_MIB}MiB, type=83, bootable
size=${ROOT_MIB}MiB, type=83
T
# The code of the first sector ends before the disk's signature and table.
dd if="$GRUB/boot.img" of="$WORK/disk.img" bs=440 count=1 conv=notrunc status=none
dd if="$WORK/core.img" of="$WORK/disk.img" bs=512 seek=1 conv=notrunc status=none
put() { dd if="$WORK/$1.img" of="$WORK/disk.img" bs=1M seek="$2" conv=notrunc,sparse status=none; }
put boot 1; put root $((1 + BOOT_MIB))
qemu-img convert -q -f raw -O qcow2 "$WORK/disk.img" "$OUT"
