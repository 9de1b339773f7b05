//! The power fails in the middle of an update: what is left recovers to the base or the target, on
//! every file system, whatever the disk kept of the last writes.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use vireo_testkit::leaks::{self, Leak};
use vireo_testkit::programs;
use vireo_tests::{
    FileSystem, Neighbour, Tally, Update, record_dpkg, recover_dpkg, recover_nothing,
    recover_vireo, scratch,
};

/// Most flushes of the tree's disk that an update by the agent asks for.
const FLUSHES_MAX: usize = 10;

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
    campaign(FileSystem::Ext4, 300)?.all_whole(300)
}

#[test]
fn root_an_update_flushes_the_disk_a_few_times_however_large_it_is() -> anyhow::Result<()> {
    let flushes = Update::new()?.record_agent(FileSystem::Ext4)?.flushes();
    eprintln!("{flushes} flushes");
    // A recorder that sees none would pass everything.
    ensure!((4..=FLUSHES_MAX).contains(&flushes), "{flushes} flushes");
    Ok(())
}

#[test]
fn root_a_power_cut_on_xfs_leaves_base_or_target() -> anyhow::Result<()> {
    campaign(FileSystem::Xfs, 80)?.all_whole(80)
}

#[test]
fn root_a_power_cut_on_btrfs_leaves_base_or_target() -> anyhow::Result<()> {
    campaign(FileSystem::Btrfs, 80)?.all_whole(80)
}

/// Of `/etc` and `/usr`, which change in every respect, and what else there is.
const PARTS: [&str; 2] = ["etc", "usr"];

#[test]
fn root_a_power_cut_of_three_disks_at_once_leaves_base_or_target() -> anyhow::Result<()> {
    let update = Update::new()?;
    let mut all = Tally::default();
    for neighbour in [Neighbour::None, Neighbour::Busy] {
        let recording = update.record_parts(FileSystem::Ext4, &PARTS, neighbour)?;
        all = all.and(recording.replay(75, SEED, &recover_vireo)?);
    }
    eprintln!("three disks: {all}");
    all.all_whole(150)
}

#[test]
fn root_one_of_three_disks_that_takes_flushes_for_nothing_is_found_out() -> anyhow::Result<()> {
    let update = Update::new()?;
    for disk in 0..=PARTS.len() {
        let recording = update.record_parts(FileSystem::Ext4, &PARTS, Neighbour::None)?;
        let tally = recording.without_barriers(Some(disk)).replay(30, SEED, &recover_vireo)?;
        eprintln!("disk {disk} without flushes: {tally}");
        ensure!(!tally.bad.is_empty(), "the harness does not see a lost flush: {tally}");
    }
    Ok(())
}

#[test]
fn root_a_power_cut_in_a_recovery_leaves_the_target() -> anyhow::Result<()> {
    let update = Update::new()?;
    let recording = update.record_recovery(FileSystem::Ext4, Neighbour::Busy)?;
    let tally = recording.replay(40, SEED, &recover_vireo)?;
    eprintln!("in a recovery: {tally}");
    ensure!(tally.bad.is_empty(), "{tally}\n{}", tally.bad.join("\n"));
    // The update was committed before it was interrupted.
    ensure!(tally.target == 40 && tally.mixed > 0, "{tally}");
    Ok(())
}

