#!/bin/bash
# customize.sh ROOT: makes an unpacked root into a guest that boots quickly and always alike, in
# systemd-nspawn and under a real kernel, and that writes nothing to its root by booting.
set -euo pipefail
R=$1
echo guest > "$R/etc/hostname"
printf '127.0.0.1 localhost guest\n' > "$R/etc/hosts"
: > "$R/etc/machine-id"     # empty: every boot of a fresh copy makes its own, without "first boot" presets
rm -f "$R/etc/resolv.conf"; : > "$R/etc/resolv.conf"
printf '/dev/root / ext4 rw,relatime 0 1\n' > "$R/etc/fstab"

# The network is one fixed address, from the kernel's command line or, in a container, from a credential.
cat > "$R/usr/local/sbin/vireo-net" <<'N'
#!/bin/sh
ip=$(cat /run/host/credentials/vireo.ip 2>/dev/null)
if [ -z "$ip" ]; then for w in $(cat /proc/cmdline); do case $w in vireo.ip=*) ip=${w#vireo.ip=};; esac; done; fi
for d in /sys/class/net/*; do d=${d##*/}; case $d in
  vec*|eth*|en*|host0) if [ -n "$ip" ]; then ip addr replace "$ip" dev "$d"; fi; ip link set "$d" up;;
  lo) ip link set lo up;;
esac; done
exit 0
N
chmod 755 "$R/usr/local/sbin/vireo-net"
cat > "$R/etc/systemd/system/vireo-net.service" <<'N'
[Unit]
Description=Fixed address of a test guest
DefaultDependencies=no
After=local-fs.target
Before=network.target network-online.target nginx.service ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/vireo-net
[Install]
WantedBy=sysinit.target
N

# ssh: root by key; the key itself is put in when the image is made.
rm -f "$R"/etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -C guest -f "$R/etc/ssh/ssh_host_ed25519_key"
install -d -m700 "$R/root/.ssh"
printf 'HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\nUseDNS no\n' > "$R/etc/ssh/sshd_config.d/guest.conf"

# nginx: Debian's default site, and one file of our own whose change only a reload can show.
sed -i 's/listen \[::\]:80 default_server;//' "$R/etc/nginx/sites-available/default"
printf 'add_header X-Release 1 always;\n' > "$R/etc/nginx/conf.d/release.conf"

C="chroot $R env LC_ALL=C SYSTEMD_OFFLINE=1"
$C systemctl -q enable nginx ssh vireo-net
# Timers and writers that would change the root behind a test's back; devices, consoles and mounts that a guest has no use for.
$C systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer e2scrub_reap.service \
  logrotate.timer man-db.timer \
  systemd-random-seed.service systemd-pstore.service ldconfig.service systemd-journal-catalog-update.service systemd-update-done.service \
  systemd-sysusers.service systemd-firstboot.service systemd-machine-id-commit.service systemd-tmpfiles-clean.timer \
  systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-hwdb-update.service \
  systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service \
  systemd-modules-load.service kmod-static-nodes.service modprobe@.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
  sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount \
  systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-boot-system-token.service systemd-fsck-root.service \
  getty.target systemd-ask-password-console.path systemd-ask-password-wall.path cryptsetup.target integritysetup.target veritysetup.target remote-cryptsetup.target
mkdir -p "$R/etc/systemd/system.conf.d" "$R/etc/systemd/journald.conf.d"
printf '[Manager]\nDefaultTimeoutStartSec=30s\nDefaultTimeoutStopSec=10s\nDefaultDeviceTimeoutSec=10s\n' > "$R/etc/systemd/system.conf.d/guest.conf"
printf '[Journal]\nStorage=volatile\nForwardToConsole=no\n' > "$R/etc/systemd/journald.conf.d/guest.conf"

# Modules of the User-mode Linux kernel that boots the image.
for V in /usr/lib/uml/modules/*; do
  [ -d "$V/kernel" ] || continue
  D=$R/usr/lib/modules/${V##*/}; mkdir -p "$D"
  for m in fs/autofs net/ipv6; do
    if [ -e "$V/kernel/$m" ]; then (cd "$V" && cp -a --parents "kernel/$m" "$D/"); fi
  done
  cp "$V"/modules.builtin "$V"/modules.order "$D/" 2>/dev/null || true
  chroot "$R" depmod "${V##*/}"
done

# What a first boot would write to the root is written now: server state directories, tmpfiles.
$C nginx -t -q
$C systemd-tmpfiles --create --exclude-prefix=/dev --exclude-prefix=/proc --exclude-prefix=/run --exclude-prefix=/sys || true
mkdir -p "$R/var/lib/systemd/linger"   # logind's
rm -rf "$R"/var/log/nginx/* "$R"/run/* "$R"/tmp/* "$R"/var/cache/ldconfig/*
: > "$R/etc/machine-id"
rm -f "$R/var/lib/dbus/machine-id" "$R/var/lib/systemd/random-seed" "$R/var/lib/systemd/credential.secret"
