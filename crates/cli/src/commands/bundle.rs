use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use vireo_capture::{BUNDLE_MODE, Base, DigestCache};
use vireo_delta::{
    Bundle, DeltaError, Derive, Effort, Finished, Permits, SecretKey, TrustedKeys, compose, reverse,
};
use vireo_model::Digest;
use vireo_sys::durable::{Unnamed, directory_of};

use super::{bytes, public_keys, secret_key};
use crate::Context;
use crate::exit::{Failure, Report, json};
use crate::progress::Step;
use crate::source::{CacheArgs, CaptureSource, RootPartitionArgs};

/// Make bundles of bundles
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Compose(ComposeArgs),
    Reverse(ReverseArgs),
}

/// Make one bundle of two that follow each other: from the first one's base to the second's target
#[derive(Debug, clap::Args)]
pub(crate) struct ComposeArgs {
    /// Bundle from version 1 to 2
    #[arg(value_name = "FIRST.vireo")]
    first: PathBuf,
    /// Bundle from version 2 to 3
    #[arg(value_name = "SECOND.vireo")]
    second: PathBuf,
    #[command(flatten)]
    derive: DeriveArgs,
}

/// Make the bundle that takes another one back: from its target to its base
#[derive(Debug, clap::Args)]
pub(crate) struct ReverseArgs {
    /// Bundle to be taken back
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    #[command(flatten)]
    derive: DeriveArgs,
}

#[derive(Debug, clap::Args)]
struct DeriveArgs {
    /// Image or directory that the (first) bundle starts from
    #[arg(long, value_name = "SRC")]
    base: PathBuf,
    /// File with the secret key that signs
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Public key, or file with some, whose bundles are taken besides those signed by --key (repeatable)
    #[arg(long, value_name = "KEY")]
    trust: Vec<String>,
    /// The bundle to be written
    #[arg(long, short, value_name = "OUT.vireo")]
    out: PathBuf,
    /// How hard to try to make the bundle small: fast, default or max
    #[arg(long, value_name = "HOW", default_value = "default")]
    effort: Effort,
    /// Allow what the given bundles do not: setuid, devices or mass (repeatable)
    #[arg(long, value_name = "WHAT")]
    permit: Vec<Permits>,
    #[command(flatten)]
    partition: RootPartitionArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(Debug, Serialize)]
pub(crate) struct Done {
    bundle: Digest,
    file: PathBuf,
    base: Digest,
    target: Digest,
    wire_bytes: u64,
}

impl Command {
    pub(crate) fn run(&self, context: &Context) -> Result<Done, Failure> {
        match self {
            Self::Compose(args) => args.run(context),
            Self::Reverse(args) => args.run(context),
        }
    }
}

impl ComposeArgs {
    fn run(&self, context: &Context) -> Result<Done, Failure> {
        let _step = Step::new(context, format!("composing {}", self.derive.out.display()));
        let key = secret_key(&self.derive.key)?;
        let trusted = self.derive.trusted(&key)?;
        let (first, second) = (map(&self.first)?, map(&self.second)?);
        let first = verified(&self.first, &first, &trusted)?;
        let second = verified(&self.second, &second, &trusted)?;
        let source = CaptureSource::open(&self.derive.base, self.derive.partition)?;
        let base = self.derive.base(&source, &first)?;
        let options = self.derive.options();
        let finished = self.derive.write(&base, |spool, out| {
            compose(&first, &second, &base, &options, &key, spool, out)
        })?;
        Ok(self.derive.done(first.base(), second.target(), &finished))
    }
}

impl ReverseArgs {
    fn run(&self, context: &Context) -> Result<Done, Failure> {
        let _step = Step::new(context, format!("reversing {}", self.bundle.display()));
        let key = secret_key(&self.derive.key)?;
        let bundle = map(&self.bundle)?;
        let bundle = verified(&self.bundle, &bundle, &self.derive.trusted(&key)?)?;
        let source = CaptureSource::open(&self.derive.base, self.derive.partition)?;
        let base = self.derive.base(&source, &bundle)?;
        let options = self.derive.options();
        let finished = self.derive.write(&base, |spool, out| {
            reverse(&bundle, &base, base.dir_times(), &options, &key, spool, out)
        })?;
        Ok(self.derive.done(bundle.target(), bundle.base(), &finished))
    }
}

impl DeriveArgs {
    fn trusted(&self, key: &SecretKey) -> Result<TrustedKeys, Failure> {
        let others = public_keys(&self.trust)?;
        Ok(others.into_iter().chain([key.public()]).collect())
    }

    fn options(&self) -> Derive {
        Derive { effort: self.effort, permits: self.permit.iter().copied().collect() }
    }

    /// The tree that `bundle` starts from, checked to be that.
    fn base<'a>(
        &self,
        source: &'a CaptureSource,
        bundle: &Bundle<'_, vireo_delta::Verified<'_>>,
    ) -> Result<Base<'a>, Failure> {
        let cache = self.cache.dir().map(DigestCache::new);
        let base = Base::read(source.source(), bundle.ignore(), cache.as_ref())?;
        let (found, expected) = (base.digest(), bundle.base());
        if found != expected {
            let path = self.base.display();
            return Err(Failure::refused(format!(
                "{path} has tree {found}, but the bundle starts from {expected}"
            )));
        }
        Ok(base)
    }

    /// Has the output written beside its place and put there whole, if `base` is what it was.
    fn write(
        &self,
        base: &Base<'_>,
        work: impl FnOnce(File, &mut dyn std::io::Write) -> Result<Finished, DeltaError>,
    ) -> Result<Finished, Failure> {
        let failed = |error| Failure::make(&self.out, error);
        let spool = tempfile::tempfile_in(directory_of(&self.out)).map_err(failed)?;
        let mut file = Unnamed::new(&self.out).map_err(failed)?;
        let mut writer = BufWriter::new(file.file());
        let finished = work(spool, &mut writer);
        // What cannot be read may be half of what somebody writes.
        base.check_settled()?;
        let finished = finished.map_err(|error| Failure::derived(&self.out, error))?;
        writer.flush().map_err(failed)?;
        drop(writer);
        file.publish(BUNDLE_MODE).map_err(failed)?;
        Ok(finished)
    }

    fn done(&self, base: Digest, target: Digest, finished: &Finished) -> Done {
        let (bundle, file) = (finished.digest, self.out.clone());
        Done { bundle, file, base, target, wire_bytes: finished.wire_len }
    }
}

fn map(path: &Path) -> Result<vireo_sys::Mapped, Failure> {
    let file = File::open(path).map_err(|error| Failure::io("open", path, error))?;
    vireo_sys::map_sealed(&file).map_err(|error| Failure::io("map", path, error))
}

fn verified<'a>(
    path: &Path,
    bytes: &'a [u8],
    trusted: &TrustedKeys,
) -> Result<Bundle<'a, vireo_delta::Verified<'a>>, Failure> {
    let bundle = Bundle::open(bytes).and_then(|bundle| bundle.verify(trusted));
    bundle.map_err(|error| Failure::bundle(path, error))
}

impl Report for Done {
    fn to_text(&self) -> String {
        format!(
            "{}  {}\nbase    {}\ntarget  {}",
            self.file.display(),
            bytes(self.wire_bytes),
            self.base,
            self.target
        )
    }

    fn to_json(&self) -> String {
        json("vireo.bundle/1", self)
    }
}
