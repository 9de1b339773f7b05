//! Plans over a recorded laboratory, in the words that people read.
//!
//! The laboratory is a Debian 12 with the services that images are made for; each case stands
//! for one row of the catalogue of changes that the planner was designed by, named by its label.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vireo_model::{ChangeKind, ImagePath};

use crate::*;

const KERNEL: &str = "6.1.0-50-cloud-amd64";

fn path(text: &str) -> ImagePath {
    ImagePath::parse(text.as_bytes()).expect("a valid path")
}

/// A unit as its file on Debian 12 makes it.
fn unit(name: &str, can_reload: bool, file: &str) -> UnitFacts {
    let place = path(&format!("/lib/systemd/system/{}", template_of(name)));
    let found = declarations_of(&Unit::new(name), [file.as_bytes()]);
    UnitFacts {
        can_reload,
        files: vec![place],
        programs: found.programs,
        declared: found.declared.into_iter().collect(),
        ..UnitFacts::running(name)
    }
}

fn template_of(name: &str) -> String {
    let unit = Unit::new(name);
    unit.instance().map_or(name.to_owned(), |_| format!("{}@.{}", unit.stem(), unit.kind()))
}

fn inode(ino: u64) -> FileId {
    FileId { dev: 0x709, ino }
}

const LIBPCRE: u64 = 1;
const NGINX: u64 = 2;
const SSHD: u64 = 3;
const SYSTEMD: u64 = 4;
const LIBEVENT: u64 = 5;
const LOOP_SH: u64 = 6;
const DBUS: u64 = 7;
const LIBPAM: u64 = 8;
const JAVA_MODULES: u64 = 9;
const YAML_SO: u64 = 10;
const C_UTF8: u64 = 11;
const POSTGRES: u64 = 12;
const OVERLAY: u64 = 13;

/// Which file the table's paths stand for.
fn inode_of(path: &str) -> Option<FileId> {
    let held = [
        ("libpcre2-8.so.0.11.2", LIBPCRE),
        ("sbin/nginx", NGINX),
        ("sbin/sshd", SSHD),
        ("lib/systemd/systemd", SYSTEMD),
        ("libevent-2.1.so.7.0.1", LIBEVENT),
        ("app/loop.sh", LOOP_SH),
        ("bin/dbus-daemon", DBUS),
        ("libpam.so.0.85.1", LIBPAM),
        ("lib/modules", JAVA_MODULES),
        ("_yaml.cpython-311-x86_64-linux-gnu.so", YAML_SO),
        ("C.utf8/LC_CTYPE", C_UTF8),
        ("15/bin/postgres", POSTGRES),
        ("overlay2/l/x.so", OVERLAY),
    ];
    held.iter().find(|(end, _)| path.ends_with(end)).map(|(_, ino)| inode(*ino))
}

fn laboratory() -> Facts {
    let inactive = |name| UnitFacts { active: ActiveState::Inactive, ..unit(name, true, "") };
    let units = [
        unit("nginx.service", true, "[Service]\nExecStart=/usr/sbin/nginx -g 'daemon on;'\n"),
        unit("apache2.service", true, "[Service]\nExecStart=/usr/sbin/apachectl start\n"),
        unit(
            "php8.2-fpm.service",
            true,
            "[Service]\nExecStart=/usr/sbin/php-fpm8.2 --fpm-config /etc/php/8.2/fpm/php-fpm.conf\n",
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
            "[Unit]\nAssertPathExists=/etc/postgresql/%I/postgresql.conf\nRequiresMountsFor=/etc/postgresql/%I\n",
        ),
        UnitFacts { service_type: "oneshot".to_owned(), ..unit("postgresql.service", true, "") },
        unit(
            "redis-server.service",
            false,
            "[Service]\nExecStart=/usr/bin/redis-server /etc/redis/redis.conf\n",
        ),
        unit("mariadb.service", false, ""),
        unit(
            "memcached.service",
            false,
            "[Service]\nExecStart=/usr/share/memcached/wrapper /etc/memcached.conf\n",
        ),
        unit("postfix@-.service", true, ""),
        UnitFacts { service_type: "oneshot".to_owned(), ..unit("postfix.service", true, "") },
        unit(
            "cron.service",
            false,
            "[Service]\nEnvironmentFile=-/etc/default/cron\nExecStart=/usr/sbin/cron -f\n",
        ),
        unit("rsyslog.service", true, ""),
        unit("systemd-journald.service", false, ""),
        unit("systemd-logind.service", false, ""),
        unit("systemd-networkd.service", true, ""),
        unit("dbus.service", true, ""),
        unit("docker.service", true, ""),
        unit("containerd.service", false, ""),
        unit(
            "app.service",
            true,
            "[Service]\nWorkingDirectory=/opt/app\nExecStart=/usr/bin/gunicorn app:app\nExecStartPre=/usr/bin/test -f /etc/app/config.yaml\n",
        ),
        unit(
            "pyworker.service",
            false,
            "[Service]\nExecStart=/usr/bin/python3 /opt/worker/main.py\nWorkingDirectory=/opt/worker\n",
        ),
        unit("shapp.service", false, "[Service]\nExecStart=/bin/sh /opt/app/loop.sh\n"),
        unit("javaapp.service", false, ""),
        UnitFacts { refuse_manual_stop: true, ..unit("stubborn.service", false, "") },
        UnitFacts {
            service_type: "oneshot".to_owned(),
            ..unit("keyboard-setup.service", false, "")
        },
        unit("echo.socket", false, ""),
        unit("hello.timer", false, ""),
        inactive("named.service"),
        inactive("echo.service"),
    ];
    let of_unit =
        |pid, name, inos: &[u64]| Process::of_unit(pid, name, inos.iter().copied().map(inode));
    let of = |pid, owner, inos: &[u64]| Process {
        pid,
        owner,
        holds: inos.iter().copied().map(inode).collect(),
    };
    let processes = [
        of(1, Owner::Manager, &[LIBPCRE, SYSTEMD]),
        of_unit(10, "nginx.service", &[LIBPCRE, NGINX]),
        of_unit(11, "nginx.service", &[LIBPCRE, NGINX]),
        of_unit(20, "ssh.service", &[SSHD, LIBPAM]),
        of(21, Owner::Session(Unit::new("session-3.scope")), &[SSHD]),
        of_unit(30, "dbus.service", &[LIBPCRE, DBUS]),
        of_unit(40, "memcached.service", &[LIBEVENT]),
        of_unit(50, "shapp.service", &[LOOP_SH]),
        of_unit(60, "cron.service", &[LIBPAM, C_UTF8]),
        of_unit(70, "javaapp.service", &[JAVA_MODULES]),
        of_unit(80, "app.service", &[YAML_SO]),
        of_unit(90, "postgresql@15-main.service", &[POSTGRES]),
        of(99, Owner::Foreign("docker-1.scope".to_owned()), &[OVERLAY]),
    ];
    let facts =
        Facts { kernel_release: KERNEL.to_owned(), processes: processes.into(), ..Facts::new() };
    units.into_iter().fold(facts, Facts::with_unit)
}

