//! A Debian 12 as facts and a read map that were written by hand, for rows that the recorded
//! [guest](crate::guest) cannot serve:
//!
//! - it has no kernel of its own, no udev, no network manager, no firewall, no container engine, no
//!   session and no agent that runs (`KRN`, `NET`, `FW`, `DOC`, `CTR`, `SLF`, SYS-26 to SYS-29, SYS-33);
//! - what the row wants stopped runs there, or the reverse (SYS-10, SYS-17, SYS-18);
//! - the row is about files and units that only it has, or that were not recorded (PAM-01, SYS-01, SYS-03,
//!   SYS-05, SYS-06, SYS-14, SYS-15, SYS-22, SYS-25, SYS-30, SYS-32, CRN-01, PHP-04, DEL-01, NEW-01, LIB-13,
//!   LIB-16, NSS-03), or every unit is in it (LIB-02), or who holds a file is a login's (LIB-08).

use std::collections::{BTreeMap, BTreeSet};

use vireo_classify::{
    Action, ActiveState, ChangedFile, Facts, FileId, Host, Owner, Phase, Plan, Process, ReadMap,
    Unit, UnitFacts, declarations_of,
};
use vireo_model::{ChangeKind, ImagePath};

use crate::expected::Expected;

pub(crate) const KERNEL: &str = "6.1.0-50-cloud-amd64";

/// A change of the laboratory.
pub(crate) struct Scenario {
    pub(crate) facts: Facts,
    pub(crate) host: Host,
    pub(crate) reads: ReadMap,
    pub(crate) changes: Vec<ChangedFile>,
    /// The last check that the plan asks for fails.
    pub(crate) check_fails: bool,
    /// The row's reboot applies to this change of it.
    pub(crate) reboot_is_due: bool,
    /// What happens to which unit, where the row names a group instead of units.
    group: Option<Vec<(&'static str, Action)>>,
    /// Actions of the group that the row does not name, for a reason given beside it.
    beyond: bool,
    /// What process 1 does beyond the row's words, for a reason given beside it.
    pub(crate) manager: Option<&'static str>,
    /// What else must hold.
    pub(crate) also: fn(&Plan) -> Result<(), String>,
}

pub(crate) fn path(text: &str) -> ImagePath {
    ImagePath::parse(text.as_bytes()).expect("a valid path")
}

/// What is changed, with its path: a path, with `+` (added), `-` (removed) or `=` (metadata only) before
/// it.
pub(crate) fn changes_of<'a>(changes: &[&'a str]) -> impl Iterator<Item = (&'a str, ChangedFile)> {
    changes.iter().map(|text| {
        let (kind, text) = match text.split_at(1) {
            ("+", rest) => (ChangeKind::Added, rest),
            ("-", rest) => (ChangeKind::Removed, rest),
            ("=", rest) => (ChangeKind::Metadata, rest),
            _ => (ChangeKind::Modified, *text),
        };
        (text, ChangedFile::new(path(text), kind))
    })
}

/// The laboratory with these changes, as [`changes_of`] reads them.
pub(crate) fn lab(changes: &[&str]) -> Scenario {
    let (facts, ids) = facts();
    let changes = changes_of(changes).map(|(path, change)| {
        let replaced = ids.get(path).copied().filter(|_| change.kind != ChangeKind::Added);
        ChangedFile { replaced, ..change }
    });
    let reads = reads(&facts);
    Scenario::of(facts, host(), reads, changes.collect())
}

impl Scenario {
    /// A machine of which this is true, and what changes on it.
    pub(crate) fn of(facts: Facts, host: Host, reads: ReadMap, changes: Vec<ChangedFile>) -> Self {
        Self {
            facts,
            host,
            reads,
            changes,
            check_fails: false,
            reboot_is_due: true,
            group: None,
            beyond: false,
            manager: None,
            also: |_| Ok(()),
        }
    }

    /// The same where the last check fails.
    pub(crate) fn failing(mut self) -> Self {
        self.check_fails = true;
        self
    }

    /// The same where the reboot that the row speaks of is not due.
    pub(crate) fn without_reboot(mut self) -> Self {
        self.reboot_is_due = false;
        self
    }

    /// The same with contents of the first change.
    pub(crate) fn contents(mut self, before: &str, after: &str) -> Self {
        let content = |text: &str| (!text.is_empty()).then(|| text.as_bytes().to_vec());
        let (before, after) = (content(before), content(after));
        let first = self.changes.remove(0);
        self.changes.insert(0, first.with_contents(before.as_deref(), after.as_deref()));
        self
    }

