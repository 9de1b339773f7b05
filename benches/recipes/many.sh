#!/bin/bash
# many.sh DIR VIREO PROGRAM...: as live.sh, of which it differs in what it prints: flushes of the device,
# writes to it, bytes written, and the digest of DIR/usr.
set -euo pipefail
DIR=$1 VIREO=$2; shift 2
find "$DIR" target -xdev -type f -print0 | xargs -0 cat > /dev/null
sync -f "$DIR"
STAT=/sys/block/$(basename "$(findmnt -no SOURCE -M "$PWD/$DIR")")/stat
# Kernel's Documentation/block/stat.rst: writes completed, sectors of 512 bytes written, flushes completed.
read -r _ _ _ _ writes0 _ written0 _ _ _ _ _ _ _ _ flushes0 _ < "$STAT"
"$@" > /dev/null
read -r _ _ _ _ writes1 _ written1 _ _ _ _ _ _ _ _ flushes1 _ < "$STAT"
echo "$((flushes1 - flushes0)) $((writes1 - writes0)) $(((written1 - written0) * 512)) $("$VIREO" digest "$DIR/usr")"