/// A change of `text`: a path with `+` (added), `-` (removed) or `=` (metadata only) before it.
fn change(text: &str) -> ChangedFile {
    let (kind, text) = match text.split_at(1) {
        ("+", rest) => (ChangeKind::Added, rest),
        ("-", rest) => (ChangeKind::Removed, rest),
        ("=", rest) => (ChangeKind::Metadata, rest),
        _ => (ChangeKind::Modified, text),
    };
    let replaced = if kind == ChangeKind::Added { None } else { inode_of(text) };
    ChangedFile { replaced, ..ChangedFile::new(path(text), kind) }
}

/// What a plan does, without the reasons.
fn actions(plan: &Plan) -> String {
    let mut words = Vec::new();
    match plan.system.reboot {
        Reboot::None => {}
        Reboot::Soft => words.push("soft-reboot".to_owned()),
        Reboot::Full => words.push("reboot".to_owned()),
    }
    words.extend(plan.system.tools.iter().map(|run| format!("run {}", run.command.join(" "))));
    match plan.system.manager {
        ManagerAction::None => {}
        ManagerAction::Reload => words.push("daemon-reload".to_owned()),
        ManagerAction::Reexec => words.push("daemon-reexec".to_owned()),
    }
    words.extend(plan.units.iter().map(|unit| format!("{} {}", unit.action.as_str(), unit.unit)));
    words.extend((!plan.unclaimed.is_empty()).then(|| "unclear".to_owned()));
    words.join("; ")
}

/// Changes `paths` in the laboratory; `expected` is all that the plan does.
#[track_caller]
fn check(label: &str, paths: &[&str], expected: &str) {
    let changes: Vec<ChangedFile> = paths.iter().map(|text| change(text)).collect();
    let plan = plan(&changes, &laboratory(), &Policy::default());
    assert_eq!(actions(&plan), expected, "{label}: {paths:?}\n{plan}");
}

#[test]
fn configuration_reloads_who_can_and_restarts_who_cannot() {
    check("NGX-01", &["+/etc/nginx/conf.d/v.conf"], "reload nginx.service");
    check("DEL-01", &["-/etc/nginx/conf.d/v.conf"], "reload nginx.service");
    check("NGX-04", &["/etc/nginx/c.pem"], "reload nginx.service");
    check("APA-01", &["+/etc/apache2/conf-enabled/v.conf"], "reload apache2.service");
    check("PHP-01", &["/etc/php/8.2/fpm/pool.d/www.conf"], "reload php8.2-fpm.service");
    check("PHP-03", &["/etc/php/8.2/fpm/php.ini"], "reload php8.2-fpm.service");
    check("SSH-01", &["+/etc/ssh/sshd_config.d/v.conf"], "reload ssh.service");
    check("SSH-04", &["/etc/ssh/ssh_host_ed25519_key"], "reload ssh.service");
    check(
        "PG-01",
        &["/etc/postgresql/15/main/postgresql.conf"],
        "reload postgresql@15-main.service",
    );
    check("PG-04", &["/etc/postgresql/15/main/pg_hba.conf"], "reload postgresql@15-main.service");
    check("PFX-01", &["/etc/postfix/main.cf"], "reload postfix@-.service");
    check("RED-01", &["/etc/redis/redis.conf"], "restart redis-server.service");
    check("MDB-01", &["+/etc/mysql/mariadb.conf.d/zz.cnf"], "restart mariadb.service");
    check("MEM-01", &["/etc/memcached.conf"], "restart memcached.service");
    check("LOG-01", &["+/etc/rsyslog.d/v.conf"], "restart rsyslog.service");
    check("LOG-03", &["+/etc/systemd/journald.conf.d/v.conf"], "restart systemd-journald.service");
    check("PY-03", &["/etc/app/config.yaml"], "reload app.service");
}

#[test]
fn an_environment_file_is_read_by_a_start_alone() {
    check("ENV-01", &["/etc/default/ssh"], "restart ssh.service");
    check("ENV-02", &["/etc/default/cron"], "restart cron.service");
    check("ENV-03", &["/etc/default/nginx"], "restart nginx.service");
}

#[test]
fn replaced_code_restarts_exactly_who_holds_it() {
    check("NGX-03", &["/usr/sbin/nginx"], "restart nginx.service");
    check("NGX-06", &["/usr/lib/nginx/modules/ngx_mail_module.so"], "");
    check("PG-05", &["/usr/lib/postgresql/15/bin/postgres"], "restart postgresql@15-main.service");
    check(
        "CRN-03",
        &["/lib/x86_64-linux-gnu/libpam.so.0.85.1"],
        "restart cron.service; reload ssh.service",
    );
    check(
        "LIB-03",
        &["/usr/lib/x86_64-linux-gnu/libevent-2.1.so.7.0.1"],
        "restart memcached.service",
    );
    check(
        "PY-09",
        &["/usr/lib/python3/dist-packages/yaml/_yaml.cpython-311-x86_64-linux-gnu.so"],
        "restart app.service",
    );
    check("JAV-01", &["/usr/lib/jvm/java-17-openjdk-amd64/lib/modules"], "restart javaapp.service");
    check("NEW-02", &["+/usr/lib/x86_64-linux-gnu/libevent-2.1.so.7.0.1"], "");
}

