#!/bin/bash
# mounted.sh DIR [ro|rw IMAGE NAME]... -- PROGRAM...: runs PROGRAM in DIR, where each IMAGE is mounted as
# NAME. Run in a private mount namespace, so that nothing stays mounted whichever way it ends.
set -euo pipefail
cd "$1"; shift
names=()
while [ "$1" != -- ]; do
  mkdir -p "$3"
  mount -o "loop,$1" "$2" "$3"
  names+=("$3"); shift 3
done
shift
"$@"
umount "${names[@]}"
