//! `vireo-repo ec2`, and EC2 as the cloud of `vireo-repo serve`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use vireo_cloud::{Cloud as _, CloudError, Launchable};
use vireo_ec2::{Call, Ec2, Settings, Source, Verified};
use vireo_model::ImageName;
use vireo_repo::FleetMachine;

use super::Data;
use crate::exit::Failure;
use crate::report::{self, Report};

/// Directory of the adapter's memory, in that of the repository.
const STATE_DIR: &str = "ec2";

const SECONDS_PER_HOUR: u64 = 3600;

/// The settings of EC2.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// Settings for EC2, TOML: regions, images, launch templates
    #[arg(long, value_name = "FILE", env = "VIREO_EC2_SETTINGS")]
    ec2: Option<PathBuf>,
}

/// What every command needs.
#[derive(Debug, clap::Args)]
pub(crate) struct Site {
    #[command(flatten)]
    data: Data,
    /// Settings for EC2, TOML: regions, images, launch templates
    #[arg(long = "settings", value_name = "FILE", env = "VIREO_EC2_SETTINGS")]
    settings: PathBuf,
}

/// Publish images to EC2, and look after what is there
///
/// Credentials come from where the AWS SDK takes them: environment, profile, the host's role.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Publish the newest version of every image in the settings
    ///
    /// Goes on with what was interrupted. Of what is published it does what is still due: the launch
    /// template, deprecation, removing snapshots that nothing came of. A server does the same after every
    /// push.
    Publish {
        #[command(flatten)]
        site: Site,
        /// Print the calls that would change something, and make none of them
        #[arg(long)]
        dry_run: bool,
    },
    /// Publish the newest version of an image from a volume, for accounts without the EBS direct interface
    ///
    /// Run it on the instance that the volume is attached to: with --device the volume is first made to
    /// hold the repository's disk image, of which only blocks that differ are written. Keep the volume:
    /// its next snapshot is as small as the change.
    PublishVolume {
        #[command(flatten)]
        site: Site,
        /// The image
        image: ImageName,
        /// The volume, `vol-...`; nothing else may write to it meanwhile
        volume: String,
        /// The block device that the volume is attached as, whole and not mounted; without it the volume
        /// is taken as it is, and has to hold the newest version already
        #[arg(long, value_name = "DEVICE")]
        device: Option<PathBuf>,
        /// Write to the device although it does not say which volume it is, as on instances of the Xen
        /// generation: you are certain that it is this one
        #[arg(long, requires = "device")]
        unidentified: bool,
        /// Print the calls that would change something, and make none of them
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what new machines start from
    Status {
        #[command(flatten)]
        site: Site,
    },
    /// List the machines of an image that run, and whether they have an agent
    Machines {
        #[command(flatten)]
        site: Site,
        /// The image
        image: ImageName,
    },
    /// Read what is published back and compare it with the repository's disk image, block by block
    Verify {
        #[command(flatten)]
        site: Site,
        /// The image
        image: ImageName,
    },
    /// Remove snapshots of Vireo that no machine image uses
    Sweep {
        #[command(flatten)]
        site: Site,
        /// Spare those that are younger, as another host may be writing them
        #[arg(long, value_name = "HOURS", default_value_t = 24)]
        older_than: u32,
        /// Print what would be removed
        #[arg(long)]
        dry_run: bool,
    },
    /// Restart a machine that has no agent from the published version: its root volume is replaced
    ReplaceRoot {
        #[command(flatten)]
        site: Site,
        /// The image
        image: ImageName,
        /// The machine, `i-...`
        instance: String,
        /// Remove the volume that it had
        #[arg(long)]
        delete_replaced: bool,
        /// Restart it although its agent was seen a short while ago
        #[arg(long)]
        force: bool,
        /// Print the calls that would change something, and make none of them
        #[arg(long)]
        dry_run: bool,
    },
}

/// What `publish` and `status` found: per image what new machines start from.
#[derive(Debug, Serialize)]
struct State {
    images: Vec<Row>,
    calls: Vec<Call>,
}

#[derive(Debug, Serialize)]
struct Row {
    image: ImageName,
    /// None: nothing is published.
    launchable: Option<Launchable>,
}

impl Report for State {
    const SCHEMA: &'static str = "vireo.ec2-state/1";
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<String> = self.calls.iter().map(Call::to_string).collect();
        lines.extend(self.images.iter().map(|Row { image, launchable }| match launchable {
            Some(Launchable { version, address, .. }) => format!("{image}@{version}  {address}"),
            None => format!("{image}  not published"),
        }));
        f.write_str(&lines.join("\n"))
    }
}

