//! Files that need nothing: content, schedules, data that is looked up each time, and what belongs to
//! services that do not run.

use crate::zoo::case::{Case, Kind, case};

pub(super) fn cases() -> Vec<Case> {
    [content(), data(), stopped(), boot()].into_iter().flatten().collect()
}

fn row(id: &'static str) -> Case {
    case(Kind::Nothing, id)
}

fn content() -> Vec<Case> {
    vec![
        row("NGX-05").write("/var/www/html/v.html", "page-target\n").shows(
            "curl -s localhost/v.html",
            "page-base",
            "page-target",
        ),
        row("APA-05").replace("/var/www/html/a/.htaccess", "zoo/base", "zoo/target").shows(
            "curl -so /dev/null -w '%{redirect_url}' localhost:8080/a/go",
            "http://zoo/base",
            "http://zoo/target",
        ),
        row("PHP-04").replace("/var/www/html/v.php", "php-base", "php-target").shows(
            "curl -sk https://localhost:8443/v.php | cut -d' ' -f1",
            "php-base",
            "php-target",
        ),
        row("PY-04").write("/opt/app/template.txt", "template-target\n").shows(
            "curl -s localhost:8000 | cut -d' ' -f4",
            "template-base",
            "template-target",
        ),
        row("NEW-01").write("/opt/data/x", "new\n"),
        row("LIB-16").run("chmod 700", "/opt/py/worker.py"),
        row("a script that nobody runs").write("/opt/tools/report.py", "print(1)\n"),
        row("documentation").write("/usr/share/doc/zoo/README", "read me\n"),
        // A machine's own: no bundle brings it.
        row("SSH-04")
            .copy("/opt/next/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key")
            .copy("/opt/next/ssh_host_ed25519_key.pub", "/etc/ssh/ssh_host_ed25519_key.pub")
            .shows(
                "ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | cut -d' ' -f2- | \
                    grep -cFf - /opt/next/ssh_host_ed25519_key.pub",
                "0",
                "0",
            ),
        row("a script of a socket's connections")
            .replace("/opt/echo/conn.sh", "conn-base", "conn-target")
            .shows("head -1 </dev/tcp/127.0.0.1/7009", "conn-base", "conn-target"),
    ]
}

fn data() -> Vec<Case> {
    vec![
        row("CRN-01").write("/etc/cron.d/v", "* * * * * root true\n"),
        row("LOG-02").write("/etc/logrotate.d/zoo", "/var/log/zoo.log {\n  weekly\n  missingok\n}\n"),
        row("NSS-01")
            .append("/etc/hosts", "10.9.8.7 zoo-host\n")
            .shows("getent hosts zoo-host | cut -d' ' -f1", "", "10.9.8.7"),
        row("NSS-02").append("/etc/nsswitch.conf", "zoo: files\n"),
        row("NSS-04")
            .append("/etc/passwd", "zoouser:x:7777:7777::/:/bin/false\n")
            .shows("getent passwd zoouser | cut -d: -f3", "", "7777"),
        row("TZ-02")
            .copy("/usr/share/zoneinfo/Europe/Berlin", "/usr/share/zoneinfo/Asia/Tokyo")
            .shows("TZ=Asia/Tokyo date -d @0 +%H", "09", "01"),
        row("LIB-11").rebuild("/usr/lib/locale/C.utf8/LC_CTYPE"),
        row("LIB-14").append("/etc/ssl/openssl.cnf", "# another\n"),
        row("SUD-01")
            .write("/etc/sudoers.d/v", "alice ALL=(root) NOPASSWD: /bin/true\n")
            .run("chmod 440", "/etc/sudoers.d/v")
            .shows("sudo -l -U alice | grep -c /bin/true", "0", "1"),
        row("PAM-01").append("/etc/pam.d/sshd", "# another\n"),
        row("DBS-01")
            .write(
                "/etc/dbus-1/system.d/v.conf",
                "<busconfig><policy context=\"default\"><allow own=\"org.zoo\"/></policy></busconfig>\n",
            )
            .shows(
                "dbus-send --system --print-reply --dest=org.freedesktop.DBus / \
                    org.freedesktop.DBus.RequestName string:org.zoo uint32:0 2>&1 | grep -c 'uint32 1'",
                "0",
                "1",
            ),
        row("DBS-03").write("/etc/polkit-1/rules.d/x.rules", "polkit.log('zoo');\n"),
    ]
}

fn stopped() -> Vec<Case> {
    vec![
        row("SYS-17")
            .prepare("systemctl stop stopped.service")
            .write("/etc/zoo/stopped.conf", "target\n")
            .shows("systemctl is-active stopped", "inactive", "inactive")
            .clean("systemctl start stopped.service"),
        row("SYS-18").write("/etc/zoo/spare.conf", "target\n").shows(
            "systemctl is-active spare",
            "inactive",
            "inactive",
        ),
        row("SYS-11")
            .prepare("systemctl stop idle.service")
            .replace("/opt/echo/idle.py", "idle-base", "idle-target")
            .then_shows("head -1 </dev/tcp/127.0.0.1/7008", "idle-target"),
        row("what ran once").write("/etc/zoo/once.conf", "target\n").shows(
            "cat /run/once",
            "base",
            "base",
        ),
    ]
}

fn boot() -> Vec<Case> {
    vec![
        row("SYS-29").write("/etc/modprobe.d/x.conf", "options zoo a=1\n"),
        row("KRN-04").write("/boot/initrd.img-6.1.0-50-cloud-amd64", "cpio\n"),
        row("KRN-06").write("/usr/lib/firmware/zoo.bin", "firmware\n"),
        row("KRN-07").write("/usr/lib/firmware/intel-ucode/06-55-04", "microcode\n"),
        row("CTR-02").write("/var/lib/docker/overlay2/a/diff/usr/bin/x", "#!/bin/sh\n"),
    ]
}
