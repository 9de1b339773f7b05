//! What the demonstration found: for people as text, for programs as `vireo.demo/1`.

use std::fmt;

use serde::Serialize;

use super::proof::Proof;
use crate::steps::Step;

/// The whole report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) schema: &'static str,
    /// Whether every proof held.
    pub(crate) held: bool,
    pub(crate) sizes: Sizes,
    /// Packages that the update really upgraded.
    pub(crate) packages: Vec<Package>,
    pub(crate) activation: Activation,
    pub(crate) proofs: Vec<Proof>,
    pub(crate) steps: Vec<Step>,
    pub(crate) seconds: f64,
}

/// Bytes of the update against bytes of the image.
#[derive(Debug, Serialize)]
pub(crate) struct Sizes {
    /// Size of the disk image as a machine sees it.
    pub(crate) image_bytes: u64,
    /// Bytes of it that are in use.
    pub(crate) image_used_bytes: u64,
    /// Size of the bundle: what goes to the repository and to each machine.
    pub(crate) bundle_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) base: String,
    pub(crate) target: String,
}

/// What the agent did to make the update effective, from its receipt.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Activation {
    /// `done`, `pending`, `failed`, ...
    pub(crate) outcome: String,
    /// What it did to the service manager itself: `none`, `reload`, `reexec`.
    pub(crate) manager: String,
    /// Reboot that is still needed: `none`, `soft`, `full`.
    pub(crate) reboot: String,
    pub(crate) units: Vec<Unit>,
    /// What waits for somebody, and why it was not done.
    pub(crate) pending: Vec<Pending>,
    /// Changed files that needed nothing, by class.
    pub(crate) nothing_needed: Vec<(String, u64)>,
}

/// Something that the agent left to be done.
#[derive(Debug, Serialize)]
pub(crate) struct Pending {
    pub(crate) subject: String,
    pub(crate) needs: String,
    pub(crate) reason: String,
}

/// One unit and why it got what it got.
#[derive(Debug, Serialize)]
pub(crate) struct Unit {
    pub(crate) unit: String,
    pub(crate) action: String,
    pub(crate) result: String,
    pub(crate) because: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Steps")?;
        for step in &self.steps {
            writeln!(f, "  {:<46}{:>7.2} s", step.name, step.seconds)?;
        }
        writeln!(f, "  {:<46}{:>7.2} s", "together", self.seconds)?;
        write!(f, "\n{}\n{}", self.sizes, Packages(&self.packages))?;
        write!(f, "\n{}", self.activation)?;
        writeln!(f, "\nProofs")?;
        for proof in &self.proofs {
            writeln!(f, "  {proof}")?;
        }
        let verdict = if self.held { "Every proof held." } else { "NOT every proof held." };
        write!(f, "\n{verdict}")
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Bytes")?;
        writeln!(f, "  disk image         {:>10}", mib(self.image_bytes))?;
        writeln!(f, "  of it in use       {:>10}", mib(self.image_used_bytes))?;
        let part = self.image_used_bytes as f64 / self.bundle_bytes.max(1) as f64;
        writeln!(
            f,
            "  captured and sent  {:>10}   one {part:.0}th of what is in use",
            mib(self.bundle_bytes)
        )
    }
}

/// Formats upgraded packages.
struct Packages<'a>(&'a [Package]);

impl fmt::Display for Packages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Upgraded from the security suite")?;
        for Package { name, base, target } in self.0 {
            writeln!(f, "  {name} {base} -> {target}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Activation in the guest")?;
        let Self { outcome, manager, reboot, .. } = self;
        writeln!(f, "  outcome: {outcome}; service manager: {manager}; reboot: {reboot}")?;
        for Unit { unit, action, result, because } in &self.units {
            writeln!(f, "  {action:<8} {unit:<28} {result:<8} {because}")?;
        }
        for Pending { subject, needs, reason } in &self.pending {
            writeln!(f, "  waits    {subject:<28} {needs:<8} {reason}")?;
        }
        for (class, files) in &self.nothing_needed {
            writeln!(f, "  nothing  {files} files of class {class}")?;
        }
        Ok(())
    }
}

/// Bytes in MiB, as people read them.
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
