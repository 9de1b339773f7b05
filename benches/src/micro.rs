//! Single mechanisms, each beside the least that could do.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use vireo_cloud::blocks;
use vireo_delta::{
    BaseRead, Bundle, Chunker, Piece, PublicKey, TrustedKeys, Verified, chunk_slices,
};
use vireo_image::{Access, DiskImage, RootPartition};
use vireo_model::{Digest, Ignore, ImagePath};
use vireo_testkit::image::clone_image;
use vireo_tree::{Root, ScanOptions, scan};

use crate::bench::Bench;
use crate::capture::Maker;
use crate::contest::{Contestant, Sample, hold};
use crate::measured::argv;
use crate::report::{Section, bytes};

/// Bytes that are cut and hashed.
const CHUNKED_LEN: usize = 256 << 20;

/// Bytes that are decoded in one run: a bundle of less is decoded several times.
const DECODED_LEN: usize = 256 << 20;

/// Inodes of the tree that is read: files and their directories.
pub(crate) const INODES: usize = 100_000;
/// The same, in a quick run.
pub(crate) const QUICK_INODES: usize = 10_000;
/// Files of one directory.
const DIRECTORY_FILES: usize = 99;
/// Sizes of the images whose blocks are compared, in GiB.
const SMALL_GIB: u64 = 4;
const LARGE_GIB: u64 = 100;
/// Bytes of one file.
const FILE_LEN: usize = 1024;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Section>> {
    Maker::Vireo.ensure(bench)?;
    let decoding = decoding(bench, "Decoding a bundle", Maker::Vireo.file())?;
    Ok(vec![chunking(bench)?, decoding, scanning(bench)?, changed_blocks(bench)?])
}

/// The blocks that a cloud has to be sent, as the image grows around the same data.
fn changed_blocks(bench: &Bench) -> anyhow::Result<Section> {
    let grow = |name: &str, copy: &str| {
        let path = bench.path(copy);
        clone_image(&bench.path(name), &path)?;
        let file = File::options().read(true).write(true).open(&path);
        file.with_context(|| format!("cannot open {}", path.display()))
    };
    let base = grow("base.img", "blocks-base.img")?;
    let target = grow("target.img", "blocks-target.img")?;
    let compare = |gib: u64| {
        for file in [&base, &target] {
            let len = file.metadata().context("cannot ask for a length")?.len();
            ensure!(len <= SMALL_GIB << 30 || len == LARGE_GIB << 30, "the images are larger");
            file.set_len(gib << 30).context("cannot grow an image")?;
        }
        let mut sent = 0;
        let sample = Sample::time(|| {
            let found = blocks::changed(&base, &target)?;
            sent = found.indices.len() as u64 * blocks::BLOCK_LEN;
            Ok(())
        })?;
        Ok(Sample { counts: [("wire_bytes", sent)].into(), ..sample })
    };
    let contestants = [SMALL_GIB, LARGE_GIB]
        .map(|gib| Contestant::ours(format!("image of {gib} GiB"), move |_| compare(gib)));
    let (rows, left_out) = hold(bench, contestants.into())?;
    let about = "The two images, made larger by a hole at their end; one thread, files in memory. What is sent \
                 is whole blocks of 512 KiB."
        .to_owned();
    for copy in ["blocks-base.img", "blocks-target.img"] {
        bench.remove(copy)?;
    }
    Ok(Section { name: "Blocks that changed", about, rows, left_out })
}

