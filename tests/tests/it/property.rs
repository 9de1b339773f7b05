//! `apply(capture(a, b), a) == b` for random trees, by rsync as well as by digest.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, ensure};
use vireo_capture::capture;
use vireo_delta::{Bundle, SecretKey, TrustedKeys};
use vireo_image::patch;
use vireo_model::{Digest, Ignore};
use vireo_testkit::image::clone_image;
use vireo_testkit::{Run, fixture, oracle};
use vireo_tests::{Ext4, Random, mutate_tree, permissive, require_host, write_tree};
use vireo_tree::apply::{ApplyOptions, Committed, stage};
use vireo_tree::{Root, ScanOptions, scan};

/// Pairs of directories, and pairs of images.
const DIRECTORY_CASES: u64 = 40;
const IMAGE_CASES: u64 = 6;

const SCRATCH_BYTES: u64 = 256 << 20;
const IMAGE_BYTES: u64 = 32 << 20;

fn digest(root: &Path) -> anyhow::Result<Digest> {
    Ok(scan(&Root::open(root)?, &Ignore::default(), &ScanOptions::default())?.tree.digest())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    Run::new("cp").args(["-a", "--sparse=always"]).args([from, to]).text()?;
    Ok(())
}

/// Every third target has nothing to do with its base, so that every kind becomes every other.
fn write_target(base: &Path, target: &Path, seed: u64, random: &mut Random) -> anyhow::Result<()> {
    if seed.is_multiple_of(3) {
        fs::create_dir(target)?;
        return write_tree(target, random);
    }
    copy(base, target)?;
    mutate_tree(target, random)
}

fn directory_case(disk: &Ext4, seed: u64) -> anyhow::Result<()> {
    let dir = |name: &str| disk.path().join(format!("{seed}-{name}"));
    let (base, target, work, file) = (dir("base"), dir("target"), dir("work"), dir("update.vireo"));
    let mut random = Random::new(seed);
    fs::create_dir(&base)?;
    write_tree(&base, &mut random)?;
    write_target(&base, &target, seed, &mut random)?;
    copy(&base, &work)?;

    let key = SecretKey::generate()?;
    capture(&Root::open(&base)?, &Root::open(&target)?, &permissive(), &key, &file)?;
    let bytes = vireo_sys::map_sealed(&File::open(&file)?)?;
    let bundle = Bundle::open(&bytes)?.verify(&TrustedKeys::from_iter([key.public()]))?;
    ensure!(bundle.base() == digest(&base)? && bundle.target() == digest(&target)?);
    let root = Root::open(&work)?;
    stage(&root, &bundle, &ApplyOptions::default())?
        .commit()
        .and_then(Committed::finish_for_good)?;

    // Without a change nothing is carried, not even the times of directories.
    if !bundle.change_set().is_empty() {
        disk.no_difference(&format!("{seed}-work"), &format!("{seed}-target"))?;
    }
    ensure!(digest(&work)? == bundle.target(), "the digest is not the target's");
    for path in [base, target, work] {
        fs::remove_dir_all(path)?;
    }
    Ok(fs::remove_file(file)?)
}

#[test]
fn root_random_directories_become_their_targets() -> anyhow::Result<()> {
    require_host()?;
    let disk = Ext4::new(SCRATCH_BYTES)?;
    for seed in 0..DIRECTORY_CASES {
        directory_case(&disk, seed).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

fn image_case(dir: &Path, seed: u64) -> anyhow::Result<()> {
    let path = |name: &str| dir.join(format!("{seed}-{name}"));
    let (base, target, out) = (path("base.img"), path("target.img"), path("out.img"));
    let file = path("update.vireo");
    let mut random = Random::new(seed);
    fixture::empty_image(&base, IMAGE_BYTES)?;
    let change = |image: &Path, change: &mut dyn FnMut(&Path) -> anyhow::Result<()>| {
        let mounted = Ext4::open(image)?;
        let root = mounted.path().join("tree");
        change(&root)?;
        mounted.sync()
    };
    change(&base, &mut |root| {
        fs::create_dir(root)?;
        write_tree(root, &mut random)
    })?;
    settle(&base)?;
    clone_image(&base, &target)?;
    change(&target, &mut |root| mutate_tree(root, &mut random))?;
    settle(&target)?;

    let key = SecretKey::generate()?;
    let mount = |image: &Path| {
        use vireo_image::{Access, DiskImage, RootPartition};
        DiskImage::open(image, RootPartition::Find)?.mount(Access::ReadOnly)
    };
    capture(mount(&base)?.root(), mount(&target)?.root(), &permissive(), &key, &file)?;
    let bytes = vireo_sys::map_sealed(&File::open(&file)?)?;
    let bundle = Bundle::open(&bytes)?.verify(&TrustedKeys::from_iter([key.public()]))?;
    patch(&base, &out, &bundle)?;
    let differences = oracle::differences((&out, 0), (&target, 0))?;
    ensure!(differences.is_empty(), "the patched image differs:\n{differences}");
    Ok(oracle::check_file_system(&out, 0)?)
}

/// Waits until the kernel has unmounted the image, so that its journal is empty.
fn settle(image: &Path) -> anyhow::Result<()> {
    let deadline = std::time::Duration::from_secs(5);
    Ok(vireo_testkit::leaks::none("no lab of ours", image, deadline)?)
}

#[test]
fn root_random_images_become_their_targets() -> anyhow::Result<()> {
    require_host()?;
    let dir = tempfile::tempdir()?;
    for seed in 0..IMAGE_CASES {
        image_case(dir.path(), seed).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}
