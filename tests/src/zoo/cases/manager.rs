//! Unit files of every kind, and what the service manager's tools turn into state.

use crate::zoo::case::{Case, Kind, case};

const RELOAD: &str = "daemon-reload";

/// How a unit's process sees a variable.
macro_rules! variable {
    ($unit:literal) => {
        concat!(
            "tr '\\0' '\\n' < /proc/$(systemctl show -p MainPID --value ",
            $unit,
            ")/environ | grep ^ZOO= || true"
        )
    };
}

/// The link by which a unit starts with the machine.
macro_rules! wants {
    ($unit:literal) => {
        concat!("/etc/systemd/system/multi-user.target.wants/", $unit)
    };
}

pub(super) fn cases() -> Vec<Case> {
    [units(), others(), enabling(), tools()].into_iter().flatten().collect()
}

fn row(id: &'static str) -> Case {
    case(Kind::Manager, id)
}

fn units() -> Vec<Case> {
    vec![
        row("SYS-01")
            .replace(
                "/etc/systemd/system/keyed.service",
                "[Service]\n",
                "[Service]\nEnvironment=ZOO=1\n",
            )
            .wants(&[RELOAD, "restart keyed.service"])
            .shows(variable!("keyed"), "", "ZOO=1"),
        row("SYS-02")
            .write("/etc/systemd/system/nginx.service.d/x.conf", "[Service]\nEnvironment=ZOO=1\n")
            .wants(&[RELOAD, "restart nginx.service"])
            .shows("systemctl show -p DropInPaths --value nginx | grep -c x.conf", "0", "1"),
        row("SYS-03")
            .write("/etc/systemd/system/simple.service.d/a.conf", "[Service]\nEnvironment=ZOO=1\n")
            .run("touch -d 2001-02-03", "/etc/systemd/system/simple.service.d/a.conf")
            .wants(&[RELOAD, "restart simple.service"])
            .shows(variable!("simple"), "ZOO=0", "ZOO=1"),
        row("SYS-06")
            .replace("/etc/systemd/system/boss.service", "Description=boss", "Description=chief")
            .wants(&[RELOAD])
            .shows(
                "systemctl show -p Description --value boss",
                "boss of the zoo",
                "chief of the zoo",
            ),
        row("a way to reload alone")
            .replace(
                "/etc/systemd/system/libuser.service",
                "[Service]\n",
                "[Service]\nExecReload=/bin/true\n",
            )
            .wants(&[RELOAD])
            .shows("systemctl show -p CanReload --value libuser", "no", "yes"),
        row("SYS-13")
            .write("/etc/systemd/system/memcached.service.d/m.conf", "[Service]\nTasksMax=55\n")
            .wants(&[RELOAD])
            .then_shows("systemctl show -p TasksMax --value memcached", "55"),
        row("a template")
            .replace("/etc/systemd/system/foo@.service", "GREETING=hello", "GREETING=hi")
            .wants(&[RELOAD, "restart foo@a.service", "restart foo@b.service"])
            .shows("cat /run/foo-a /run/foo-b", "base hello\nbase hello", "base hi\nbase hi"),
        row("an instance's drop-in")
            .write(
                "/etc/systemd/system/foo@a.service.d/x.conf",
                "[Service]\nEnvironment=GREETING=hi\n",
            )
            .wants(&[RELOAD, "restart foo@a.service"])
            .shows("cat /run/foo-a /run/foo-b", "base hello\nbase hello", "base hi\nbase hello"),
        row("one that another is bound to")
            .write("/etc/systemd/system/boss.service.d/x.conf", "[Service]\nEnvironment=ZOO=1\n")
            .wants(&[RELOAD, "restart boss.service"])
            .along(&["helper.service"])
            .shows(variable!("boss"), "", "ZOO=1"),
        row("a distribution's unit overruled")
            .copy("/usr/lib/systemd/system/cron.service", "/etc/systemd/system/cron.service")
            .replace(
                "/etc/systemd/system/cron.service",
                "[Service]\n",
                "[Service]\nEnvironment=ZOO=1\n",
            )
            .wants(&[RELOAD, "restart cron.service"])
            .shows(variable!("cron"), "", "ZOO=1"),
        row("a drop-in for every service")
            .write("/etc/systemd/system/service.d/x.conf", "[Service]\nEnvironment=ZOO=1\n")
            .wants(&[RELOAD])
            .alone(),
    ]
}