fn chunking(bench: &Bench) -> anyhow::Result<Section> {
    let data = image_bytes(&bench.path("target.img"))?;
    let mut copy = data.clone();
    let amount = data.len() as f64;
    let contestants = vec![
        Contestant::ours("vireo: cut into chunks, hash each", |_| {
            Sample::time(|| {
                for chunk in chunk_slices(&data, Chunker::DEFAULT) {
                    black_box(Digest::of(chunk));
                }
                Ok(())
            })
        }),
        Contestant::other("BLAKE3 of the whole", |_| {
            Sample::time(|| {
                black_box(blake3::hash(&data));
                Ok(())
            })
        }),
        Contestant::other("copy in memory", |_| {
            Sample::time(|| {
                copy.copy_from_slice(&data);
                black_box(&copy);
                Ok(())
            })
        }),
    ];
    let contestants =
        contestants.into_iter().map(|contestant| contestant.amount(amount, "B")).collect();
    let (rows, left_out) = hold(bench, contestants)?;
    let about =
        format!("{} of the target image's data, in memory; one thread.", bytes(data.len() as u64));
    Ok(Section { name: "Chunking and hashing", about, rows, left_out })
}

/// The first of the image's bytes that are not zeros.
fn image_bytes(image: &Path) -> anyhow::Result<Vec<u8>> {
    let mut file = File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let mut data = Vec::with_capacity(CHUNKED_LEN);
    let mut block = vec![0; 64 << 10];
    while data.len() < CHUNKED_LEN {
        let read =
            file.read(&mut block).with_context(|| format!("cannot read {}", image.display()))?;
        if read == 0 {
            break;
        }
        if block[..read].iter().any(|byte| *byte != 0) {
            data.extend_from_slice(&block[..read]);
        }
    }
    Ok(data)
}

/// The content of the bundle in `file`, which is one over `base.img`, without a file system.
pub(crate) fn decoding(bench: &Bench, name: &'static str, file: &str) -> anyhow::Result<Section> {
    let file = File::open(bench.path(file)).context("cannot open the bundle")?;
    let map = vireo_sys::map_sealed(&file).context("cannot map the bundle")?;
    let key: PublicKey = fs::read_to_string(bench.path("key/vireo.pub"))?.trim().parse()?;
    let bundle = Bundle::open(&map)?.verify(&TrustedKeys::from_iter([key]))?;
    let base =
        DiskImage::open(&bench.path("base.img"), RootPartition::Find)?.mount(Access::ReadOnly)?;
    let base = InMemory { root: base.root(), files: Mutex::default(), last: Mutex::default() };
    // Also brings the base's files into memory.
    let mut contents = Vec::new();
    decode(&bundle, &base, &mut |bytes| contents.extend_from_slice(bytes))?;
    let mut copy = contents.clone();
    let times = DECODED_LEN.div_ceil(contents.len().max(1));
    let amount = (contents.len() * times) as f64;
    let again = |work: &mut dyn FnMut() -> anyhow::Result<()>| {
        Sample::time(|| (0..times).try_for_each(|_| work()))
    };
    let contestants = vec![
        Contestant::ours("vireo: decode and check every changed file", |_| {
            again(&mut || {
                decode(&bundle, &base, &mut |bytes| {
                    black_box(bytes);
                })
            })
        }),
        Contestant::other("BLAKE3 of the same bytes", |_| {
            again(&mut || {
                black_box(blake3::hash(&contents));
                Ok(())
            })
        }),
        Contestant::other("copy in memory", |_| {
            again(&mut || {
                copy.copy_from_slice(&contents);
                black_box(&copy);
                Ok(())
            })
        }),
    ];
    let contestants =
        contestants.into_iter().map(|contestant| contestant.amount(amount, "B")).collect();
    let (rows, left_out) = hold(bench, contestants)?;
    let about = format!(
        "The bundle's {} of changed files, {times} times, from memory to nowhere; one thread.",
        bytes(contents.len() as u64)
    );
    Ok(Section { name, about, rows, left_out })
}

