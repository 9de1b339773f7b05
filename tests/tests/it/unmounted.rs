//! Our own reader of file systems, judged by the kernel: both have to see the same tree.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, lsetxattr,
    makedev, mknodat, utimensat,
};
use vireo_image::unmounted::{Known, Reader, Scan, ScanOptions, Unfinished};
use vireo_image::{Access, DiskImage, RootPartition, unmounted};
use vireo_model::{Ignore, Tree};
use vireo_testkit::Run;
use vireo_testkit::image::{Table, clone_image, partitioned};
use vireo_tests::{Ext4, Random, mutate_tree, require_host, wait_until_free, write_tree};

/// Length of the images, in bytes; most of it is never written.
const IMAGE_BYTES: u64 = 192 << 20;
/// Names in one directory of every image: enough for an index.
const NAMES: u32 = 2500;
/// Names in the largest directory.
const MANY_NAMES: u32 = 20_000;
/// Random trees that are read, changed and compared.
const RANDOM_CASES: u64 = 8;

/// Ways to make a file system, in mke2fs's words.
const KINDS: &[&[&str]] = &[
    &["-t", "ext2"],
    &["-t", "ext3"],
    &["-t", "ext4"],
    &["-t", "ext2", "-r", "0"],
    &["-t", "ext2", "-b", "1024"],
    &["-t", "ext2", "-b", "2048"],
    &["-t", "ext3", "-I", "128"],
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext4", "-b", "2048"],
    &["-t", "ext4", "-I", "128"],
    &["-t", "ext4", "-I", "1024"],
    &["-t", "ext4", "-O", "^64bit"],
    &["-t", "ext4", "-O", "^extent,^64bit"],
    &["-t", "ext4", "-O", "^metadata_csum"],
    &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"],
    &["-t", "ext4", "-O", "^has_journal"],
    &["-t", "ext4", "-O", "^flex_bg"],
    &["-t", "ext4", "-O", "^dir_index,^filetype"],
    &["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"],
    &["-t", "ext4", "-O", "sparse_super2"],
    &["-t", "ext4", "-O", "bigalloc", "-C", "65536"],
    &["-t", "ext4", "-O", "bigalloc", "-b", "1024", "-C", "16384"],
    &["-t", "ext4", "-O", "inline_data"],
    &["-t", "ext4", "-O", "inline_data", "-I", "512"],
    &["-t", "ext4", "-O", "inline_data,ea_inode", "-b", "1024"],
    &["-t", "ext4", "-O", "ea_inode"],
    &["-t", "ext4", "-O", "ea_inode,^metadata_csum"],
    &["-t", "ext4", "-O", "large_dir,metadata_csum_seed"],
    &["-t", "ext4", "-O", "orphan_file,mmp"],
    &["-t", "ext4", "-O", "verity,stable_inodes"],
];

/// Makes an empty file system of this kind.
fn make(image: &Path, kind: &[&str]) -> anyhow::Result<()> {
    File::create_new(image)?.set_len(IMAGE_BYTES)?;
    // Small images would get blocks of 1 KiB otherwise.
    let usual: &[&str] = if kind.contains(&"-b") { &[] } else { &["-b", "4096"] };
    Run::new("mke2fs").args(["-q", "-F"]).args(usual).args(kind).arg(image).text()?;
    Ok(())
}

/// What a mount by the kernel shows.
fn seen_by_the_kernel(image: &Path) -> anyhow::Result<vireo_tree::Scan> {
    let mounted = DiskImage::open(image, RootPartition::Find)?.mount(Access::ReadOnly)?;
    let scan =
        vireo_tree::scan(mounted.root(), &Ignore::nothing(), &vireo_tree::ScanOptions::default())?;
    mounted.finish()?;
    Ok(scan)
}

fn read(image: &Path, unfinished: Unfinished, known: &[Known]) -> anyhow::Result<Scan> {
    let disk = unmounted::open(image, RootPartition::Find, unfinished)?;
    let options = ScanOptions { known, ..ScanOptions::default() };
    Ok(disk.scan(&Ignore::nothing(), &options)?)
}

