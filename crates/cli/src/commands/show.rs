use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vireo_classify::{Class, ReadMap, class_of};
use vireo_delta::{Bundle, PublicKey, TrustedKeys};
use vireo_model::{Change, ChangeKind, Digest, ImagePath};

use super::bytes;
use crate::exit::{Failure, Report, json};

/// Show what a bundle changes, without applying it
///
/// The signature is checked for being whole; whether its signer is to be trusted is decided
/// where the bundle is applied.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bundle to be shown
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// List every path with its class
    #[arg(long)]
    files: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    bundle: Digest,
    base: Digest,
    target: Digest,
    signer: PublicKey,
    wire_bytes: u64,
    disk_bytes: u64,
    added: usize,
    modified: usize,
    removed: usize,
    metadata: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_map: Option<Reads>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<Line>>,
}

/// What the bundle's read map knows.
#[derive(Debug, Serialize)]
struct Reads {
    units: usize,
    paths: usize,
    bytes: usize,
}

#[derive(Debug, Serialize)]
struct Line {
    path: ImagePath,
    change: ChangeKind,
    class: Class,
}

pub(crate) fn run(args: &Args) -> Result<Shown, Failure> {
    let path = &args.bundle;
    let file = File::open(path).map_err(|error| Failure::io("open", path, error))?;
    let map = vireo_sys::map_sealed(&file).map_err(|error| Failure::io("map", path, error))?;
    let unusable = |error| Failure::bundle(path, error);
    let bundle = Bundle::open(&map).map_err(unusable)?;
    let signer = bundle.signer();
    let bundle = bundle.verify(&TrustedKeys::from_iter([signer])).map_err(unusable)?;
    bundle.check().map_err(unusable)?;
    let changes = &bundle.change_set().changes;
    let count = |kind| changes.iter().filter(|change| change.kind() == kind).count();
    let content = |change: &Change| change.after.as_ref().and_then(vireo_model::Node::content);
    Ok(Shown {
        bundle: bundle.digest(),
        base: bundle.base(),
        target: bundle.target(),
        signer,
        wire_bytes: bundle.wire_len(),
        disk_bytes: changes.iter().filter_map(content).map(|(len, _)| len).sum(),
        added: count(ChangeKind::Added),
        modified: count(ChangeKind::Modified),
        removed: count(ChangeKind::Removed),
        metadata: count(ChangeKind::Metadata),
        read_map: bundle.read_map().map(|text| reads(path, text)).transpose()?,
        files: args.files.then(|| changes.iter().map(line).collect()),
    })
}

fn reads(path: &Path, text: &[u8]) -> Result<Reads, Failure> {
    let map = ReadMap::from_json(text).map_err(|error| {
        Failure::refused(format!("cannot use the bundle {}", path.display())).caused_by(error)
    })?;
    Ok(Reads { units: map.units().count(), paths: map.len(), bytes: text.len() })
}

fn line(change: &Change) -> Line {
    let mode = change.after.as_ref().or(change.before.as_ref()).map_or(0, |node| node.mode);
    let class = class_of(&change.path, mode, None);
    Line { path: change.path.clone(), change: change.kind(), class }
}

impl Report for Shown {
    fn to_text(&self) -> String {
        let mut text = format!(
            "bundle  {}\nbase    {}\ntarget  {}\nsigner  {}\n{} on the wire for {} on disk: {} modified, {} added, {} removed, {} with metadata only",
            self.bundle,
            self.base,
            self.target,
            self.signer,
            bytes(self.wire_bytes),
            bytes(self.disk_bytes),
            self.modified,
            self.added,
            self.removed,
            self.metadata
        );
        if let Some(reads) = &self.read_map {
            let Reads { units, paths, .. } = reads;
            text.push_str(&format!(
                "\nread map {paths} paths that {units} units were seen to read"
            ));
        }
        for line in self.files.iter().flatten() {
            let change = format!("{:?}", line.change).to_lowercase();
            text.push_str(&format!("\n{change:<9} {:<16} {}", line.class, line.path));
        }
        text
    }

    fn to_json(&self) -> String {
        json("vireo.show/1", self)
    }
}
