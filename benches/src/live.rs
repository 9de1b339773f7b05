//! What travels into a directory that is in use.

use std::ffi::OsString;

use anyhow::{Context as _, bail};
use vireo_testkit::image::clone_image;

use crate::bench::Bench;
use crate::capture::Maker;
use crate::contest::{Contestant, Sample, hold};
use crate::measured::{argv, run};
use crate::report::Section;

/// Runs one contestant on a mounted, warm tree; see there.
const LIVE: &str = include_str!("../recipes/live.sh");

/// The packages that the target has newer than the base; run where both are mounted.
const PACKAGES: &str = "list() { dpkg-query --admindir=\"$1/var/lib/dpkg\" -W \
    -f '${Package}_${Version}_${Architecture}.deb\\n' | sed 's/:/%3a/' | sort; }; \
    comm -13 <(list base) <(list target)";

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Section> {
    Maker::Vireo.ensure(bench)?;
    let ours = argv![
        &bench.vireo,
        "apply",
        Maker::Vireo.file(),
        "--to",
        "copy",
        "--trust",
        "key/vireo.pub",
        "--quiet"
    ];
    let other = |name: &'static str, argv: Vec<OsString>| {
        Contestant::other(name, move |check| apply(bench, argv.clone(), check))
    };
    let contestants = vec![
        Contestant::ours("vireo apply --to DIR (all or nothing, tree proven)", move |check| {
            apply(bench, ours.clone(), check)
        }),
        other("rsync -aHAX of the target's tree, sync", synced(bench.rsync(&["target/", "copy/"]))),
        other("rsync -aHAX --fsync", synced(bench.rsync(&["--fsync", "target/", "copy/"]))).slow(),
        other(
            "rsync -aHAXc of the target's tree, sync",
            synced(bench.rsync(&["-c", "target/", "copy/"])),
        )
        .slow(),
        // It makes another tree, which is not the target's.
        Contestant::other("dpkg --unpack of the upgraded packages alone, sync", {
            let argv = dpkg(bench)?;
            move |_| apply(bench, argv.clone(), false)
        }),
    ];
    let (rows, left_out) = hold(bench, contestants)?;
    let about = "Into a mounted tree whose files are in memory, as a running machine's are, and on the disk. \
                 rsync replaces file by file, so that a crash leaves a mixture; Vireo reads the whole tree \
                 afterwards to prove its digest. Flushes and bytes written are those of the tree's device. dpkg does \
                 less: it makes no new page, and configures nothing.";
    Ok(Section { name: "Apply to a directory", about: about.to_owned(), rows, left_out })
}

fn apply(bench: &Bench, argv: Vec<OsString>, check: bool) -> anyhow::Result<Sample> {
    bench.remove("copy.img")?;
    clone_image(&bench.path("base.img"), &bench.path("copy.img"))?;
    let mut inner = argv!["bash", "-c", LIVE, "live.sh", "copy", &bench.vireo];
    inner.extend(bench.meter.wrap(argv)?);
    let mounts = [["ro", "target.img", "target"], ["rw", "copy.img", "copy"]];
    let printed = run(bench.dir(), bench.mounted(&mounts, inner))?;
    let words: Vec<&str> = printed.split_whitespace().collect();
    let [flushes, written, digest] = words[..] else {
        bail!("live.sh printed {printed:?}");
    };
    if check {
        bench.check_digest("the directory", digest)?;
    }
    let number =
        |text: &str| text.parse().with_context(|| format!("live.sh printed {text:?} for a number"));
    Ok(Sample::of(
        bench.meter.read()?,
        [("flushes", number(flushes)?), ("written_bytes", number(written)?)],
    ))
}

/// dpkg on the packages whose upgrade is a part of the update, as they were downloaded for it.
fn dpkg(bench: &Bench) -> anyhow::Result<Vec<OsString>> {
    let mounts = [["ro", "base.img", "base"], ["ro", "target.img", "target"]];
    let list = run(bench.dir(), bench.mounted(&mounts, argv!["bash", "-c", PACKAGES]))?;
    let archives = bench.cache.subdir("apt")?.join("apt/archives");
    let packages: Vec<_> = list.lines().map(|name| archives.join(name)).collect();
    if let Some(missing) = packages.iter().find(|package| !package.exists()) {
        bail!("{} is not there any more: remove {archives:?} and the image", missing.display());
    }
    let mut argv = argv!["dpkg", "--root=copy", "--log=/dev/null", "--force-depends", "--unpack"];
    argv.extend(packages.into_iter().map(OsString::from));
    Ok(synced(argv))
}

/// `argv`, then the tree on the disk.
fn synced(argv: Vec<OsString>) -> Vec<OsString> {
    argv!["bash", "-c", "\"$@\" && sync -f copy", "synced"].into_iter().chain(argv).collect()
}