/// Expects that `ours` is the kernel's tree, and lists where it is not.
fn same_tree(kernel: &Tree, ours: &Tree) -> anyhow::Result<()> {
    let changes = vireo_model::ChangeSet::between(kernel, ours).changes;
    let lines: Vec<String> = changes
        .iter()
        .take(10)
        .map(|change| {
            format!("{}\n  kernel {:?}\n  ours   {:?}", change.path, change.before, change.after)
        })
        .collect();
    ensure!(changes.is_empty(), "{} paths differ:\n{}", changes.len(), lines.join("\n"));
    ensure!(kernel.digest() == ours.digest());
    Ok(())
}

fn same_view(image: &Path) -> anyhow::Result<Scan> {
    // A child that another thread is just starting may hold the mount a moment longer.
    wait_until_free(image)?;
    let ours = read(image, Unfinished::Refuse, &[])?;
    let kernel = seen_by_the_kernel(image)?;
    ensure!(ours.tree.len() > 10, "only {} paths", ours.tree.len());
    same_tree(&kernel.tree, &ours.tree)?;
    ensure!(kernel.dir_times == ours.dir_times, "times of directories differ");
    Ok(ours)
}

/// Fills a mounted file system with what its format makes awkward.
fn fill(disk: &Ext4, longest_target: usize) -> anyhow::Result<()> {
    let root = disk.path();
    let small = root.join("small");
    fs::create_dir(&small)?;
    for len in [0, 1, 59, 60, 61, 100, 131, 132, 133, 160, 161, 400, 1023, 1025, 4097_usize] {
        fs::write(small.join(format!("file-{len}")), vec![b'x'; len])?;
        if len > 0 && len <= longest_target {
            std::os::unix::fs::symlink("t".repeat(len), small.join(format!("link-{len}")))?;
        }
    }
    let few = root.join("few");
    for count in 0..12 {
        let dir = few.join(count.to_string());
        fs::create_dir_all(&dir)?;
        for name in 0..count {
            fs::write(dir.join(format!("entry-{name}")), b"")?;
        }
    }
    many_names(&root.join("many"), NAMES)?;
    blocks(&root)?;
    special(&root)?;
    attributes(&root)
}

fn many_names(dir: &Path, count: u32) -> anyhow::Result<()> {
    fs::create_dir(dir)?;
    let first = dir.join("0");
    fs::write(&first, b"the content of all")?;
    for number in 1..count {
        let name = dir.join(format!("{number}-with-a-name-of-some-length"));
        // A file can have 65,000 names; not all need an inode of their own.
        if number % 50 == 0 {
            fs::write(name, number.to_string())?
        } else {
            fs::hard_link(&first, name)?
        }
    }
    for number in (1..count).step_by(3) {
        fs::remove_file(dir.join(format!("{number}-with-a-name-of-some-length")))?;
    }
    Ok(())
}

/// Files with many extents, holes, reserved blocks, and blocks behind three levels of a map.
fn blocks(root: &Path) -> anyhow::Result<()> {
    let torn = File::create_new(root.join("torn"))?;
    for block in 0..1500_u32 {
        torn.write_all_at(&block.to_le_bytes().repeat(300), u64::from(block) * 3 * 4096)?;
    }
    let far = File::create_new(root.join("far"))?;
    for at in [0, 12 << 10, 300 << 10, 40 << 20, 150 << 20, (150 << 20) + 9000] {
        far.write_all_at(b"an island", at)?;
    }
    far.set_len((151 << 20) + 77)?;
    let reserved = File::create_new(root.join("reserved"))?;
    // Not every kind can; then it is a plain file.
    let _ = rustix::fs::fallocate(&reserved, rustix::fs::FallocateFlags::empty(), 0, 1 << 20);
    reserved.write_all_at(b"written in the middle", 500_000)?;
    let beyond = File::create_new(root.join("beyond"))?;
    let _ = rustix::fs::fallocate(&beyond, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 1 << 20);
    (&beyond).write_all(b"blocks behind the end")?;
    Ok(())
}

