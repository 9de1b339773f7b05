//! Updates of a tree that lies on three file systems: all of them, or none, whatever happens.

use anyhow::{Context as _, ensure};
use vireo_model::ChangeSet;
use vireo_tests::{Interrupted, Moment, Mounts, require_host, vireo};

/// Files of every file system, some with further names, directories, links, rights.
const BASE: &str = "mkdir -p usr/bin etc boot/grub boot/goes var/www/goes var/lib/app
  for n in $(seq 12); do echo tool $n > usr/bin/t$n; echo kernel $n > boot/k$n; echo page $n > var/www/p$n; done
  ln usr/bin/t1 usr/bin/t1-too; ln boot/k1 boot/k1-too; ln var/www/p1 var/www/p1-too
  ln -s k1 boot/latest; ln -s ../www var/lib/www; chmod 600 boot/k2; echo conf > etc/app.conf
  echo gone > boot/goes/x; echo gone > var/www/goes/x; echo was a file > var/lib/app/becomes";
const CHANGE: &str = "for n in $(seq 12); do echo next tool $n > usr/bin/t$n; echo next kernel $n > boot/k$n; \
    echo next page $n > var/www/p$n; done
  rm -r boot/goes var/www/goes usr/bin/t7 boot/k7 var/www/p7
  ln -sfn k3 boot/latest; chmod 640 boot/k2; chmod 700 var/lib/app; rm boot/k1-too; ln boot/k4 boot/k4-too
  mkdir -p boot/new/deep var/new; echo n > boot/new/deep/n; echo n > var/new/n; echo n > etc/new.conf
  rm var/lib/app/becomes; mkdir var/lib/app/becomes; echo in > var/lib/app/becomes/in";

/// Moments of an update: while staging, at the barriers, at the commit mark, among the renames on
/// each file system, after them.
const MOMENTS: &[(&str, &[u32])] = &[
    ("mkdirat", &[2, 5, 8]),
    ("linkat", &[2, 30]),
    ("syncfs", &[1, 2, 3, 4, 5, 6]),
    ("renameat", &[1, 2, 8, 20, 33, 40]),
    ("renameat2", &[1]),
    ("unlinkat", &[1, 3, 5]),
];

/// The world of these tests, and the bundle in it.
struct Scene {
    mounts: Mounts,
    bundle: String,
    key: String,
}

impl Scene {
    fn new() -> anyhow::Result<Self> {
        require_host()?;
        let mounts = Mounts::new(BASE, CHANGE)?;
        let (keys, bundle) = (mounts.arg("keys"), mounts.arg("update.vireo"));
        vireo(["key", "generate", "--out", &keys])?.ok()?;
        let (base, target) = (mounts.arg("base"), mounts.arg("target"));
        let secret = format!("{keys}/vireo.key");
        let mut args = vec!["capture", "--base", &base, "--target", &target, "--key", &secret];
        args.extend(["-o", &bundle, "--no-cache"]);
        vireo(args)?.ok()?;
        let key = std::fs::read_to_string(format!("{keys}/vireo.pub"))?.trim().to_owned();
        Ok(Self { mounts, bundle, key })
    }

    /// `vireo-agent --root TREE` with these arguments; its records are not on any of the three.
    fn agent<'a>(&'a self, tree: &'a str, state: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["--root", tree, "--state", state], more].concat()
    }

    fn run(&self, more: &[&str]) -> anyhow::Result<vireo_tests::Ran> {
        let (tree, state) = (self.mounts.tree(), self.mounts.arg("state"));
        self.mounts.run("vireo-agent", &self.agent(&tree, &state, more))
    }

    fn apply(&self) -> anyhow::Result<vireo_tests::Ran> {
        self.run(&["apply", &self.bundle, "--trust", &self.key])
    }

    /// An update that is killed at `moment`; whether it was.
    fn apply_killed(&self, moment: Moment) -> anyhow::Result<bool> {
        let (tree, state) = (self.mounts.tree(), self.mounts.arg("state"));
        let apply = self.agent(&tree, &state, &["apply", &self.bundle, "--trust", &self.key]);
        let ended = self.mounts.kill(moment, "vireo-agent", &apply)?;
        Ok(matches!(ended, Interrupted::Killed))
    }

    fn is(&self, name: &str) -> anyhow::Result<()> {
        let (found, expected) = (self.mounts.read()?, self.mounts.read_beside(name)?);
        let changes = ChangeSet::between(&expected, &found).changes;
        ensure!(found.digest() == expected.digest(), "the tree is not {name}: {changes:#?}");
        self.mounts.no_difference(name)
    }

    fn refill(&self) -> anyhow::Result<()> {
        self.mounts.refill()?;
        drop(std::fs::remove_dir_all(self.mounts.arg("state")));
        Ok(())
    }
}

