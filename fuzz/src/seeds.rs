//! The first inputs of every target, made by the crates themselves, so that they follow the formats.

use std::ffi::OsString;
use std::fs;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, setxattr};
use vireo_delta::{Bundle, BundleWriter, Permits, SecretKey, Statement};
use vireo_model::{ChangeSet, Ignore, Node, Tree};
use vireo_tree::apply::{ApplyOptions, stage};
use vireo_tree::{Root, ScanOptions, scan};

use crate::{bundle, delta, esp, journal, sandbox, text};

/// Why there are none.
pub type Failure = Box<dyn std::error::Error>;

/// Fills `DIR/<target>/` for all targets.
///
/// # Errors
///
/// No directory was given, it cannot be written, or a target no longer follows a format.
pub fn write(dir: Option<OsString>) -> Result<(), Failure> {
    let seeds = Seeds { dir: dir.ok_or("usage: seeds DIR")?.into() };
    let work = tempfile::tempdir()?;
    let (base, target) = (work.path().join("base"), work.path().join("target"));
    sandbox::populate(&base);
    sandbox::populate(&target);
    update(&target)?;
    let file = make_bundle(&base, &target)?;
    seeds.bundles(&file)?;
    seeds.plans(&file, &base)?;
    seeds.write("delta", "edit", &[&delta::seed()?])?;
    seeds.paths()?;
    seeds.facts()?;
    seeds.texts(&read(&base)?)?;
    seeds.images()
}

/// Every kind of change.
fn update(target: &Path) -> Result<(), Failure> {
    let at = |name: &str| target.join(name);
    fs::write(at("etc/app.conf"), "workers 2\nlisten 80\nlog on\n")?;
    let library = fs::read_to_string(at("usr/lib/libx.so.1"))?;
    fs::write(at("usr/lib/libx.so.1"), library.replace("4e1", "another number"))?;
    fs::remove_file(at("srv/gone"))?;
    fs::remove_file(at("srv/page.html"))?;
    fs::create_dir(at("srv/page.html"))?;
    fs::write(at("srv/page.html/index"), "<p>moved</p>\n".repeat(50))?;
    fs::hard_link(at("usr/bin/tool"), at("usr/bin/alias"))?;
    std::os::unix::fs::symlink("libx.so.1", at("usr/lib/libx.so"))?;
    let sparse = fs::File::create(at("srv/sparse"))?;
    sparse.set_len(100_000)?;
    // Where the file system has no attributes a seed has none.
    let _ = setxattr(at("srv/sparse"), "user.note", b"n", XattrFlags::empty());
    Ok(())
}

fn read(dir: &Path) -> Result<Tree, Failure> {
    Ok(scan(&Root::open(dir)?, &Ignore::default(), &ScanOptions::default())?.tree)
}

fn make_bundle(base: &Path, target: &Path) -> Result<Vec<u8>, Failure> {
    let changes = ChangeSet::between(&read(base)?, &read(target)?);
    let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
    for change in &changes.changes {
        let below = std::str::from_utf8(change.path.relative())?;
        if change.before.as_ref().is_some_and(|node| node.content().is_some()) {
            writer.index_base(&change.path, &fs::read(base.join(below))?[..])?;
        }
        if let Some((len, digest)) = change.after.as_ref().and_then(Node::content) {
            let sparse = below.ends_with("sparse");
            writer.encode(digest, len, sparse, &fs::read(target.join(below))?[..])?;
        }
    }
    let ignore = Ignore::with_site(&["/srv/local/**"])?;
    let statement =
        Statement { changes: &changes, ignore: &ignore, permits: Permits::NONE, base_paths: 20 };
    let key: SecretKey = bundle::secret_text().parse()?;
    let mut file = Vec::new();
    writer.finish(&statement, &key, &mut file)?;
    Ok(file)
}

struct Seeds {
    dir: PathBuf,
}

impl Seeds {
    fn write(&self, target: &str, name: &str, parts: &[&[u8]]) -> Result<(), Failure> {
        let dir = self.dir.join(target);
        fs::create_dir_all(&dir)?;
        fs::File::create(dir.join(name))?.write_all(&parts.concat())?;
        Ok(())
    }

