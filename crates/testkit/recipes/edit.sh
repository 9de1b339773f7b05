#!/bin/bash
# edit.sh IMAGE OFFSET MOUNTPOINT SCRIPT ARGUMENTS...: mounts an image read-write and runs SCRIPT, a text
# for bash, with the mount point as its first argument. Run in a private mount namespace.
set -euo pipefail
mount -o loop,rw,offset="$2" "$1" "$3"
bash -euo pipefail -c "$4" edit "$3" "${@:5}"
umount "$3"