#[test]
fn a_library_of_many_is_restarted_held_and_reexecuted() {
    check(
        "NGX-07",
        &["/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0.11.2"],
        "daemon-reexec; hold dbus.service; restart nginx.service",
    );
}

#[test]
fn a_program_whose_reload_executes_it_anew_is_reloaded() {
    check("SSH-03", &["/usr/sbin/sshd"], "hold session-3.scope; reload ssh.service");
}

#[test]
fn scripts_restart_who_holds_or_declares_them() {
    check("SH-01", &["/opt/app/loop.sh"], "restart shapp.service");
    check("PY-06", &["/opt/worker/lib/wmod.py"], "restart pyworker.service");
    check("PY-10", &["/opt/worker/main.py"], "restart pyworker.service");
    check("PY-08", &["/usr/lib/python3.11/os.py"], "");
}

#[test]
fn content_and_records_need_nothing() {
    check("NGX-05", &["/var/www/html/v.html"], "");
    check("APA-05", &["/var/www/html/.htaccess"], "");
    check("PHP-04", &["/var/www/html/index.php"], "");
    check("PY-04", &["/opt/app/template.txt"], "");
    check("CRN-01", &["+/etc/cron.d/v"], "");
    check("LOG-02", &["+/etc/logrotate.d/x"], "");
    check("NSS-01", &["/etc/hosts", "/etc/nsswitch.conf", "/etc/passwd"], "");
    check("SUD-01", &["+/etc/sudoers.d/v", "/etc/pam.d/sshd"], "");
    check("DBS-01", &["+/etc/dbus-1/system.d/v.conf", "+/etc/polkit-1/rules.d/x.rules"], "");
    check("LIB-11", &["/usr/lib/locale/C.utf8/LC_CTYPE"], "");
    check("LIB-13", &["/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/openssl.cnf"], "");
    check("TZ-02", &["/usr/share/zoneinfo/Europe/Berlin"], "");
    check(
        "NEW-01",
        &["+/opt/data/x", "/var/lib/dpkg/status", "/usr/share/doc/nginx/changelog.gz"],
        "",
    );
    check("KRN-06", &["/lib/firmware/x.bin"], "");
}

#[test]
fn metadata_alone_needs_nothing_but_other_rights_do() {
    check("LIB-16", &["=/opt/worker/main.py", "=/etc/nginx/nginx.conf"], "");
    let mut setcap = change("=/usr/sbin/nginx");
    setcap.privileges = true;
    let plan = plan(&[setcap], &laboratory(), &Policy::default());
    assert_eq!(actions(&plan), "restart nginx.service");
}

#[test]
fn unit_files_are_read_again_and_their_unit_restarted_if_it_runs() {
    check("SYS-01", &["/etc/systemd/system/app.service"], "daemon-reload; restart app.service");
    check(
        "SYS-02",
        &["+/etc/systemd/system/nginx.service.d/x.conf"],
        "daemon-reload; restart nginx.service",
    );
    check(
        "SYS-04",
        &["/lib/systemd/system/postgresql@.service"],
        "daemon-reload; restart postgresql@15-main.service",
    );
    check("SYS-05", &["+/etc/systemd/system/multi-user.target.wants/x.service"], "daemon-reload");
    check("SYS-07", &["+/etc/systemd/system/service.d/x.conf"], "daemon-reload");
    check(
        "SYS-08",
        &["+/etc/systemd/system/php8.2-.service.d/x.conf"],
        "daemon-reload; restart php8.2-fpm.service",
    );
    check("SYS-09", &["/etc/systemd/system/hello.timer"], "daemon-reload");
    check("SYS-10", &["/etc/systemd/system/echo.socket"], "daemon-reload; restart echo.socket");
    check("SYS-14", &["-/lib/systemd/system/app.service"], "daemon-reload; stop app.service");
    check("SYS-15", &["+/etc/systemd/system/fresh.service"], "daemon-reload");
    check(
        "SYS-17",
        &["/etc/bind/named.conf.options", "/lib/systemd/system/named.service"],
        "daemon-reload",
    );
    check(
        "SYS-19",
        &["/usr/lib/systemd/system/sshd.service"],
        "daemon-reload; restart ssh.service",
    );
    check("SYS-20", &["+/etc/systemd/system.conf.d/v.conf", "/etc/fstab"], "daemon-reload");
    check("SYS-31", &["/usr/lib/systemd/system/keyboard-setup.service"], "daemon-reload");
    check("SYS-34", &["/usr/lib/systemd/user/app.service"], "");
}

#[test]
fn manager_inputs_run_their_tool_in_order() {
    check(
        "SYS-23",
        &[
            "+/etc/tmpfiles.d/v.conf",
            "+/usr/lib/sysusers.d/w.conf",
            "/etc/sysctl.d/9.conf",
            "/etc/sysctl.d/8.conf",
        ],
        "run systemd-sysusers w.conf; run systemd-tmpfiles --create v.conf; run /usr/lib/systemd/systemd-sysctl 8.conf; run /usr/lib/systemd/systemd-sysctl 9.conf",
    );
    check("SYS-26", &["+/etc/udev/rules.d/x.rules"], "run udevadm control --reload");
    check("SYS-29", &["+/etc/modprobe.d/x.conf"], "");
    check("LIB-12", &["+/etc/ld.so.conf.d/x.conf"], "run ldconfig");
    check("LIB-12", &["+/etc/ld.so.conf.d/x.conf", "/etc/ld.so.cache"], "");
    check("PFX-04", &["/etc/aliases"], "run newaliases");
}

#[test]
fn process_1_is_executed_anew_and_what_must_not_restart_is_held() {
    check("SYS-21", &["/lib/systemd/systemd"], "daemon-reexec");
    check("SYS-22", &["/etc/systemd/logind.conf"], "hold systemd-logind.service");
    check("DBS-02", &["/usr/bin/dbus-daemon"], "hold dbus.service");
    check("NET-01", &["/etc/systemd/network/10-eth0.network"], "hold systemd-networkd.service");
    check("DOC-01", &["/etc/docker/daemon.json"], "reload docker.service");
    check("CTR-02", &["/var/lib/docker/overlay2/l/x.so"], "");
    check(
        "SYS-35",
        &["/lib/systemd/system/stubborn.service"],
        "daemon-reload; hold stubborn.service",
    );
}

