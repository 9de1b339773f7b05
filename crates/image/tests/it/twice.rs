//! Two processes that make one image: the second is told to wait, and the first one's image is whole. And two
//! readings of one image: what the kernel showed does not count if the bytes are others.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use vireo_image::testing::wait_released;
use vireo_image::{
    Backend, DetachedHost, ErrorKind, HostMount, MountError, MountHost, PatchOptions, PatchStep,
    Window, patch_with,
};

use crate::common::{Place, bundle, digest_of, edit, ext, mounted, open, patch_by, same};

const CONTENT: &str = "mkdir -p etc usr; seq 20000 > usr/f; echo base > etc/x";
const CHANGE: &str = "echo next > etc/x; seq 30000 > usr/f";

#[test]
fn root_an_image_that_is_being_made_is_not_begun_anew_at_any_step() -> anyhow::Result<()> {
    let place = Place::new()?;
    let content = place.dir("content", CONTENT)?;
    ext(&place.path("base.img"), 24, "-t ext4", &content)?;
    place.copy("base.img", "next.img")?;
    edit(&place.path("next.img"), &[(0, 0, "/")], CHANGE)?;
    let (bytes, keys) = bundle(&place.path("base.img"), &place.path("next.img"))?;
    let update = open(&bytes, &keys)?;
    place.copy("base.img", "own.img")?;

    let base = place.path("base.img");
    let before = digest_of(&base)?;
    let own = place.path("own.img");
    let copies = [place.path("out.img"), place.path("out.qcow2")];
    let copies = copies.iter().map(|out| (base.as_path(), out.as_path(), false));
    for (from, out, replace) in copies.chain([(own.as_path(), own.as_path(), true)]) {
        let options = PatchOptions { replace, ..PatchOptions::default() };
        let again = || patch_with(from, out, &update, &options, &mut |_| ());
        let (mut steps, mut others) = (Vec::new(), Vec::new());
        let patched = patch_with(from, out, &update, &options, &mut |step| {
            steps.push(step);
            // Before, nothing of it is there yet.
            if step != PatchStep::Clone {
                others.push(again().map(drop));
            }
        });
        patched.with_context(|| format!("{steps:?}"))?;
        ensure!(steps.contains(&PatchStep::Reread) && others.len() + 1 == steps.len());
        for (other, step) in others.into_iter().zip(&steps[1..]) {
            let error = other.err().with_context(|| format!("made anew at {step:?}"))?;
            ensure!(error.kind() == ErrorKind::Busy, "{step:?}: {error}: {:?}", error.kind());
        }
        same(&mounted(&place.path("next.img"))?, &mounted(out)?)?;
    }
    ensure!(digest_of(&base)? == before, "the base was changed");
    let left = fs::read_dir(place.path(""))?.filter_map(Result::ok);
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    ensure!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
    place.nothing_attached()
}

/// What the update brings: found in the image by this.
const MARK: &str = "what the kernel wrote and the disk lost";

/// A host whose disk changes a byte of a file that was just written, once it is unmounted.
#[derive(Debug)]
struct Forgetful;

/// The mount that it happens after.
struct Forgets {
    held: Option<HostMount>,
    image: PathBuf,
}

impl MountHost for Forgetful {
    fn mount(&self, image: &File, window: Window) -> Result<HostMount, MountError> {
        let held = DetachedHost.mount(image, window)?;
        if window.read_only {
            return Ok(held);
        }
        let failed = |source| MountError { step: "mount", source };
        let place: OwnedFd = held.open_root().map_err(failed)?;
        let name = format!("/proc/self/fd/{}", image.as_raw_fd());
        let image = fs::read_link(name).map_err(failed)?;
        Ok(HostMount::new(place, Forgets { held: Some(held), image }))
    }
}

impl Drop for Forgets {
    fn drop(&mut self) {
        drop(self.held.take());
        wait_released(&self.image);
        forget(&self.image);
    }
}

/// Changes one byte of every file in `image` that has the mark.
fn forget(image: &Path) {
    let file = File::options().read(true).write(true).open(image).expect("the clone is there");
    let bytes = fs::read(image).expect("readable");
    let places: Vec<usize> =
        (0..bytes.len()).filter(|at| bytes[*at..].starts_with(MARK.as_bytes())).collect();
    assert_eq!(places.len(), 1, "the file is in the image once");
    for at in places {
        file.write_all_at(b"W", at as u64).expect("writable");
    }
}

#[test]
fn root_what_the_kernel_showed_is_read_again_without_it() -> anyhow::Result<()> {
    let place = Place::new()?;
    let content = place.dir("content", CONTENT)?;
    ext(&place.path("base.img"), 24, "-t ext4", &content)?;
    place.copy("base.img", "next.img")?;
    edit(&place.path("next.img"), &[(0, 0, "/")], &format!("echo {MARK} > usr/f"))?;
    let (bytes, keys) = bundle(&place.path("base.img"), &place.path("next.img"))?;
    let update = open(&bytes, &keys)?;
    let (base, out) = (place.path("base.img"), place.path("out.img"));
    let before = digest_of(&base)?;
    let options = PatchOptions { backend: Backend::Mount(&Forgetful), ..PatchOptions::default() };
    let (done, steps) = patch_by((&base, &out), &update, &options);
    let error = done.err().context("it was believed")?;
    ensure!(error.kind() == ErrorKind::Mismatch, "{error}: {:?}", error.kind());
    ensure!(error.to_string().contains("without the kernel its tree is"), "{error}");
    ensure!(steps.last() == Some(&PatchStep::Reread), "{steps:?}");
    ensure!(!out.exists() && digest_of(&base)? == before, "something was changed");
    let left = fs::read_dir(place.path(""))?.filter_map(Result::ok);
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    ensure!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
    place.nothing_attached()
}
