//! `kill -9` at many moments: what is left is the base or the target, and the next run completes.

use std::fs;

use anyhow::{Context as _, ensure};
use vireo_model::{Digest, Ignore};
use vireo_tests::{Ext4, Interrupted, Moment, Scene, capture_args, vireo};
use vireo_tree::apply::{Committed, Recovered, recover};
use vireo_tree::{Root, ScanOptions, scan};

/// Fewest moments at which a run must really have been killed, for the test to mean something.
const ENOUGH: usize = 15;

/// `calls` that change something or mark a step, each at some of its times.
fn moments<'a>(calls: &'a [(&'static str, &'a [u32])]) -> impl Iterator<Item = Moment> + 'a {
    calls.iter().flat_map(|(call, times)| times.iter().map(|nth| Moment { call, nth: *nth }))
}

#[test]
fn root_a_killed_apply_leaves_image_and_output_whole() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let out = scene.path("out.img");
    let args = scene.apply("update.vireo", "base.img", &["-o", &scene.arg("out.img")]);
    let calls: &[(&str, &[u32])] = &[
        ("ftruncate", &[1]),
        ("copy_file_range", &[1, 3]),
        ("ioctl", &[1, 2, 3]),
        ("fsopen", &[1]),
        ("fsmount", &[1]),
        ("mkdirat", &[1, 2]),
        ("pwrite64", &[1, 4]),
        ("linkat", &[1, 4]),
        ("syncfs", &[1, 2, 3]),
        ("renameat", &[1, 4, 9]),
        ("unlinkat", &[1, 5]),
        ("utimensat", &[1]),
        ("clone3,vfork,clone", &[1, 2]),
        ("wait4,waitid", &[1]),
        ("fsync", &[1, 2, 3]),
        ("link", &[1]),
        ("unlink", &[1]),
    ];
    let mut killed = 0;
    for moment in moments(calls) {
        let check = || -> anyhow::Result<bool> {
            let ended = moment.kill("vireo", &args)?;
            // The kernel unmounts and detaches by itself.
            scene.nothing_attached()?;
            scene.base_is_whole()?;
            if out.exists() {
                scene.is_target(&out)?;
                fs::remove_file(&out)?;
            }
            Ok(matches!(ended, Interrupted::Killed))
        };
        killed += usize::from(check().with_context(|| format!("{moment:?}"))?);
    }
    ensure!(killed >= ENOUGH, "only {killed} runs were killed");
    // What they left does not stand in the way, and goes.
    vireo(&args)?.ok()?;
    scene.is_target(&out)?;
    scene.base_is_whole()?;
    ensure!(!scene.path("out.img.partial").exists(), "a clone was left");
    Ok(())
}

#[test]
fn root_an_image_patched_in_place_is_base_or_target_after_a_kill() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let args = scene.apply("update.vireo", "base.img", &[]);
    let calls: &[(&str, &[u32])] = &[
        ("fsmount", &[1]),
        ("renameat", &[2]),
        ("syncfs", &[3]),
        ("fsync", &[1, 2, 3]),
        ("rename", &[1]),
    ];
    for moment in moments(calls) {
        let check = || -> anyhow::Result<()> {
            moment.kill("vireo", &args)?;
            scene.nothing_attached()?;
            if scene.base_is_whole().is_err() {
                scene.is_target(&scene.base())?;
            }
            Ok(())
        };
        check().with_context(|| format!("{moment:?}"))?;
    }
    vireo(&args)?.ok()?;
    scene.is_target(&scene.base())
}

fn digest(root: &Root) -> anyhow::Result<Digest> {
    Ok(scan(root, &Ignore::default(), &ScanOptions::default())?.tree.digest())
}