#[test]
fn a_kernel_waits_for_a_reboot() {
    check(
        "KRN-01",
        &["+/boot/vmlinuz-6.1.0-56-cloud-amd64", "+/lib/modules/6.1.0-56-cloud-amd64/modules.dep"],
        "reboot",
    );
    check("KRN-02", &["-/boot/vmlinuz-6.1.0-49-cloud-amd64"], "");
    check("KRN-03", &["/lib/modules/6.1.0-50-cloud-amd64/kernel/fs/xfs/xfs.ko"], "reboot");
    check("KRN-04", &["/boot/initrd.img-6.1.0-50-cloud-amd64"], "");
    check("KRN-05", &["/etc/default/grub", "/boot/grub/grub.cfg"], "");
    check("KRN-05", &["/etc/default/grub"], "run update-grub");
}

#[test]
fn configuration_that_nobody_is_known_to_read_is_said_so() {
    check("UNK-01", &["/etc/mystery/settings"], "unclear");
    let plan = plan(&[change("/etc/mystery/settings")], &laboratory(), &Policy::default());
    assert_eq!(
        plan.to_string(),
        "nothing  for 1 file: 1 config\n\
         unclear  for 1 file that no unit is known to read: /etc/mystery/settings\n"
    );
}

#[test]
fn a_unit_gets_its_files_greatest_action_once_with_all_evidence() {
    let changes = ["/etc/nginx/nginx.conf", "/usr/sbin/nginx"].map(change);
    let plan = plan(&changes, &laboratory(), &Policy::default());
    assert_eq!(actions(&plan), "restart nginx.service");
    assert_eq!(plan.units[0].because.len(), 2);
    assert_eq!(plan.units[0].proof, [Proof::Job, Proof::Active, Proof::Inodes, Proof::Sockets]);
    assert_eq!(
        plan.to_string(),
        "restart  nginx.service  /usr/sbin/nginx (binary, held by processes 10, 11) and 1 more\n"
    );
}

#[test]
fn the_text_shows_a_whole_update_at_a_glance() {
    let paths = [
        "/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0.11.2",
        "/etc/nginx/nginx.conf",
        "/etc/systemd/system/app.service",
        "+/boot/vmlinuz-6.1.0-56-cloud-amd64",
        "+/etc/tmpfiles.d/v.conf",
        "/var/www/html/a",
        "/var/www/html/b",
        "/usr/share/doc/x",
    ];
    let mut plan = plan(&paths.map(change), &laboratory(), &Policy::default());
    plan.base = Some(vireo_model::Digest::from_bytes([0x11; 32]));
    plan.target = Some(vireo_model::Digest::from_bytes([0x22; 32]));
    (plan.wire_bytes, plan.disk_bytes) = (12_345_678, 999);
    assert_eq!(
        plan.to_string(),
        "\
update   111111111111 to 222222222222: 8 files, 12.3 MB to fetch, 999 B to write
reboot   pending        /boot/vmlinuz-6.1.0-56-cloud-amd64 (kernel, the running one stays until then)
run      systemd-tmpfiles --create v.conf
manager  daemon-reexec  /usr/lib/x86_64-linux-gnu/libpcre2-8.so.0.11.2 (library, held by process 1) and 1 more
restart  app.service    /etc/systemd/system/app.service (unit, its own file)
restart  nginx.service  /usr/lib/x86_64-linux-gnu/libpcre2-8.so.0.11.2 (library, held by processes 10, 11) and 1 more
hold     dbus.service   /usr/lib/x86_64-linux-gnu/libpcre2-8.so.0.11.2 (library, held by process 30): every client would lose its connection
nothing  for 3 files: 2 content, 1 documentation
"
    );
}

#[test]
fn the_json_form_is_the_contract() {
    let changes = ["/etc/nginx/nginx.conf", "+/srv/www/a"].map(change);
    let plan = plan(&changes, &laboratory(), &Policy::default());
    let json = serde_json::to_value(&plan).expect("a plan is plain data");
    assert_eq!(
        json,
        serde_json::json!({
            "schema": "vireo.plan/1",
            "base": null,
            "target": null,
            "system": {"manager": "none", "reboot": "none", "tools": [], "because": []},
            "units": [{
                "unit": "nginx.service",
                "action": "reload",
                "because": [{
                    "path": "/etc/nginx/nginx.conf",
                    "class": "config",
                    "rule": "rule-pack",
                    "source": "rule /etc/nginx/**",
                }],
                "validate": ["/usr/sbin/nginx", "-t", "-q"],
                "proof": ["job", "active", "sockets"],
                "ceiling": "restart",
            }],
            "files": [
                {"path": "/etc/nginx/nginx.conf", "change": "modified", "class": "config"},
                {"path": "/srv/www/a", "change": "added", "class": "content"},
            ],
            "unclaimed": [],
            "checks": [{
                "command": ["/usr/sbin/nginx", "-t", "-q"],
                "needs": "/usr/sbin/nginx",
                "files": ["/etc/nginx/nginx.conf"],
                "units": ["nginx.service"],
            }],
            "notes": [],
            "wire_bytes": 0,
            "disk_bytes": 0,
        })
    );
    let back: Plan = serde_json::from_value(json).expect("it reads back");
    assert_eq!(back, plan);
}

#[test]
fn without_a_service_manager_nothing_is_promised() {
    let facts = Facts::default();
    let plan = plan(&[change("/etc/nginx/nginx.conf")], &facts, &Policy::default());
    assert_eq!(plan.units, []);
    assert_eq!(plan.notes, ["no service manager answers: units are left as they are"]);
}

const PATHS: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0.11.2",
    "/usr/sbin/nginx",
    "/usr/sbin/sshd",
    "/lib/systemd/systemd",
    "/opt/app/loop.sh",
    "/usr/bin/dbus-daemon",
    "/etc/nginx/nginx.conf",
    "/etc/ssh/sshd_config",
    "/etc/bind/named.conf",
    "/etc/docker/daemon.json",
    "/etc/systemd/network/a.network",
    "/etc/systemd/logind.conf",
    "/lib/systemd/system/named.service",
    "/lib/systemd/system/stubborn.service",
    "/lib/systemd/system/dbus.service",
    "/lib/systemd/system/nginx.service",
    "/lib/systemd/system/echo.socket",
    "/etc/default/ssh",
    "/var/www/html/a",
];

