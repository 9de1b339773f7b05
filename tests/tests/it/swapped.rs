//! A directory that is swapped for a symbolic link while an update is applied: nothing outside the
//! tree changes, whenever it happens.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use vireo_delta::{Bundle, Permits, TrustedKeys};
use vireo_testkit::Run;
use vireo_tests::{Snapshot, require_host};
use vireo_tree::Root;
use vireo_tree::apply::{ApplyOptions, Committed, stage};

use crate::hostile::{Place, key};

/// How often the tree is changed under the program's hands.
const TRIES: u64 = 3000;

const RACED: &str =
    "mkdir d; for f in f g gone m; do echo base $f > d/$f; done; mkdir d/below; echo b > d/below/b";
const RACED_CHANGE: &str = "for f in f g; do echo target $f > d/$f; done; rm d/gone; chmod 600 d/m; \
    echo new > d/new; echo target > d/below/b; ln -s f d/link";

/// Runs `work` while another thread makes the directory `work/d` a symbolic link to `outside/d` and
/// itself again; after `pause` first, for as long as `hold`.
fn while_flipping<T>(
    dir: &Path,
    pause: Duration,
    hold: Duration,
    work: impl FnOnce() -> T,
) -> anyhow::Result<T> {
    let (real, link) = (dir.join("work/d"), dir.join("link"));
    let over = AtomicBool::new(false);
    let spin = |time: Duration| {
        let start = Instant::now();
        while start.elapsed() < time && !over.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    };
    thread::scope(|scope| {
        let flipper = scope.spawn(|| -> rustix::io::Result<()> {
            let flip = || renameat_with(CWD, &real, CWD, &link, RenameFlags::EXCHANGE);
            while !over.load(Ordering::Relaxed) {
                spin(pause);
                flip()?;
                spin(hold);
                flip()?;
            }
            Ok(())
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        match flipper.join() {
            Ok(flipped) => flipped.context("cannot flip")?,
            Err(_) => bail!("the flipper panicked"),
        }
        Ok(done)
    })
}

/// Makes `work` the base again, by names of this process alone.
fn refill(dir: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(dir.join("work"))?;
    fs::create_dir_all(dir.join("work/d/below"))?;
    for name in ["f", "g", "gone", "m", "below/b"] {
        fs::copy(dir.join("base/d").join(name), dir.join("work/d").join(name))?;
    }
    Ok(())
}

/// What is outside is like what is inside, so that what goes astray finds what it looks for.
fn raced_place() -> anyhow::Result<Place> {
    // In memory: the more tries the better, and a barrier costs nothing there.
    let place = Place::new(Path::new("/dev/shm"), RACED, RACED_CHANGE)?;
    Run::new("cp").arg("-a").args([place.at("base/d"), place.at("outside/d")]).text()?;
    symlink(place.at("outside/d"), place.at("link"))?;
    Ok(place)
}

#[test]
fn root_a_link_swapped_in_for_a_directory_never_leads_outside() -> anyhow::Result<()> {
    require_host()?;
    let place = raced_place()?;
    let dir = place.dir();
    let file = place.forge(Permits::NONE)?;
    let bundle = Bundle::open(&file)?.verify(&TrustedKeys::from_iter([key()?.public()]))?;
    let outside = Snapshot::of(&place.at("outside"))?;
    let (mut whole, mut refused, mut halfway) = (0, 0, 0);
    for number in 0..TRIES {
        refill(dir)?;
        // From the first look to the last rename, in steps of 7 µs.
        let pause = Duration::from_micros(number * 7 % 2500);
        let hold = Duration::from_micros(20 + number % 60);
        let applied = while_flipping(dir, pause, hold, || {
            let root = Root::open(&place.at("work"))?;
            let staged = stage(&root, &bundle, &ApplyOptions::default())?;
            Ok::<_, vireo_tree::TreeError>(
                staged.commit().and_then(Committed::finish_for_good).is_ok(),
            )
        })?;
        match applied {
            Ok(true) => whole += 1,
            Ok(false) => halfway += 1,
            Err(_) => refused += 1,
        }
        outside.unchanged().with_context(|| format!("try {number}"))?;
    }
    println!("{TRIES} tries: {whole} applied, {refused} refused, {halfway} stopped at the commit");
    ensure!(whole > 50 && refused > 50 && halfway > 5, "the moments were not hit");
    Ok(())
}

#[test]
fn root_a_program_that_joins_names_is_led_outside_by_the_same_swaps() -> anyhow::Result<()> {
    require_host()?;
    let place = raced_place()?;
    let dir = place.dir();
    let outside = Snapshot::of(&place.at("outside"))?;
    for number in 0..TRIES {
        refill(dir)?;
        let pause = Duration::from_micros(number % 50);
        // It looks first, as the careful do.
        while_flipping(dir, pause, Duration::from_micros(20), || {
            for name in ["f", "g", "m"].into_iter().cycle().take(60) {
                let directory = dir.join("work/d");
                let is_dir = directory.symlink_metadata().is_ok_and(|stat| stat.is_dir());
                if is_dir {
                    drop(fs::write(directory.join(name), "target"));
                }
            }
        })?;
        if outside.unchanged().is_err() {
            println!("led outside at try {number}");
            return Ok(());
        }
    }
    bail!("the swaps prove nothing: checking before use was enough")
}
