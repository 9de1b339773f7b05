#!/bin/bash
# boot-kernel.sh DISK MOUNTPOINT BOOT ROOT KERNEL.deb [OVERLAY REMOVED]
# Installs a kernel on a disk of boot-disk.sh, so that the boot loader starts it: the files of its package, an
# initramfs, an entry before those of other kernels. Then copies the files of OVERLAY in and removes the paths listed
# in REMOVED. BOOT and ROOT are where the file systems lie: offset and length in bytes with a comma. Run in a private
# mount namespace. Prints the kernel's release, as uname -r does.
set -euo pipefail
DISK=$1 R=$2 BOOT=$3 ROOT=$4 PACKAGE=$5 OVERLAY=${6:-} REMOVED=${7:-}
WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT
mount -o "loop,offset=${ROOT%,*},sizelimit=${ROOT#*,}" "$DISK" "$R"
mount -o "loop,offset=${BOOT%,*},sizelimit=${BOOT#*,}" "$DISK" "$R/boot"
RELEASE=$(dpkg-deb -f "$PACKAGE" Package); RELEASE=${RELEASE#linux-image-}

# The package unpacked beside: its /lib would take the place of the link to /usr/lib.
dpkg-deb -x "$PACKAGE" "$WORK/package"
cp -a "$WORK/package/boot/." "$R/boot/"
mkdir -p "$R/usr/lib/modules"; cp -a "$WORK/package/lib/modules/$RELEASE" "$R/usr/lib/modules/"
depmod -b "$R" "$RELEASE"

# The initramfs: the drivers of the disk and of its file system in the order in which they are loaded.
I=$WORK/initramfs
mkdir -p "$I"/{bin,modules,proc,sys,dev,root}
cp "$(command -v busybox)" "$I/bin/busybox"
modprobe -d "$R" -S "$RELEASE" -a -D virtio_pci virtio_blk ext4 | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' > "$WORK/order"
number=100
while IFS= read -r module; do cp "$module" "$I/modules/$number-${module##*/}"; number=$((number + 1)); done < "$WORK/order"
cat > "$I/init" <<'S'
#!/bin/busybox sh
# Loads the drivers, finds the root by its UUID and hands over to it.
export PATH=/bin
busybox mount -t proc proc /proc; busybox mount -t sysfs sysfs /sys; busybox mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do busybox insmod "$module"; done
for word in $(busybox cat /proc/cmdline); do case $word in root=*) root=${word#root=};; esac; done
tries=0
until device=$(busybox findfs "$root" 2>/dev/null) || [ $tries -gt 300 ]; do busybox usleep 100000; tries=$((tries + 1)); done
busybox mount -t ext4 -o rw "$device" /root || { echo "no root file system $root"; busybox poweroff -f; }
busybox mount --move /dev /root/dev; busybox mount --move /sys /root/sys; busybox mount --move /proc /root/proc
exec busybox switch_root /root /sbin/init
S
chmod 755 "$I/init"
(cd "$I" && find . | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0) > "$R/boot/initrd.img-$RELEASE"

# The menu: this kernel first, the others stay as a way back.
ROOT_UUID=$(awk '$2 == "/" {print $1}' "$R/etc/fstab")
entry() {
  cat <<G
menuentry 'Linux $1' {
  echo 'GRUB starts Linux $1'
  linux /vmlinuz-$1 root=$ROOT_UUID rw console=ttyS0 quiet systemd.show_status=error panic=-1
  initrd /initrd.img-$1
}
G
}
{
  printf 'serial --unit=0 --speed=115200\nterminal_output serial\nset default=0\nset timeout=0\n'
  entry "$RELEASE"
  for kernel in "$R"/boot/vmlinuz-*; do [ "${kernel##*/vmlinuz-}" = "$RELEASE" ] || entry "${kernel##*/vmlinuz-}"; done
} > "$R/boot/grub/grub.cfg"

if [ -n "$OVERLAY" ]; then
  cp -r --no-preserve=ownership "$OVERLAY/." "$R/"
  while IFS= read -r path; do rm -f "$R/$path"; done < "$REMOVED"
fi
umount "$R/boot" "$R"
echo "$RELEASE"
