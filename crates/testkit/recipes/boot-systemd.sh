#!/bin/bash
# boot-systemd.sh DISK OUT.img WORK BOOT ROOT ESP_MIB RELEASE...
# The disk DISK of boot-kernel.sh as one that systemd-boot starts: no /boot of its own, and the kernels RELEASE... with
# their initramfs and entries on the EFI system partition, the first one by default. BOOT and ROOT are where the
# file systems lie in DISK: offset and length in bytes with a comma. No mount and no loop device is needed.
set -euo pipefail
DISK=$1 OUT=$2 WORK=$3 BOOT=$4 ROOT=$5 ESP_MIB=$6; shift 6
LOADER=/usr/lib/systemd/boot/efi/systemd-bootx64.efi
ROOT_UUID=0b007000-0000-4000-8000-000000000003 ESP_UUID=B007-0002
piece() { dd if="$DISK" of="$WORK/$1" bs=1M skip=$((${2%,*} >> 20)) count=$((${2#*,} >> 20)) conv=sparse status=none; }
piece boot.img "$BOOT"; piece root.img "$ROOT"

cat > "$WORK/fstab" <<F
UUID=$ROOT_UUID / ext4 rw,relatime 0 0
UUID=$ESP_UUID /efi vfat rw,umask=0077,x-systemd.device-timeout=150 0 0
F
cat > "$WORK/report" <<'S'
#!/bin/sh
# What started this machine, what it runs, has mounted and serves, for whoever reads the serial console.
exec > /dev/ttyS0 2>&1
# Four bytes of attributes, then UTF-16 (systemd.io/BOOT_LOADER_INTERFACE).
variable() { cat "/sys/firmware/efi/efivars/$1-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f" | tail -c +5 | tr -d '\000'; }
mountpoint -q /sys/firmware/efi/efivars || mount -t efivarfs efivarfs /sys/firmware/efi/efivars
echo "report loader $(variable LoaderInfo) started $(variable LoaderEntrySelected)"
echo "report kernel $(uname -r)"
for place in / /efi; do findmnt -n -r -o TARGET,FSTYPE $place | sed 's/^/report mount /'; done
curl -sS --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1/index.html | sed -n '1s/^/report page /p'
echo "report end"
S
cat > "$WORK/script" <<D
mkdir efi
sif efi mode 040755
cd etc
rm fstab
write $WORK/fstab fstab
sif fstab mode 0100644
cd ../usr/local/sbin
rm report
write $WORK/report report
sif report mode 0100755
D
for name in efi etc/fstab usr/local/sbin/report; do
  printf 'sif /%s uid 0\nsif /%s gid 0\nsif /%s mtime @1700000000\n' "$name" "$name" "$name" >> "$WORK/script"
done
debugfs -w -f "$WORK/script" "$WORK/root.img" > "$WORK/said" 2>&1
if grep -v '^debugfs' "$WORK/said" | grep -i -E 'not found|invalid|usage|error|exists'; then exit 1; fi
e2fsck -fy "$WORK/root.img" > "$WORK/said" 2>&1 || [ $? = 1 ] || { cat "$WORK/said" >&2; exit 1; }

mkdir -p "$WORK/esp/EFI/BOOT" "$WORK/esp/EFI/systemd" "$WORK/esp/loader/entries"
cp "$LOADER" "$WORK/esp/EFI/systemd/systemd-bootx64.efi"
# The name that firmware starts without being told (UEFI, 3.5.1.1).
cp "$LOADER" "$WORK/esp/EFI/BOOT/BOOTX64.EFI"
printf 'default debian-%s.conf\ntimeout 0\n' "$1" > "$WORK/esp/loader/loader.conf"
for release in "$@"; do
  place=debian/$release; mkdir -p "$WORK/esp/$place"
  debugfs -R "dump /vmlinuz-$release $WORK/esp/$place/linux" "$WORK/boot.img" 2> /dev/null
  debugfs -R "dump /initrd.img-$release $WORK/esp/$place/initrd" "$WORK/boot.img" 2> /dev/null
  test -s "$WORK/esp/$place/linux"; test -s "$WORK/esp/$place/initrd"
  cat > "$WORK/esp/loader/entries/debian-$release.conf" <<C
title Linux $release
version $release
linux /$place/linux
initrd /$place/initrd
options root=UUID=$ROOT_UUID rw console=ttyS0 quiet systemd.show_status=error panic=-1
C
done
mkfs.vfat -C -F 16 -i "${ESP_UUID/-/}" -n ESP "$WORK/esp.img" $((ESP_MIB * 1024)) > /dev/null
mcopy -s -i "$WORK/esp.img" "$WORK/esp"/* ::/

ROOT_MIB=$((${ROOT#*,} >> 20))
truncate -s $((1 + ESP_MIB + ROOT_MIB + 1))M "$OUT"
sfdisk -q --no-reread --no-tell-kernel "$OUT" <<T
label: gpt
start=1MiB, size=${ESP_MIB}MiB, type=uefi, name=esp
size=${ROOT_MIB}MiB, type=linux-root-x86-64, name=root
T
put() { dd if="$WORK/$1.img" of="$OUT" bs=1M seek="$2" conv=notrunc,sparse status=none; }
put esp 1; put root $((1 + ESP_MIB))
