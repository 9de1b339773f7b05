#!/bin/bash
# fixture.sh ROOT base|target: a small tree with every kind of node and every kind of metadata; the
# target differs from the base in each of them. Times are fixed, to the nanosecond.
set -euo pipefail
R=$1 STAGE=$2
at() { touch -h -d "2024-05-06 07:08:09.$1 UTC" "${@:2}"; }
# Text that depends on the seed alone and hardly compresses.
noise() { perl -e 'my $x = $ARGV[0]; for (1 .. 60000) { $x = ($x * 1103515245 + 12345) % 2147483648; printf "%08x%s", $x, $_ % 9 ? "" : "\n" }' "$1"; }
# A socket: mknod(1) cannot make one, a program that binds it can.
socket() { perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 1) or die' "$1"; }

base() {
  mkdir -p "$R"/{etc,bin,data/deep/er,dev,links,empty,gone/deep} "$R/with space"
  printf 'listen 80\n' > "$R/etc/server.conf"
  printf 'key = 1\n' > "$R/etc/secret"; chmod 600 "$R/etc/secret"; chown 12:34 "$R/etc/secret"
  noise 1 > "$R/data/big.txt"
  noise 2 > "$R/data/moves.txt"
  : > "$R/data/zero"
  printf 'x' > "$R/with space/$(printf 'not\xffutf8')"
  printf 'line\n' > "$R/with space/new
line"
  truncate -s 8M "$R/data/sparse"; printf middle | dd of="$R/data/sparse" bs=1 seek=4194304 conv=notrunc status=none
  printf 'one inode\n' > "$R/links/a"; ln "$R/links/a" "$R/links/b"; ln "$R/links/a" "$R/data/c"
  ln -s ../etc/server.conf "$R/links/soft"; ln -s /nowhere "$R/links/dangling"
  printf '#!/bin/sh\n' > "$R/bin/tool"; chmod 4755 "$R/bin/tool"
  printf '#!/bin/sh\n' > "$R/bin/net"; chmod 755 "$R/bin/net"; setcap cap_net_bind_service+ep "$R/bin/net"
  setfattr -n user.note -v base "$R/etc/server.conf"
  setfattr -n security.selinux -v system_u:object_r:etc_t:s0 "$R/etc/secret"
  setfattr -n trusted.mark -v 0x00ff "$R/data"
  setfacl -m u:12:r "$R/etc/server.conf"; setfacl -d -m g:34:rx "$R/data/deep"
  mknod "$R/dev/null" c 1 3; mknod "$R/dev/disk" b 7 200; mkfifo "$R/dev/pipe"
  socket "$R/dev/socket"
  printf 'bye\n' > "$R/gone/deep/file"
  printf 'file\n' > "$R/becomes-directory"; mkdir "$R/becomes-file"; ln -s etc "$R/becomes-directory-too"
  find "$R" -mindepth 1 -exec touch -h -d '2024-05-06 07:08:09.123456789 UTC' {} +
}

target() {
  printf 'listen 8080\n' > "$R/etc/server.conf.part"; mv "$R/etc/server.conf.part" "$R/etc/server.conf"
  setfattr -n user.note -v target "$R/etc/server.conf"; setfacl -m u:99:rw "$R/etc/server.conf"
  chmod 640 "$R/etc/secret"; chown 56:78 "$R/etc/secret"
  setfattr -n security.selinux -v system_u:object_r:shadow_t:s0 "$R/etc/secret"
  sed -i '300s/.*/changed/; 5000s/^/inserted /' "$R/data/big.txt"
  mv "$R/data/moves.txt" "$R/data/deep/moved.txt"
  cp "$R/data/deep/moved.txt" "$R/data/copied.txt"
  printf 'more' | dd of="$R/data/sparse" bs=1 seek=6291456 conv=notrunc status=none
  rm "$R/links/b"; ln "$R/etc/secret" "$R/links/d"
  ln -sfn /etc/hosts "$R/links/soft"
  setcap cap_net_raw+p "$R/bin/net"; chmod 755 "$R/bin/tool"
  rm "$R/dev/null"; mknod "$R/dev/null" c 1 5; rm "$R/dev/pipe"; mkfifo -m 600 "$R/dev/pipe2"
  rm -rf "$R/gone"; mkdir -p "$R/made/deep"; printf 'hello\n' > "$R/made/deep/file"
  rm "$R/becomes-directory" "$R/becomes-directory-too"; mkdir "$R/becomes-directory" "$R/becomes-directory-too"
  printf 'inside\n' > "$R/becomes-directory/file"
  rmdir "$R/becomes-file"; printf 'a file\n' > "$R/becomes-file"
  setfacl -b "$R/data/deep"; chmod 750 "$R/data"
  at 987654321 "$R/data/zero" "$R/links/dangling" "$R/etc/server.conf" "$R/data/big.txt"
}

"$STAGE"
