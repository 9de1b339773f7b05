#!/bin/bash
# compare.sh A OFFSET_A B OFFSET_B LEFT RIGHT: mounts two images at the directories LEFT and RIGHT and
# prints what rsync would do to make A like B: nothing if they are equal. Directory times do not count.
# Run in a private mount namespace.
set -euo pipefail
mount -o loop,ro,noload,offset="$2" "$1" "$5"
mount -o loop,ro,noload,offset="$4" "$3" "$6"
# -1: to the nanosecond.
rsync -aHAXOnic --modify-window=-1 --delete --exclude=/lost+found "$6/" "$5/"
