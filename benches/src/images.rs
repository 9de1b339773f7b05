//! What patching costs as the image grows around the same tree, and what the second reading of the
//! result, without the kernel, adds to it.

use std::cell::Cell;
use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use vireo_delta::{Bundle, PublicKey, TrustedKeys};
use vireo_image::{PatchOptions, patch_with};
use vireo_sys::map_sealed;

use crate::bench::Bench;
use crate::capture::Maker;
use crate::contest::{Contestant, Sample, hold};
use crate::curve::grow;
use crate::measured::argv;
use crate::report::{Section, occupied};

/// Sizes of the images: of the first, and of one that is mostly holes.
const SIZES: [(&str, &str); 2] = [("4G", "image of 4 GiB"), ("100G", "image of 100 GiB, sparse")];

/// What is made.
const OUT: &str = "grown-copy.img";

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Section>> {
    Maker::Vireo.ensure(bench)?;
    let base = fs::canonicalize(bench.path("base.img")).context("no base image")?;
    for (size, _) in SIZES {
        grow(bench, &base, &name(size), size).with_context(|| size.to_owned())?;
    }
    let sections = vec![by_size(bench)?, second_reading(bench)?];
    for (size, _) in SIZES {
        bench.remove(&name(size))?;
    }
    bench.remove(OUT)?;
    Ok(sections)
}

fn name(size: &str) -> String {
    format!("grown-{size}.img")
}

fn by_size(bench: &Bench) -> anyhow::Result<Section> {
    let contestant = |(size, label): (&str, &str)| {
        let base = name(size);
        Contestant::ours(label, move |check| {
            bench.remove(OUT)?;
            let apply = argv![
                &bench.vireo,
                "apply",
                Maker::Vireo.file(),
                "--to",
                &base,
                "--out",
                OUT,
                "--trust",
                "key/vireo.pub",
                "--quiet"
            ];
            let (used, _) = bench.meter.run(bench.dir(), apply)?;
            if check {
                bench.check_image(OUT)?;
                ensure!(bench.len(OUT)? == bench.len(&base)?, "it has another length");
            }
            let counts = [
                ("image_bytes", bench.len(&base)?),
                ("base_disk_bytes", occupied(&bench.path(&base))?),
                ("disk_bytes", occupied(&bench.path(OUT))?),
            ];
            Ok(Sample::of(used, counts))
        })
    };
    let (rows, left_out) = hold(bench, SIZES.map(contestant).into())?;
    let about = "The web server's image with its file system made larger, and the update of a month: the same \
                 tree and the same bundle for both, into a copy beside the base, proven and on the disk. \"Disk\" is \
                 what the result occupies.";
    Ok(Section {
        name: "Patching against the image's size",
        about: about.to_owned(),
        rows,
        left_out,
    })
}

/// Patches in this process, whose steps say how long the second reading took.
fn second_reading(bench: &Bench) -> anyhow::Result<Section> {
    let key = fs::read_to_string(bench.path("key/vireo.pub")).context("no public key")?;
    let key: PublicKey = key.trim().parse().context("the public key")?;
    let trusted = TrustedKeys::from_iter([key]);
    let file = File::open(bench.path(Maker::Vireo.file())).context("no bundle")?;
    let map = map_sealed(&file).context("the bundle")?;
    let bundle = Bundle::open(&map)?.verify(&trusted)?;
    let rereading: Vec<Cell<f64>> = SIZES.iter().map(|_| Cell::new(0.0)).collect();
    let mut contestants = Vec::new();
    for ((size, label), rereading) in SIZES.into_iter().zip(&rereading) {
        let bundle = &bundle;
        contestants.push(Contestant::ours(
            format!("{label}: all but the second reading"),
            move |check| {
                bench.remove(OUT)?;
                let base = bench.path(&name(size));
                let options = PatchOptions::default();
                let patched = patch_with(&base, &bench.path(OUT), bundle, &options, &mut |_| ())?;
                if check {
                    bench.check_digest(OUT, &patched.tree.to_string())?;
                }
                let step = |name: &str| patched.steps.iter().find(|(step, _)| *step == name);
                let (_, second) = step("reread").context("it was not read again")?;
                rereading.set(second.as_secs_f64());
                let all: Duration = patched.steps.iter().map(|(_, took)| *took).sum();
                Ok(Sample {
                    seconds: all.as_secs_f64() - second.as_secs_f64(),
                    ..Sample::default()
                })
            },
        ));
        contestants.push(Contestant::ours(format!("{label}: the second reading"), move |_| {
            Ok(Sample { seconds: rereading.get(), ..Sample::default() })
        }));
    }
    let (rows, left_out) = hold(bench, contestants)?;
    let about = "The same patches, in one process: what the second reading adds to the rest, as its part of it. It \
                 reads all metadata without the kernel, and the content of what the bundle changes."
        .to_owned();
    Ok(Section { name: "The second reading of a patched image", about, rows, left_out })
}
