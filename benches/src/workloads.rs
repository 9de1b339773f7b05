//! Four real changes of one server, beside the tools that an administrator could take instead.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use vireo_testkit::image::clone_image;
use vireo_testkit::{Cache, Key, Run, Sources, TestkitError};

use crate::bench::Bench;
use crate::capture::over_pipe;
use crate::contest::{Contestant, Sample, hold};
use crate::measured::argv;
use crate::report::Section;
use crate::{micro, site};

const SERVER: &str = include_str!("../recipes/server.sh");
const IMAGE: &str = include_str!("../recipes/server-image.sh");
const UPDATE: &str = include_str!("../recipes/server-update.sh");
const PEER: &str = include_str!("../recipes/peer.sh");
const SITE: &str = include_str!("site.rs");

/// Size of the server's file system; sparse, a quarter of it is in use.
const IMAGE_SIZE: &str = "4G";

/// Time for fetching and installing some hundred packages.
const DEADLINE: Duration = Duration::from_secs(1800);

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Workload {
    /// All updates of the security and updates suites
    Release,
    /// The library of TLS and its program
    Library,
    /// One edit of the web server's configuration
    Config,
    /// The next release of a static web site
    Site,
}

impl Workload {
    pub(crate) const ALL: [Self; 4] = [Self::Release, Self::Library, Self::Config, Self::Site];

    fn kind(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Library => "library",
            Self::Config => "config",
            Self::Site => "site",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Release => "Workload: point release to the security and updates suites",
            Self::Library => "Workload: libssl3 and openssl upgraded",
            Self::Config => "Workload: nginx.conf and one site edited",
            Self::Site => "Workload: static web site, next release",
        }
    }
}

/// Those that come in files or chunks; the first in each line is what [`PEER`] calls it.
const PEERS: [(&str, &str); 6] = [
    ("whole", "whole image, zstd -3"),
    ("zstd", "zstd -3 --patch-from, tar of the tree"),
    ("xdelta3", "xdelta3 -9 -B 2G, tar of the tree"),
    ("casync", "casync, tree"),
    ("borg", "borg, tree"),
    ("ostree", "ostree commit and static delta"),
];

/// Packages of these contestants, each with a program it brings.
pub(crate) const PACKAGES: &[(&str, &str)] =
    &[("casync", "casync"), ("borgbackup", "borg"), ("ostree", "ostree")];

/// Measures some of the workloads, one after the other: a section for what is made, one for applying it.
pub(crate) fn measure(bench: &Bench, wanted: &[Workload]) -> anyhow::Result<Vec<Section>> {
    let mut sections = Vec::new();
    for workload in Workload::ALL {
        if wanted.is_empty() || wanted.contains(&workload) {
            sections.extend(one(bench, workload).with_context(|| workload.title())?);
        }
    }
    Ok(sections)
}

fn one(bench: &Bench, workload: Workload) -> anyhow::Result<Vec<Section>> {
    eprintln!("{}", workload.title());
    let base = base_image(&bench.cache)?;
    let target = changed_image(&bench.cache, &base, workload.kind())?;
    place(bench, &base, &target)?;
    let captured = capture_default(bench)?;
    let (made, left_out) = hold(bench, makers(bench, workload)?)?;
    let about = format!(
        "From two images of {IMAGE_SIZE}, the site's {} included, to what has to travel: {captured} Peers run once; what they \
         keep of the base (chunks, commits, tars) is made before and not counted.",
        "211 MB"
    );
    let (applied, none) = hold(bench, appliers(bench))?;
    let decoded = micro::decoding(bench, "The same, decoded", "w.vireo")?;
    Ok(vec![
        Section { name: workload.title(), about, rows: made, left_out },
        Section {
            name: "The same, applied",
            about: "Ours patches a copy of the image, compares its tree's digest with the version's and runs e2fsck; the \
                    others write the tree or the image and compare nothing, or the tar with the target's."
                .to_owned(),
            rows: applied,
            left_out: none,
        },
        decoded,
    ])
}