prop_compose! {
    /// The laboratory with some units stopped.
    fn some_facts()(stopped in prop::collection::vec(any::<bool>(), laboratory().units.len())) -> Facts {
        let mut facts = laboratory();
        for (unit, stopped) in facts.units.values_mut().zip(stopped) {
            if stopped {
                unit.active = ActiveState::Inactive;
            }
        }
        facts
    }
}

proptest! {
    /// The crate's promise to administrators.
    #[test]
    fn no_plan_touches_a_unit_that_is_down_or_held(
        facts in some_facts(),
        paths in prop::collection::vec(prop::sample::select(PATHS), 0..12),
    ) {
        let policy = Policy::default();
        let changes: Vec<ChangedFile> = paths.iter().map(|text| change(text)).collect();
        let plan = plan(&changes, &facts, &policy);
        for entry in plan.units.iter().filter(|entry| entry.action != Action::Hold) {
            let unit = facts.unit(&entry.unit).expect("only known units are acted upon");
            prop_assert!(unit.active.is_up(), "{}", entry.unit);
            prop_assert_eq!(policy.hold_reason(&entry.unit), None, "{}", entry.unit);
            prop_assert!(!entry.because.is_empty() && !entry.proof.is_empty());
        }
        let names: BTreeSet<&Unit> = plan.units.iter().map(|entry| &entry.unit).collect();
        prop_assert_eq!(names.len(), plan.units.len(), "one action per unit");
    }

    /// More changes never make a plan do less to a unit.
    #[test]
    fn a_further_file_never_weakens_a_plan(
        paths in prop::collection::vec(prop::sample::select(PATHS), 1..12),
    ) {
        let changes: Vec<ChangedFile> = paths.iter().map(|text| change(text)).collect();
        let facts = laboratory();
        let whole = plan(&changes, &facts, &Policy::default());
        let part = plan(&changes[1..], &facts, &Policy::default());
        for entry in &part.units {
            prop_assert!(whole.action_of(&entry.unit) >= Some(entry.action));
        }
    }

    /// Nothing is done without a file that it is done for, and none of those is made up.
    #[test]
    fn everything_has_a_cause_among_the_changes(
        facts in some_facts(),
        paths in prop::collection::vec(prop::sample::select(PATHS), 0..12),
    ) {
        let changes: Vec<ChangedFile> = paths.iter().map(|text| change(text)).collect();
        let plan = plan(&changes, &facts, &Policy::default());
        let given: BTreeSet<String> = changes.iter().map(|change| change.path.to_string()).collect();
        for entry in &plan.units {
            prop_assert!(!entry.because.is_empty(), "{}", entry.unit);
            prop_assert!(entry.because.iter().all(|evidence| given.contains(&evidence.path)));
        }
        let system = &plan.system;
        let acts = system.manager != ManagerAction::None
            || system.reboot != Reboot::None
            || !system.tools.is_empty();
        prop_assert!(!acts || !system.because.is_empty());
        if changes.is_empty() {
            prop_assert_eq!(&plan.units, &[]);
            prop_assert_eq!(plan.steps(), [Step::Commit]);
        }
    }

    /// The order in which changes and processes are given, and a change given twice, mean nothing.
    #[test]
    fn a_plan_does_not_depend_on_the_order_of_its_input(
        paths in prop::collection::vec(prop::sample::select(PATHS), 1..12),
        seed in any::<u64>(),
    ) {
        let mut changes: Vec<ChangedFile> = paths.iter().map(|text| change(text)).collect();
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        changes.dedup();
        let mut facts = laboratory();
        let first = plan(&changes, &facts, &Policy::default());
        let key = |n: usize| (n as u64 + 1).wrapping_mul(seed | 1).rotate_left(17);
        let mut shuffled: Vec<(u64, ChangedFile)> =
            changes.into_iter().enumerate().map(|(n, change)| (key(n), change)).collect();
        shuffled.sort_by_key(|(key, _)| *key);
        let shuffled: Vec<ChangedFile> = shuffled.into_iter().map(|(_, change)| change).collect();
        facts.processes.reverse();
        prop_assert_eq!(plan(&shuffled, &facts, &Policy::default()), first);
    }

    /// Steps are in one order, each unit in one of them, and the agent itself is last.
    #[test]
    fn each_unit_has_its_step(
        facts in some_facts(),
        paths in prop::collection::vec(prop::sample::select(PATHS), 0..12),
    ) {
        let facts = facts.with_unit(UnitFacts::running("vireo-agent.service"));
        let mut changes: Vec<ChangedFile> = paths.iter().map(|text| change(text)).collect();
        changes.push(change("/usr/bin/vireo-agent"));
        let plan = plan(&changes, &facts, &Policy::default());
        let steps = plan.steps();
        prop_assert!(matches!(steps.last(), Some(Step::Myself(_))));
        let mut named: Vec<&Unit> = Vec::new();
        for step in &steps {
            match step {
                Step::Stop(units) | Step::Reload(units) | Step::Restart(units) | Step::Start(units) => {
                    named.extend(units);
                }
                Step::Myself(unit) => named.push(unit),
                _ => {}
            }
        }
        named.sort();
        let acted = plan.units.iter().filter(|entry| entry.action != Action::Hold);
        let acted: Vec<&Unit> = acted.map(|entry| &entry.unit).collect();
        prop_assert_eq!(named, acted);
    }

    #[test]
    fn parsers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = (parse_maps(&bytes), owner_of(2, &bytes), parse_show(&bytes), elf_kind(&bytes));
        let _ = (parse_modules(&bytes), mount_unit(&bytes), changed_keys(&bytes, b""));
        let text = String::from_utf8_lossy(&bytes);
        let _ = PolicyFile::parse("hostile", &text);
        let _ = serde_json::from_str::<ReadMap>(&text);
        let mut packages = Packages::new();
        packages.add_list("a.list", &bytes);
        packages.add_conffiles(&bytes);
        packages.add_status(&bytes);
        for interesting in ["/etc/fstab", "/etc/group", "/etc/sysctl.d/a.conf", "/boot/grub/grub.cfg"] {
            let _ = change(interesting).with_contents(Some(b"/dev/a /b ext4\n"), Some(&bytes));
        }
        let found = declarations_of(&Unit::new("a@b.service"), [bytes.as_slice()]);
        prop_assert!(found.programs.len() <= bytes.len());
    }

    /// Lines as they could be, each of them hostile.
    #[test]
    fn lines_that_are_nearly_right_never_panic(
        lines in prop::collection::vec(r"([0-9a-f]{1,5}-)?[0-9a-f]{0,5} [r-][w-]?xp? ?0{0,3} ?[0-9a-fz]{1,9}:[0-9a-f]{0,9} [0-9]{0,25} .{0,9}", 0..20),
    ) {
        let text = lines.join("\n");
        let maps = parse_maps(text.as_bytes());
        prop_assert!(maps.unread + maps.files.len() <= lines.len());
    }
}