fn special(root: &Path) -> anyhow::Result<()> {
    let node = |name: &str, kind, device| {
        mknodat(CWD, root.join(name), kind, Mode::from_bits_truncate(0o640), device)
    };
    node("null", FileType::CharacterDevice, makedev(1, 3))?;
    node("short", FileType::BlockDevice, makedev(255, 255))?;
    node("long", FileType::BlockDevice, makedev(259, 256))?;
    node("longest", FileType::CharacterDevice, makedev(4095, 1_048_575))?;
    node("pipe", FileType::Fifo, 0)?;
    node("socket", FileType::Socket, 0)?;
    fs::hard_link(root.join("pipe"), root.join("another-pipe"))?;
    for (name, secs) in
        [("1910", -1_900_000_000), ("2030", 1_900_000_000), ("2400", 13_569_465_600)]
    {
        let path = root.join(name);
        fs::write(&path, name)?;
        chownat(
            CWD,
            &path,
            Some(Uid::from_raw(70_000)),
            Some(Gid::from_raw(4_000_000_000)),
            AtFlags::empty(),
        )?;
        let time = Timespec { tv_sec: secs, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, &path, &times, AtFlags::empty())?;
    }
    Ok(())
}

fn attributes(root: &Path) -> anyhow::Result<()> {
    let path = root.join("attributes");
    fs::write(&path, b"a file with attributes")?;
    for number in 0..20 {
        let name = format!("user.number-{number}");
        lsetxattr(&path, name, number.to_string().as_bytes(), XattrFlags::empty())?;
    }
    for (name, len) in [("a", 200), ("b", 700), ("c", 3000), ("d", 20_000), ("e", 60_000)] {
        let path = root.join(format!("long-{name}"));
        fs::write(&path, b"")?;
        let value = name.as_bytes().repeat(len);
        // The long ones fit only where attributes can have inodes of their own.
        let set = lsetxattr(&path, "user.long", &value, XattrFlags::empty());
        ensure!(set.is_ok() || len > 500, "cannot set an attribute of {len} bytes: {set:?}");
        fs::write(root.join(format!("same-{name}")), b"")?;
        let _ =
            lsetxattr(root.join(format!("same-{name}")), "user.long", &value, XattrFlags::empty());
    }
    let script = "cd \"$1\"; touch acl; setfacl -m u:1000:rw,g:33:r,u:70000:x acl
         mkdir acl.d; setfacl -m d:u:1000:rwx,d:g:34:rx,u:5:rwx acl.d; touch acl.d/inherits
         touch cap; setcap cap_net_bind_service,cap_net_raw+ep cap
         ln -s cap link; setfattr -h -n trusted.note -v link link
         setfattr -h -n security.selinux -v system_u:object_r:bin_t:s0 link cap null";
    Run::script("attributes", &format!("set -e; {script}")).arg(root).text()?;
    Ok(())
}

/// A file system of this kind, filled, mounted once more and changed, and unmounted.
fn filled(image: &Path, kind: &[&str]) -> anyhow::Result<()> {
    make(image, kind)?;
    let disk = Ext4::open(image)?;
    // A link's target and its end have to fit into one block.
    let longest_target = if kind.contains(&"1024") { 1023 } else { 2047 };
    fill(&disk, longest_target)?;
    let random = disk.path().join("random");
    fs::create_dir(&random)?;
    write_tree(&random, &mut Random::new(7))?;
    mutate_tree(&random, &mut Random::new(8))?;
    drop(disk);
    wait_until_free(image)
}

#[test]
fn root_every_kind_of_file_system_reads_as_the_kernel_reads_it() -> anyhow::Result<()> {
    require_host()?;
    for kind in KINDS {
        let dir = tempfile::tempdir()?;
        let image = dir.path().join("fs.img");
        filled(&image, kind)
            .and_then(|()| same_view(&image))
            .with_context(|| format!("mke2fs {}", kind.join(" ")))?;
    }
    Ok(())
}