#[derive(Debug, Serialize)]
struct Machines {
    machines: Vec<FleetMachine>,
}

impl Report for Machines {
    const SCHEMA: &'static str = "vireo.ec2-machines/1";
}

impl fmt::Display for Machines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.machines.as_slice() {
            [] => f.write_str("no machine runs"),
            machines => f.write_str(&machines.iter().map(line).collect::<Vec<_>>().join("\n")),
        }
    }
}

/// A machine, what it was launched from, and what its agent says it is on now.
fn line(FleetMachine { machine, agent }: &FleetMachine) -> String {
    let number = |version: Option<u64>| version.map_or("?".to_owned(), |number| number.to_string());
    let launched = format!("{}@{}", machine.image, number(machine.version));
    let agent = match agent {
        Some(agent) => {
            let live = format!("{}@{}", agent.image, number(agent.version));
            format!("agent yes  on {live}  seen {}", agent.last_seen)
        }
        None => "agent no".to_owned(),
    };
    let address = machine.address.as_deref().unwrap_or("-");
    format!("{}  {launched}  {address}  {agent}", machine.name)
}

#[derive(Debug, Serialize)]
struct ReadBack {
    image: ImageName,
    version: u64,
    blocks_read: u64,
    blocks_absent: u64,
}

impl Report for ReadBack {
    const SCHEMA: &'static str = "vireo.ec2-verify/1";
}

impl fmt::Display for ReadBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, version, blocks_read, blocks_absent } = self;
        write!(f, "{image}@{version} equals its disk image: ")?;
        write!(f, "{blocks_read} blocks read, {blocks_absent} absent and zeros")
    }
}

#[derive(Debug, Serialize)]
struct Done {
    what: Vec<String>,
    calls: Vec<Call>,
}

impl Report for Done {
    const SCHEMA: &'static str = "vireo.ec2-done/1";
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.calls.iter().map(Call::to_string);
        let lines: Vec<String> = calls.chain(self.what.iter().cloned()).collect();
        match lines.as_slice() {
            [] => f.write_str("nothing to do"),
            lines => f.write_str(&lines.join("\n")),
        }
    }
}

impl Place {
    /// EC2 as the cloud of the repository in `data`, if there are settings for it.
    pub(crate) fn connect(&self, data: &Path, json: bool) -> Result<Option<Ec2>, Failure> {
        let Some(settings) = &self.ec2 else { return Ok(None) };
        let ec2 = connect(settings, data)?.with_observer(Arc::new(move |call| {
            if !json {
                eprintln!("ec2 {call}");
            }
        }));
        Ok(Some(ec2))
    }
}

impl Site {
    fn connect(&self, dry_run: bool) -> Result<(Ec2, Heard), Failure> {
        let heard = Heard::default();
        let ec2 = connect(&self.settings, &self.data.dir)?.with_observer(heard.observer());
        Ok((if dry_run { ec2.dry_run() } else { ec2 }, heard))
    }
}

/// Calls that were made or planned.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<Call>>>);

impl Heard {
    fn observer(&self) -> vireo_ec2::Observer {
        let Self(calls) = self.clone();
        Arc::new(move |call: &Call| {
            calls.lock().unwrap_or_else(PoisonError::into_inner).push(call.clone());
        })
    }

