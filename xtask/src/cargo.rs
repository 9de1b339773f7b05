//! Running cargo on this workspace.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// The workspace's directory.
pub(crate) fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// A cargo command in the workspace: the same cargo that runs this.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

/// Runs a cargo command whose output goes where ours goes.
pub(crate) fn run(args: &[&str]) -> anyhow::Result<()> {
    let status = cargo(args).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}

/// Installs what the host lacks, builds the programs, and runs one of ours: `own` says which, `args`
/// are the user's.
pub(crate) fn run_program(own: &[&str], args: &[String]) -> anyhow::Result<()> {
    crate::setup::run()?;
    run(&["build", "--release", "--bins"])?;
    let args = args.iter().map(String::as_str);
    run(&["run", "--release"]
        .into_iter()
        .chain(own.iter().copied())
        .chain(args)
        .collect::<Vec<_>>())
}

/// `cargo metadata` of the workspace's own packages.
pub(crate) fn metadata() -> anyhow::Result<Value> {
    let mut command = cargo(&["metadata", "--format-version=1", "--no-deps"]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed");
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")
}

/// The machine that this is built on, as the compiler calls it.
pub(crate) fn host() -> anyhow::Result<String> {
    let mut command = cargo(&["--version", "--verbose"]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("cargo does not say which machine this is")
}

/// Builds all programs and gives their paths by name. All default members, because cargo compiles
/// dependencies anew for every other choice of packages.
pub(crate) fn build() -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let format = "--message-format=json-render-diagnostics";
    let mut command = cargo(&["build", "--release", "--bins", format]);
    command.stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo build failed");
    }
    let mut programs = BTreeMap::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Value = serde_json::from_slice(line).context("cargo build gave no JSON")?;
        let name = message["target"]["name"].as_str();
        if let (Some(name), Some(path)) = (name, message["executable"].as_str()) {
            programs.insert(name.to_owned(), path.into());
        }
    }
    Ok(programs)
}
