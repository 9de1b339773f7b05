//! Programs, libraries and what else processes map: who holds the former file starts anew.

use crate::zoo::case::{Case, Kind, case};

pub(super) fn cases() -> Vec<Case> {
    [programs(), chosen(), libraries(), system()].into_iter().flatten().collect()
}

fn row(id: &'static str) -> Case {
    case(Kind::Code, id)
}

fn rebuilt(id: &'static str, path: &'static str, wants: &'static str) -> Case {
    row(id).rebuild(path).wants(&[wants])
}

fn programs() -> Vec<Case> {
    vec![
        rebuilt("NGX-03", "/usr/sbin/nginx", "restart nginx.service"),
        rebuilt("SSH-03", "/usr/sbin/sshd", "reload ssh.service"),
        rebuilt(
            "PG-05",
            "/usr/lib/postgresql/15/bin/postgres",
            "restart postgresql@15-main.service",
        ),
        rebuilt("RED-02", "/usr/bin/redis-check-rdb", "restart redis-server.service"),
        rebuilt("CRN-03", "/usr/sbin/cron", "restart cron.service"),
        rebuilt("apache2, the program", "/usr/sbin/apache2", "restart apache2.service"),
        rebuilt("php-fpm, the program", "/usr/sbin/php-fpm8.2", "reload php8.2-fpm.service"),
        rebuilt("mariadb, the program", "/usr/sbin/mariadbd", "restart mariadb.service"),
        rebuilt("rsyslog, the program", "/usr/sbin/rsyslogd", "restart rsyslog.service"),
        rebuilt("node, the program", "/usr/bin/node", "restart node.service"),
        rebuilt("ruby, the program", "/usr/bin/ruby3.1", "restart rubyworker.service"),
        rebuilt("perl, the program", "/usr/bin/perl", "restart perlworker.service"),
        rebuilt("postfix, its master", "/usr/lib/postfix/sbin/master", "restart postfix@-.service"),
        row("python, the program").rebuild("/usr/bin/python3.11").for_holders(),
    ]
}

/// By way of links, rights, or an interpreter.
fn chosen() -> Vec<Case> {
    vec![
        rebuilt("NGX-06", "/usr/lib/nginx/modules/ngx_mail_module.so", "restart nginx.service"),
        rebuilt("PY-09", "/usr/lib/python3/dist-packages/yaml/_yaml.*.so", "restart app.service"),
        row("java, its library")
            .rebuild("/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so")
            .wants(&["restart jarapp.service", "restart javaapp.service"]),
        row("java, its modules").rebuild("/usr/lib/jvm/java-17-openjdk-amd64/lib/jrt-fs.jar"),
        row("a program's rights")
            .run("setcap cap_net_bind_service+ep", "/usr/local/bin/capsvc")
            .wants(&["restart capsvc.service"]),
        row("an alternative")
            .link("/etc/alternatives/altsvc", "/usr/local/bin/alt-2")
            .wants(&["restart altsvc.service"])
            .shows(
                "readlink /proc/$(systemctl show -p MainPID --value altsvc)/exe",
                "/usr/local/bin/alt-1",
                "/usr/local/bin/alt-2",
            ),
        row("LIB-07")
            .link("/usr/local/lib/libfoo.so.1", "libfoo.so.1.2.4")
            .wants(&["restart libuser.service"])
            .shows(
                "grep -o 'libfoo[^ ]*' /proc/$(systemctl show -p MainPID --value libuser)/maps | \
                    sort -u",
                "libfoo.so.1.2.3",
                "libfoo.so.1.2.4",
            ),
    ]
}

fn libraries() -> Vec<Case> {
    let library = |id, path| row(id).rebuild(path).for_holders();
    vec![
        library("LIB-03", "/usr/lib/x86_64-linux-gnu/libevent-2.1.so.7.*"),
        library("LIB-01", "/usr/lib/x86_64-linux-gnu/libssl.so.3"),
        library("LIB-08", "/usr/lib/x86_64-linux-gnu/security/pam_unix.so"),
        library("LIB-09", "/usr/lib/x86_64-linux-gnu/libnss_systemd.so.2"),
        library("NGX-07", "/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0.*"),
        library("libz", "/usr/lib/x86_64-linux-gnu/libz.so.1.*"),
        library("LIB-02", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
    ]
}

fn system() -> Vec<Case> {
    vec![
        row("SYS-21").rebuild("/usr/lib/systemd/systemd").for_holders(),
        rebuilt("SYS-22", "/usr/lib/systemd/systemd-logind", "hold systemd-logind.service"),
        rebuilt("DBS-02", "/usr/bin/dbus-daemon", "hold dbus.service"),
        row("KRN-01")
            .write("/boot/vmlinuz-9.9.9-zoo", "kernel\n")
            .write("/usr/lib/modules/9.9.9-zoo/modules.dep", "\n")
            .wants(&["reboot"]),
    ]
}
