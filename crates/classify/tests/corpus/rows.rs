//! The rows: how each changes the recorded guest or the laboratory, and what must hold beyond its words.

use vireo_classify::{
    Action::*, Class, Confirm, ManagerAction, OnConflict, OnDrift, Owner, Plan, Policy, Process,
    Proof, Step, Unit,
};

use crate::guest::guest;
use crate::lab::{Scenario, lab, path};

/// Why a row is no matter of a plan, if so.
pub(crate) fn not_of_a_plan(id: &str) -> Option<&'static str> {
    match id {
        "RUN-01" => Some("resuming after a crash is the agent's; plans are made anew from facts"),
        "RUN-02" => Some("a race while looking at processes is the agent's to repeat"),
        _ => None,
    }
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn dead_man_is_armed(plan: &Plan) -> Result<(), String> {
    let man = plan.system.dead_man.as_ref();
    ensure(man.is_some_and(|man| man.confirm == Confirm::Remote), "no dead-man timer")?;
    let steps = plan.steps();
    let (arm, commit) = (
        steps.iter().position(|step| matches!(step, Step::Arm(_))),
        steps.iter().position(|step| *step == Step::Commit),
    );
    ensure(arm.is_some() && arm < commit, "armed after the commit")
}

fn nothing_is_committed(plan: &Plan) -> Result<(), String> {
    ensure(plan.is_refused() && plan.steps().is_empty(), "not refused")
}

fn checked_by(plan: &Plan, program: &str) -> Result<(), String> {
    let by = plan.checks.iter().any(|check| check.command[0].ends_with(program));
    ensure(by, "nobody checks it")
}

fn noted(plan: &Plan, word: &str) -> Result<(), String> {
    ensure(plan.notes.iter().any(|note| note.contains(word)), "no note about it")
}

fn is_proven_by_inodes(plan: &Plan) -> Result<(), String> {
    let held = plan.units.iter().filter(|unit| matches!(unit.action, Reload | Restart));
    ensure(held.clone().all(|unit| unit.proof.contains(&Proof::Inodes)), "no look at inodes")
}

fn the_agent_comes_last(plan: &Plan) -> Result<(), String> {
    ensure(matches!(plan.steps().last(), Some(Step::Myself(_))), "the agent does not come last")
}

const UNIT: &str = "[Unit]\nDescription=a\n[Service]\nExecStart=/usr/bin/a\n";

pub(crate) fn scenario(id: &str) -> Scenario {
    match id.split('-').next().unwrap_or_default() {
        "NGX" | "APA" | "PHP" | "SSH" | "DEL" | "DUP" => web_and_login(id),
        "PG" | "RED" | "MDB" | "MEM" | "PFX" | "CRN" | "LOG" => services(id),
        "SYS" => systemd(id),
        "LIB" | "NSS" | "TZ" => libraries(id),
        "PY" | "PL" | "SH" => scripts(id),
        _ => system(id),
    }
}

