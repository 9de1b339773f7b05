#!/bin/bash
# kernel-package.sh base|target OUT.deb DIR MAIN SECURITY SUITE
# The package of a kernel for clouds, from the servers MAIN and SECURITY: for the base the one of the release, for
# the target the one of its security updates or, right after a point release, which has made them the same, the
# release's kernel for every machine. Lists are kept in DIR.
set -euo pipefail
WHICH=$1 OUT=$2 DIR=$3 MAIN=$4 SECURITY=$5 SUITE=$6
SIGNED='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'

# apt-get or apt-cache (the second word) with nothing but the lists called by the first.
from() {
  local list=$1 program=$2; shift 2
  "$program" -q -o Dir::Etc::sourcelist="$DIR/$list.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$DIR/$list" \
    -o Dir::Cache="$DIR/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root -o APT::Architecture=amd64 \
    -o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}
fetch_list() {
  mkdir -p "$DIR/$1/partial" "$DIR/cache/archives/partial"
  echo "deb $SIGNED $2 $3 main" > "$DIR/$1.list"
  from "$1" apt-get update >&2
}
# What the package that names the newest kernel of a kind depends on.
newest() { from "$1" apt-cache --no-all-versions show "$2" | sed -n 's/^Depends: \([^ ]*\).*/\1/p'; }

fetch_list main "$MAIN" "$SUITE"
LIST=main PACKAGE=$(newest main linux-image-cloud-amd64)
if [ "$WHICH" = target ]; then
  BASE=$PACKAGE
  fetch_list security "$SECURITY" "$SUITE-security"
  LIST=security PACKAGE=$(newest security linux-image-cloud-amd64 || true)
  if [ -z "$PACKAGE" ] || [ "$PACKAGE" = "$BASE" ]; then LIST=main PACKAGE=$(newest main linux-image-amd64); fi
fi
WORK=$(mktemp -d "$DIR/download.XXXXXX"); trap 'rm -rf "$WORK"' EXIT
cd "$WORK"
from "$LIST" apt-get download "$PACKAGE" >&2
mv ./*.deb "$OUT"
