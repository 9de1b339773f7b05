//! Bundles by a trusted signer that mean harm, and trees that cannot take an update: refused, with
//! nothing changed.

use std::fs::{self, File};
use std::io::Cursor;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use ed25519_dalek::{Signer as _, SigningKey};
use tempfile::TempDir;
use vireo_delta::{
    Bundle, BundleWriter, HEADER_LEN, Header, Permits, SecretKey, Statement, TrustedKeys,
};
use vireo_model::{ChangeSet, Digest, Ignore, ImagePath, Node, NodeKind, Tree};
use vireo_testkit::Run;
use vireo_tests::{Ext4, Snapshot, measured, require_host};
use vireo_tree::{Root, ScanOptions, scan};

/// The signer's seed.
const SEED: [u8; 32] = [0x42; 32];

/// Most memory for refusing any bundle, in KiB; decoding holds a few frames of 4 MiB for each thread.
const MEMORY_MAX: u64 = 256 << 10;

/// What refusing costs at most per entry of a bundle with very many, in bytes.
const ENTRY_MEMORY_MAX: u64 = 4 << 10;

pub(crate) fn key() -> anyhow::Result<SecretKey> {
    let digits: String = SEED.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("vireo-secret-key-v1:{digits}").parse()?)
}

fn path(text: &str) -> anyhow::Result<ImagePath> {
    Ok(ImagePath::parse(text.as_bytes())?)
}

fn read(dir: &Path) -> anyhow::Result<Tree> {
    Ok(scan(&Root::open(dir)?, &Ignore::default(), &ScanOptions::default())?.tree)
}

/// A signed bundle from `base` to `target`, whose contents are in the directory `contents`; the
/// signer permits what `permits` say, whatever is needed.
fn forge(base: &Tree, target: &Tree, contents: &Path, permits: Permits) -> anyhow::Result<Vec<u8>> {
    let changes = ChangeSet::between(base, target);
    let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
    for change in &changes.changes {
        if let Some((len, digest)) = change.after.as_ref().and_then(Node::content) {
            let name = std::str::from_utf8(change.path.relative())?;
            writer.encode(digest, len, false, File::open(contents.join(name))?)?;
        }
    }
    sign(writer, &changes, permits, base.len() as u64)
}

fn sign(
    writer: BundleWriter<Cursor<Vec<u8>>>,
    changes: &ChangeSet,
    permits: Permits,
    base_paths: u64,
) -> anyhow::Result<Vec<u8>> {
    let mut file = Vec::new();
    let statement = Statement { changes, ignore: &Ignore::default(), permits, base_paths };
    writer.finish(&statement, &key()?, &mut file)?;
    Ok(file)
}

/// A bundle whose manifest was changed after it was written, signed anew as `docs/format/bundle.md`
/// has it: what no writer of ours would write.
fn sign_again(mut file: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    const MANIFEST_DIGEST: usize = 96;
    const CHECK: usize = 184;
    const SIGNATURE: usize = HEADER_LEN - 64;
    let head_len = Header::decode(&file)?.head_len() as usize;
    let digest = Digest::of(&file[HEADER_LEN..head_len]);
    file[MANIFEST_DIGEST..MANIFEST_DIGEST + Digest::LEN].copy_from_slice(digest.as_bytes());
    let check = Digest::of(&file[..CHECK]);
    file[CHECK..CHECK + 8].copy_from_slice(&check.as_bytes()[..8]);
    let message = [b"vireo bundle header v1\0", &file[..SIGNATURE]].concat();
    let signature = SigningKey::from_bytes(&SEED).sign(&message).to_bytes();
    file[SIGNATURE..HEADER_LEN].copy_from_slice(&signature);
    Ok(file)
}

/// What manifests are compressed with.
const DICTIONARY: &[u8] = include_bytes!("../../../crates/delta/dictionary/manifest.bin");

