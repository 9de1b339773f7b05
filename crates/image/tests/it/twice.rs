//! Two processes that make one image: the second is told to wait, and the first one's image is whole.

use anyhow::{Context as _, ensure};
use vireo_image::{ErrorKind, PatchOptions, PatchStep, patch_with};

use crate::common::{Place, bundle, digest_of, edit, ext, mounted, open, same};

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
    let left = std::fs::read_dir(place.path(""))?.filter_map(Result::ok);
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    ensure!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
    place.nothing_attached()
}
