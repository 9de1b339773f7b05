//! What travels into a patched image, durably on the disk.

use std::ffi::OsString;

use crate::bench::{Bench, MOUNTED};
use crate::capture::Maker;
use crate::contest::{Contestant, Sample, hold};
use crate::measured::argv;
use crate::report::{Section, occupied};

/// Makes an image with rsync; see there.
const COPIED: &str = include_str!("../recipes/copied.sh");

/// What everybody makes.
const OUT: &str = "copy.img";

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Section> {
    for maker in [Maker::Vireo, Maker::Whole] {
        maker.ensure(bench)?;
    }
    if !bench.quick {
        Maker::PatchFrom.ensure(bench)?;
        Maker::Xdelta.ensure(bench)?;
    }
    let ours = argv![
        &bench.vireo,
        "apply",
        Maker::Vireo.file(),
        "--to",
        "base.img",
        "--out",
        OUT,
        "--trust",
        "key/vireo.pub",
        "--quiet"
    ];
    let whole = argv!["zstd", "-q", "-d", "--sparse", Maker::Whole.file(), "-o", OUT];
    let patch = argv![
        "zstd",
        "-q",
        "-d",
        "--sparse",
        "--long=30",
        "--patch-from=base.img",
        Maker::PatchFrom.file(),
        "-o",
        OUT
    ];
    let xdelta = argv!["xdelta3", "-q", "-d", "-s", "base.img", Maker::Xdelta.file(), OUT];
    let other = |name: &'static str, argv: Vec<OsString>| {
        Contestant::other(name, move |check| make(bench, argv.clone(), check))
    };
    let contestants = vec![
        Contestant::ours(
            "vireo apply -o COPY (all or nothing, tree proven, e2fsck)",
            move |check| make(bench, ours.clone(), check),
        ),
        other("sparse copy, rsync -aHAX of the target's tree, sync", copied(bench, "plain")),
        other("the same, then rsync -c as proof and e2fsck", copied(bench, "proven")),
        other("zstd -d, whole image, sync", synced(whole)),
        other("zstd -d --patch-from, sync", synced(patch)).slow(),
        other("xdelta3 -d, sync", synced(xdelta)).slow(),
    ];
    let (rows, left_out) = hold(bench, contestants)?;
    bench.remove(OUT)?;
    let about = "From the base image and what travelled to the target's image beside it, on the disk. rsync has the \
                 target's whole tree at hand instead. \"Disk\" is what the result occupies.";
    Ok(Section { name: "Apply to an image", about: about.to_owned(), rows, left_out })
}

/// One run; the result must be the target.
fn make(bench: &Bench, argv: Vec<OsString>, check: bool) -> anyhow::Result<Sample> {
    bench.remove(OUT)?;
    let (used, _) = bench.meter.run(bench.dir(), argv)?;
    if check {
        bench.check_image(OUT)?;
    }
    Ok(Sample::of(used, [("disk_bytes", occupied(&bench.path(OUT))?)]))
}

fn copied(bench: &Bench, how: &str) -> Vec<OsString> {
    let mut argv =
        argv!["unshare", "-m", "--propagation", "private", "bash", "-c", COPIED, "copied.sh"];
    argv.extend(argv!["base.img", OUT, how, MOUNTED]);
    argv.extend(bench.rsync(&[]));
    argv
}

/// `argv`, then its result on the disk.
fn synced(argv: Vec<OsString>) -> Vec<OsString> {
    let script = format!("\"$@\" && sync {OUT}");
    argv!["bash", "-c", script, "synced"].into_iter().chain(argv).collect()
}