/// Hands the content of every changed file to `sink`.
fn decode(
    bundle: &Bundle<'_, Verified<'_>>,
    base: &InMemory<'_>,
    sink: &mut dyn FnMut(&[u8]),
) -> anyhow::Result<()> {
    for change in &bundle.change_set().changes {
        let Some(content) = bundle.content(&change.path) else { continue };
        content.decode(base, &mut |piece| {
            if let Piece::Data(bytes) = piece {
                sink(bytes);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The base's files, each read once.
struct InMemory<'a> {
    root: &'a Root,
    files: Mutex<HashMap<ImagePath, Arc<Vec<u8>>>>,
    /// The one that was asked for last, as somebody who reads files has it open.
    last: Mutex<Option<(ImagePath, Arc<Vec<u8>>)>>,
}

impl InMemory<'_> {
    fn file(&self, path: &ImagePath) -> io::Result<Arc<Vec<u8>>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(path) {
            return Ok(file.clone());
        }
        let mut content = Vec::new();
        self.root.open_file(path).map_err(io::Error::other)?.read_to_end(&mut content)?;
        Ok(files.entry(path.clone()).or_insert(Arc::new(content)).clone())
    }
}

impl BaseRead for InMemory<'_> {
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &*last {
            Some((known, file)) if known == path => file,
            _ => &last.insert((path.clone(), self.file(path)?)).1,
        };
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.saturating_add(buffer.len());
        buffer.copy_from_slice(file.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn scanning(bench: &Bench) -> anyhow::Result<Section> {
    let inodes = if bench.quick { QUICK_INODES } else { INODES };
    let dir = bench.path("many");
    make_tree(&dir, inodes)?;
    let root = Root::open(&dir)?;
    let before = scan(&root, &Ignore::default(), &ScanOptions::default())?;
    ensure!(
        before.tree.len() == inodes + 1,
        "{} inodes instead of {inodes} and the root",
        before.tree.len()
    );
    let shell = |name: &'static str, script: &'static str| {
        Contestant::other(name, move |_| {
            let (used, _) = bench.meter.run(bench.dir(), argv!["bash", "-c", script])?;
            Ok(Sample { seconds: used.wall_seconds, ..Sample::default() })
        })
    };
    let contestants = vec![
        Contestant::ours("vireo: metadata only, as of a clone", |_| {
            Sample::time(|| {
                let options = ScanOptions { clone_of: Some(&before), ..ScanOptions::default() };
                let found = scan(&root, &Ignore::default(), &options)?;
                ensure!(
                    found.hashed == 0 && found.tree.digest() == before.tree.digest(),
                    "another tree was read"
                );
                Ok(())
            })
        }),
        shell(
            "find -printf (no attributes)",
            "find many -printf '%p %i %m %U %G %s %T@ %C@ %n\\n' > /dev/null",
        ),
        shell("getfattr -R (attributes alone)", "getfattr -Rhd -m - many > /dev/null"),
        shell("rsync -aHAXn against itself", "rsync -aHAXn many/ many/"),
        Contestant::ours("vireo: and hash every file", |_| {
            Sample::time(|| {
                let found = scan(&root, &Ignore::default(), &ScanOptions::default())?;
                ensure!(found.tree.digest() == before.tree.digest(), "another tree was read");
                Ok(())
            })
        }),
        shell("find | xargs cat", "find many -type f -print0 | xargs -0 cat > /dev/null"),
    ];
    let contestants = contestants
        .into_iter()
        .map(|contestant| contestant.amount(inodes as f64, "inodes"))
        .collect();
    let (rows, left_out) = hold(bench, contestants)?;
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    let about = format!(
        "{inodes} inodes, files of {FILE_LEN} bytes, {DIRECTORY_FILES} to a directory; inodes and content in memory."
    );
    Ok(Section { name: "Reading a tree", about, rows, left_out })
}

/// A tree of that many inodes.
pub(crate) fn make_tree(dir: &Path, inodes: usize) -> anyhow::Result<()> {
    let content = [b'x'; FILE_LEN];
    for number in 0..inodes / (DIRECTORY_FILES + 1) {
        let below = dir.join(format!("{number:04}"));
        fs::create_dir_all(&below).with_context(|| format!("cannot make {}", below.display()))?;
        for file in 0..DIRECTORY_FILES {
            let path = below.join(format!("{file:02}"));
            fs::write(&path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}