fn web_and_login(id: &str) -> Scenario {
    match id {
        "NGX-01" => guest(&["+/etc/nginx/conf.d/v2.conf"]).also(|plan| {
            checked_by(plan, "nginx")?;
            ensure(plan.units[0].proof.contains(&Proof::Read), "no look at access times")
        }),
        "NGX-02" => guest(&["+/etc/nginx/conf.d/bad.conf"]).failing().also(nothing_is_committed),
        "NGX-03" => guest(&["/usr/sbin/nginx"]).also(is_proven_by_inodes),
        "NGX-04" => guest(&["/etc/nginx/c.pem", "/etc/nginx/k.pem"]),
        "NGX-05" => guest(&["/var/www/html/v.html"]),
        "NGX-06" => guest(&["/usr/lib/nginx/modules/ngx_mail_module.so"]).also(is_proven_by_inodes),
        "NGX-07" => guest(&["/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0.11.2"])
            .units_beyond(&[
                ("nginx.service", Restart),
                ("apache2.service", Restart),
                ("cron.service", Restart),
                ("mariadb.service", Restart),
                ("systemd-journald.service", Restart),
                // Their reload executes them anew: lighter than the row's restart, which follows if
                // the look at inodes does not prove it.
                ("ssh.service", Reload),
                ("php8.2-fpm.service", Reload),
                ("dbus.service", Hold),
                ("systemd-logind.service", Hold),
                ("user@1000.service", Hold),
            ])
            .also(is_proven_by_inodes),
        "APA-01" => guest(&["+/etc/apache2/conf-enabled/v.conf"]),
        "APA-02" => {
            guest(&["+/etc/apache2/conf-enabled/v.conf"]).failing().also(nothing_is_committed)
        }
        "APA-05" => guest(&["/var/www/html/a/.htaccess"]),
        "PHP-01" => guest(&["/etc/php/8.2/fpm/pool.d/www.conf"]),
        "PHP-03" => guest(&["/etc/php/8.2/fpm/php.ini"]),
        "PHP-04" => lab(&["/var/www/html/index.php"]),
        "SSH-01" => guest(&["+/etc/ssh/sshd_config.d/v.conf"]).also(dead_man_is_armed),
        "SSH-02" => guest(&["+/etc/ssh/sshd_config.d/v.conf"]).failing().also(nothing_is_committed),
        "SSH-03" => guest(&["/usr/sbin/sshd"]).also(is_proven_by_inodes),
        "SSH-04" => guest(&["/etc/ssh/ssh_host_ed25519_key"]).also(|plan| noted(plan, "identity")),
        "SSH-05" => guest(&["+/etc/ssh/sshd_config.d/p.conf"]).also(|plan| {
            dead_man_is_armed(plan)?;
            ensure(plan.units[0].proof.contains(&Proof::Sockets), "no look at sockets")
        }),
        "DEL-01" => lab(&["-/etc/nginx/conf.d/v.conf"]),
        // Applied or merged, the file is one that ssh reads.
        "DUP-01" => {
            guest(&["/etc/ssh/sshd_config"]).units_beyond(&[("ssh.service", Reload)]).also(|_| {
                let file = path("/etc/ssh/sshd_config");
                let rule = Policy::default().drift_rule(&file, Class::Config);
                let merges = rule.on == OnDrift::Merge && rule.conflict == OnConflict::Keep;
                ensure(merges, "local edits are not merged and kept")
            })
        }
        other => panic!("no scenario for {other}"),
    }
}

fn services(id: &str) -> Scenario {
    let postgres = "/etc/postgresql/15/main/postgresql.conf";
    match id {
        "PG-01" => guest(&[postgres]),
        "PG-03" => guest(&[postgres]).also(|plan| {
            let probes = plan.units[0].probes.iter();
            let mut errors =
                probes.filter(|probe| probe.command.concat().contains("pg_file_settings"));
            ensure(errors.next().is_some(), "no probe for settings that were not applied")
        }),
        "PG-04" => guest(&["/etc/postgresql/15/main/pg_hba.conf"]),
        "PG-05" => guest(&["/usr/lib/postgresql/15/bin/postgres"]),
        "RED-01" => guest(&["/etc/redis/redis.conf"]),
        "RED-02" => guest(&["/usr/bin/redis-check-rdb"]),
        "MDB-01" => guest(&["+/etc/mysql/mariadb.conf.d/zz.cnf"]),
        "MEM-01" => guest(&["/etc/memcached.conf"]),
        "PFX-01" => guest(&["/etc/postfix/main.cf"]),
        "PFX-04" => guest(&["/etc/aliases"]),
        "CRN-01" => lab(&["/etc/cron.d/v"]),
        "CRN-03" => guest(&["/usr/lib/x86_64-linux-gnu/libpam.so.0.85.1"])
            .manager("daemon-reexec")
            .units_beyond(&[
                ("cron.service", Restart),
                ("postgresql@15-main.service", Restart),
                ("systemd-journald.service", Restart),
                ("ssh.service", Reload),
                ("systemd-logind.service", Hold),
                ("user@1000.service", Hold),
            ]),
        "LOG-02" => guest(&["+/etc/logrotate.d/x"]),
        "LOG-03" => guest(&["+/etc/systemd/journald.conf.d/v.conf"]),
        other => panic!("no scenario for {other}"),
    }
}

