//! The contract that all service managers share, on real systemd, by both ways to reach it.

use std::time::Duration;

use anyhow::ensure;
use vireo_testkit::{Guest, programs};
use vireo_tests::{World, shell};

/// Longest for the contract: each way reloads, restarts and executes the manager anew.
const DEADLINE: Duration = Duration::from_secs(120);

/// One service of each kind that the contract is about.
const BASE: &str = r#"cd "$1/etc/systemd/system"
unit() { printf '[Service]\nExecStart=/bin/sleep infinity\n%s\n[Install]\nWantedBy=multi-user.target\n' "$2" > "$1.service"; }
unit reloads 'ExecReload=/bin/true'; unit restarts ''; unit stopped ''
for unit in reloads restarts; do ln -s "../$unit.service" "multi-user.target.wants/$unit.service"; done"#;

#[test]
fn live_systemd_keeps_the_contract_over_the_bus_and_by_its_command() -> anyhow::Result<()> {
    let world = World::edited(BASE, ":")?;
    let guest = world.guest()?;
    std::fs::copy(programs::find("examples/service_contract")?, world.path("contract"))?;
    world.put(&guest, "contract")?;
    shell(&guest, "chmod 755 /tmp/contract; systemctl is-active dbus.service")?;
    let check = |way: &str, [reloads, restarts, stopped]: [&str; 3]| {
        let units = [reloads, restarts, stopped].map(|name| format!("{name}.service"));
        let argv = ["/tmp/contract", way, &units[0], &units[1], &units[2]];
        guest.exec_with(&argv, &[], DEADLINE)
    };
    let units = ["reloads", "restarts", "stopped"];
    for (way, name) in [("bus", "Systemd"), ("command", "Systemctl")] {
        let kept = check(way, units)?;
        ensure!(kept.success(), "{way}: {}", kept.tail());
        ensure!(kept.stdout.starts_with(name) && kept.stdout.contains("keeps"), "{}", kept.stdout);
        // It looks at the units: such as do not do what they are to do are found out.
        let broken = check(way, ["restarts", "reloads", "stopped"])?;
        ensure!(broken.stderr.contains("a reload keeps the main process"), "{}", broken.tail());
    }
    // Without a bus the command still works, and the other says why it does not.
    shell(&guest, "systemctl stop dbus.socket dbus.service || true; ! systemctl is-active dbus")?;
    let none = check("bus", units)?;
    ensure!(none.code == 1 && none.stderr.contains("system bus"), "{}", none.tail());
    let kept = check("command", units)?;
    ensure!(kept.success(), "without a bus: {}", kept.tail());
    drop(guest);
    world.finish()
}