    fn bundles(&self, file: &[u8]) -> Result<(), Failure> {
        self.write("bundle", "update", &[file])?;
        self.write("bundle", "head", &[&file[..256]])?;
        let open = bundle::unseal(file).ok_or("no bundle")?;
        self.write("bundle_signed", "update", &[&open])?;
        let sealed = bundle::sign(&open).ok_or("cannot be signed")?;
        Bundle::open(&sealed)?.verify(&bundle::trusted())?.check()?;
        for choice in [0, 2, 4, 12, 13, 14] {
            self.write("apply", &format!("choice-{choice}"), &[&[choice], &open])?;
        }
        Ok(())
    }

    fn plans(&self, file: &[u8], base: &Path) -> Result<(), Failure> {
        let root = Root::open(base)?;
        let bundle = Bundle::open(file)?.verify(&bundle::trusted())?;
        let staged = stage(&root, &bundle, &ApplyOptions::default())?;
        let plan = fs::read(base.join(".vireo/1-staged/plan"))?;
        staged.discard()?;
        let record = journal::record_of(&plan);
        for choice in [0, 1, 2, 3, 4, 10] {
            self.write("journal", &format!("choice-{choice}"), &[&[choice], &record])?;
        }
        Ok(())
    }

    fn paths(&self) -> Result<(), Failure> {
        let paths = [
            "/",
            "/etc/app.conf",
            "/etc/canary",
            "/out/canary",
            "/srv/root/etc/passwd",
            "/loop",
            "/usr/lib/../../outside",
            "/a//b",
            "/odd\u{fc}",
            "/usr/bin/tool/x",
        ];
        for (number, path) in paths.iter().enumerate() {
            let parts: [&[u8]; 3] = [
                &[u8::try_from(path.len())?],
                path.as_bytes(),
                b"/etc/*\n/usr/**/t{oo,x}l\n/[a-z]?",
            ];
            self.write("path", &number.to_string(), &parts)?;
        }
        Ok(())
    }

    fn facts(&self) -> Result<(), Failure> {
        let head = |path: &str| -> Result<Vec<u8>, Failure> {
            let mut bytes = fs::read(path)?;
            bytes.truncate(4096);
            Ok(bytes)
        };
        self.write("classify", "maps", &[b"\0", &head("/proc/self/maps")?])?;
        self.write("classify", "maps-deleted", &[b"\0", MAPS])?;
        self.write("classify", "cgroup", &[b"\x01", b"0::/system.slice/ssh.service\n"])?;
        self.write(
            "classify",
            "cgroup-user",
            &[b"\x01", b"0::/user.slice/user-0.slice/session-3.scope\n"],
        )?;
        self.write("classify", "show", &[b"\x02", SHOW])?;
        self.write("classify", "unit", &[b"\x03", UNIT])?;
        self.write("classify", "policy", &[b"\x04", POLICY])?;
        self.write("classify", "program", &[b"\x05/usr/bin/x\0", &head("/proc/self/exe")?])?;
        self.write("classify", "script", &[b"\x05/usr/bin/x\0#!/usr/bin/env perl -w\n"])?;
        self.write("classify", "read-map", &[b"\x06", READ_MAP])
    }

    fn texts(&self, tree: &Tree) -> Result<(), Failure> {
        let key: SecretKey = bundle::secret_text().parse()?;
        self.write("text", "listing", &[b"\0", text::listing_of(tree).as_bytes()])?;
        self.write("text", "public", &[b"\x01", key.public().to_string().as_bytes()])?;
        self.write("text", "secret", &[b"\x02", bundle::secret_text().as_bytes()])?;
        self.write("text", "token", &[b"\x03", text::token().as_bytes()])?;
        self.write("text", "token-secret", &[b"\x04", "07".repeat(32).as_bytes()])?;
        self.write("text", "version", &[b"\x05", b"web@7"])?;
        self.write("text", "name", &[b"\x06", b"web-1.front"])?;
        self.write("text", "digest", &[b"\x07", tree.digest().to_string().as_bytes()])?;
        self.write("text", "permits", &[b"\x07", b"setuid"])
    }

