//! What capturing costs as the image grows and as the change grows.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use vireo_testkit::Run;
use vireo_testkit::image::{BaseImage, clone_image};

use crate::bench::Bench;
use crate::contest::{Contestant, Sample, hold};
use crate::measured::argv;
use crate::micro;
use crate::report::Section;

/// Sizes of the image, at one edited file.
const SIZES: [(&str, &str); 3] =
    [("1G", "image of 1 GiB"), ("4G", "image of 4 GiB"), ("16G", "image of 16 GiB")];

/// Longer than a time of change has to be past for a capture to rely on it.
const SETTLED: Duration = Duration::from_secs(4);

/// Edited pages, at one image.
const PAGES: [usize; 4] = [1, 10, 100, 1000];

/// Appends a line to the configuration that every guest has.
const EDIT: &str = "mount -o loop,rw \"$1\" \"$2\" && echo '# edited' >> \"$2/etc/nginx/nginx.conf\" && umount \"$2\"";

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Section>> {
    Ok(vec![by_image(bench)?, by_change(bench)?, unchanged(bench)?])
}

/// An image of many inodes beside its copy.
fn unchanged(bench: &Bench) -> anyhow::Result<Section> {
    let inodes = if bench.quick { micro::QUICK_INODES } else { micro::INODES };
    let dir = bench.path("many");
    micro::make_tree(&dir, inodes)?;
    for name in ["many.img", "many-copy.img"] {
        bench.remove(name)?;
    }
    // What changed right before the image was finished proves nothing, and would be read.
    std::thread::sleep(SETTLED);
    let mut make = Run::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-N", "200000", "-d"]);
    make = make.arg(&dir).arg(bench.path("many.img")).arg("2G");
    make.text()?;
    clone_image(&bench.path("many.img"), &bench.path("many-copy.img"))?;
    let mounts = [["ro", "many.img", "base"], ["ro", "many-copy.img", "target"]];
    let contestants = vec![
        capture(bench, "vireo capture", "many.img".to_owned(), "many-copy.img".to_owned()),
        Contestant::other("rsync -aHAX --dry-run, both mounted", |_| {
            let inner = bench.rsync(&["-n", "target/", "base/"]);
            let (used, _) = bench.meter.run(bench.dir(), bench.mounted(&mounts, inner))?;
            Ok(Sample::of(used, []))
        }),
    ];
    let contestants = contestants
        .into_iter()
        .map(|contestant| contestant.amount(inodes as f64, "inodes"))
        .collect();
    let (rows, left_out) = hold(bench, contestants)?;
    std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    let about = format!(
        "An image of {inodes} inodes and a copy of it, in the page cache. The base is remembered from the first \
         round on."
    );
    Ok(Section { name: "Nothing changed", about, rows, left_out })
}

fn by_image(bench: &Bench) -> anyhow::Result<Section> {
    let image = BaseImage::default().build(&bench.cache)?;
    let mut contestants = Vec::new();
    for (size, name) in SIZES {
        let (base, target) = (format!("base-{size}.img"), format!("target-{size}.img"));
        grow(bench, &image, &base, size).with_context(|| base.clone())?;
        clone_image(&bench.path(&base), &bench.path(&target))?;
        let edit = argv![
            "unshare",
            "-m",
            "--propagation",
            "private",
            "bash",
            "-c",
            EDIT,
            "edit",
            &target,
            "copy"
        ];
        crate::measured::run(bench.dir(), edit)?;
        contestants.push(capture(bench, name, base, target));
    }
    let (rows, left_out) = hold(bench, contestants)?;
    let about = "One edited configuration file in the web server's image, whose file system is made larger; sparse. The \
                 base's digests are remembered from the first round on."
        .to_owned();
    Ok(Section { name: "Cost against the image's size", about, rows, left_out })
}

/// A copy of `image` whose file system has `size`.
pub(crate) fn grow(bench: &Bench, image: &Path, name: &str, size: &str) -> anyhow::Result<()> {
    bench.remove(name)?;
    clone_image(image, &bench.path(name))?;
    std::fs::create_dir_all(bench.path("copy")).context("cannot make copy")?;
    Run::new("truncate").args(["-s", size]).arg(bench.path(name)).text()?;
    Run::new("/sbin/resize2fs").args(["-f"]).arg(bench.path(name)).text()?;
    Ok(())
}

fn by_change(bench: &Bench) -> anyhow::Result<Section> {
    let base = crate::workloads::base_image(&bench.cache)?;
    let mut contestants = Vec::new();
    for pages in PAGES {
        let target =
            crate::workloads::changed_image(&bench.cache, &base, &format!("pages-{pages}"))?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let name = format!("{pages} pages edited");
        contestants.push(capture(bench, &name, text(&base), text(&target)));
    }
    let (rows, left_out) = hold(bench, contestants)?;
    let about = "A word changed in some pages of the server's web site; image of 4 GiB, some 30,000 inodes. The base's \
                 digests are remembered from the first round on."
        .to_owned();
    Ok(Section { name: "Cost against the change", about, rows, left_out })
}

fn capture<'a>(bench: &'a Bench, name: &str, base: String, target: String) -> Contestant<'a> {
    Contestant::ours(name, move |is_first| {
        let argv = || {
            argv![
                &bench.vireo,
                "capture",
                "--base",
                &base,
                "--target",
                &target,
                "--key",
                "key/vireo.key",
                "--cache",
                "curve-digests",
                "--quiet",
                "--out",
                "curve.vireo"
            ]
        };
        if is_first {
            crate::measured::run(bench.dir(), argv())?;
        }
        let (used, _) = bench.meter.run(bench.dir(), argv())?;
        Ok(Sample::of(used, [("wire_bytes", bench.len("curve.vireo")?)]))
    })
}