#[test]
fn root_an_update_reaches_three_file_systems_and_goes_back() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    scene.is("base")?;
    let before = scene.mounts.script("cd \"$1\"; find . -type f -printf '%p %i\\n' | sort", &[])?;
    scene.apply()?.ok()?;
    scene.is("target")?;
    let parts = scene.mounts.script("cd \"$1\"; ls .vireo boot/.vireo var/.vireo", &[])?;
    ensure!(parts.matches("1-").count() == 2, "not a part on each: {parts}");
    scene.run(&["history"])?.ok()?.says(&["1 "])?;

    scene.run(&["undo"])?.ok()?;
    scene.is("base")?;
    let after = scene.mounts.script("cd \"$1\"; find . -type f -printf '%p %i\\n' | sort", &[])?;
    ensure!(before == after, "other inodes than before:\n{before}\n{after}");
    let left = scene.mounts.script("find \"$1\"/{.,boot,var}/.vireo -mindepth 1", &[])?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

#[test]
fn root_an_update_of_three_file_systems_survives_a_kill_at_any_moment() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let base = scene.mounts.read_beside("base")?.digest();
    let target = scene.mounts.read_beside("target")?.digest();
    ensure!(base != target, "two different trees");
    let (mut killed, mut forward) = (0, 0);
    for (call, times) in MOMENTS {
        for nth in *times {
            let moment = Moment { call, nth: *nth };
            let check = || -> anyhow::Result<(bool, bool)> {
                scene.refill()?;
                let killed = scene.apply_killed(moment)?;
                // By turns to either side.
                let back: &[&str] = if nth % 4 == 0 { &["--back"] } else { &[] };
                scene.run(&[&["recover"], back].concat())?.ok()?;
                let found = scene.mounts.read()?.digest();
                ensure!(found == base || found == target, "neither base nor target");
                scene.is(if found == base { "base" } else { "target" })?;
                // Whatever it is: the same update goes through, and back.
                scene.apply()?.ok()?;
                scene.is("target")?;
                scene.run(&["undo"])?.ok()?;
                scene.is("base")?;
                Ok((killed, found == target))
            };
            let (was_killed, was_forward) = check().with_context(|| format!("{moment:?}"))?;
            killed += u32::from(was_killed);
            forward += u32::from(was_killed && was_forward);
        }
    }
    ensure!(killed >= 15, "only {killed} runs were killed");
    ensure!(forward >= 4 && forward < killed, "{forward} of {killed} were completed");
    Ok(())
}

#[test]
fn root_a_read_only_part_refuses_the_whole_update() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    // The file system itself, and the mount alone.
    for (freeze, thaw) in [("remount,ro", "remount,rw"), ("remount,bind,ro", "remount,bind,rw")] {
        let before = scene.mounts.listing()?;
        scene.mounts.script(&format!("mount -o {freeze} \"$1/boot\""), &[])?;
        scene.apply()?.exits(1)?.says(&["/boot", "read-only", "nothing was changed"])?;
        let after = scene.mounts.listing()?;
        ensure!(before == after, "{freeze}: changed:\n{before}\n{after}");
        scene.mounts.script(&format!("mount -o {thaw} \"$1/boot\""), &[])?;
    }
    scene.apply()?.ok()?;
    scene.is("target")
}

#[test]
fn root_recovery_asks_for_a_part_that_is_not_mounted() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    for back in [false, true] {
        scene.refill()?;
        ensure!(scene.apply_killed(Moment { call: "renameat", nth: 20 })?, "it was not killed");
        let mixed = scene.mounts.read()?;
        let [base, target] = ["base", "target"].map(|name| scene.mounts.read_beside(name));
        ensure!(mixed != base? && mixed != target?, "it was not killed among the renames");

        let recover: &[&str] = if back { &["recover", "--back"] } else { &["recover"] };
        let listing = scene.mounts.listing()?;
        scene.mounts.script("umount \"$1/boot\"", &[])?;
        scene.run(recover)?.exits(1)?.says(&["/boot", "mount it"])?;
        scene.apply()?.exits(1)?.says(&["/boot", "mount it"])?;
        scene.mounts.script("mount -o loop \"$2\" \"$1/boot\"", &["boot.img"])?;
        ensure!(scene.mounts.listing()? == listing, "something was changed meanwhile");
        scene.run(recover)?.ok()?;
        scene.is(if back { "base" } else { "target" })?;
    }
    Ok(())
}