    fn calls(&self) -> Vec<Call> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn connect(settings: &Path, data: &Path) -> Result<Ec2, Failure> {
    let text =
        fs::read_to_string(settings).map_err(|error| Failure::io("read", settings, &error))?;
    let settings =
        parse(&text).map_err(|why| Failure::usage(format!("{}: {why}", settings.display())))?;
    Ok(Ec2::connect(settings, &data.join(STATE_DIR)).map_err(CloudError::from)?)
}

fn parse(text: &str) -> Result<Settings, toml::de::Error> {
    toml::from_str(text)
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    match command {
        Command::Publish { site, dry_run } => report::print(&publish(site, *dry_run)?, json),
        Command::PublishVolume { site, image, volume, device, unidentified, dry_run } => {
            let device = device.as_deref().map(|device| (device, *unidentified));
            report::print(&publish_volume(site, image, volume, device, *dry_run)?, json)
        }
        Command::Status { site } => {
            let (ec2, _) = site.connect(true)?;
            report::print(&State { images: current(&ec2)?, calls: Vec::new() }, json)
        }
        Command::Machines { site, image } => {
            let (ec2, _) = site.connect(true)?;
            let machines = site.data.open()?.with_agents(ec2.machines(image)?)?;
            report::print(&Machines { machines }, json)
        }
        Command::Verify { site, image } => report::print(&verify(site, image)?, json),
        Command::Sweep { site, older_than, dry_run } => {
            let (ec2, heard) = site.connect(*dry_run)?;
            let mut what = Vec::new();
            for image in ec2.settings().images.keys() {
                let removed = ec2
                    .sweep(image, Duration::from_secs(u64::from(*older_than) * SECONDS_PER_HOUR));
                what.extend(removed.map_err(CloudError::from)?);
            }
            report::print(&Done { what, calls: heard.calls() }, json)
        }
        Command::ReplaceRoot { site, image, instance, delete_replaced, force, dry_run } => {
            if !force {
                refuse_agent(site, instance)?;
            }
            let (ec2, heard) = site.connect(*dry_run)?;
            let task = ec2.replace_root(image, instance, *delete_replaced);
            let what = vec![task.map_err(CloudError::from)?];
            report::print(&Done { what, calls: heard.calls() }, json)
        }
    }
}

/// A machine with an agent is updated by it, and keeps its own files then.
fn refuse_agent(site: &Site, instance: &str) -> Result<(), Failure> {
    let Some(agent) = site.data.open()?.agent_at_work(instance)? else { return Ok(()) };
    Err(Failure::refused(format!(
        "{instance} has an agent ({}, {}), which was seen at {} and brings it to new versions itself; a replaced root volume loses what is on the one that it has. If that is meant, give --force",
        agent.id, agent.name, agent.last_seen
    )))
}

fn publish(site: &Site, dry_run: bool) -> Result<State, Failure> {
    let (ec2, heard) = site.connect(dry_run)?;
    let ec2 = Arc::new(ec2);
    let repository = site.data.open()?.with_cloud(Arc::clone(&ec2) as _);
    repository.launch_all_current()?;
    Ok(State { images: current(&ec2)?, calls: heard.calls() })
}

fn publish_volume(
    site: &Site,
    image: &ImageName,
    volume: &str,
    device: Option<(&Path, bool)>,
    dry_run: bool,
) -> Result<State, Failure> {
    if !volume.starts_with("vol-") {
        return Err(Failure::usage(format!("{volume} is no volume's identity (`vol-...`)")));
    }
    let (ec2, heard) = site.connect(dry_run)?;
    let repository = site.data.open()?;
    repository.log(image)?;
    // Which is newest is asked once nobody else publishes: that can have been waited for.
    let hold = ec2.hold(image).map_err(CloudError::from)?;
    let log = repository.log(image)?;
    let Some(newest) = log.newest() else {
        return Err(Failure::usage(format!("image {image} has no version")));
    };
    let (disk, _) = repository.disk(image, newest.number)?;
    let source = device.map(|(device, unidentified)| Source { device, disk: &disk, unidentified });
    let launchable = hold.publish_volume(newest.number, newest.tree, volume, source);
    let launchable = Some(launchable.map_err(CloudError::from)?);
    Ok(State { images: vec![Row { image: image.clone(), launchable }], calls: heard.calls() })
}

fn current(ec2: &Ec2) -> Result<Vec<Row>, Failure> {
    let images = ec2.settings().images.keys();
    let current =
        images.map(|image| Ok(Row { image: image.clone(), launchable: ec2.current(image)? }));
    Ok(current.collect::<Result<_, CloudError>>()?)
}

fn verify(site: &Site, name: &ImageName) -> Result<ReadBack, Failure> {
    let (ec2, _) = site.connect(true)?;
    let Some(current) = ec2.current(name)? else {
        return Err(Failure::usage(format!("no version of {name} is published")));
    };
    let (disk, _) = site.data.open()?.disk(name, current.version)?;
    let Verified { read, absent } = ec2.verify(name, &disk).map_err(CloudError::from)?;
    let (image, version) = (name.clone(), current.version);
    Ok(ReadBack { image, version, blocks_read: read, blocks_absent: absent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_toml_with_a_table_for_each_image() {
        let text = "region = \"eu-central-1\"\n[images.web]\nlike = \"ami-1\"\nlaunch-template = \"web\"\nkeep = 3\n";
        let settings = parse(text).expect("settings");
        let web: ImageName = "web".parse().expect("a name");
        assert_eq!(settings.images[&web].keep, Some(3));
        settings.check().expect("they can be meant");
        let error = parse("regoin = \"x\"\n").expect_err("no such key").to_string();
        assert!(error.contains("regoin"), "{error}");
    }
}
