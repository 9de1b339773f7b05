#!/bin/bash
# update.sh IMAGE MOUNTPOINT APT_CACHE SOURCES_LIST OVERLAY REMOVED
# Updates an image as an administrator would: a real upgrade of the shared libraries that the web
# server maps, then the files of OVERLAY copied in and the paths listed in REMOVED removed. Run in a
# private mount namespace, so that nothing stays mounted whichever way it ends.
# Prints one line "package base-version target-version" per upgraded package.
# Exit code 3: no library that the web server maps has a newer version.
set -euo pipefail
IMG=$1 R=$2 CACHE=$3 SOURCES=$4 OVERLAY=$5 REMOVED=$6
# A newer C library asks every unit to restart, which hides what an update is to show.
NEVER='^(libc6|libc-bin|libsystemd0)$'

mount -o loop,rw "$IMG" "$R"
mount -t proc proc "$R/proc"
mount --bind /dev "$R/dev"
mount -t tmpfs tmpfs "$R/run"
# Lists and packages live outside the image, so there is nothing to clean up in it.
mkdir -p "$CACHE"/lists/partial "$CACHE"/apt/archives/partial
mount --bind "$CACHE/lists" "$R/var/lib/apt/lists"
mount --bind "$CACHE/apt" "$R/var/cache/apt"
mount --bind "$(readlink -f /etc/resolv.conf)" "$R/etc/resolv.conf"
mkdir "$R/run/host"; cp "$SOURCES" "$R/run/host/sources.list"
printf '#!/bin/sh\nexit 101\n' > "$R/usr/sbin/policy-rc.d"; chmod 755 "$R/usr/sbin/policy-rc.d"

in_root() { chroot "$R" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"; }
apt() { in_root apt-get -qq -o Dir::Etc::sourcelist=/run/host/sources.list -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root \
  -o Acquire::Retries=3 -o Acquire::Languages=none -o Binary::apt::APT::Keep-Downloaded-Packages=true -o APT::Keep-Downloaded-Packages=true \
  -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-unsafe-io "$@"; }
versions() { in_root dpkg-query -W -f '${Package} ${Version}\n' | sort; }

versions > "$R/run/host/base"
apt update >&2
apt -s upgrade | awk '/^Inst/ {print $2}' | sort -u > "$R/run/host/upgradable"
# dpkg knows a library by the name it was packed under, with or without /usr.
in_root ldd /usr/sbin/nginx | awk '/=> \//{print $3}' | while read -r lib; do
  real=$(in_root readlink -f "$lib"); for f in "$lib" "$real" "${real#/usr}"; do in_root dpkg -S "$f" 2>/dev/null || true; done
done | sed 's/:.*//' | sort -u > "$R/run/host/mapped"
CHOSEN=$(comm -12 "$R/run/host/upgradable" "$R/run/host/mapped" | grep -Ev "$NEVER" || true)
if [ -z "$CHOSEN" ]; then
  echo "none of the libraries that nginx maps has a newer version; mapped: $(tr '\n' ' ' < "$R/run/host/mapped"); upgradable: $(tr '\n' ' ' < "$R/run/host/upgradable")" >&2
  exit 3
fi
# shellcheck disable=SC2086
apt install -y --only-upgrade $CHOSEN >&2
versions > "$R/run/host/target"
join "$R/run/host/base" "$R/run/host/target" | awk '$2 != $3'

cp -r --no-preserve=ownership "$OVERLAY/." "$R/"
while IFS= read -r path; do rm -f "$R/$path"; done < "$REMOVED"

rm -f "$R/usr/sbin/policy-rc.d"
umount -R "$R"