/// The bundle with its manifest, which travels compressed, changed by `edit`.
fn with_manifest(
    file: &[u8],
    edit: impl FnOnce(&mut [u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<u8>> {
    const MANIFEST_LEN: usize = 16;
    let header = Header::decode(file)?;
    let (head_len, plain_len) = (header.head_len() as usize, header.manifest_plain_len as usize);
    let mut decompressor = zstd::bulk::Decompressor::with_dictionary(DICTIONARY)?;
    let mut plain = decompressor.decompress(&file[HEADER_LEN..head_len], plain_len)?;
    edit(&mut plain)?;
    let packed = zstd::bulk::compress(&plain, 1)?;
    let mut changed = file[..HEADER_LEN].to_vec();
    changed[MANIFEST_LEN..MANIFEST_LEN + 8].copy_from_slice(&(packed.len() as u64).to_le_bytes());
    changed.extend_from_slice(&packed);
    changed.extend_from_slice(&file[head_len..]);
    // The header's own checksum comes right when it is signed; reading it needs it before.
    let check = Digest::of(&changed[..184]);
    changed[184..192].copy_from_slice(&check.as_bytes()[..8]);
    Ok(changed)
}

/// Directories `base`, `target` and `work`, the last a copy of the first, and what is outside.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    /// `base` is filled by `fill`, `target` is a copy changed by `change` (both bash).
    pub(crate) fn new(at: &Path, fill: &str, change: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(at).context("cannot make a temporary directory")?;
        let script = format!(
            "cd \"$1\"; mkdir base outside state; cd base; {fill}; cd ..; cp -a base target; \
             cp -a base work; mkdir -m 700 work/.vireo; echo whole > outside/file; cd target; {change}"
        );
        Run::new("bash")
            .args(["-euo", "pipefail", "-c", &script, "make"])
            .arg(dir.path())
            .text()?;
        Ok(Self { dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn arg(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    pub(crate) fn forge(&self, permits: Permits) -> anyhow::Result<Vec<u8>> {
        forge(&read(&self.at("base"))?, &read(&self.at("target"))?, &self.at("target"), permits)
    }

    /// Both programs that apply, on the bundle `bad.vireo` and the directory `work`.
    fn programs(&self) -> anyhow::Result<[(&'static str, Vec<String>); 2]> {
        let (bundle, work, trust) =
            (self.arg("bad.vireo"), self.arg("work"), key()?.public().to_string());
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let state = self.arg("state");
        Ok([
            ("vireo", words(&["apply", &bundle, "--to", &work, "--trust", &trust])),
            (
                "vireo-agent",
                words(&["--root", &work, "--state", &state, "apply", &bundle, "--trust", &trust]),
            ),
        ])
    }

    /// Expects that both programs refuse `bundle` with one of the `codes`, saying all of `says`, and
    /// change nothing inside or outside. Gives the most memory that one took, in KiB.
    fn refused(&self, bundle: &[u8], codes: &[i32], says: &[&str]) -> anyhow::Result<u64> {
        fs::write(self.at("bad.vireo"), bundle)?;
        let (work, outside) = (Snapshot::of(&self.at("work"))?, Snapshot::of(&self.at("outside"))?);
        let mut most = 0;
        for (name, args) in self.programs()? {
            let (ran, memory) = measured(name, &args)?;
            let code = ran.output().code;
            ensure!(codes.contains(&code), "{name}: exit code {code}: {}", ran.output().tail());
            ran.says(says)?;
            work.unchanged().with_context(|| name.to_owned())?;
            outside.unchanged().with_context(|| name.to_owned())?;
            most = most.max(memory);
        }
        Ok(most)
    }
}

#[test]
fn root_rights_and_devices_without_permit_are_refused() -> anyhow::Result<()> {
    require_host()?;
    let disk = Ext4::new(64 << 20)?;
    let fill = "mkdir bin; echo tool > bin/tool; echo net > bin/net; echo page > page";
    for (change, says) in [
        ("chmod 4755 bin/tool", ["/bin/tool", "setuid"]),
        ("cp bin/tool bin/new; chmod 2755 bin/new", ["/bin/new", "setuid"]),
        ("chmod 755 bin/net; setcap cap_sys_admin+ep bin/net", ["/bin/net", "setuid"]),
        ("mknod disk b 7 0", ["/disk", "devices"]),
        ("rm page; mknod page c 1 1", ["/page", "devices"]),
    ] {
        let check = || -> anyhow::Result<()> {
            let place = Place::new(&disk.path(), fill, &format!("{change}; echo next > bin/x"))?;
            let says = [&says[..], &["--permit", "nothing was changed"]].concat();
            place.refused(&place.forge(Permits::NONE)?, &[5], &says)?;
            place.refused(&place.forge(Permits::MASS)?, &[5], &says)?;
            // With the permit it is an update like any other.
            let permits = Permits::SETUID | Permits::DEVICES;
            fs::write(place.at("bad.vireo"), place.forge(permits)?)?;
            let [(name, args), _] = place.programs()?;
            measured(name, &args)?.0.ok()?;
            ensure!(read(&place.at("work"))? == read(&place.at("target"))?);
            Ok(())
        };
        check().with_context(|| change.to_owned())?;
    }
    Ok(())
}

#[test]
fn root_a_bundle_that_removes_most_of_the_tree_is_refused() -> anyhow::Result<()> {
    require_host()?;
    let fill = "for n in $(seq 1000); do echo $n > f$n; done";
    let place = Place::new(&std::env::temp_dir(), fill, "rm f[1-7]*")?;
    let says = ["mass", "--permit", "nothing was changed"];
    place.refused(&place.forge(Permits::SETUID | Permits::DEVICES)?, &[5], &says)?;
    fs::write(place.at("bad.vireo"), place.forge(Permits::MASS)?)?;
    let [_, (name, args)] = place.programs()?;
    measured(name, &args)?.0.ok()?;
    ensure!(read(&place.at("work"))? == read(&place.at("target"))?);
    Ok(())
}

#[test]
fn root_a_bundle_about_the_state_of_updates_is_refused() -> anyhow::Result<()> {
    require_host()?;
    let place =
        Place::new(&std::env::temp_dir(), "echo a > a", "mkdir xvireo; echo 1 > xvireo/plan")?;
    let whole = place.forge(Permits::NONE)?;
    // The control: signed anew without a change it is as good as before.
    let again = sign_again(whole.clone())?;
    Bundle::open(&again)?.verify(&TrustedKeys::from_iter([key()?.public()]))?.check()?;
    let changed = with_manifest(&whole, |manifest| {
        let found = manifest.windows(6).position(|name| name == b"xvireo");
        let at = found.context("the names are not in the manifest")?;
        manifest[at] = b'.';
        Ok(())
    })?;
    place.refused(&sign_again(changed)?, &[5], &["/.vireo", "bad.vireo"])?;
    Ok(())
}

#[test]
fn root_a_bundle_that_unpacks_to_more_than_there_is_room_is_refused() -> anyhow::Result<()> {
    require_host()?;
    let disk = Ext4::new(64 << 20)?;
    let place = Place::new(&disk.path(), "echo a > a", "true")?;
    // One repeated byte and zeros: a gigabyte of either travels as some kilobytes.
    for (byte, len) in [(1_u8, 1_u64 << 30), (0, 1 << 30)] {
        let content = || std::io::Read::take(std::io::repeat(byte), len);
        let mut hasher = vireo_model::Hasher::new();
        std::io::copy(&mut content(), &mut hasher)?;
        let digest = hasher.finish();
        let node = Node::new(NodeKind::File { len, content: digest }, 0o644);
        let changes = added(&read(&place.at("base"))?, vec![(path("/bomb")?, node)]);
        let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
        writer.encode(digest, len, false, content())?;
        let bundle = sign(writer, &changes, Permits::NONE, 2)?;
        ensure!(bundle.len() < 1 << 20, "a bomb of {} bytes", bundle.len());
        let says = ["bytes", "nothing was changed"];
        let memory = place.refused(&bundle, &[1], &says)?;
        println!("{len} bytes of {byte} in {} bytes: refused with {memory} KiB", bundle.len());
        ensure!(memory < MEMORY_MAX, "{memory} KiB");
    }
    Ok(())
}

#[test]
fn root_a_bundle_with_very_many_entries_is_refused_within_bounds() -> anyhow::Result<()> {
    require_host()?;
    let disk = Ext4::new(64 << 20)?;
    let place = Place::new(&disk.path(), "echo a > a", "true")?;
    let base = read(&place.at("base"))?;
    let bundle_of = |count: usize| -> anyhow::Result<Vec<u8>> {
        // Names that no compressor makes much of: what becomes too much of little is refused before.
        let entry = |n: usize| {
            let name = Digest::of(&n.to_le_bytes()).to_string();
            Ok((path(&format!("/n{name:.12}"))?, Node::new(NodeKind::Dir, 0o755)))
        };
        let entries = (0..count).map(entry).collect::<anyhow::Result<Vec<_>>>()?;
        let writer = BundleWriter::new(Cursor::new(Vec::new()));
        sign(writer, &added(&base, entries), Permits::NONE, 2)
    };
    // A million does not fit a manifest; as many as do are more than the file system has room for.
    let too_many = bundle_of(1_000_000);
    println!("a million entries: {:?}", too_many.as_ref().map(Vec::len));
    let count: usize = if too_many.is_ok() { 1_000_000 } else { 250_000 };
    let bundle = too_many.or_else(|_| bundle_of(count))?;
    let memory = place.refused(&bundle, &[1], &["inodes", "nothing was changed"])?;
    println!("{count} entries in {} bytes: refused with {memory} KiB", bundle.len());
    ensure!(memory << 10 < count as u64 * ENTRY_MEMORY_MAX, "{memory} KiB");
    Ok(())
}

/// What adds `entries` to `base`.
fn added(base: &Tree, entries: Vec<(ImagePath, Node)>) -> ChangeSet {
    let target: Tree =
        base.iter().map(|(path, node)| (path.clone(), node.clone())).chain(entries).collect();
    ChangeSet::between(base, &target)
}

/// A file of the tree may have a further name elsewhere: whoever can write into the tree can make one.
#[test]
fn root_a_name_outside_of_the_tree_keeps_its_rights() -> anyhow::Result<()> {
    require_host()?;
    let disk = Ext4::new(64 << 20)?;
    let fill = "echo m > m; ln m twice; truncate -s 3M holes; echo end >> holes; ln -s m link; \
        echo 'a = 1' > c";
    let change = "chmod 600 m; chmod 640 holes; chown -h 7 link; setfattr -n user.a -v b c";
    for which in [0, 1] {
        let place = Place::new(&disk.path(), fill, change)?;
        let script = "cd $1; for name in m holes link c; do \
            rm -f work/$name; cp -a base/$name outside/; ln -P outside/$name work/$name; done; \
            ln -f work/m work/twice";
        Run::new("bash")
            .args(["-euo", "pipefail", "-c", script, "link"])
            .arg(place.dir())
            .text()?;
        fs::write(place.at("bad.vireo"), place.forge(Permits::NONE)?)?;
        let outside = Snapshot::of(&place.at("outside"))?;
        let (name, args) = &place.programs()?[which];
        measured(name, args)?.0.ok()?;
        outside.unchanged().with_context(|| (*name).to_owned())?;
        ensure!(read(&place.at("work"))? == read(&place.at("target"))?, "{name}: not the target");
        let blocks = fs::metadata(place.at("work/holes"))?.blocks();
        ensure!(blocks < 64, "{name}: the copy has no holes, {blocks} blocks");
    }
    Ok(())
}

#[test]
fn root_what_is_immutable_or_append_only_refuses_the_update() -> anyhow::Result<()> {
    require_host()?;
    let disk = Ext4::new(64 << 20)?;
    let fill = "mkdir d empty e; echo a > d/a; echo b > b; echo m > m; echo e > e/e; mkdir turns";
    let change = "echo next > d/a; echo next > b; chmod 600 m; rmdir empty; echo new > e/new; \
        rmdir turns; echo file > turns; echo z > z";
    for (attribute, at) in [
        ("+i", "d/a"),
        ("+i", "d"),
        ("+a", "d"),
        ("+a", "b"),
        ("+i", "m"),
        ("+i", "empty"),
        ("+a", "e"),
        ("+i", "turns"),
    ] {
        let check = || -> anyhow::Result<()> {
            let place = Place::new(&disk.path(), fill, change)?;
            let file = place.arg(&format!("work/{at}"));
            Run::new("chattr").args([attribute, &file]).text()?;
            let refused = place.refused(&place.forge(Permits::NONE)?, &[1], &[&format!("/{at}")]);
            Run::new("chattr").args(["-ia", &file]).text()?;
            refused?;
            let [(name, args), _] = place.programs()?;
            measured(name, &args)?.0.ok()?;
            ensure!(read(&place.at("work"))? == read(&place.at("target"))?);
            Ok(())
        };
        check().with_context(|| format!("{attribute} {at}"))?;
    }
    Ok(())
}

#[test]
fn root_what_became_immutable_since_refuses_the_undo() -> anyhow::Result<()> {
    require_host()?;
    let disk = Ext4::new(64 << 20)?;
    let change = "mkdir made; echo next > d/a; rm d/b";
    let place = Place::new(&disk.path(), "mkdir d; echo a > d/a; echo b > d/b", change)?;
    fs::write(place.at("bad.vireo"), place.forge(Permits::NONE)?)?;
    let [_, (name, args)] = place.programs()?;
    measured(name, &args)?.0.ok()?;
    let undo = [&args[..4], &["undo".to_owned()]].concat();
    for (attribute, at) in [("+i", "made"), ("+i", "d/a"), ("+a", "d")] {
        let check = || -> anyhow::Result<()> {
            let before = Snapshot::of(&place.at("work"))?;
            let file = place.arg(&format!("work/{at}"));
            Run::new("chattr").args([attribute, &file]).text()?;
            let refused = measured(name, &undo)?.0;
            Run::new("chattr").args(["-ia", &file]).text()?;
            refused.exits(1)?.says(&[&format!("/{at}"), "nothing was changed"])?;
            before.unchanged()
        };
        check().with_context(|| format!("{attribute} {at}"))?;
    }
    measured(name, &undo)?.0.ok()?;
    ensure!(read(&place.at("work"))? == read(&place.at("base"))?);
    Ok(())
}