    fn images(&self) -> Result<(), Failure> {
        self.write("esp", "files", &[&esp::seed()])?;
        let mut plain = vec![0; 4096];
        superblock(&mut plain, 0);
        self.write("image", "plain", &[b"\0", &plain])?;
        let mut mbr = vec![0; 32 << 10];
        for (number, (kind, first, count)) in [(0x83, 8, 16), (5, 24, 40)].iter().enumerate() {
            entry(&mut mbr, 0, number, *kind, *first, *count);
        }
        superblock(&mut mbr, 8 * 512);
        entry(&mut mbr, 24, 0, 0x83, 4, 16);
        superblock(&mut mbr, 28 * 512);
        self.write("image", "mbr", &[b"\0", &mbr])?;
        self.write("image", "mbr-logical", &[b"\x50", &mbr])?;
        self.write("image", "gpt", &[b"\x01", &gpt()?])
    }
}

/// An entry of the partition table in sector `sector`.
fn entry(image: &mut [u8], sector: usize, number: usize, kind: u8, first: u32, count: u32) {
    let at = sector * 512 + 446 + number * 16;
    image[at + 4] = kind;
    image[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
    image[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    image[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xAA]);
}

/// A clean file system of 10 blocks at `offset`.
fn superblock(image: &mut [u8], offset: usize) {
    let block = &mut image[offset + 1024..];
    block[0x38..0x3A].copy_from_slice(&0xEF53_u16.to_le_bytes());
    block[0x4] = 10;
    block[0x3A] = 1;
}

/// An image with a GUID partition table.
fn gpt() -> Result<Vec<u8>, Failure> {
    let mut image = Cursor::new(vec![0_u8; 256 << 10]);
    gpt::mbr::ProtectiveMBR::with_lb_size(511).overwrite_lba0(&mut image)?;
    let config =
        gpt::GptConfig::new().writable(true).logical_block_size(gpt::disk::LogicalBlockSize::Lb512);
    let mut disk = config.create_from_device(image, None)?;
    disk.add_partition("root", 16 << 10, gpt::partition_types::LINUX_ROOT_X64, 0, None)?;
    let start = disk.partitions().values().find(|p| p.is_used()).map(|p| p.first_lba);
    let mut image = disk.write()?.into_inner();
    superblock(&mut image, usize::try_from(start.ok_or("no partition")?)? * 512);
    image.truncate(128 << 10);
    Ok(image)
}

/// A read map with a path of each kind.
const READ_MAP: &[u8] = br#"{"schema":"vireo.reads/1","watched":{"a@1.service":["start","reload"]},
"files":[{"path":"/opt/__pycache__/x.cpython-311.pyc","by":{"a@1.service":["start","run"]}},
{"path":"/srv/caf\\xe9","by":{"b.service":["reload"]}}],
"directories":[{"path":"/lib/x.d","by":{"a@1.service":["start"]}}]}"#;

const MAPS: &[u8] = b"\
7f0000000000-7f0000001000 r-xp 00000000 08:01 77 /usr/lib/libx.so.1 (deleted)\n\
7f0000002000-7f0000003000 rw-s 00000000 00:01 9 /memfd:x (deleted)\n\
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\n";

const SHOW: &[u8] = b"\
Id=nginx.service\nNames=nginx.service web.service\nActiveState=active\nSubState=running\n\
CanReload=yes\nType=forking\nMainPID=12\nControlGroup=/system.slice/nginx.service\n\
FragmentPath=/usr/lib/systemd/system/nginx.service\nNeedDaemonReload=no\n\
\n\
Id=cron.service\nActiveState=inactive\nSubState=dead\nCanReload=no\n";

const UNIT: &[u8] = b"\
[Unit]\nDescription=App %i \\\n  more\nConditionPathExists=/etc/app.conf\n\
[Service]\nExecStart=-@/usr/bin/app app \"-c\" '/etc/app \\x41.conf' $OPTIONS ; /usr/bin/b\n\
EnvironmentFile=-/etc/default/app-%I\nExecStart=\nReloadPropagatedFrom=x\n\
\x0c[Service]\nExecStart=/usr/bin/other --conf=/etc/other.conf\nLoadCredential=k:/etc/key\n";

const POLICY: &[u8] = b"\
version = 1\n\n\
[[drift]]\npath = [\"/etc/**\", \"/srv/*.{html,css}\"]\nclass = [\"config\"]\non = \"merge\"\n\
conflict = \"take\"\n\n\
[[drift]]\npath = \"/usr/lib/x\"\non = \"refuse\"\n";