#[test]
fn root_large_directories_and_files_read_as_the_kernel_reads_them() -> anyhow::Result<()> {
    require_host()?;
    for kind in [&["-t", "ext4"][..], &["-t", "ext3"], &["-t", "ext4", "-b", "1024"]] {
        let dir = tempfile::tempdir()?;
        let image = dir.path().join("fs.img");
        make(&image, kind)?;
        let disk = Ext4::open(&image)?;
        many_names(&disk.path().join("many"), MANY_NAMES)?;
        // Behind three levels of a map of blocks of 4 KiB; and lengths beyond 32 bits.
        let far = File::create_new(disk.path().join("far"))?;
        far.write_all_at(b"an island", (4 << 30) + (64 << 20))?;
        drop((far, disk));
        same_view(&image).with_context(|| format!("mke2fs {}", kind.join(" ")))?;
    }
    Ok(())
}

#[test]
fn root_a_partition_reads_as_the_kernel_reads_it() -> anyhow::Result<()> {
    require_host()?;
    for table in [Table::Gpt, Table::Mbr] {
        let dir = tempfile::tempdir()?;
        let image = dir.path().join("fs.img");
        filled(&image, &["-t", "ext4"])?;
        let disk = dir.path().join("disk.img");
        partitioned(&image, table, &disk)?;
        same_view(&disk)?;
    }
    Ok(())
}

/// Copies the image below a mounted file system in two moments: with a journal full of what is
/// not in its place yet, and with blocks given up since.
fn copied_while_mounted(dir: &Path, kind: &[&str], tune: &[&str]) -> anyhow::Result<[PathBuf; 2]> {
    let image = dir.join("fs.img");
    make(&image, kind)?;
    if !tune.is_empty() {
        Run::new("tune2fs").args(tune).arg(&image).text()?;
    }
    let disk = Ext4::open(&image)?;
    let work = disk.path().join("work");
    fs::create_dir(&work)?;
    write_tree(&work, &mut Random::new(3))?;
    many_names(&disk.path().join("many"), 600)?;
    // With data in the journal, blocks that begin as the journal's own have to be marked there.
    let magic = [0xC0, 0x3B, 0x39, 0x98, 0, 0, 0, 1].repeat(2048);
    fs::write(disk.path().join("magic"), &magic)?;
    disk.sync()?;
    let first = dir.join("first.img");
    clone_image(&image, &first)?;

    fs::remove_dir_all(disk.path().join("many"))?;
    disk.sync()?;
    // What was a directory becomes content, so that replaying the directory would be wrong.
    fs::write(disk.path().join("reuse"), b"content ".repeat(200_000))?;
    mutate_tree(&work, &mut Random::new(4))?;
    disk.sync()?;
    let second = dir.join("second.img");
    clone_image(&image, &second)?;
    Ok([first, second])
}

#[test]
fn root_an_unfinished_journal_reads_as_after_its_recovery() -> anyhow::Result<()> {
    require_host()?;
    for (kind, tune) in [
        (&["-t", "ext4"][..], &[][..]),
        (&["-t", "ext4", "-O", "^metadata_csum"], &[]),
        (&["-t", "ext4", "-O", "^64bit"], &[]),
        (&["-t", "ext4", "-O", "^64bit,^metadata_csum"], &[]),
        (&["-t", "ext4", "-O", "orphan_file"], &[]),
        (&["-t", "ext3", "-b", "1024"], &[]),
        (&["-t", "ext4"], &["-o", "journal_data"]),
        (&["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"], &["-o", "journal_data"]),
    ] {
        let dir = tempfile::tempdir()?;
        for image in copied_while_mounted(dir.path(), kind, tune)? {
            let context = || format!("mke2fs {} {tune:?}, {}", kind.join(" "), image.display());
            let refused = read(&image, Unfinished::Refuse, &[]).expect_err("it was mounted");
            ensure!(refused.to_string().contains("--repair"), "{refused}");
            let before = Run::new("sha256sum").arg(&image).text()?;
            let ours = read(&image, Unfinished::Replay, &[]).with_context(context)?;
            ensure!(ours.identities[0].replayed);
            ensure!(Run::new("sha256sum").arg(&image).text()? == before, "the image was written");
            // Mounting recovers.
            drop(Ext4::open(&image)?);
            let kernel = seen_by_the_kernel(&image)?;
            same_tree(&kernel.tree, &ours.tree).with_context(context)?;
        }
    }
    Ok(())
}

