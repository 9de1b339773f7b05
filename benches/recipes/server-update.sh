#!/bin/bash
# server-update.sh IMAGE MOUNTPOINT APT_CACHE SOURCES_LIST KIND [SITE_PROGRAM...]
# Changes an image as an administrator would. KIND: release (all updates), library (libssl3 and openssl),
# config (one edit of nginx.conf and of a site), site (SITE_PROGRAM makes the web site its next release),
# pages-N (a word in N pages), debs-release and debs-library (only prints how many bytes of packages
# those two download). Run in a private mount namespace.
set -euo pipefail
IMG=$1 R=$2 CACHE=$3 SOURCES=$4 KIND=$5
mount -o loop,rw "$IMG" "$R"

packages() {
  mount -t proc proc "$R/proc"
  mount --bind /dev "$R/dev"
  mount -t tmpfs tmpfs "$R/run"
  # Lists and packages live outside the image, so there is nothing to clean up in it.
  mkdir -p "$CACHE"/lists/partial "$CACHE"/apt/archives/partial
  mount --bind "$CACHE/lists" "$R/var/lib/apt/lists"
  mount --bind "$CACHE/apt" "$R/var/cache/apt"
  [ -e "$R/etc/resolv.conf" ] || : > "$R/etc/resolv.conf"
  mount --bind "$(readlink -f /etc/resolv.conf)" "$R/etc/resolv.conf"
  mkdir "$R/run/host"; cp "$SOURCES" "$R/run/host/sources.list"
  printf '#!/bin/sh\nexit 101\n' > "$R/usr/sbin/policy-rc.d"; chmod 755 "$R/usr/sbin/policy-rc.d"
  apt update >&2
}
apt() {
  chroot "$R" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -qq \
    -o Dir::Etc::sourcelist=/run/host/sources.list -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root \
    -o Acquire::Retries=3 -o Acquire::Languages=none -o Binary::apt::APT::Keep-Downloaded-Packages=true \
    -o APT::Keep-Downloaded-Packages=true -o APT::Install-Recommends=false \
    -o Dpkg::Options::=--force-confnew -o Dpkg::Options::=--force-unsafe-io "$@"
}
# What would be downloaded if none of it were there: print-uris leaves out what the archive directory has.
sizes() { apt -o Dir::Cache::archives=/run/host/none --print-uris -y "$@" | awk '{sum += $3} END {print sum + 0}'; }

case $KIND in
  release) packages; apt -y upgrade >&2 ;;
  library) packages; apt -y install --only-upgrade libssl3 openssl >&2 ;;
  debs-*)
    packages; mkdir -p "$R/run/host/none/partial"
    if [ "$KIND" = debs-release ]; then sizes upgrade; else sizes --only-upgrade install libssl3 openssl; fi ;;
  config)
    sed -i 's/worker_connections 768/worker_connections 1024/' "$R/etc/nginx/nginx.conf"
    sed -i 's/server_name _;/server_name www.example.org;/' "$R/etc/nginx/sites-available/default" ;;
  site) "${@:6}" "$R/srv/site" ;;
  pages-*)
    find "$R/srv/site" -name '*.html' | sort > "$R/../pages"
    head -n "${KIND#pages-}" "$R/../pages" | xargs sed -i '1s/<p>/<p>changed /' ;;
esac
rm -f "$R/usr/sbin/policy-rc.d"
umount -R "$R"