fn systemd(id: &str) -> Scenario {
    let drop_in = "/etc/systemd/system/nginx.service.d/x.conf";
    match id {
        "SYS-01" => lab(&["/lib/systemd/system/app.service"])
            .contents(UNIT, &UNIT.replace("/usr/bin/a", "/usr/bin/b")),
        "SYS-02" => guest(&["+/etc/systemd/system/nginx.service.d/x.conf"])
            .contents("", "[Service]\nEnvironment=A=1\n"),
        // The row is about reading the file again; a key that no process keeps shows it alone.
        "SYS-03" => lab(&[drop_in])
            .contents("[Service]\nTimeoutStopSec=5\n", "[Service]\nTimeoutStopSec=9\n"),
        "SYS-05" => {
            lab(&["+/etc/systemd/system/multi-user.target.wants/stopped.service"]).units(&[])
        }
        "SYS-06" => lab(&["/lib/systemd/system/nginx.service"])
            .contents(UNIT, &UNIT.replace("Description=a", "Description=b")),
        "SYS-09" => guest(&["/etc/systemd/system/hello.timer"]),
        "SYS-10" => lab(&["/lib/systemd/system/echo.socket"])
            .contents("[Socket]\nListenStream=1\n", "[Socket]\nListenStream=2\n")
            .units(&[("echo.socket", Restart), ("echo.service", Restart)])
            .also(|plan| {
                let restarts = plan.steps().into_iter().find_map(|step| match step {
                    Step::Restart(units) => Some(units),
                    _ => None,
                });
                let names: Vec<String> =
                    restarts.into_iter().flatten().map(|unit| unit.to_string()).collect();
                ensure(names == ["echo.service", "echo.socket"], "not the service, then the socket")
            }),
        "SYS-11" => guest(&["/opt/echo/idle.py"]),
        "SYS-13" => guest(&["+/etc/systemd/system/memcached.service.d/m.conf"])
            .contents("", "[Service]\nMemoryMax=1G\nTasksMax=5\n")
            .units(&[]),
        "SYS-14" => {
            lab(&["-/lib/systemd/system/x.service"]).units(&[("x.service", Stop)]).also(|plan| {
                let steps = plan.steps();
                let at = |wanted: fn(&Step) -> bool| steps.iter().position(wanted);
                let stop = at(|step| matches!(step, Step::Stop(_)));
                let commit = at(|step| *step == Step::Commit);
                let reset = at(|step| matches!(step, Step::ResetFailed(_)));
                ensure(stop < commit && commit < reset, "not stopped before the removal")
            })
        }
        "SYS-15" => {
            let file = "+/lib/systemd/system/fresh.service";
            let link = "+/etc/systemd/system/multi-user.target.wants/fresh.service";
            lab(&[file, link]).units(&[("fresh.service", Start)])
        }
        "SYS-17" => lab(&["/etc/bind/named.conf.options"]),
        "SYS-18" => lab(&["/etc/stopped.conf"]),
        "SYS-20" => guest(&["+/etc/systemd/system.conf.d/v.conf"]),
        "SYS-21" => {
            guest(&["/usr/lib/systemd/systemd"]).units_beyond(&[("user@1000.service", Hold)])
        }
        "SYS-22" => lab(&["/usr/lib/systemd/systemd-logind", "/etc/systemd/logind.conf"]),
        "SYS-23" => guest(&["+/etc/tmpfiles.d/v.conf"]),
        "SYS-24" => guest(&["+/etc/sysusers.d/v.conf"]),
        "SYS-25" => lab(&["/etc/sysctl.d/9.conf"])
            .contents(
                "net.core.somaxconn=1\nvm.swappiness=1\n",
                "net.core.somaxconn=2\nvm.swappiness=1\n",
            )
            .also(|plan| {
                let command = plan.system.tools[0].command.join(" ");
                ensure(command.ends_with(" --prefix=net/core/somaxconn"), "not only what changed")
            }),
        "SYS-26" => lab(&["+/etc/udev/rules.d/x.rules"]),
        "SYS-27" => lab(&["/usr/lib/udev/hwdb.d/20-a.hwdb"]).units(&[]),
        "SYS-28" => lab(&["+/etc/modules-load.d/x.conf"]),
        "SYS-29" => lab(&["+/etc/modprobe.d/x.conf"]),
        "SYS-30" => lab(&["/etc/fstab"])
            .contents(
                "/dev/a / ext4 ro\n/dev/b /srv/data ext4 defaults\n",
                "/dev/a / ext4 rw\n/dev/c /srv/data ext4 defaults\n/dev/d /new xfs defaults\n",
            )
            // The root could be mounted again over itself, but is no unit of the laboratory; what
            // is mounted from elsewhere stays as it is.
            .units_beyond(&[("new.mount", Start), ("srv-data.mount", Hold)]),
        "SYS-32" => user_manager(),
        // To hold is to report: nothing is done.
        "SYS-33" => lab(&["/usr/bin/bash"]).units_beyond(&[("session-3.scope", Hold)]),
        other => panic!("no scenario for {other}"),
    }
}

