//! Images that somebody writes while they are read: an error, whoever reads them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use vireo_image::{Access, DiskImage, ErrorKind, RootPartition, unmounted};
use vireo_model::Ignore;
use vireo_tree::{ScanOptions, scan};

use crate::common::{Place, ext};

const SAYS: &str = "target.img was written while it was read: stop what uses it, or take a copy";

/// Writes what is there, as somebody who has the image open; only its times change.
fn write(image: &Path) -> anyhow::Result<()> {
    // The clock's next tick.
    sleep(Duration::from_millis(20));
    let file = File::options().read(true).write(true).open(image)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0)?;
    Ok(file.write_all_at(&byte, 0)?)
}

fn images() -> anyhow::Result<Place> {
    let place = Place::new()?;
    let content = place.dir("content", "mkdir etc; echo x > etc/x")?;
    ext(&place.path("base.img"), 24, "-t ext4", &content)?;
    place.copy("base.img", "target.img")?;
    Ok(place)
}

#[test]
fn root_an_image_that_is_written_while_it_is_read_in_place_is_not_believed() -> anyhow::Result<()> {
    let place = images()?;
    let open = |name: &str| {
        let refuse = unmounted::Unfinished::Refuse;
        unmounted::open(&place.path(name), RootPartition::Find, refuse)
    };
    let (base, target) = (open("base.img")?, open("target.img")?);
    let ignore = Ignore::default();
    let compare = |base: &unmounted::Disk, target: &unmounted::Disk| {
        unmounted::compare(base, target, &ignore, false)
    };
    ensure!(compare(&base, &target)?.changes.is_empty());
    write(&place.path("target.img"))?;
    let outcomes = [
        target.scan(&ignore, &Default::default()).map(drop),
        compare(&base, &target).map(drop),
        compare(&target, &base).map(drop),
    ];
    for outcome in outcomes {
        let error = outcome.err().context("believed")?;
        ensure!(error.kind() == ErrorKind::Busy, "{error}: {:?}", error.kind());
        ensure!(error.to_string().contains(SAYS), "{error}");
    }
    ensure!(compare(&base, &open("target.img")?)?.changes.is_empty());
    Ok(())
}

#[test]
fn root_an_image_that_is_written_while_it_is_mounted_to_be_read_is_not_believed()
-> anyhow::Result<()> {
    let place = images()?;
    let image = place.path("target.img");
    for is_mounted in [true, false] {
        let disk = DiskImage::open(&image, RootPartition::Find)?;
        if !is_mounted {
            write(&image)?;
        }
        let mounted = disk.mount(Access::ReadOnly)?;
        let read = || scan(mounted.root(), &Ignore::default(), &ScanOptions::default());
        if is_mounted {
            read()?;
            write(&image)?;
        }
        let error = read().err().context("believed")?;
        ensure!(error.kind() == vireo_tree::ErrorKind::Busy, "{error}: {:?}", error.kind());
        ensure!(error.to_string().contains(SAYS), "{error}");
        mounted.finish()?;
    }
    // Who mounts it to write does so himself.
    let mounted = DiskImage::open(&image, RootPartition::Find)?.mount(Access::ReadWrite)?;
    scan(mounted.root(), &Ignore::default(), &ScanOptions::default())?;
    write(&image)?;
    scan(mounted.root(), &Ignore::default(), &ScanOptions::default())?;
    mounted.finish()?;
    place.nothing_attached()
}