#[test]
fn root_a_power_cut_in_an_undo_leaves_target_or_base() -> anyhow::Result<()> {
    let update = Update::new()?;
    let recording = update.record_undo(FileSystem::Ext4, Neighbour::Busy)?;
    let tally = recording.replay(60, SEED, &recover_vireo)?;
    eprintln!("in an undo: {tally}");
    tally.all_whole(60)
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
fn root_an_update_whose_barriers_do_nothing_is_found_out() -> anyhow::Result<()> {
    let recording = Update::new()?.record_without_barriers(FileSystem::Ext4)?;
    let tally = recording.replay(30, SEED, &recover_vireo)?;
    eprintln!("without barriers: {tally}");
    ensure!(!tally.bad.is_empty(), "the harness does not see a missing barrier: {tally}");
    Ok(())
}

#[test]
fn root_a_disk_that_takes_flushes_for_nothing_is_found_out() -> anyhow::Result<()> {
    let recording = Update::new()?.record(FileSystem::Ext4, Neighbour::None)?;
    let recording = recording.without_barriers(None);
    let tally = recording.replay(30, SEED, &recover_vireo)?;
    eprintln!("without flushes: {tally}");
    ensure!(!tally.bad.is_empty(), "the harness does not see a lost flush: {tally}");
    Ok(())
}

#[test]
fn root_the_same_update_by_dpkg_stays_a_mixture_after_some_cuts() -> anyhow::Result<()> {
    let recording = record_dpkg(FileSystem::Ext4, Neighbour::Busy)?;
    let tally = recording.replay(80, SEED, &recover_dpkg)?;
    eprintln!("dpkg: {tally}");
    ensure!(tally.points == 80 && tally.mixed > 0 && !tally.bad.is_empty(), "{tally}");
    Ok(())
}

#[test]
fn root_an_update_killed_at_its_calls_leaves_base_or_target() -> anyhow::Result<()> {
    let kills = Update::new()?.kill_apply(200)?;
    eprintln!("apply: {kills}");
    kills.all_whole()
}

#[test]
fn root_an_update_by_the_agent_killed_at_its_calls_leaves_a_version_and_says_which()
-> anyhow::Result<()> {
    let kills = Update::new()?.kill_agent_apply(80)?;
    eprintln!("apply by the agent: {kills}");
    kills.all_whole()
}

#[test]
fn root_an_undo_killed_at_its_calls_leaves_target_or_base() -> anyhow::Result<()> {
    let kills = Update::new()?.kill_undo(60)?;
    eprintln!("undo: {kills}");
    kills.all_whole()
}

#[test]
fn root_an_update_whose_calls_fail_leaves_base_or_target() -> anyhow::Result<()> {
    let errors = Update::new()?.fail_apply(150)?;
    eprintln!("errors: {errors}");
    errors.all_whole()
}

#[test]
fn root_an_update_by_the_agent_whose_calls_fail_leaves_a_version_and_says_which()
-> anyhow::Result<()> {
    let errors = Update::new()?.fail_agent_apply(100)?;
    eprintln!("errors in an update by the agent: {errors}");
    errors.none_bad()
}

#[test]
fn root_a_recovery_killed_at_its_calls_is_completed_by_the_next() -> anyhow::Result<()> {
    let kills = Update::new()?.kill_recovery(100)?;
    eprintln!("recovery: {kills}");
    kills.all_whole()
}

/// Where [`scratch`] makes its directories.
const MEMORY: &str = "/dev/shm";

/// Longest time until a campaign has its first disk, and until all is gone after a kill.
const DEADLINE: Duration = Duration::from_secs(30);

/// The scratch directories of a process.
fn directories_of(pid: u32) -> anyhow::Result<Vec<PathBuf>> {
    let prefix = format!("vireo-scratch-{pid}-");
    let mut found = Vec::new();
    for entry in fs::read_dir(MEMORY)? {
        let entry = entry?;
        found
            .extend(entry.file_name().to_string_lossy().starts_with(&prefix).then(|| entry.path()));
    }
    Ok(found)
}

/// Kills a campaign as soon as it has something of which `seen` holds; expects that nothing stays.
fn kill_campaign(seen: fn(&Leak) -> bool) -> anyhow::Result<()> {
    let mut command = Command::new(programs::find("vireo-faults")?);
    command.args(["campaign", "--states", "1000"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut campaign = command.spawn().context("cannot start a campaign")?;
    let started = Instant::now();
    let dirs = loop {
        let dirs = directories_of(campaign.id())?;
        if dirs.iter().flat_map(|dir| leaks::leaks("no lab of ours", dir)).any(|leak| seen(&leak)) {
            break dirs;
        }
        ensure!(started.elapsed() < DEADLINE, "the campaign has no disk");
        ensure!(campaign.try_wait()?.is_none(), "the campaign has ended");
        thread::sleep(Duration::from_millis(2));
    };
    campaign.kill()?;
    campaign.wait()?;
    for dir in &dirs {
        leaks::none("no lab of ours", dir, DEADLINE)?;
    }
    // The files are in memory: the next that wants room there removes them.
    drop(scratch()?);
    ensure!(dirs.iter().all(|dir| !dir.exists()), "files of a dead campaign are left: {dirs:?}");
    Ok(())
}

#[test]
fn root_a_killed_recording_leaves_no_mount_no_device_and_no_server() -> anyhow::Result<()> {
    kill_campaign(|leak| matches!(leak, Leak::Disk { .. }))
}

#[test]
fn root_a_killed_replay_leaves_no_mount_and_no_device() -> anyhow::Result<()> {
    kill_campaign(
        |leak| matches!(leak, Leak::Loop { file, .. } if file.to_string_lossy().contains("/state-")),
    )
}
