//! A machine that gets a new kernel while it runs, and then boots it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_testkit::bootdisk::BootDisks;
use vireo_testkit::image::clone_image;
use vireo_testkit::{Cache, boot_for_good, fixture, programs};
use vireo_tests::{World, require_host};

/// The target, beside its new kernel: of the base's, the one that runs meanwhile, a module is changed
/// that will be loaded then, and everything else goes. `$2` is its release.
const TARGET: &str = r#"cd "$1/usr/lib/modules/$2"
echo more >> kernel/drivers/net/dummy.ko
find . -type f ! -name dummy.ko -delete; find . -depth -mindepth 1 -type d -empty -delete"#;

/// Puts the agent (`$2`), the update (`$3`) and what is told of each boot into the base; `$4` is the key.
const PREPARE: &str = r#"cd "$1"
install -m755 "$2" usr/bin/vireo-agent; install -m644 "$3" opt/update.vireo
install -d -m700 var/lib/vireo; install -d opt/told
mv usr/local/sbin/report usr/local/sbin/report.before
cat > usr/local/sbin/report <<S
#!/bin/sh
# Updates the machine in its first boot, and notes in a directory for each boot what there is to see.
cd /opt/told; boot=\$(ls | wc -l); mkdir \$boot; cd \$boot; exec 2> errors
if [ \$boot = 0 ]; then
  modprobe dummy
  cat /proc/sys/kernel/random/boot_id > boots
  vireo-agent apply /opt/update.vireo --trust $4 --json > receipt.json; echo \$? > code
  systemctl list-jobs --no-legend > jobs
  modprobe -a ifb veth
  cat /proc/sys/kernel/random/boot_id >> boots
  cat /proc/modules > loaded
else
  vireo-agent recover --json > recovered.json
fi
vireo-agent status --json > status.json
ls /run > run; find /usr/lib/modules -type f > modules
exec /usr/local/sbin/report.before
S
chmod 755 usr/local/sbin/report"#;

/// Copies what was told to `$2`.
const COLLECT: &str = "cp -r \"$1/opt/told/.\" \"$2\"";

/// What a boot told, in a directory of the host.
struct Told<'a>(&'a Path);

impl Told<'_> {
    fn text(&self, name: &str) -> anyhow::Result<String> {
        let path = self.0.join(name);
        fs::read_to_string(&path).with_context(|| format!("{}: {}", path.display(), self.errors()))
    }

    fn json(&self, name: &str) -> anyhow::Result<Value> {
        let text = self.text(name)?;
        serde_json::from_str(&text).with_context(|| format!("{name} {text:?}: {}", self.errors()))
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.0.join("errors")).unwrap_or_default()
    }
}

/// Expects an update that is in place and waits for a boot, with the running kernel as able as it was.
fn waits_for_a_boot(told: &Told<'_>, running: &str, next: &str) -> anyhow::Result<()> {
    let receipt = told.json("receipt.json")?;
    ensure!(told.text("code")?.trim() == "3" && receipt["outcome"] == "pending", "{receipt}");
    let system = &receipt["plan"]["system"];
    ensure!(system["reboot"] == "full", "{system}");
    let because = system["because"].as_array().context("reasons")?;
    let dummy = format!("/usr/lib/modules/{running}/kernel/drivers/net/dummy.ko");
    for path in [&format!("/boot/vmlinuz-{next}"), &dummy] {
        ensure!(because.iter().any(|it| it["path"] == path.as_str()), "not for {path}: {system}");
    }
    ensure!(system["keep"][0] == format!("/usr/lib/modules/{running}"), "{system}");
    let pending = receipt["pending"].as_array().context("what waits")?;
    let reboot = |it: &Value| it["subject"] == "system" && it["needs"] == "reboot";
    ensure!(pending.iter().any(reboot), "{}", receipt["pending"]);
    let status = told.json("status.json")?;
    let pending = status["last"]["pending"].as_array().context("what still waits")?;
    ensure!(pending.iter().any(reboot), "{}", status["last"]["pending"]);

    // Other tools see it, and nobody has rebooted or is about to.
    ensure!(told.text("run")?.lines().any(|name| name == "reboot-required"));
    let boots = told.text("boots")?;
    ensure!(boots.lines().count() == 2 && boots.lines().next() == boots.lines().nth(1), "{boots}");
    let jobs = told.text("jobs")?;
    ensure!(!["reboot", "shutdown"].iter().any(|word| jobs.contains(word)), "{jobs}");

    // What the update removed can still be loaded.
    let loaded = told.text("loaded")?;
    for module in ["dummy ", "ifb ", "veth "] {
        let is_loaded = loaded.lines().any(|line| line.starts_with(module));
        ensure!(is_loaded, "no {module}: {}\n{loaded}", told.errors());
    }
    Ok(())
}

#[test]
fn vm_a_new_kernel_waits_for_a_boot_and_the_running_one_keeps_its_modules() -> anyhow::Result<()> {
    require_host()?;
    let BootDisks { base, target } = BootDisks::build(&Cache::open()?)?;
    let edit = (BootDisks::ROOT.0, TARGET, &[base.kernel.as_str()][..]);
    let world = World::beyond(&base.image, &target.image, edit)?;
    let disk = world.path("machine.img");
    clone_image(&base.image, &disk)?;
    let agent = programs::find("vireo-agent")?.display().to_string();
    let (bundle, key) = (world.arg("update.vireo"), world.public_key()?);
    fixture::edit(&disk, BootDisks::ROOT.0, PREPARE, &[&agent, &bundle, &key])?;

    let first = boot_for_good(world.lab(), &disk)?;
    ensure!(first.kernel == base.kernel, "{} runs", first.kernel);
    let second = boot_for_good(world.lab(), &disk)?;
    println!("{}: {:.1?} with the update, {:.1?}", first.accelerator, first.took, second.took);
    let told = world.path("told");
    fs::create_dir(&told)?;
    fixture::edit(&disk, BootDisks::ROOT.0, COLLECT, &[&told.display().to_string()])?;
    waits_for_a_boot(&Told(&told.join("0")), &base.kernel, &target.kernel)?;
    ensure!(first.page.contains("Release 2"), "{}", first.page);

    // The boot settles it: the new kernel runs, nothing waits, what was kept for the other is gone.
    ensure!(second.kernel == target.kernel, "{} runs", second.kernel);
    let directory = told.join("1");
    let told = Told(&directory);
    let status = told.json("status.json")?;
    ensure!(status["last"]["pending"] == serde_json::json!([]), "{status}");
    ensure!(status["last"]["outcome"] == "done" && status["under_way"] == false, "{status}");
    ensure!(!told.text("run")?.contains("reboot-required"));
    let modules = told.text("modules")?;
    let kept: Vec<&str> = modules.lines().filter(|path| path.contains(&base.kernel)).collect();
    ensure!(kept.len() == 1 && kept[0].ends_with("/dummy.ko"), "{kept:?}");
    world.finish()
}