/// Cases beyond the table, each a way in which a simpler planner goes wrong.
mod traps {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn planned(changes: &[ChangedFile], facts: &Facts) -> String {
        actions(&plan(changes, facts, &Policy::default()))
    }

    fn site(text: &str) -> Policy {
        let file = PolicyFile::parse("site.toml", &format!("version = 1\n{text}"));
        Policy::from_layers(&[], &[file.expect("a policy file")]).expect("a policy")
    }

    fn with_contents(text: &str, before: &str, after: &str) -> ChangedFile {
        change(text).with_contents(Some(before.as_bytes()), Some(after.as_bytes()))
    }

    #[test]
    fn a_zone_is_taken_up_by_who_keeps_it_and_only_if_it_is_the_machines() {
        check(
            "TZ-01",
            &["/etc/localtime"],
            "restart apache2.service; restart cron.service; restart mariadb.service; restart php8.2-fpm.service; restart postgresql@15-main.service; restart rsyslog.service; restart systemd-journald.service",
        );
        let host = Host {
            time_zone: Some("/usr/share/zoneinfo/Europe/Berlin".to_owned()),
            ..Host::default()
        };
        let policy = Policy::default();
        let of = |zone: &str| {
            let planner = Planner::new(&policy).with_host(&host);
            planner
                .plan(&[change(&format!("/usr/share/zoneinfo/{zone}"))], &laboratory())
                .units
                .len()
        };
        assert_eq!((of("Europe/Berlin"), of("Europe/Paris")), (7, 0));
    }

    #[test]
    fn a_unit_file_that_another_one_overrules_changes_nothing() {
        let mut facts = laboratory();
        let nginx = facts.units.get_mut(&Unit::new("nginx.service")).expect("nginx");
        nginx.files = vec![path("/etc/systemd/system/nginx.service")];
        let below = change("/lib/systemd/system/nginx.service");
        assert_eq!(planned(&[below], &facts), "daemon-reload");
        let above = change("/etc/systemd/system/nginx.service");
        assert_eq!(planned(&[above], &facts), "daemon-reload; restart nginx.service");
        // With the upper file gone the lower one counts: nothing is removed.
        let gone = change("-/etc/systemd/system/nginx.service");
        let lower = change("/lib/systemd/system/nginx.service");
        assert_eq!(planned(&[gone.clone(), lower], &facts), "daemon-reload; restart nginx.service");
        let nginx = facts.units.get_mut(&Unit::new("nginx.service")).expect("nginx");
        nginx.shadowed = vec![path("/lib/systemd/system/nginx.service")];
        assert_eq!(planned(&[gone], &facts), "daemon-reload; restart nginx.service");
    }

    #[test]
    fn what_is_masked_is_not_restarted_and_stopped_only_on_request() {
        let mut mask = change("+/etc/systemd/system/nginx.service");
        mask.details.links_to = Some(b"/dev/null".to_vec());
        assert_eq!(
            planned(std::slice::from_ref(&mask), &laboratory()),
            "daemon-reload; hold nginx.service"
        );
        let stopping = site("[defaults]\non-disable = \"stop\"\n");
        let plan = plan(&[mask], &laboratory(), &stopping);
        assert_eq!(actions(&plan), "daemon-reload; stop nginx.service");
        let mut facts = laboratory();
        facts.units.get_mut(&Unit::new("nginx.service")).expect("nginx").masked = true;
        assert_eq!(planned(&[change("/usr/sbin/nginx")], &facts), "hold nginx.service");
    }

    #[test]
    fn only_new_units_start_unless_the_site_says_otherwise() {
        let link = change("+/etc/systemd/system/multi-user.target.wants/named.service");
        assert_eq!(planned(std::slice::from_ref(&link), &laboratory()), "daemon-reload");
        let always = site("[defaults]\nstart-enabled = \"always\"\n");
        let started = actions(&plan(std::slice::from_ref(&link), &laboratory(), &always));
        assert_eq!(started, "daemon-reload; start named.service");
        let file = change("+/lib/systemd/system/job@.service");
        let link = change("+/etc/systemd/system/multi-user.target.wants/job@a.service");
        let both = [file, link];
        assert_eq!(planned(&both, &laboratory()), "daemon-reload; start job@a.service");
        let never = site("[defaults]\nstart-enabled = \"never\"\n");
        assert_eq!(actions(&plan(&both, &laboratory(), &never)), "daemon-reload");
        // What it is to start with does not run itself.
        let target =
            UnitFacts { active: ActiveState::Inactive, ..UnitFacts::running("multi-user.target") };
        assert_eq!(planned(&both, &laboratory().with_unit(target)), "daemon-reload");
    }

    #[test]
    fn a_disabled_unit_runs_on_unless_the_site_says_otherwise() {
        let gone = change("-/etc/systemd/system/multi-user.target.wants/nginx.service");
        let stopping = site("[defaults]\non-disable = \"stop\"\n");
        assert_eq!(planned(std::slice::from_ref(&gone), &laboratory()), "daemon-reload");
        let stopped = actions(&plan(std::slice::from_ref(&gone), &laboratory(), &stopping));
        assert_eq!(stopped, "daemon-reload; stop nginx.service");
        let moved = change("+/usr/lib/systemd/system/multi-user.target.wants/nginx.service");
        assert_eq!(actions(&plan(&[gone, moved], &laboratory(), &stopping)), "daemon-reload");
    }