#[test]
fn root_a_killed_apply_to_a_directory_is_completed_by_the_next() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let disk = Ext4::new(256 << 20)?;
    disk.unpack(&scene.base(), 0, "base")?;
    disk.unpack(&scene.target(), 0, "target")?;
    let open = |name: &str| Root::open(&disk.path().join(name));
    let (base, target) = (digest(&open("base")?)?, digest(&open("target")?)?);
    let mut args = scene.apply("update.vireo", "base.img", &[]);
    args[3] = disk.path().join("work").display().to_string();

    let calls: &[(&str, &[u32])] = &[
        ("mkdirat", &[1, 2, 3, 4, 5, 6]),
        ("pwrite64", &[1, 3]),
        ("linkat", &[1, 3, 6, 9]),
        ("mknodat", &[1]),
        ("symlinkat", &[1]),
        ("syncfs", &[1, 2]),
        ("fsync", &[1, 2, 3, 4]),
        ("renameat", &[1, 2, 3, 5, 7, 9, 12, 14, 15, 16, 17, 18]),
        ("unlinkat", &[1, 2, 3, 5, 8, 12, 16, 20]),
        ("fchownat", &[1, 5, 9]),
        ("utimensat", &[1, 4, 9]),
    ];
    let (mut killed, mut completed) = (0, 0);
    for (number, moment) in moments(calls).enumerate() {
        let mut check = || -> anyhow::Result<()> {
            disk.script("rm -rf work; rsync -aHAXS base/ work/", &[])?;
            if matches!(moment.kill("vireo", &args)?, Interrupted::Killed) {
                killed += 1;
            }
            // Every other time recovery runs by itself first, as at boot.
            if number.is_multiple_of(2) {
                let root = open("work")?;
                if let Recovered::Completed(committed) = recover(&root)? {
                    completed += 1;
                    Committed::finish_for_good(committed)?;
                }
                let found = digest(&root)?;
                ensure!(found == base || found == target, "neither base nor target after recovery");
            }
            vireo(&args)?.ok()?;
            disk.no_difference("work", "target")?;
            let state = disk.script("find work/.vireo -mindepth 1", &[])?;
            ensure!(state.is_empty(), "left behind: {state}");
            Ok(())
        };
        check().with_context(|| format!("{moment:?}"))?;
    }
    ensure!(killed >= ENOUGH, "only {killed} runs were killed");
    ensure!(
        completed > 0 && completed < killed,
        "{completed} of {killed} were completed by recovery"
    );
    Ok(())
}

#[test]
fn root_a_killed_capture_leaves_the_former_output_or_the_new_one() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let dir = scene.path("bundles");
    fs::create_dir(&dir)?;
    let out = dir.join("out.vireo");
    let [base, target, key] = [scene.base(), scene.target(), scene.key()];
    let [base, target, key, text] =
        [&base, &target, &key, &out].map(|path| path.display().to_string());
    let args = capture_args(&base, &target, &key, &text);
    vireo(&args)?.ok()?;
    let whole = fs::read(&out)?;
    let names = || -> anyhow::Result<Vec<String>> {
        let name = |entry: std::io::Result<fs::DirEntry>| {
            Ok(entry?.file_name().to_string_lossy().into_owned())
        };
        fs::read_dir(&dir)?.map(name).collect()
    };

    let calls: &[(&str, &[u32])] =
        &[("write", &[1, 2, 3]), ("fsync", &[1, 2]), ("linkat", &[1, 2]), ("rename", &[1])];
    let mut killed = 0;
    for (former, moment) in moments(calls).flat_map(|moment| [(false, moment), (true, moment)]) {
        let check = || -> anyhow::Result<bool> {
            fs::remove_file(&out)?;
            if former {
                fs::write(&out, "former")?;
            }
            let ended = moment.kill("vireo", &args)?;
            let found = fs::read(&out).ok();
            let is_former = found.as_deref() == former.then_some(&b"former"[..]);
            ensure!(is_former || found.as_ref() == Some(&whole), "neither output");
            // Nothing else, but for the new one under a second name where it was to replace another.
            let left = names()?.into_iter().filter(|name| name != "out.vireo");
            for name in left {
                ensure!(former && moment.call == "rename", "{name} was left");
                ensure!(fs::read(dir.join(&name))? == whole, "{name} is not whole");
            }
            vireo(&args)?.ok()?;
            ensure!(fs::read(&out)? == whole && names()? == ["out.vireo"], "{:?}", names()?);
            Ok(matches!(ended, Interrupted::Killed))
        };
        killed += usize::from(check().with_context(|| format!("{moment:?}, {former}"))?);
    }
    ensure!(killed >= 8, "only {killed} runs were killed");
    Ok(())
}
