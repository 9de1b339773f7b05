//! Measures reading an image: `measure TARGET.img [BASE.img]`, unpartitioned.
//!
//! Prints how long the metadata of all paths takes, how long the digests of all files, and, with a
//! base, how long comparing the two and reading only what may differ.

use std::error::Error;
use std::fs::File;
use std::time::Instant;

use vireo_ext4::{Known, Reader, ScanOptions, Unfinished, compare};
use vireo_model::Ignore;

fn main() -> Result<(), Box<dyn Error>> {
    let mut images = std::env::args_os().skip(1);
    let open = |image| -> Result<Reader, Box<dyn Error>> {
        Ok(Reader::open(File::open(image)?, Unfinished::Replay)?)
    };
    let ignore = Ignore::nothing();
    let target = open(images.next().ok_or("usage: measure TARGET.img [BASE.img]")?)?;

    for _ in 0..3 {
        let start = Instant::now();
        let entries = target.walk_metadata(&ignore)?;
        let took = start.elapsed();
        println!("metadata of {} paths: {took:?}", entries.len());
    }

    let start = Instant::now();
    let scan = target.scan(&ignore, &ScanOptions::default())?;
    println!("tree, {} files, {} bytes: {:?}", scan.hashed, scan.hashed_len, start.elapsed());
    let start = Instant::now();
    println!("digest {}: {:?}", scan.tree.digest(), start.elapsed());

    let Some(base) = images.next() else {
        return Ok(());
    };
    let base = open(base)?;
    let start = Instant::now();
    let candidates = compare(&base, &target, &ignore)?;
    println!(
        "compared: {} files unchanged, {} doubtful with {} bytes, {:?}: {:?}",
        candidates.unchanged,
        candidates.doubtful.len(),
        candidates.doubtful_len,
        candidates.distrust,
        start.elapsed()
    );
    let known = Known::from_tree(&base, &base.tree(&ignore)?, &ignore)?;
    let start = Instant::now();
    let options = ScanOptions { known: Some(&known), ..ScanOptions::default() };
    let quick = target.scan(&ignore, &options)?;
    println!("tree like the base's, {} files read: {:?}", quick.hashed, start.elapsed());
    assert_eq!(quick.tree.digest(), scan.tree.digest());
    Ok(())
}
