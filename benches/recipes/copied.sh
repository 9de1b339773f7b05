#!/bin/bash
# copied.sh BASE OUT plain|proven MOUNTED RSYNC...: makes OUT the target by a sparse copy of BASE and an RSYNC
# of the target's mounted tree into it, durably; if "proven", also compares every byte and checks the file system.
set -euo pipefail
BASE=$1 OUT=$2 HOW=$3 MOUNTED=$4; shift 4
cp --sparse=always --reflink=auto "$BASE" "$OUT"
bash -c "$MOUNTED" mounted.sh . ro target.img target rw "$OUT" copy -- "$@" target/ copy/
if [ "$HOW" = proven ]; then
  DIFFERENT=$(bash -c "$MOUNTED" mounted.sh . ro target.img target ro "$OUT" copy -- "$@" -nic target/ copy/)
  if [ -n "$DIFFERENT" ]; then echo "the copy differs: $DIFFERENT" >&2; exit 1; fi
  e2fsck -fn "$OUT" > /dev/null 2>&1
fi
sync "$OUT"