/// A user's manager runs the program that process 1 runs, too.
fn user_manager() -> Scenario {
    let mut scenario = lab(&["/usr/lib/systemd/systemd"]).manager("daemon-reexec");
    let file = scenario.changes[0].replaced.expect("process 1 holds it");
    let (manager, unit) = (Unit::new("user@1000.service"), Unit::new("init.scope"));
    let owner = Owner::UserUnit { manager, unit };
    scenario.facts.processes.push(Process { pid: 900, owner, holds: [file].into() });
    scenario.units(&[("user@1000.service", Hold)]).also(|plan| {
        let anew = plan.system.user_managers.first().map(|manager| manager.action);
        ensure(anew == Some(ManagerAction::Reexec), "the user's manager is not executed anew")
    })
}

fn libraries(id: &str) -> Scenario {
    let lib = |name: &str| format!("/usr/lib/x86_64-linux-gnu/{name}");
    match id {
        "LIB-01" => guest(&[&lib("libssl.so.3")]).also(is_proven_by_inodes).units_beyond(&[
            ("app.service", Restart),
            ("mariadb.service", Restart),
            ("memcached.service", Restart),
            ("named.service", Restart),
            ("nginx.service", Restart),
            ("node.service", Restart),
            ("php8.2-fpm.service", Reload),
            ("postgresql@15-main.service", Restart),
            ("redis-server.service", Restart),
            ("supervisor.service", Restart),
        ]),
        // The choice of restarting all who hold it, with what must not restart left pending.
        "LIB-02" => lab(&[&lib("libc.so.6")]).without_reboot().units_beyond(&[
            ("nginx.service", Restart),
            ("cron.service", Restart),
            ("memcached.service", Restart),
            ("dbus.service", Hold),
        ]),
        "LIB-03" => guest(&[&lib("libevent-2.1.so.7.0.1")]),
        "LIB-07" => {
            guest(&["/usr/local/lib/libfoo.so.1.2.3"]).units(&[("libuser.service", Restart)])
        }
        "LIB-08" => lab(&[&lib("security/pam_unix.so")])
            .units_beyond(&[("cron.service", Restart), ("user@1000.service", Hold)]),
        "LIB-09" => guest(&[&lib("libnss_systemd.so.2")]).units_beyond(&[
            ("apache2.service", Restart),
            ("named.service", Restart),
            ("nginx.service", Restart),
            ("php8.2-fpm.service", Reload),
            ("postfix@-.service", Restart),
            ("dbus.service", Hold),
            ("systemd-logind.service", Hold),
            ("user@1000.service", Hold),
        ]),
        "LIB-11" => guest(&["/usr/lib/locale/C.utf8/LC_CTYPE"]),
        "LIB-12" => guest(&["+/etc/ld.so.conf.d/x.conf"]),
        "LIB-13" => lab(&["/etc/ssl/certs/ca-certificates.crt"]).units(&[("app.service", Restart)]),
        "LIB-14" => guest(&["/etc/ssl/openssl.cnf"]).also(|plan| noted(plan, "openssl.cnf")),
        "LIB-16" => lab(&["=/opt/app/worker.py"]),
        "NSS-01" => guest(&["/etc/hosts"]),
        "NSS-02" => guest(&["/etc/nsswitch.conf"]),
        "NSS-03" => lab(&["/etc/resolv.conf"]),
        "NSS-04" => guest(&["/etc/passwd"]),
        "TZ-02" => guest(&["/usr/share/zoneinfo/Asia/Tokyo"]),
        other => panic!("no scenario for {other}"),
    }
}

