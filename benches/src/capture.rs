//! Two images into what travels.

use anyhow::Context as _;
use vireo_testkit::image::clone_image;

use crate::bench::Bench;
use crate::contest::{Contestant, Sample, hold};
use crate::measured::argv;
use crate::report::Section;

/// A way to make one file of what travels.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Maker {
    /// `vireo capture`.
    Vireo,
    /// The same with the least effort.
    Fast,
    /// The same with the most effort.
    Max,
    /// The packed batch of rsync.
    Batch,
    /// The whole image, packed.
    Whole,
    /// The image against the base by zstd.
    PatchFrom,
    /// The image against the base by xdelta3.
    Xdelta,
}

impl Maker {
    fn name(self) -> &'static str {
        match self {
            Self::Vireo => "vireo capture",
            Self::Fast => "vireo capture --effort fast",
            Self::Max => "vireo capture --effort max",
            Self::Batch => "rsync -aHAX --only-write-batch; zstd -3",
            Self::Whole => "zstd -3 -T0, whole image",
            Self::PatchFrom => "zstd -3 --patch-from, whole image",
            Self::Xdelta => "xdelta3 -e, whole image",
        }
    }

    /// What `vireo capture --effort` is told, for those that are ours.
    fn effort(self) -> Option<&'static str> {
        match self {
            Self::Vireo => Some("default"),
            Self::Fast => Some("fast"),
            Self::Max => Some("max"),
            _ => None,
        }
    }

    /// The file it makes.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Vireo => "update.vireo",
            Self::Fast => "update-fast.vireo",
            Self::Max => "update-max.vireo",
            Self::Batch => "update.batch.zst",
            Self::Whole => "target.img.zst",
            Self::PatchFrom => "target.img.patch.zst",
            Self::Xdelta => "target.img.xdelta3",
        }
    }

    /// Makes it, measured.
    fn make(self, bench: &Bench) -> anyhow::Result<Sample> {
        let file = self.file();
        bench.remove(file)?;
        let argv = match self {
            Self::Vireo | Self::Fast | Self::Max => argv![
                &bench.vireo,
                "capture",
                "--base",
                "base.img",
                "--target",
                "target.img",
                "--key",
                "key/vireo.key",
                "--effort",
                self.effort().unwrap_or_default(),
                "--out",
                file,
                "--no-cache",
                "--quiet"
            ],
            Self::Batch => {
                // Written while the trees are mounted, packed after.
                let script = "\"$@\" && zstd -q -3 -f --rm update.batch -o update.batch.zst";
                let more =
                    ["--no-whole-file", "--only-write-batch=update.batch", "target/", "base/"];
                let mut inner = argv!["bash", "-c", script, "batch"];
                inner.extend(bench.rsync(&more));
                bench.mounted(&[["ro", "base.img", "base"], ["ro", "target.img", "target"]], inner)
            }
            Self::Whole => argv!["zstd", "-q", "-3", "-T0", "-f", "target.img", "-o", file],
            Self::PatchFrom => {
                argv![
                    "zstd",
                    "-q",
                    "-3",
                    "-f",
                    "--long=30",
                    "--patch-from=base.img",
                    "target.img",
                    "-o",
                    file
                ]
            }
            Self::Xdelta => {
                argv!["xdelta3", "-q", "-e", "-f", "-s", "base.img", "target.img", file]
            }
        };
        let (used, _) = bench.meter.run(bench.dir(), argv)?;
        Ok(Sample::of(used, [("wire_bytes", bench.len(file)?)]))
    }

    /// Makes it unless it is there.
    pub(crate) fn ensure(self, bench: &Bench) -> anyhow::Result<()> {
        if bench.path(self.file()).exists() {
            return Ok(());
        }
        self.make(bench).with_context(|| self.name()).map(drop)
    }
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let ours = |maker: Maker| Contestant::ours(maker.name(), move |_| maker.make(bench));
    let maker = |maker: Maker| Contestant::other(maker.name(), move |_| maker.make(bench));
    let contestants = vec![
        ours(Maker::Vireo),
        ours(Maker::Fast),
        ours(Maker::Max),
        maker(Maker::Batch),
        Contestant::other("rsync -aHAXz over a pipe (transfers and applies)", |check| {
            over_pipe(bench, check)
        }),
        Contestant::other("rsync -aHAX --dry-run (only finds)", |_| dry_run(bench)),
        maker(Maker::Whole),
        maker(Maker::PatchFrom).slow(),
        maker(Maker::Xdelta).slow(),
    ];
    let (rows, left_out) = hold(bench, contestants)?;
    let about = "From two images to what has to travel. rsync gets both trees mounted, the mounting counts for \
                 everybody; memory is that of the largest process.";
    Ok(Section { name: "Capture", about: about.to_owned(), rows, left_out })
}

/// As rsync is mostly used: two processes that talk, the receiver's tree is a copy of the base.
pub(crate) fn over_pipe(bench: &Bench, check: bool) -> anyhow::Result<Sample> {
    bench.remove("copy.img")?;
    clone_image(&bench.path("base.img").canonicalize()?, &bench.path("copy.img"))?;
    let inner = bench.rsync(&["-z", "--stats", "-e", "./rsh", "target/", "peer:copy/"]);
    let argv = bench.mounted(&[["ro", "target.img", "target"], ["rw", "copy.img", "copy"]], inner);
    let (used, stats) = bench.meter.run(bench.dir(), argv)?;
    if check {
        bench.same_tree("copy.img", "target.img")?;
    }
    let total = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name));
        let digits: String =
            line.unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
        digits.parse::<u64>().with_context(|| format!("rsync does not say {name:?}"))
    };
    let wire = total("Total bytes sent:")? + total("Total bytes received:")?;
    Ok(Sample::of(used, [("wire_bytes", wire)]))
}

/// What finding the changed files costs it.
fn dry_run(bench: &Bench) -> anyhow::Result<Sample> {
    let inner = bench.rsync(&["-n", "target/", "base/"]);
    let argv = bench.mounted(&[["ro", "base.img", "base"], ["ro", "target.img", "target"]], inner);
    let (used, _) = bench.meter.run(bench.dir(), argv)?;
    Ok(Sample::of(used, []))
}
