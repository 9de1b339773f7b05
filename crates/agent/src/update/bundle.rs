//! A bundle's file, opened and verified.

use std::fs::File;
use std::path::Path;

use vireo_delta::{Bundle, Release, TrustedKeys, Verified};
use vireo_model::Digest;
use vireo_sys::map_sealed;

use crate::error::AgentError;

/// A bundle's file, mapped. Bundles are written once, under another name, and never again.
#[derive(Debug)]
pub(crate) struct OpenBundle(vireo_sys::Mapped);

impl OpenBundle {
    pub(crate) fn open(path: &Path) -> Result<Self, AgentError> {
        let map = File::open(path).and_then(|file| map_sealed(&file));
        map.map(Self).map_err(|error| AgentError::io("open the bundle", path, error))
    }

    pub(crate) fn verify(
        &self,
        trusted: &TrustedKeys,
        path: &Path,
    ) -> Result<Bundle<'_, Verified<'_>>, AgentError> {
        let unusable = |error| AgentError::bundle(path, error);
        let bundle = Bundle::open(&self.0).and_then(|bundle| bundle.held_by(self).verify(trusted));
        let bundle = bundle.map_err(unusable)?;
        // The whole file, before anything is staged, so that the message names it.
        bundle.check().map_err(unusable)?;
        Ok(bundle)
    }
}

impl Release for OpenBundle {
    fn release(&self, bytes: &[u8]) {
        self.0.release(bytes);
    }
}

/// Whether the bundle in `file` is the one that was announced, and whole. Who signed it does not
/// count here.
pub(crate) fn is_bundle(file: &Path, digest: Digest) -> Result<bool, AgentError> {
    let opened = OpenBundle::open(file)?;
    let Ok(bundle) = Bundle::open(&opened.0) else { return Ok(false) };
    let bundle = bundle.held_by(&opened);
    if bundle.digest() != digest {
        return Ok(false);
    }
    let signer = TrustedKeys::from_iter([bundle.signer()]);
    Ok(bundle.verify(&signer).is_ok_and(|bundle| bundle.check().is_ok()))
}
