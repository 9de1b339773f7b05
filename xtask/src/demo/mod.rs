//! `cargo xtask demo`: the main job end to end, on a real image and real guests, with proof.

mod activation;
mod proof;
mod report;
mod scene;
mod tools;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{anyhow, bail};

use crate::steps::Steps;

use proof::Proof;
use report::{Activation, Package, Report, Sizes};
use scene::Scene;

/// Steps of the demonstration, for the progress display.
const STEPS: usize = 15;

/// Arguments of the demonstration.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the report as data (schema vireo.demo/1)
    #[arg(long)]
    json: bool,
    /// Keep the images, the bundle and the receipt in this directory, which must not exist or be empty
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Exits with 0 only if every proof held.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let report = perform(args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("\n{report}");
    }
    if !report.held {
        bail!("not every proof held");
    }
    Ok(())
}

/// Sets the scene, plays the story, and takes everything down whichever way it went.
fn perform(args: &Args) -> anyhow::Result<Report> {
    let started = Instant::now();
    let mut steps = Steps::new(STEPS);
    steps.run("install what the host lacks", crate::setup::run)?;
    let programs = steps.run("build Vireo", tools::Programs::build)?;
    let scene = Scene::new(programs, args.keep.as_deref())?;
    let told = story(&scene, &mut steps);
    let told = told.map_err(|error| anyhow!("{error:#}\n{}", scene.repository_log()))?;
    steps.run("take everything down", || scene.finish())?;
    Ok(Report {
        schema: "vireo.demo/1",
        held: told.proofs.iter().all(|proof| proof.held),
        sizes: told.sizes,
        packages: told.packages,
        activation: told.activation,
        proofs: told.proofs,
        steps: steps.done().to_vec(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What the story found.
struct Told {
    sizes: Sizes,
    packages: Vec<Package>,
    activation: Activation,
    proofs: Vec<Proof>,
}

/// The main job, step by step.
fn story(scene: &Scene, steps: &mut Steps) -> anyhow::Result<Told> {
    steps.run("make the base image of a Debian guest", || scene.make_base())?;
    let _server =
        steps.run("start a repository, put the image into it", || scene.open_repository())?;
    let mut guest = scene.guest()?;
    steps.run("boot a guest from the base, enrol its agent", || scene.enrol(&mut guest))?;
    let packages = steps.run("update a copy of it: apt, nginx, pages", || scene.update())?;
    let sizes = steps.run("capture the increment", || scene.capture())?;
    steps.run("push it: the repository patches its image", || scene.push())?;
    let receipt =
        steps.run("wait for the guest's agent to apply it", || scene.wait_applied(&guest))?;
    let activation = activation::from_receipt(&receipt);
    let mut proofs = vec![activation.proof()];
    proofs.push(steps.run("look for processes that use replaced files", || {
        scene.stale_processes(&guest, &activation)
    })?);
    proofs.extend(steps.run("compare image, version and guest", || scene.compare(&guest))?);
    proofs.extend(steps.run("fetch the pages from the guest", || scene.pages_of(&guest))?);
    let exported = steps.run("export the patched image", || scene.export())?;
    proofs
        .extend(steps.run("boot the patched image with a real kernel", || scene.boot(&exported))?);
    Ok(Told { sizes, packages, activation, proofs })
}