/// Puts the images where the contestants look for them, with tars of their trees.
fn place(bench: &Bench, base: &Path, target: &Path) -> anyhow::Result<()> {
    for (image, name) in [(base, "base.img"), (target, "target.img")] {
        bench.remove(name)?;
        symlink(image, bench.path(name)).with_context(|| format!("cannot link {name}"))?;
    }
    let tar = "for side in base target; do tar --sort=name --xattrs -C $side -cf $side.tar .; done";
    crate::measured::run(bench.dir(), both_mounted(bench, argv!["bash", "-c", tar]))?;
    fs::write(bench.path("peer.sh"), PEER).context("cannot write peer.sh")
}

fn both_mounted(bench: &Bench, inner: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    bench.mounted(&[["ro", "base.img", "base"], ["ro", "target.img", "target"]], inner)
}

/// Captures once; says what changed, and has the digests remembered.
fn capture_default(bench: &Bench) -> anyhow::Result<String> {
    bench.remove("w.vireo")?;
    let args =
        ["capture", "--base", "base.img", "--target", "target.img", "--key", "key/vireo.key"];
    let more = ["-o", "w.vireo", "--cache", "digests", "--permit", "setuid", "--permit", "mass"];
    let found = bench.vireo(&[&args[..], &more[..]].concat())?;
    Ok(format!(
        "{} paths modified, {} added, {} removed, {} with metadata only, of {}.",
        found["modified"], found["added"], found["removed"], found["metadata"], found["paths"]
    ))
}

fn makers(bench: &Bench, workload: Workload) -> anyhow::Result<Vec<Contestant<'_>>> {
    let ours = |name: &str, effort: &'static str, cache: &'static [&'static str]| {
        Contestant::ours(name, move |_| {
            let file = format!("w-{effort}.vireo");
            bench.remove(&file)?;
            let mut argv = argv![
                &bench.vireo,
                "capture",
                "--base",
                "base.img",
                "--target",
                "target.img",
                "--key",
                "key/vireo.key",
                "--permit",
                "setuid",
                "--permit",
                "mass",
                "--quiet",
                "--effort",
                effort,
                "--out",
                &file
            ];
            argv.extend(cache.iter().map(std::ffi::OsString::from));
            let (used, _) = bench.meter.run(bench.dir(), argv)?;
            Ok(Sample::of(used, [("wire_bytes", bench.len(&file)?)]))
        })
    };
    const REMEMBERED: &[&str] = &["--cache", "digests"];
    let mut list = vec![
        ours("vireo capture", "default", REMEMBERED),
        ours("vireo capture --no-cache (base read anew)", "default", &["--no-cache"]),
        ours("vireo capture --effort fast", "fast", REMEMBERED),
        ours("vireo capture --effort max", "max", REMEMBERED),
        Contestant::other("rsync -aHAXz over a pipe (transfers and applies)", |check| {
            over_pipe(bench, check)
        })
        .once(),
    ];
    for (peer, name) in PEERS {
        let make = move |_| {
            let step = |step: &str| argv!["bash", "peer.sh", peer, step];
            crate::measured::run(bench.dir(), both_mounted(bench, step("prepare")))?;
            let (used, text) = bench.meter.run(bench.dir(), both_mounted(bench, step("make")))?;
            let wire = text.lines().last().unwrap_or_default().trim().parse::<u64>();
            let wire = wire.with_context(|| format!("{peer} does not say how much travels"))?;
            Ok(Sample::of(used, [("wire_bytes", wire)]))
        };
        list.push(Contestant::other(name, make).once().slow());
    }
    if matches!(workload, Workload::Release | Workload::Library) {
        let len = debs_len(bench, workload)?;
        list.push(
            Contestant::other("the packages' .deb files", move |_| {
                Ok(Sample { counts: [("wire_bytes", len)].into(), ..Sample::default() })
            })
            .once(),
        );
    }
    Ok(list)
}