#[test]
fn root_a_directory_with_other_file_systems_in_it_is_refused() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let before = scene.mounts.listing()?;
    let apply = ["apply", &scene.bundle, "--to", &scene.mounts.tree(), "--trust", &scene.key];
    let refused = scene.mounts.run("vireo", &apply)?;
    ensure!(refused.output().code != 0, "it was applied");
    refused.says(&["file system of its own", "nothing was changed"])?;
    ensure!(scene.mounts.listing()? == before, "something was changed");
    Ok(())
}

#[test]
fn root_a_directory_is_read_with_its_disk_file_systems_and_nothing_else() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let tree = scene.mounts.tree();
    let version = scene.mounts.read()?.digest().to_string();
    let digest = || scene.mounts.run("vireo", &["digest", &tree]);
    digest()?.ok()?.says(&[&version])?;
    // As the agent computes it of a machine with this root.
    scene.mounts.script("mount -t tmpfs none \"$1/etc\"; touch \"$1/etc/other\"", &[])?;
    digest()?.ok()?.says(&[&version, "warning", "/etc (tmpfs)"])?;
    let beside = scene.mounts.arg("base");
    let diff = ["diff", &tree, &beside];
    scene.mounts.run("vireo", &diff)?.ok()?.says(&["/etc (tmpfs)", "no difference"])?;
    // What the ignore list leaves out anyway is no news.
    scene
        .mounts
        .script("umount \"$1/etc\"; mkdir \"$1/run\"; mount -t tmpfs none \"$1/run\"", &[])?;
    let ran = digest()?.ok()?;
    ensure!(!ran.output().stderr.contains("warning"), "{}", ran.output().stderr);
    Ok(())
}

#[test]
fn root_subvolumes_of_btrfs_belong_to_the_tree_and_what_is_bound_there_does_not()
-> anyhow::Result<()> {
    let scene = Scene::new()?;
    let tree = scene.mounts.tree();
    let digest = || scene.mounts.run("vireo", &["digest", &tree]);
    let script = "mkdir \"$1/srv\" \"$1/opt\"; truncate -s 128M \"$1/../srv.img\"; mkfs.btrfs -q \"$1/../srv.img\"
        mount -o loop \"$1/../srv.img\" \"$1/srv\"; mkdir \"$1/srv/a\" \"$1/srv/b\"; echo x > \"$1/srv/a/x\"
        btrfs -q subvolume create \"$1/srv/sub\"; echo y > \"$1/srv/sub/y\"";
    scene.mounts.script(script, &[])?;
    let version = digest()?.ok()?.output().stdout.clone();
    // The same files at another place: they would be read twice.
    scene.mounts.script("mount --bind \"$1/srv/a\" \"$1/srv/b\"", &[])?;
    digest()?.ok()?.says(&["warning", "/srv/b (btrfs)", version.trim()])?;
    scene.mounts.script(
        "umount \"$1/srv/b\"; mount -o subvol=sub \"$(findmnt -no SOURCE \"$1/srv\")\" \"$1/opt\"",
        &[],
    )?;
    let with = digest()?.ok()?;
    ensure!(!with.output().stderr.contains("warning"), "{}", with.output().stderr);
    ensure!(with.output().stdout != version, "the subvolume's file is missing");
    Ok(())
}

#[test]
fn root_a_key_or_an_output_in_a_captured_directory_is_refused() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let [base, tree] = [scene.mounts.arg("base"), scene.mounts.tree()];
    let [key, out] = [scene.mounts.arg("keys/vireo.key"), scene.mounts.arg("other.vireo")];
    scene.mounts.script("cp \"$2\" \"$1/etc/signing.key\"", &["keys/vireo.key"])?;
    let [inner_key, inner_out] =
        [format!("{tree}/etc/signing.key"), format!("{tree}/boot/other.vireo")];
    for (key, out, says) in [(&inner_key, &out, "the key"), (&key, &inner_out, "the output")] {
        let args = ["capture", "--base", &base, "--target", &tree, "--key", key, "-o", out];
        let ran = scene.mounts.run("vireo", &args)?.exits(5)?;
        ran.says(&[says, "would travel in the bundle", "hint"])?;
    }
    ensure!(!std::path::Path::new(&out).exists(), "a bundle was written");
    Ok(())
}
