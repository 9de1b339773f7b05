//! The power fails in the middle of an update: what is left recovers to the base or the target, on
//! every file system, whatever the disk kept of the last writes.

use anyhow::ensure;
use vireo_tests::{
    FileSystem, Neighbour, Tally, Update, record_dpkg, recover_dpkg, recover_nothing, recover_vireo,
};

/// The same states on every run; the campaign (`cargo xtask faults`) takes others.
const SEED: u64 = 1;

/// Half of `points` with nothing but the update on the disk, half beside a busy neighbour.
fn campaign(system: FileSystem, points: usize) -> anyhow::Result<Tally> {
    let update = Update::new()?;
    let mut all = Tally::default();
    for neighbour in [Neighbour::None, Neighbour::Busy] {
        let recording = update.record(system, neighbour)?;
        all = all.and(recording.replay(points / 2, SEED, &recover_vireo)?);
    }
    eprintln!("{}: {all}", system.name());
    Ok(all)
}

#[test]
fn root_a_power_cut_on_ext4_leaves_base_or_target() -> anyhow::Result<()> {
    campaign(FileSystem::Ext4, 150)?.all_whole(150)
}

#[test]
fn root_a_power_cut_on_xfs_leaves_base_or_target() -> anyhow::Result<()> {
    campaign(FileSystem::Xfs, 40)?.all_whole(40)
}

#[test]
fn root_a_power_cut_on_btrfs_leaves_base_or_target() -> anyhow::Result<()> {
    campaign(FileSystem::Btrfs, 40)?.all_whole(40)
}

#[test]
fn root_plain_renames_without_barriers_are_found_out() -> anyhow::Result<()> {
    let recording = Update::new()?.record_plain_renames(FileSystem::Ext4)?;
    let tally = recording.replay(30, SEED, &recover_nothing)?;
    eprintln!("plain renames: {tally}");
    ensure!(!tally.bad.is_empty(), "the harness does not see a mixture: {tally}");
    Ok(())
}

#[test]
fn root_a_disk_that_takes_flushes_for_nothing_is_found_out() -> anyhow::Result<()> {
    let recording = Update::new()?.record(FileSystem::Ext4, Neighbour::None)?.without_barriers();
    let tally = recording.replay(30, SEED, &recover_vireo)?;
    eprintln!("without flushes: {tally}");
    ensure!(!tally.bad.is_empty(), "the harness does not see a lost flush: {tally}");
    Ok(())
}

#[test]
fn root_the_same_update_by_dpkg_stays_a_mixture_after_some_cuts() -> anyhow::Result<()> {
    let recording = record_dpkg(FileSystem::Ext4, Neighbour::Busy)?;
    let tally = recording.replay(40, SEED, &recover_dpkg)?;
    eprintln!("dpkg: {tally}");
    ensure!(tally.points == 40 && tally.mixed > 0 && !tally.bad.is_empty(), "{tally}");
    Ok(())
}
