//! Builds the base image, updates a copy of it, boots both in a container and under a real kernel,
//! and prints how long each step takes.
//!
//! `cargo run --release -p vireo-testkit --example tour` (as root)

use std::time::Instant;

use vireo_testkit::image::{BaseImage, clone_image};
use vireo_testkit::{Cache, Guest, Lab, Nspawn, TestkitError, Uml, update, web};

fn main() -> Result<(), TestkitError> {
    let cache = Cache::open()?;
    let base = timed("base image", || BaseImage::default().build(&cache))?;
    println!("{}", base.display());
    let lab = timed("lab", || Lab::new(&cache))?;
    let target = lab.dir().join("target.img");
    let updated = timed("update", || update::make(&cache, &base, &target))?;
    for package in &updated.packages {
        println!("  {} {} -> {}", package.name, package.base, package.target);
    }
    let disk = lab.dir().join("base.img");
    timed("clone", || clone_image(&base, &disk))?;
    visit(&mut Nspawn::new(&lab, &disk)?)?;
    visit(&mut Uml::new(&lab, &target)?)?;
    timed("finish", || lab.finish())
}

fn visit(guest: &mut dyn Guest) -> Result<(), TestkitError> {
    println!("{}: answers after {:?}", guest.kind(), guest.start()?);
    let state = timed("exec", || guest.exec(&["systemctl", "is-system-running", "--wait"]))?;
    println!("  system is {}", state.stdout.trim());
    let blame = guest.exec(&["systemd-analyze", "blame", "--no-pager"])?;
    print!("{}", blame.stdout.lines().take(6).fold(String::new(), |all, line| all + line + "\n"));
    for page in [web::CHANGED_PAGE, web::ADDED_PAGE] {
        let answer = guest.http_get(page)?;
        let release = answer.header(update::RELEASE_HEADER).map(str::to_owned);
        println!("  {page}: {} {release:?}", answer.status);
    }
    let exit = timed("power off", || guest.poweroff())?;
    println!("  {exit:?}");
    println!("  again after {:?}", guest.start()?);
    timed("power cut", || guest.power_cut())
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T, TestkitError>) -> Result<T, TestkitError> {
    let started = Instant::now();
    let done = work();
    println!("{what}: {:.2?}", started.elapsed());
    done
}
