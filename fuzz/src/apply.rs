//! A hostile signed bundle, applied to a tree and taken back.
//!
//! The first byte says how local edits are met and which file has one.

use std::fs;
use std::path::Path;

use vireo_delta::Bundle;
use vireo_tree::Root;
use vireo_tree::apply::{ApplyOptions, OnConflict, OnDrift, UndoOptions, stage, stage_undo};

/// Most bytes that one input may have written.
const WRITTEN_LEN_MAX: u64 = 1 << 20;

/// The first byte of `input` chooses, the rest is as for `bundle_signed`.
pub fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    let Some(file) = crate::bundle::sign(rest) else { return };
    let trusted = crate::bundle::trusted();
    let Ok(bundle) = Bundle::open(&file).and_then(|bundle| bundle.verify(&trusted)) else { return };
    let contents = bundle.change_set().changes.iter().filter_map(|c| c.after.as_ref()?.content());
    let written = contents.fold(0_u64, |sum, (len, _)| sum.saturating_add(len));
    if written > WRITTEN_LEN_MAX {
        return;
    }
    crate::sandbox::with(|tree| {
        if choice & 8 != 0 {
            fs::write(tree.join("etc/app.conf"), "workers 2\nlisten 81\nlog off\n")
                .expect("written");
        }
        let how = match choice & 7 {
            0 | 1 => OnDrift::Refuse,
            2 | 3 => OnDrift::Take,
            4 => OnDrift::Merge(OnConflict::Keep),
            5 => OnDrift::Merge(OnConflict::Take),
            _ => OnDrift::Merge(OnConflict::Refuse),
        };
        apply(tree, &bundle, &ApplyOptions { drift: &|_| how });
    });
}

fn apply(tree: &Path, bundle: &Bundle<'_, vireo_delta::Verified<'_>>, options: &ApplyOptions<'_>) {
    let root = Root::open(tree).expect("was just made");
    let Ok(staged) = stage(&root, bundle, options) else { return };
    let number = staged.number();
    let Ok(committed) = staged.commit() else { return };
    if committed.finish().is_err() {
        return;
    }
    if let Ok(staged) = stage_undo(&root, number, &UndoOptions::default()) {
        let _ = staged.commit().and_then(|committed| committed.finish());
    }
}
