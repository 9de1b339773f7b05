//! Facts about processes on file systems that show a mapped file by another device than stat does.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use vireo_agent::{LiveSystem, SystemView as _};
use vireo_classify::FileId;
use vireo_tests::{FileSystem, require_host};

/// Mounts `$2`, has a process map a library there, replaces the library with another that is kept
/// alive, prints the process and the identities before and after, and stays until its input ends.
const HOLD: &str = r#"cd "$1"; mkdir tree; lib=$(ls /usr/lib/*/libz.so.1 | head -1)
case $2 in
overlay) mkdir disk; mount -o loop disk.img disk; mkdir disk/low disk/up disk/work; cp "$lib" disk/low/libmine.so
  mount -t overlay -o lowerdir=disk/low,upperdir=disk/up,workdir=disk/work overlay tree; at=tree;;
btrfs) mount -o loop disk.img tree; btrfs -q subvolume create tree/sub; at=tree/sub; cp "$lib" $at/libmine.so;;
*) mount -o loop disk.img tree; at=tree; cp "$lib" $at/libmine.so;;
esac
before=$(stat -c '%d %i' $at/libmine.so)
LD_PRELOAD=$PWD/$at/libmine.so sleep 1000 &
until grep -q libmine /proc/$!/maps; do sleep 0.01; done
ln $at/libmine.so $at/kept.so; cp "$lib" $at/next.so; mv $at/next.so $at/libmine.so
echo $! $before $(stat -c '%d %i' $at/libmine.so)
read -r _ || true; kill $!
"#;

/// Expects that the process is found by the library that it maps, and not by the one that took its
/// place.
#[track_caller]
fn check(kind: &str, system: FileSystem) -> anyhow::Result<()> {
    require_host()?;
    let dir = tempfile::tempdir()?;
    system.make(&dir.path().join("disk.img"))?;
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "bash", "-euc", HOLD, "hold"]);
    command.arg(dir.path()).arg(kind).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = command.spawn().context("cannot start unshare")?;
    let mut line = String::new();
    BufReader::new(holder.stdout.take().context("it has an output")?).read_line(&mut line)?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [pid, dev, ino, next_dev, next_ino] = numbers[..] else {
        anyhow::bail!("the {kind} cannot be mounted: {line:?}");
    };
    let held_by = |file: FileId| -> anyhow::Result<Vec<u64>> {
        let facts = LiveSystem::default().facts(&BTreeSet::from([file]))?;
        Ok(facts.processes.iter().map(|process| process.pid.into()).collect())
    };
    let (base, target) = (FileId { dev, ino }, FileId { dev: next_dev, ino: next_ino });
    let found = (held_by(base)?, held_by(target)?);
    drop(holder.stdin.take());
    ensure!(holder.wait()?.success());
    ensure!(found.0 == [pid], "{kind}: {base:?} is mapped by {pid}, found {:?}", found.0);
    ensure!(found.1.is_empty(), "{kind}: nobody maps {target:?}, found {:?}", found.1);
    Ok(())
}

#[test]
fn root_a_mapped_file_is_found_on_ext4() -> anyhow::Result<()> {
    check("ext4", FileSystem::Ext4)
}

#[test]
fn root_a_mapped_file_is_found_on_xfs() -> anyhow::Result<()> {
    check("xfs", FileSystem::Xfs)
}

#[test]
fn root_a_mapped_file_is_found_in_a_subvolume_of_btrfs() -> anyhow::Result<()> {
    check("btrfs", FileSystem::Btrfs)
}

#[test]
fn root_a_mapped_file_is_found_on_an_overlay() -> anyhow::Result<()> {
    check("overlay", FileSystem::Ext4)
}