/// A random tree, read, changed in a copy and compared by metadata.
fn random_case(seed: u64) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (base, target) = (dir.path().join("base.img"), dir.path().join("target.img"));
    let kind = KINDS[usize::try_from(seed)? * 5 % KINDS.len()];
    let mut random = Random::new(seed);
    make(&base, kind)?;
    let disk = Ext4::open(&base)?;
    write_tree(&disk.path(), &mut random)?;
    many_names(&disk.path().join("many"), 300)?;
    drop(disk);
    // What was changed in the last seconds before the end is not trusted; grow older than that.
    std::thread::sleep(std::time::Duration::from_secs(vireo_ext4::RACY_SECS.unsigned_abs() + 2));
    drop(Ext4::open(&base)?);
    clone_image(&base, &target)?;
    let disk = Ext4::open(&target)?;
    mutate_tree(&disk.path(), &mut random)?;
    drop(disk);

    let before = same_view(&base)?;
    let after = same_view(&target)?;
    let known = before.known();
    let quick = read(&target, Unfinished::Refuse, &known)?;
    ensure!(quick.tree.digest() == after.tree.digest(), "a changed file was not read");
    ensure!(quick.hashed < after.hashed, "all {} files were read", after.hashed);

    let read = |image: &Path| -> anyhow::Result<Reader> {
        Ok(Reader::open(File::open(image)?, Unfinished::Refuse)?)
    };
    let (base_reader, target_reader) = (read(&base)?, read(&target)?);
    let ignore = Ignore::nothing();
    let like = vireo_ext4::tree_like(&target_reader, &base_reader, &before.tree, &ignore)?;
    ensure!(like.tree.digest() == after.tree.digest() && like.hashed == quick.hashed);
    let candidates = vireo_ext4::compare(&base_reader, &target_reader, &ignore)?;
    ensure!(candidates.distrust.is_none() && candidates.doubtful.len() == quick.hashed);
    let open = |image: &Path| unmounted::open(image, RootPartition::Find, Unfinished::Refuse);
    let compared = unmounted::compare(&open(&base)?, &open(&target)?, &ignore, false)?;
    ensure!(compared.changes == vireo_model::ChangeSet::between(&before.tree, &after.tree));
    Ok(())
}

#[test]
fn root_what_looks_unchanged_is_unchanged_in_random_trees() -> anyhow::Result<()> {
    require_host()?;
    for seed in 0..RANDOM_CASES {
        random_case(seed).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

#[test]
fn root_writes_that_hide_behind_an_earlier_time_are_found() -> anyhow::Result<()> {
    require_host()?;
    let dir = tempfile::tempdir()?;
    let (base, target) = (dir.path().join("base.img"), dir.path().join("target.img"));
    make(&base, &["-t", "ext4"])?;
    let disk = Ext4::open(&base)?;
    for name in ["edited", "kept", "touched", "same"] {
        fs::write(disk.path().join(name), name.repeat(1000))?;
    }
    drop(disk);
    std::thread::sleep(std::time::Duration::from_secs(vireo_ext4::RACY_SECS.unsigned_abs() + 2));
    drop(Ext4::open(&base)?);
    clone_image(&base, &target)?;
    let disk = Ext4::open(&target)?;
    for name in ["edited", "touched"] {
        let path = disk.path().join(name);
        let modified = path.metadata()?.modified()?;
        let file = File::options().write(true).open(&path)?;
        if name == "edited" {
            // As long as before, in place, with the time set back: only the change time tells.
            file.write_all_at(b"EDITED", 0)?;
        }
        file.set_modified(modified)?;
    }
    drop(disk);
    let known = read(&base, Unfinished::Refuse, &[])?.known();
    let quick = read(&target, Unfinished::Refuse, &known)?;
    ensure!(quick.hashed == 2, "{} files were read", quick.hashed);
    same_tree(&seen_by_the_kernel(&target)?.tree, &quick.tree)
}