fn scripts(id: &str) -> Scenario {
    match id {
        "PY-01" => guest(&["/opt/app/app.py"]),
        "PY-02" => guest(&["/opt/app/helper.py"]),
        "PY-03" => guest(&["/etc/app/config.yaml"]),
        "PY-04" => guest(&["/opt/app/template.txt"]),
        "PY-06" => guest(&["/opt/py/lib/wmod.py"]),
        "PY-09" => {
            guest(&["/usr/lib/python3/dist-packages/yaml/_yaml.cpython-311-x86_64-linux-gnu.so"])
        }
        "PL-01" => guest(&["/opt/perl/pw.pl", "/opt/perl/lib/PMod.pm"]),
        "SH-01" => guest(&["/opt/sh/loop.sh"]),
        other => panic!("no scenario for {other}"),
    }
}

fn system(id: &str) -> Scenario {
    match id {
        "DBS-01" => guest(&["+/etc/dbus-1/system.d/v.conf"]),
        "DBS-02" => guest(&["/usr/bin/dbus-daemon"]).without_reboot(),
        "DBS-03" => guest(&["+/etc/polkit-1/rules.d/x.rules"]),
        "KRN-01" => lab(&[
            "+/boot/vmlinuz-6.1.0-56-cloud-amd64",
            "-/lib/modules/6.1.0-50-cloud-amd64/kernel/a.ko",
        ])
        .also(|plan| ensure(!plan.system.keep.is_empty(), "the running kernel's modules go")),
        "KRN-03" => lab(&["/lib/modules/6.1.0-50-cloud-amd64/kernel/drivers/net/dummy.ko"])
            .units(&[])
            .without_reboot(),
        "KRN-04" => lab(&["/boot/initrd.img-6.1.0-50-cloud-amd64"]),
        "KRN-05" => lab(&["/etc/default/grub"])
            .contents("GRUB_CMDLINE_LINUX=\"\"\n", "GRUB_CMDLINE_LINUX=\"quiet\"\n"),
        "KRN-06" => {
            lab(&["/lib/firmware/x.bin"]).without_reboot().also(|plan| noted(plan, "x.bin"))
        }
        "KRN-07" => lab(&["/lib/firmware/intel-ucode/06-55-04"]),
        "SUD-01" => guest(&["+/etc/sudoers.d/v"]).also(|plan| checked_by(plan, "visudo")),
        "PAM-01" => lab(&["/etc/pam.d/sshd"]).also(dead_man_is_armed),
        "NET-01" => lab(&["/etc/systemd/network/10-eth0.network"])
            .units(&[("systemd-networkd.service", Hold)])
            .also(dead_man_is_armed),
        "FW-01" => lab(&["/etc/nftables.conf"]).also(dead_man_is_armed),
        "DOC-01" => lab(&["/etc/docker/daemon.json"])
            .also(|plan| ensure(plan.units[0].ceiling.is_none(), "a restart could follow")),
        "CTR-01" => lab(&["/usr/bin/containerd"]),
        "CTR-02" => lab(&["/var/lib/docker/overlay2/a/diff/usr/bin/x"]),
        "NEW-01" => lab(&["+/opt/data/x"]),
        "SLF-01" => lab(&["/usr/bin/vireo-agent"])
            .units_beyond(&[("vireo-agent.service", Restart)])
            .also(the_agent_comes_last),
        "SLF-02" => lab(&["/lib/systemd/system/vireo-agent.service"]).also(the_agent_comes_last),
        other => panic!("no scenario for {other}"),
    }
}
