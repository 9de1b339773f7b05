use vireo_model::{Change, Digest, Node, NodeKind};

use super::*;
use crate::{ChangedFile, ErrorKind};

fn path(text: &str) -> ImagePath {
    ImagePath::parse(text.as_bytes()).expect("a valid path")
}

fn policy(site: &str) -> Policy {
    let file = PolicyFile::parse("50-site.toml", &format!("version = 1\n{site}"));
    Policy::from_layers(&[], &[file.expect("a policy file")]).expect("a policy")
}

#[test]
fn the_rule_pack_is_a_policy() {
    Policy::from_layers(&[], &[]).expect("every file of the rule pack is right");
}

#[test]
fn the_rule_pack_holds_what_must_not_restart() {
    let policy = Policy::default();
    for held in [
        "dbus.service",
        "systemd-logind.service",
        "getty@tty1.service",
        "container-getty@1.service",
        "user@1000.service",
        "containerd.service",
        "NetworkManager.service",
        "systemd-networkd.service",
        "gdm.service",
    ] {
        assert!(policy.hold_reason(&Unit::new(held)).is_some(), "{held}");
    }
    for free in ["nginx.service", "ssh.service", "cron.service", "dbus-org.example.service"] {
        assert_eq!(policy.hold_reason(&Unit::new(free)), None, "{free}");
    }
    assert!(policy.unit_rule(&Unit::new("docker.service")).reload_only.is_some());
}

#[test]
fn a_sites_rule_comes_before_the_pack() {
    let policy = policy(
        r#"
        [[file]]
        path = "/etc/nginx/shared/**"
        units = ["proxy@*.service"]
        op = "restart"
        [[unit]]
        unit = "postgresql@*.service"
        hold = "asks for a window"
        [[unit]]
        unit = "systemd-logind.service"
        hold = false
    "#,
    );
    let rule = policy.file_rule(&path("/etc/nginx/shared/a")).expect("the site's rule");
    assert!(rule.names(&Unit::new("proxy@a.service")) && rule.op == Some(Op::Restart));
    assert_eq!(rule.layer, Layer::Site);
    let rule = policy.file_rule(&path("/etc/nginx/nginx.conf")).expect("the pack's rule");
    assert!(rule.names(&Unit::new("nginx.service")) && rule.layer == Layer::Pack);
    let reason = policy.hold_reason(&Unit::new("postgresql@15-main.service"));
    assert_eq!(reason.as_deref(), Some("asks for a window"));
    assert_eq!(policy.hold_reason(&Unit::new("systemd-logind.service")), None);
}

#[test]
fn later_files_count_before_earlier_ones_and_the_site_before_the_bundle() {
    let file = |name: &str, settle: &str| {
        let text = format!("version = 1\n[defaults]\nsettle = \"{settle}\"\n");
        PolicyFile::parse(name, &text).expect("a policy file")
    };
    let site = [file("10-a.toml", "7s"), file("20-b.toml", "2min")];
    let settle = |bundle: &[PolicyFile], site: &[PolicyFile]| {
        Policy::from_layers(bundle, site).expect("a policy").defaults().settle.as_secs()
    };
    assert_eq!(settle(&[file("bundle", "9s")], &site), 120);
    assert_eq!(settle(&[file("bundle", "9s")], &[]), 9);
    assert_eq!(settle(&[], &[]), 5);
}

#[test]
fn a_time_that_is_none_is_an_error() {
    for time in ["5", "s", "5 days", "61min", "99999999999999999999s", "-1s"] {
        let text = format!("version = 1\n\n[defaults]\nsettle = \"{time}\"\n");
        let file = PolicyFile::parse("a.toml", &text).expect("TOML");
        let error = Policy::from_layers(&[], &[file]).expect_err(time);
        assert_eq!(error.kind(), ErrorKind::BadPolicy);
        assert!(error.to_string().starts_with("policy a.toml, line 4: "), "{error}");
    }
}

#[test]
fn a_path_can_name_the_unit_and_a_setting_can_need_a_restart() {
    let policy = policy(
        r#"
        [[file]]
        path = "/etc/shop/*/*.conf"
        units = ["shop-{3}@{stem}.service", "shop.service"]
        op = "reload"
        restart-keys = ["listen*"]
    "#,
    );
    let at = path("/etc/shop/eu/front.conf");
    let rule = policy.file_rule(&at).expect("the site's rule");
    let named = |name: &str| rule.names(&Unit::new(name));
    assert!(named("shop-eu@front.service") && named("shop.service"));
    assert!(!named("shop-us@front.service") && !named("shop-eu@back.service"));
    let changed = |before: &[u8], after: &[u8]| {
        let change = Change { path: at.clone(), before: Some(file()), after: Some(file()) };
        let change = ChangedFile::under(&policy, &change, None).expect("no directory");
        assert!(change.wants_contents());
        let change = change.with_contents(Some(before), Some(after));
        rule.needs_restart_for(change.details.config_keys.as_ref())
    };
    assert!(changed(b"listen = 1\nlog: a\n", b"# c\nlisten  2\nlog: a\n"));
    assert!(!changed(b"listen = 1\nlog: a\n", b"log: b\nlisten=1\n"));
    assert!(policy.file_rule(&path("/etc/shop/front.conf")).is_none());
}

fn file() -> Node {
    Node::new(NodeKind::File { len: 1, content: Digest::of(b"a") }, 0o644)
}

#[test]
fn keys_of_unit_files_are_told_apart() {
    let policy = Policy::default();
    for idle in ["Unit.Description", "Service.MemoryMax", "Install.WantedBy", "Unit.X-Note"] {
        assert!(policy.is_idle_key(idle), "{idle}");
    }
    for busy in
        ["Service.ExecStart", "Service.LimitNOFILE", "Service.Environment", "Socket.ListenStream"]
    {
        assert!(!policy.is_idle_key(busy), "{busy}");
    }
}

#[test]
fn checkers_are_for_paths_and_their_programs_are_wanted() {
    let policy = Policy::default();
    let commands = |at: &str| -> Vec<String> {
        let at = path(at);
        policy.checks_for(&at).map(|check| check.command(&at).join(" ")).collect()
    };
    assert_eq!(commands("/etc/nginx/conf.d/a.conf"), ["/usr/sbin/nginx -t -q"]);
    assert_eq!(commands("/etc/sudoers.d/a"), ["/usr/sbin/visudo -c"]);
    assert_eq!(
        commands("/lib/systemd/system/a.service"),
        ["/usr/bin/systemd-analyze verify --man=no /lib/systemd/system/a.service"]
    );
    assert!(policy.paths_wanted().contains(&"/usr/sbin/visudo".to_owned()));
}

#[test]
fn the_documents_example_is_a_policy() {
    let document = include_str!("../../../../docs/format/policy.md");
    let example = document.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let file = PolicyFile::parse("policy.md", example.expect("an example"));
    let policy = Policy::from_layers(&[], &[file.expect("a policy file")]).expect("a policy");
    let rule = policy.unit_rule(&Unit::new("postgresql@15-main.service"));
    assert_eq!(rule.reload_only.as_deref(), Some("restart it in its window"));
    let tables = [
        "file",
        "unit",
        "tool",
        "validate",
        "probe",
        "connectivity",
        "class",
        "unit-keys",
        "drift",
    ];
    for table in tables {
        assert!(document.contains(&format!("`[[{table}]]`")), "{table}");
    }
}