    /// The same where exactly these units get these actions.
    pub(crate) fn units(mut self, units: &[(&'static str, Action)]) -> Self {
        self.group = Some(units.to_vec());
        self
    }

    /// The same, though the row does not speak of all these actions.
    pub(crate) fn units_beyond(self, units: &[(&'static str, Action)]) -> Self {
        Self { beyond: true, ..self.units(units) }
    }

    /// The same where process 1 does something that the row does not speak of.
    pub(crate) fn manager(self, action: &'static str) -> Self {
        Self { manager: Some(action), ..self }
    }

    /// The same with one more thing that must hold.
    pub(crate) fn also(mut self, also: fn(&Plan) -> Result<(), String>) -> Self {
        self.also = also;
        self
    }

    /// Which unit is to get which action: as the row names them, or the group that it means,
    /// which then must be of the actions that it names.
    pub(crate) fn expected_units(&self, expected: &Expected) -> BTreeMap<Unit, Action> {
        if let Some(group) = &self.group {
            for (unit, action) in group.iter().filter(|_| !self.beyond) {
                let said = expected.actions.iter().any(|(said, _)| said == action);
                assert!(said, "the row says nothing of {action:?}: {unit}");
            }
            return group.iter().map(|(unit, action)| (Unit::new(*unit), *action)).collect();
        }
        let Some((action, _)) = expected.actions.first() else { return BTreeMap::new() };
        expected.units.iter().map(|unit| (Unit::new(unit.clone()), *action)).collect()
    }
}

/// What a unit's file on Debian 12 says.
fn unit(name: &str, can_reload: bool, file: &str) -> UnitFacts {
    let id = Unit::new(name);
    let template = format!("{}@.{}", id.stem(), id.kind());
    let file_name = id.instance().map_or(name, |_| template.as_str());
    let found = declarations_of(&id, [file.as_bytes()]);
    UnitFacts {
        can_reload,
        files: vec![path(&format!("/lib/systemd/system/{file_name}"))],
        programs: found.programs,
        declared: found.declared.into_iter().collect(),
        arguments: found.arguments,
        main_pid: 1,
        ..UnitFacts::running(name)
    }
}

fn done(name: &str, can_reload: bool) -> UnitFacts {
    UnitFacts {
        service_type: "oneshot".to_owned(),
        sub: "exited".to_owned(),
        main_pid: 0,
        ..unit(name, can_reload, "")
    }
}

fn stopped(unit: UnitFacts) -> UnitFacts {
    UnitFacts { active: ActiveState::Inactive, sub: "dead".to_owned(), main_pid: 0, ..unit }
}

fn units() -> Vec<UnitFacts> {
    let exec = |command: &str| format!("[Service]\nExecStart={command}\n");
    let socket = |name: &str, service: &str| UnitFacts {
        triggers: vec![Unit::new(service)],
        ..unit(name, false, "")
    };
    vec![
        unit("nginx.service", true, &exec("/usr/sbin/nginx -g 'daemon on;'")),
        unit("apache2.service", true, &exec("/usr/sbin/apachectl start")),
        unit(
            "php8.2-fpm.service",
            true,
            &exec("/usr/sbin/php-fpm8.2 --fpm-config /etc/php/8.2/fpm/php-fpm.conf"),
        ),
        UnitFacts {
            aliases: BTreeSet::from([Unit::new("sshd.service")]),
            ..unit(
                "ssh.service",
                true,
                "[Service]\nEnvironmentFile=-/etc/default/ssh\nExecStart=/usr/sbin/sshd -D\n",
            )
        },
        unit(
            "postgresql@15-main.service",
            true,
            "[Unit]\nAssertPathExists=/etc/postgresql/%I/postgresql.conf\n",
        ),
        done("postgresql.service", true),
        unit("redis-server.service", false, &exec("/usr/bin/redis-server /etc/redis/redis.conf")),
        unit("mariadb.service", false, &exec("/usr/sbin/mariadbd")),
        unit("memcached.service", false, &exec("/usr/share/memcached/wrapper /etc/memcached.conf")),
        unit("postfix@-.service", true, ""),
        done("postfix.service", true),
        unit(
            "cron.service",
            false,
            "[Service]\nEnvironmentFile=-/etc/default/cron\nExecStart=/usr/sbin/cron -f\n",
        ),
        unit("rsyslog.service", true, &exec("/usr/sbin/rsyslogd -n")),
        unit("systemd-journald.service", false, ""),
        unit("systemd-logind.service", false, ""),
        unit("systemd-networkd.service", true, ""),
        unit("systemd-udevd.service", true, ""),
        unit("dbus.service", true, ""),
        unit("docker.service", true, ""),
        unit("containerd.service", false, ""),
        done("nftables.service", true),
        unit(
            "app.service",
            true,
            "[Service]\nWorkingDirectory=/opt/app\nExecStart=/usr/bin/gunicorn app:app\n",
        ),
        unit("pyworker.service", false, &exec("/usr/bin/python3 /opt/app/worker.py")),
        unit("perlworker.service", false, &exec("/usr/bin/perl /opt/app/pw.pl")),
        unit("shapp.service", false, &exec("/bin/sh /opt/app/loop.sh")),
        unit("vireo-agent.service", false, &exec("/usr/bin/vireo-agent run")),
        unit("user@1000.service", true, ""),
        unit("multi-user.target", false, ""),
        socket("echo.socket", "echo.service"),
        UnitFacts {
            triggered_by: vec![Unit::new("echo.socket")],
            ..unit("echo.service", false, &exec("/usr/bin/python3 /usr/local/bin/echosrv.py"))
        },
        socket("idle.socket", "idle.service"),
        stopped(unit("idle.service", false, &exec("/usr/bin/python3 /usr/local/bin/idlesrv.py"))),
        unit("hello.timer", false, ""),
        unit("srv-data.mount", true, ""),
        unit("x.service", true, &exec("/usr/bin/x -c /etc/x/x.conf")),
        stopped(unit("named.service", true, &exec("/usr/sbin/named -f"))),
        stopped(unit("stopped.service", true, &exec("/usr/bin/stopped -c /etc/stopped.conf"))),
    ]
}

/// Which processes hold which files.
const HELD: &[(&str, &[&str])] = &[
    ("/usr/sbin/nginx", &["nginx.service"]),
    ("/usr/lib/nginx/modules/ngx_mail_module.so", &["nginx.service"]),
    (
        "/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0.11.2",
        &[
            "nginx.service",
            "apache2.service",
            "cron.service",
            "ssh.service",
            "mariadb.service",
            "php8.2-fpm.service",
            "dbus.service",
            "systemd-logind.service",
            "systemd-journald.service",
            "1",
        ],
    ),
    ("/usr/sbin/sshd", &["ssh.service"]),
    ("/usr/lib/postgresql/15/bin/postgres", &["postgresql@15-main.service"]),
    ("/usr/bin/redis-check-rdb", &["redis-server.service"]),
    ("/usr/lib/x86_64-linux-gnu/libpam.so.0.85.1", &["cron.service"]),
    ("/usr/lib/systemd/systemd", &["1"]),
    ("/usr/lib/systemd/systemd-logind", &["systemd-logind.service"]),
    ("/usr/bin/dbus-daemon", &["dbus.service"]),
    (
        "/usr/lib/x86_64-linux-gnu/libssl.so.3",
        &[
            "nginx.service",
            "apache2.service",
            "postgresql@15-main.service",
            "mariadb.service",
            "postfix@-.service",
        ],
    ),
    (
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
        &["1", "nginx.service", "cron.service", "memcached.service", "dbus.service"],
    ),
    ("/usr/lib/x86_64-linux-gnu/libevent-2.1.so.7.0.1", &["memcached.service"]),
    ("/usr/lib/x86_64-linux-gnu/libfoo.so.1", &["x.service"]),
    ("/usr/lib/x86_64-linux-gnu/security/pam_unix.so", &["cron.service", "sd-pam"]),
    (
        "/usr/lib/x86_64-linux-gnu/libnss_systemd.so.2",
        &["cron.service", "postfix@-.service", "dbus.service"],
    ),
    ("/usr/lib/locale/C.utf8/LC_CTYPE", &["nginx.service", "cron.service", "1"]),
    ("/usr/lib/python3/dist-packages/yaml/_yaml.cpython-311-x86_64-linux-gnu.so", &["app.service"]),
    ("/opt/app/loop.sh", &["shapp.service"]),
    ("/usr/bin/containerd", &["containerd.service"]),
    ("/usr/bin/vireo-agent", &["vireo-agent.service"]),
    ("/usr/bin/bash", &["session-3.scope"]),
];

fn facts() -> (Facts, BTreeMap<&'static str, FileId>) {
    let mut facts = Facts { kernel_release: KERNEL.to_owned(), ..Facts::new() };
    facts.units = units().into_iter().map(|unit| (unit.name.clone(), unit)).collect();
    let mut ids = BTreeMap::new();
    for (ino, (file, holders)) in HELD.iter().enumerate() {
        let id = FileId { dev: 0x801, ino: ino as u64 + 100 };
        ids.insert(*file, id);
        for (n, holder) in holders.iter().enumerate() {
            let owner = match *holder {
                "1" => Owner::Manager,
                "sd-pam" => Owner::UserUnit {
                    manager: Unit::new("user@1000.service"),
                    unit: Unit::new("init.scope"),
                },
                session if session.starts_with("session-") => Owner::Session(Unit::new(session)),
                unit => Owner::Unit(Unit::new(unit)),
            };
            let pid = if owner == Owner::Manager { 1 } else { (ino * 100 + n + 2) as u32 };
            facts.processes.push(Process { pid, owner, holds: BTreeSet::from([id]) });
        }
    }
    (facts, ids)
}

fn host() -> Host {
    let present = ["/usr/sbin/nginx", "/usr/sbin/sshd", "/usr/sbin/apachectl", "/usr/sbin/visudo"];
    let present = present.into_iter().chain(["/usr/bin/newaliases", "/usr/sbin/update-grub"]);
    Host {
        manager_version: Some(252),
        loaded_modules: Some(BTreeMap::from([("xfs".to_owned(), 1)])),
        time_zone: Some("/usr/share/zoneinfo/Europe/Berlin".to_owned()),
        present: Some(present.map(str::to_owned).collect()),
    }
}

/// What was seen to be read: by whom, when (`s` start, `l` reload, `r` while left alone).
const READ: &[(&str, &str, &str)] = &[
    ("/etc/nginx/nginx.conf", "nginx.service", "sl"),
    ("/etc/nginx/conf.d/v.conf", "nginx.service", "sl"),
    ("/etc/nginx/conf.d/", "nginx.service", "sl"),
    ("/etc/nginx/c.pem", "nginx.service", "sl"),
    ("/etc/nginx/k.pem", "nginx.service", "sl"),
    ("/etc/apache2/conf-enabled/", "apache2.service", "sl"),
    ("/etc/php/8.2/fpm/pool.d/www.conf", "php8.2-fpm.service", "sl"),
    ("/etc/php/8.2/fpm/php.ini", "php8.2-fpm.service", "sl"),
    ("/etc/ssh/sshd_config", "ssh.service", "sl"),
    ("/etc/ssh/sshd_config.d/", "ssh.service", "sl"),
    ("/etc/ssh/ssh_host_ed25519_key", "ssh.service", "sl"),
    ("/etc/postgresql/15/main/postgresql.conf", "postgresql@15-main.service", "sl"),
    ("/etc/postgresql/15/main/pg_hba.conf", "postgresql@15-main.service", "sl"),
    ("/etc/redis/redis.conf", "redis-server.service", "s"),
    ("/etc/mysql/mariadb.conf.d/", "mariadb.service", "s"),
    ("/etc/memcached.conf", "memcached.service", "s"),
    ("/etc/postfix/main.cf", "postfix@-.service", "sl"),
    ("/etc/aliases.db", "postfix@-.service", "r"),
    ("/etc/cron.d/v", "cron.service", "r"),
    ("/etc/cron.d/", "cron.service", "sr"),
    ("/etc/bind/named.conf.options", "named.service", "sl"),
    ("/opt/app/app.py", "app.service", "sl"),
    ("/opt/app/helper.py", "app.service", "sl"),
    ("/etc/app/config.yaml", "app.service", "sl"),
    ("/opt/app/template.txt", "app.service", "sr"),
    ("/opt/app/worker.py", "pyworker.service", "s"),
    ("/opt/app/lib/__pycache__/wmod.cpython-311.pyc", "pyworker.service", "s"),
    ("/opt/app/pw.pl", "perlworker.service", "s"),
    ("/opt/app/lib/PMod.pm", "perlworker.service", "s"),
    ("/opt/app/loop.sh", "shapp.service", "s"),
    ("/usr/local/bin/echosrv.py", "echo.service", "s"),
    ("/etc/ssl/certs/ca-certificates.crt", "app.service", "s"),
    ("/etc/x/x.conf", "x.service", "sl"),
    ("/etc/docker/daemon.json", "docker.service", "sl"),
    ("/etc/nftables.conf", "nftables.service", "sl"),
];

/// Read by so many that it says nothing about one.
const READ_BY_MANY: &[&str] =
    &["/etc/passwd", "/etc/ssl/openssl.cnf", "/etc/nsswitch.conf", "/etc/localtime"];

fn reads(facts: &Facts) -> ReadMap {
    let mut reads = ReadMap::new();
    for unit in facts.units.values().filter(|unit| unit.name.kind() == "service") {
        reads.watched(&unit.name, Phase::Start);
        if unit.can_reload {
            reads.watched(&unit.name, Phase::Reload);
        }
    }
    for (file, unit, phases) in READ {
        for phase in phases.chars() {
            let phase = match phase {
                's' => Phase::Start,
                'l' => Phase::Reload,
                _ => Phase::Run,
            };
            let unit = Unit::new(*unit);
            match file.strip_suffix('/') {
                Some(directory) => reads.add_directory(&path(directory), &unit, phase),
                None => reads.add_file(&path(file), &unit, phase),
            }
        }
    }
    for file in READ_BY_MANY {
        for unit in facts.units.values().filter(|unit| unit.name.kind() == "service").take(11) {
            reads.add_file(&path(file), &unit.name, Phase::Start);
        }
    }
    reads
}