fn others() -> Vec<Case> {
    vec![
        row("SYS-09")
            .replace("/etc/systemd/system/hello.timer", "2038-01-01", "2037-02-03")
            .wants(&[RELOAD])
            .shows(
                "systemctl show -p NextElapseUSecRealtime --value hello.timer | cut -c5-14",
                "2038-01-01",
                "2037-02-03",
            ),
        row("SYS-10")
            .prepare("head -1 </dev/tcp/127.0.0.1/7007")
            .replace("/etc/systemd/system/echo.socket", "7007", "7017")
            .wants(&[RELOAD, "restart echo.socket", "restart echo.service"])
            .shows(
                "for port in 7007 7017; do head -1 2>/dev/null </dev/tcp/127.0.0.1/$port; done; true",
                "echo-base",
                "echo-base",
            )
            .shows("ss -Hltn | grep -c :7017", "0", "1"),
        row("a socket whose service waits")
            .replace("/etc/systemd/system/idle.socket", "7008", "7018")
            .prepare("systemctl stop idle.service")
            .wants(&[RELOAD, "restart idle.socket"])
            .shows("ss -Hltn | grep -c :7018", "0", "1"),
        row("SYS-20")
            .write("/etc/systemd/system.conf.d/v.conf", "[Manager]\nDefaultTimeoutStartSec=45s\n")
            .wants(&[RELOAD])
            .shows("systemctl show -p DefaultTimeoutStartUSec --value", "30s", "45s"),
        row("SYS-30")
            .append("/etc/fstab", "tmpfs /srv/zoo tmpfs defaults 0 0\n")
            .wants(&[RELOAD, "start srv-zoo.mount"])
            .leaves("findmnt -no FSTYPE /srv/zoo || true", "", "tmpfs")
            .clean("umount /srv/zoo || true"),
        row("a user's unit")
            .replace(
                "/etc/systemd/user/usersvc.service",
                "[Service]\n",
                "[Service]\nEnvironment=ZOO=1\n",
            )
            .wants(&["daemon-reload in user@1000.service"])
            .shows(
                "runuser -u alice -- env XDG_RUNTIME_DIR=/run/user/1000 systemctl --user \
                 show -p Environment --value usersvc",
                "",
                "ZOO=1",
            ),
    ]
}

fn enabling() -> Vec<Case> {
    vec![
        row("SYS-05")
            .link(wants!("spare.service"), "/etc/systemd/system/spare.service")
            .wants(&[RELOAD])
            .shows("systemctl is-enabled spare", "disabled", "enabled")
            .shows("systemctl is-active spare", "inactive", "inactive"),
        row("SYS-14")
            .remove("/etc/systemd/system/removed.service")
            .remove(wants!("removed.service"))
            .wants(&[RELOAD, "stop removed.service"])
            .shows("systemctl is-active removed", "active", "inactive"),
        row("SYS-15")
            .write(
                "/etc/systemd/system/fresh.service",
                "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n",
            )
            .link(wants!("fresh.service"), "/etc/systemd/system/fresh.service")
            .wants(&[RELOAD, "start fresh.service"])
            .shows("systemctl is-active fresh", "inactive", "active"),
        row("a unit that is not enabled")
            .write("/etc/systemd/system/lazy.service", "[Service]\nExecStart=/bin/sleep infinity\n")
            .wants(&[RELOAD])
            .shows("systemctl is-active lazy", "inactive", "inactive"),
    ]
}

fn tools() -> Vec<Case> {
    vec![
        row("SYS-23")
            .write("/etc/tmpfiles.d/v.conf", "d /run/vdir 0750 root root -\n")
            .wants(&["run systemd-tmpfiles --create v.conf"])
            .leaves("stat -c %a /run/vdir 2>/dev/null || true", "", "750")
            .clean("rmdir /run/vdir"),
        row("SYS-24")
            .prepare("mkdir /run/users; cd /etc; cp -a passwd group shadow gshadow /run/users/")
            .write("/etc/sysusers.d/v.conf", "u vzoo - \"A user\" /\n")
            .wants(&["run systemd-sysusers v.conf"])
            .leaves("getent passwd vzoo | cut -d: -f1", "", "vzoo")
            .clean("cp -a /run/users/* /etc/; rm -r /run/users"),
        row("SYS-25")
            .write("/etc/sysctl.d/9.conf", "net.ipv4.ip_default_ttl = 77\n")
            .wants(&["run /usr/lib/systemd/systemd-sysctl --prefix=net/ipv4/ip_default_ttl"])
            .leaves("cat /proc/sys/net/ipv4/ip_default_ttl", "64", "77")
            .clean("sysctl -q -w net.ipv4.ip_default_ttl=64"),
        row("LIB-12")
            .write("/etc/ld.so.conf.d/x.conf", "/opt/zoolib\n")
            .wants(&["run ldconfig"])
            .shows("ldconfig -p | grep -c /opt/zoolib", "0", "1"),
        row("PFX-04").append("/etc/aliases", "zoo: root\n").wants(&["run newaliases"]).shows(
            "postalias -q zoo /etc/aliases || true",
            "",
            "root",
        ),
    ]
}