    #[test]
    fn users_managers_read_their_units_again() {
        let facts = laboratory().with_unit(UnitFacts::running("user@1000.service"));
        let plan = plan(&[change("/usr/lib/systemd/user/app.service")], &facts, &Policy::default());
        assert_eq!(plan.units, []);
        let managers = &plan.system.user_managers;
        assert_eq!((managers.len(), managers[0].action), (1, ManagerAction::Reload));
    }

    #[test]
    fn a_job_that_runs_once_is_left_to_end() {
        let file = inode(900);
        let job = UnitFacts {
            service_type: "oneshot".to_owned(),
            active: ActiveState::Activating,
            main_pid: 5,
            ..UnitFacts::running("backup.service")
        };
        let facts =
            laboratory().with_unit(job).with_process(Process::of_unit(5, "backup.service", [file]));
        let library = ChangedFile { replaced: Some(file), ..change("/usr/lib/libz.so.1") };
        assert_eq!(planned(&[library], &facts), "hold backup.service");
    }

    #[test]
    fn content_that_somebody_maps_is_stale_but_what_is_served_is_not() {
        let file = inode(901);
        let facts = laboratory().with_process(Process::of_unit(5, "nginx.service", [file]));
        let held = |text: &str| ChangedFile { replaced: Some(file), ..change(text) };
        assert_eq!(planned(&[held("/usr/share/GeoIP/a.mmdb")], &facts), "reload nginx.service");
        assert_eq!(planned(&[held("/var/www/html/a.iso")], &facts), "");
    }

    #[test]
    fn groups_are_taken_up_by_the_units_of_their_users() {
        let mut facts = laboratory();
        facts.units.get_mut(&Unit::new("app.service")).expect("app").user = "app".to_owned();
        let other = with_contents("/etc/group", "ssl:x:1:\n", "ssl:x:1:someone\n");
        assert_eq!(planned(&[other], &facts), "");
        let own = with_contents("/etc/group", "ssl:x:1:\n", "ssl:x:1:app\n");
        assert_eq!(planned(&[own], &facts), "restart app.service");
    }

    #[test]
    fn a_reload_that_was_seen_not_to_read_a_file_is_no_use() {
        let nginx = Unit::new("nginx.service");
        let mut reads = ReadMap::new();
        reads.watched(&nginx, Phase::Start);
        reads.add_file(&path("/etc/nginx/start-only"), &nginx, Phase::Start);
        let policy = Policy::default();
        let changes = [change("/etc/nginx/start-only")];
        let of = |reads: &ReadMap| {
            actions(&Planner::new(&policy).with_reads(reads).plan(&changes, &laboratory()))
        };
        assert_eq!(of(&reads), "reload nginx.service", "nobody watched a reload");
        reads.watched(&nginx, Phase::Reload);
        assert_eq!(of(&reads), "restart nginx.service");
    }

    #[test]
    fn a_script_that_a_watched_unit_does_not_read_is_not_its_own() {
        let app = Unit::new("app.service");
        let mut reads = ReadMap::new();
        reads.watched(&app, Phase::Start);
        let policy = Policy::default();
        let changes = [change("/opt/app/tool.py")];
        let known = Planner::new(&policy).with_reads(&reads).plan(&changes, &laboratory());
        assert_eq!(actions(&known), "");
        assert_eq!(planned(&changes, &laboratory()), "reload app.service", "it works there");
    }

    #[test]
    fn a_sites_word_counts_over_what_was_seen() {
        let nginx = Unit::new("nginx.service");
        let mut reads = ReadMap::new();
        reads.watched(&nginx, Phase::Start);
        reads.add_file(&path("/etc/nginx/a"), &nginx, Phase::Reload);
        let by = |text: &str| {
            let policy = site(text);
            let planner = Planner::new(&policy).with_reads(&reads);
            actions(&planner.plan(&[change("/etc/nginx/a")], &laboratory()))
        };
        assert_eq!(by(""), "reload nginx.service");
        assert_eq!(by("[[file]]\npath = \"/etc/nginx/a\"\nop = \"none\"\n"), "");
        assert_eq!(
            by("[[file]]\npath = \"/etc/nginx/a\"\nop = \"restart\"\n"),
            "restart nginx.service"
        );
        assert_eq!(by("[[file]]\npath = \"/etc/nginx/a\"\nop = \"hold\"\n"), "hold nginx.service");
        let named =
            "[[file]]\npath = \"/etc/nginx/a\"\nunits = [\"cron.service\"]\nop = \"reload\"\n";
        assert_eq!(by(named), "restart cron.service");
        assert_eq!(
            by("[[unit]]\nunit = \"nginx.service\"\nhold = \"asks first\"\n"),
            "hold nginx.service"
        );
        assert_eq!(by("[[file]]\npath = \"/etc/nginx/a\"\nop = \"reboot\"\n"), "reboot");
    }

    #[test]
    fn a_soft_reboot_needs_a_manager_that_can() {
        let policy = site("[[file]]\npath = \"/usr/lib/*/libc.so.6\"\nop = \"soft-reboot\"\n");
        let changes = [change("/usr/lib/x86_64-linux-gnu/libc.so.6")];
        let with = |version| {
            let host = Host { manager_version: version, ..Host::default() };
            Planner::new(&policy).with_host(&host).plan(&changes, &laboratory()).system.reboot
        };
        assert_eq!(
            (with(None), with(Some(252)), with(Some(255))),
            (Reboot::Full, Reboot::Full, Reboot::Soft)
        );
    }

    #[test]
    fn kernel_modules_that_are_not_loaded_wait_for_nobody() {
        let change = change("/lib/modules/6.1.0-50-cloud-amd64/kernel/net/nf-tables.ko.xz");
        let with = |name: &str| {
            let loaded = Some(BTreeMap::from([(name.to_owned(), 0)]));
            let host = Host { loaded_modules: loaded, ..Host::default() };
            let policy = Policy::default();
            let planner = Planner::new(&policy).with_host(&host);
            planner.plan(std::slice::from_ref(&change), &laboratory()).system.reboot
        };
        assert_eq!((with("nf_tables"), with("xfs")), (Reboot::Full, Reboot::None));
        assert_eq!(parse_modules(b"nf_tables 356352 7 nft, Live 0x0\n")["nf_tables"], 7);
    }