fn appliers(bench: &Bench) -> Vec<Contestant<'_>> {
    let ours = Contestant::ours("vireo apply, into a copy of the image", |check| {
        bench.remove("out.img")?;
        let trust = "key/vireo.pub";
        let argv = argv![
            &bench.vireo,
            "apply",
            "w.vireo",
            "--to",
            "base.img",
            "-o",
            "out.img",
            "--trust",
            trust,
            "--quiet"
        ];
        let (used, _) = bench.meter.run(bench.dir(), argv)?;
        if check {
            bench.same_tree("out.img", "target.img")?;
        }
        Ok(Sample::of(used, []))
    });
    let others = PEERS.into_iter().map(|(peer, name)| {
        let apply = move |_| {
            let argv = both_mounted(bench, argv!["bash", "peer.sh", peer, "apply"]);
            let (used, _) = bench.meter.run(bench.dir(), argv)?;
            Ok(Sample::of(used, []))
        };
        Contestant::other(name, apply).once().slow()
    });
    std::iter::once(ours).chain(others).collect()
}

/// The server's image, made or from the cache.
pub(crate) fn base_image(cache: &Cache) -> Result<PathBuf, TestkitError> {
    let sources = Sources::of_host()?;
    let key = Key::of(SERVER).and(&sources.main).and_week();
    let tar = cache.entry("server", "tar", &key, |out| {
        eprintln!("fetching and unpacking the server's packages");
        let run = Run::script("server.sh", SERVER).arg(out).arg(cache.subdir("debs")?);
        let suite = vireo_testkit::SUITE;
        run.args([sources.main.as_str(), suite]).deadline(DEADLINE).text().map(drop)
    })?;
    let key = Key::of(IMAGE).and(SITE).and(&tar.to_string_lossy());
    cache.entry("server-base", "img", &key, |out| {
        let work = tempfile(cache)?;
        let files = work.path().join("site");
        site::make(&files).map_err(|error| TestkitError::other(format!("{error:#}")))?;
        let run = Run::script("server-image.sh", IMAGE).arg(tar).arg(files).arg(out);
        run.arg(IMAGE_SIZE).arg(work.path()).deadline(DEADLINE).text().map(drop)
    })
}

fn tempfile(cache: &Cache) -> Result<tempfile::TempDir, TestkitError> {
    tempfile::tempdir_in(cache.dir())
        .map_err(|error| TestkitError::other(format!("cannot make a directory: {error}")))
}

/// A copy of `base` changed as [`UPDATE`] does, made or from the cache.
pub(crate) fn changed_image(
    cache: &Cache,
    base: &Path,
    kind: &str,
) -> Result<PathBuf, TestkitError> {
    let key = Key::of(UPDATE).and(SITE).and(&base.to_string_lossy()).and_week();
    cache.entry(&format!("server-{kind}"), "img", &key, |out| {
        eprintln!("making the target: {kind}");
        clone_image(base, out)?;
        update(cache, out, kind).map(drop)
    })
}

/// Runs [`UPDATE`] on `image`; gives what it prints.
fn update(cache: &Cache, image: &Path, kind: &str) -> Result<String, TestkitError> {
    let work = tempfile(cache)?;
    let (list, mount) = (work.path().join("sources.list"), work.path().join("root"));
    let failed = |error| TestkitError::other(format!("cannot write {}: {error}", list.display()));
    fs::write(&list, Sources::of_host()?.updates_list()).map_err(failed)?;
    fs::create_dir(&mount).map_err(failed)?;
    let own = std::env::current_exe().map_err(|error| {
        TestkitError::other(format!("cannot find the running program: {error}"))
    })?;
    Run::new("unshare")
        .args(["-m", "--propagation", "private", "bash", "-c", UPDATE, "server-update.sh"])
        .arg(image)
        .arg(&mount)
        .arg(cache.subdir("apt-server")?)
        .arg(&list)
        .arg(kind)
        .arg(own)
        .arg("site-release")
        .deadline(DEADLINE)
        .text()
}

/// Bytes of the packages that the update downloads.
fn debs_len(bench: &Bench, workload: Workload) -> anyhow::Result<u64> {
    bench.remove("copy.img")?;
    clone_image(&bench.path("base.img").canonicalize()?, &bench.path("copy.img"))?;
    let text = update(&bench.cache, &bench.path("copy.img"), &format!("debs-{}", workload.kind()))?;
    bench.remove("copy.img")?;
    let last = text.lines().last().unwrap_or_default();
    last.trim().parse().with_context(|| format!("apt does not say how much it fetches: {last}"))
}
