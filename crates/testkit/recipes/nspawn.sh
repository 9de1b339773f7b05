#!/bin/bash
# nspawn.sh IMAGE MOUNTPOINT MACHINE ADDRESS: boots a container from a loop-mounted ext4 image.
# Run in a private mount namespace and a control group of its own: loop device and mount go away with
# the last process. Exits with 0 after power off, with 133 if the guest asked for a reboot.
set -euo pipefail
IMG=$1 R=$2 MACHINE=$3 ADDRESS=$4
mount -o loop,rw "$IMG" "$R"
# The guest gets a pure unified hierarchy, also where the host has a mixed one.
if ! [ -f /sys/fs/cgroup/cgroup.procs ]; then
  umount -R -l /sys/fs/cgroup
  mount -t cgroup2 none /sys/fs/cgroup
fi
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
# A machine can watch its file systems; a container cannot unless it is let.
WATCH="fanotify_init fanotify_mark name_to_handle_at open_by_handle_at"
exec systemd-nspawn -q -M "$MACHINE" -D "$R" --register=no --keep-unit --link-journal=no --resolv-conf=off --timezone=off \
  --console=pipe --system-call-filter="$WATCH" --network-bridge=br0 --set-credential=vireo.ip:"$ADDRESS" -b
