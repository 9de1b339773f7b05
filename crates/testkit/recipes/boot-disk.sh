#!/bin/bash
# boot-disk.sh ROOTFS.tar OUT.img WORK WEB SIZES
# A disk as machines have it: a GUID partition table, an EFI system partition with GRUB, /boot and the root in
# partitions 1, 2 and 3, mounted by its own /etc/fstab. SIZES are their MiB, with commas. No kernel yet. It reports
# on its serial console what it runs and serves, and shuts down. No mount and no loop device is needed.
set -euo pipefail
TAR=$1 OUT=$2 WORK=$3 WEB=$4
IFS=, read -r ESP_MIB BOOT_MIB ROOT_MIB <<< "$5"
ROOT_UUID=0b007000-0000-4000-8000-000000000003 BOOT_UUID=0b007000-0000-4000-8000-000000000002 ESP_UUID=B007-0001
R=$WORK/root
mkdir "$R"
tar xf "$TAR" -C "$R" --xattrs --xattrs-include='*' --numeric-owner
rm -rf "$R/var/www/html"; cp -r --no-preserve=ownership "$WEB/." "$R/"

# Partitions are found by their UUIDs, which takes udev; it may be slow where the processor is emulated.
rm -f "$R"/etc/systemd/system/systemd-udev*
WAIT=x-systemd.device-timeout=150
cat > "$R/etc/fstab" <<F
UUID=$ROOT_UUID / ext4 rw,relatime 0 0
UUID=$BOOT_UUID /boot ext4 rw,relatime,$WAIT 0 0
UUID=$ESP_UUID /boot/efi vfat rw,umask=0077,$WAIT 0 0
F
cat > "$R/usr/local/sbin/report" <<'S'
#!/bin/sh
# What this machine runs, has mounted and serves, for whoever reads the serial console.
exec > /dev/ttyS0 2>&1
echo "report kernel $(uname -r)"
for place in / /boot /boot/efi; do findmnt -n -r -o TARGET,FSTYPE $place | sed 's/^/report mount /'; done
curl -sS --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1/index.html | sed -n '1s/^/report page /p'
echo "report end"
S
chmod 755 "$R/usr/local/sbin/report"
cat > "$R/etc/systemd/system/report.service" <<'U'
[Unit]
Description=Report on the serial console, then shut down
After=nginx.service
Wants=nginx.service
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/usr/local/sbin/report
ExecStartPost=systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
U
chroot "$R" env SYSTEMD_OFFLINE=1 systemctl -q enable report

# /boot is a file system of its own; the root has its bare mount point.
mv "$R/boot" "$WORK/boot"; mkdir "$R/boot"; mkdir -p "$WORK/boot/efi" "$WORK/boot/grub"
# Features that this GRUB does not read, wherever the host's tools may have them by default.
make() { mke2fs -q -t ext4 -U "$1" -m 0 -O '^metadata_csum_seed,^orphan_file' -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -d "$2" "$3" "$4M"; }
make "$ROOT_UUID" "$R" "$WORK/root.img" "$ROOT_MIB"
make "$BOOT_UUID" "$WORK/boot" "$WORK/boot.img" "$BOOT_MIB"

# GRUB's image looks for its menu in /boot. The name is the one that firmware starts without being told (UEFI, 3.5.1.1).
# shellcheck disable=SC2016
printf 'search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)/grub\nconfigfile $prefix/grub.cfg\n' "$BOOT_UUID" > "$WORK/early.cfg"
grub-mkimage -O x86_64-efi -p /grub -c "$WORK/early.cfg" -o "$WORK/BOOTX64.EFI" \
  part_gpt ext2 fat search search_fs_uuid configfile normal linux serial terminal echo test gzio
mkfs.vfat -C -F 16 -i "${ESP_UUID/-/}" -n ESP "$WORK/esp.img" $((ESP_MIB * 1024)) > /dev/null
mmd -i "$WORK/esp.img" ::/EFI ::/EFI/BOOT
mcopy -i "$WORK/esp.img" "$WORK/BOOTX64.EFI" ::/EFI/BOOT/BOOTX64.EFI

# One MiB for the table, one for its copy at the end.
truncate -s $((1 + ESP_MIB + BOOT_MIB + ROOT_MIB + 1))M "$OUT"
sfdisk -q --no-reread --no-tell-kernel "$OUT" <<T
label: gpt
start=1MiB, size=${ESP_MIB}MiB, type=uefi, name=esp
size=${BOOT_MIB}MiB, type=linux, name=boot
size=${ROOT_MIB}MiB, type=linux-root-x86-64, name=root
T
put() { dd if="$WORK/$1.img" of="$OUT" bs=1M seek="$2" conv=notrunc,sparse status=none; }
put esp 1; put boot $((1 + ESP_MIB)); put root $((1 + ESP_MIB + BOOT_MIB))