    #[test]
    fn a_socket_whose_service_must_not_restart_is_held_with_it() {
        let facts = laboratory().with_unit(UnitFacts {
            triggers: vec![Unit::new("dbus.service")],
            ..unit("bus-proxy.socket", false, "")
        });
        let plan =
            plan(&[change("/lib/systemd/system/bus-proxy.socket")], &facts, &Policy::default());
        assert_eq!(actions(&plan), "daemon-reload; hold bus-proxy.socket");
        let why = plan.units[0].reason.as_deref();
        assert_eq!(why, Some("dbus.service runs, and every client would lose its connection"));
    }

    #[test]
    fn an_alias_that_is_made_restarts_nothing() {
        let mut alias = change("+/etc/systemd/system/sshd.service");
        alias.details.links_to = Some(b"/lib/systemd/system/ssh.service".to_vec());
        assert_eq!(planned(&[alias], &laboratory()), "daemon-reload");
    }

    #[test]
    fn a_link_counts_for_what_it_led_to() {
        let nginx = Unit::new("nginx.service");
        let mut reads = ReadMap::new();
        reads.add_file(&path("/opt/certs/1.pem"), &nginx, Phase::Reload);
        let mut link = change("/etc/certs/live.pem");
        link.details.led_to = Some(path("/opt/certs/1.pem"));
        let policy = Policy::default();
        let plan = Planner::new(&policy).with_reads(&reads).plan(&[link], &laboratory());
        assert_eq!(actions(&plan), "reload nginx.service");
    }

    #[test]
    fn a_unit_of_one_connection_is_left_to_end_with_it() {
        let facts = laboratory()
            .with_unit(unit("talk.socket", false, ""))
            .with_unit(unit("talk@3-10.0.0.1:22-10.0.0.2:999.service", false, ""))
            .with_unit(unit("talk@main.service", false, ""));
        let template = change("/lib/systemd/system/talk@.service");
        assert_eq!(
            planned(&[template], &facts),
            "daemon-reload; hold talk@3-10.0.0.1:22-10.0.0.2:999.service; restart talk@main.service"
        );
    }

    #[test]
    fn the_text_says_what_guards_the_machine_and_what_a_reboot_is_for() {
        let changes = [
            change("/etc/ssh/sshd_config"),
            change("/etc/aliases"),
            with_contents("/boot/grub/grub.cfg", " linux /vmlinuz ro\n", " linux /vmlinuz rw\n"),
            change("/etc/systemd/system.conf"),
        ];
        let plan = plan(&changes, &laboratory(), &Policy::default());
        let expected = "\
guard    undone unless confirmed within 60 s  /etc/ssh/sshd_config, ssh.service
reboot   pending                              /boot/grub/grub.cfg (boot-loader, the kernel gets other arguments)
run      newaliases
manager  daemon-reload                        /etc/systemd/system.conf (manager-config, the service manager reads it)
reload   ssh.service                          /etc/ssh/sshd_config (config, rule /etc/ssh/{sshd_config{,.d/**},moduli})
";
        assert_eq!(plan.to_string(), expected);
    }

    #[test]
    fn a_failed_check_refuses_its_units_and_leaves_nothing_to_do() {
        let mut plan = plan(
            &["/etc/nginx/nginx.conf", "/usr/bin/x", "/etc/systemd/system.conf"].map(change),
            &laboratory(),
            &Policy::default(),
        );
        assert!(plan.steps().contains(&Step::ManagerReload));
        plan.refuse(7, "there is no such check");
        assert!(!plan.is_refused());
        plan.refuse(0, "unknown directive");
        assert_eq!(plan.units[0].action, Action::Refuse);
        assert_eq!(
            plan.units[0].reason.as_deref(),
            Some("/usr/sbin/nginx -t -q says: unknown directive")
        );
        assert_eq!(plan.steps(), []);
    }

    #[test]
    fn a_checker_that_is_not_there_is_not_asked() {
        let policy = Policy::default();
        let checks = |present: &[&str]| {
            let present: BTreeSet<String> = present.iter().map(ToString::to_string).collect();
            let host = Host { present: Some(present), ..Host::default() };
            let planner = Planner::new(&policy).with_host(&host);
            planner.plan(&[change("/etc/nginx/nginx.conf")], &laboratory()).checks.len()
        };
        assert_eq!((checks(&[]), checks(&["/usr/sbin/nginx"])), (0, 1));
    }

    #[test]
    fn configuration_of_nobody_can_refuse_an_update() {
        let strict = site("[defaults]\nunclaimed-config = \"refuse\"\n");
        let plan = plan(&[change("/etc/mystery")], &laboratory(), &strict);
        assert!(plan.is_refused());
        assert_eq!(plan.refusals[0].files, ["/etc/mystery"]);
    }

    #[test]
    fn the_package_is_a_hint_for_a_reload_and_for_no_restart() {
        let mut packages = Packages::new();
        packages
            .add_list("nginx-common.list", b"/lib/systemd/system/nginx.service\n/etc/odd.conf\n");
        packages.add_list("cron.list", b"/lib/systemd/system/cron.service\n/etc/strange.conf\n");
        let policy = Policy::default();
        let of = |text: &str| {
            let planner = Planner::new(&policy).with_packages(&packages);
            actions(&planner.plan(&[change(text)], &laboratory()))
        };
        assert_eq!(of("/etc/odd.conf"), "reload nginx.service");
        assert_eq!(of("/etc/strange.conf"), "unclear");
    }

    #[test]
    fn a_gunicorn_that_loads_its_code_before_it_forks_does_not_reload_it() {
        let with = |arguments: &str| {
            let file = format!(
                "[Service]\nExecStart=/usr/bin/gunicorn {arguments} web:app\nWorkingDirectory=/opt/web\n"
            );
            let found = declarations_of(&Unit::new("web.service"), [file.as_bytes()]);
            let web = UnitFacts { arguments: found.arguments, ..unit("web.service", true, &file) };
            planned(&[change("/opt/web/web.py")], &laboratory().with_unit(web))
        };
        assert_eq!(with("-w 2"), "reload web.service");
        assert_eq!(with("--preload"), "restart web.service");
    }
}
