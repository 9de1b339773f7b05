#!/bin/bash
# live.sh DIR VIREO PROGRAM...: runs PROGRAM on DIR, a mounted image whose files are in memory as those of a
# running machine are, and all other directories beside it that are mounted. Prints one line: flushes of the
# device and bytes written to it, while PROGRAM ran; then the digest of DIR.
set -euo pipefail
DIR=$1 VIREO=$2; shift 2
find "$DIR" target -xdev -type f -print0 | xargs -0 cat > /dev/null
sync -f "$DIR"
STAT=/sys/block/$(basename "$(findmnt -no SOURCE -M "$PWD/$DIR")")/stat
# Kernel's Documentation/block/stat.rst: sectors of 512 bytes written, flushes completed.
read -r _ _ _ _ _ _ written0 _ _ _ _ _ _ _ _ flushes0 _ < "$STAT"
"$@" > /dev/null
read -r _ _ _ _ _ _ written1 _ _ _ _ _ _ _ _ flushes1 _ < "$STAT"
echo "$((flushes1 - flushes0)) $(((written1 - written0) * 512)) $("$VIREO" digest "$DIR")"
