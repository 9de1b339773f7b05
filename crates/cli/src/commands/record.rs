use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use serde::Serialize;
use vireo_classify::{Phase, ReadMap};
use vireo_record::{Counts, Options, Recorded, Recorder, Starts};

use crate::Context;
use crate::exit::{FAILED, Failure, Report, json};
use crate::progress::Step;

mod systemd;

/// Record which unit reads which file, for `vireo capture --read-map`
///
/// Run it as root on the machine that updates are made on. With --unit or --each-unit every unit is
/// reloaded (if it can) and restarted once, one after the other, and what it reads is seen. With a
/// command the units then are left alone while it runs: what they read again meanwhile, they read
/// whenever they need it (ask a web server for its pages, twice).
///
/// Without both, units are watched that start while the command runs, or until Ctrl-C: start it early
/// in the boot, or before units are restarted by hand.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The read map to be written
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Add to what is in the file already
    #[arg(long)]
    add: bool,
    /// Reload and restart this unit (repeatable)
    #[arg(long, value_name = "UNIT", conflicts_with = "each_unit")]
    unit: Vec<String>,
    /// Reload and restart every running service but those that are never restarted
    #[arg(long)]
    each_unit: bool,
    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS", conflicts_with_all = ["command", "unit", "each_unit"])]
    seconds: Option<u64>,
    /// What to run meanwhile
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Done {
    file: PathBuf,
    units: usize,
    paths: usize,
    events: u64,
    attributed: u64,
    ended: u64,
    lost: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    skipped: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    failed: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    incomplete: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    not_watched: BTreeMap<String, String>,
}

/// By unit, why it was left out or what went wrong with it.
type Reasons = BTreeMap<String, String>;

/// How often a unit is reloaded and restarted until nothing is missed of what it opens.
const ATTEMPTS_MAX: usize = 3;

/// What went wrong with units.
#[derive(Debug, Default)]
struct Troubles {
    /// They could not be reloaded or restarted.
    failed: Reasons,
    /// What they were not seen to read may have been read all the same.
    incomplete: Reasons,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Done, Failure> {
    // Before anything is done: no service manager, a map that cannot be added to.
    systemd::starts()?;
    let mut map = if args.add { known(&args.out)? } else { ReadMap::new() };
    let recorder = Recorder::start(&Options::default())?;
    let (mut skipped, mut troubles) = (Reasons::new(), Troubles::default());
    let units = match (args.each_unit, args.unit.as_slice()) {
        (true, _) => systemd::running_services(&mut skipped)?,
        (false, []) => Vec::new(),
        (false, names) => systemd::named(names)?,
    };
    let starts = if args.each_unit || !args.unit.is_empty() {
        exercise(&recorder, &units, args, context, &mut troubles)?;
        Starts::new()
    } else {
        let _step = Step::new(context, "recording, Ctrl-C ends it".to_owned());
        attend(&recorder, args)?;
        systemd::starts()?
    };
    let recorded = recorder.finish()?;
    map.merge(&recorded.map(&starts));
    let text = map.to_json().map_err(|error| {
        Failure::new("cannot write so much").caused_by(error).hint("record fewer units")
    })?;
    vireo_sys::durable::replace(&args.out, text.as_bytes())
        .map_err(|error| Failure::io("write", &args.out, error))?;
    Ok(Done::new(args.out.clone(), &map, &recorded, skipped, troubles))
}

/// The map that is there, to be added to; an empty one if there is none.
fn known(path: &Path) -> Result<ReadMap, Failure> {
    match fs::read(path) {
        Ok(text) => ReadMap::from_json(&text).map_err(|error| {
            Failure::refused(format!("cannot add to {}", path.display())).caused_by(error)
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(ReadMap::new()),
        Err(error) => Err(Failure::io("read", path, error)),
    }
}

/// Reloads and restarts each unit by itself, then runs the command while they are left alone. A
/// unit that cannot be reloaded or restarted is told and does not stop the others.
fn exercise(
    recorder: &Recorder,
    units: &[systemd::Service],
    args: &Args,
    context: &Context,
    troubles: &mut Troubles,
) -> Result<(), Failure> {
    for service in units {
        let name = service.unit.to_string();
        let phases = [(Phase::Reload, "reload"), (Phase::Start, "try-restart")];
        for (phase, verb) in phases.iter().filter(|(_, verb)| *verb != "reload" || service.reloads)
        {
            let _step = Step::new(context, format!("{verb} {name}"));
            let mut whole = false;
            for _ in 0..ATTEMPTS_MAX {
                recorder.watch([&service.unit], *phase)?;
                let result = systemd::run(&[verb, "--", &name]);
                recorder.wait_quiet();
                if let Err(why) = result.and_then(|_| systemd::run(&["is-active", "--", &name])) {
                    recorder.pause()?;
                    troubles.failed.insert(name.clone(), format!("{verb}: {why}"));
                    break;
                }
                whole = recorder.complete()?;
                if whole {
                    break;
                }
            }
            if !whole && !troubles.failed.contains_key(&name) {
                let why =
                    format!("{verb}: processes ended before it could be seen whose they were");
                troubles.incomplete.insert(name.clone(), why);
            }
        }
    }
    if !args.command.is_empty() {
        let _step = Step::new(context, args.command.join(" "));
        recorder.watch(units.iter().map(|service| &service.unit), Phase::Run)?;
        command(&args.command)?;
        recorder.wait_quiet();
        // What is read when it is needed is seen, not concluded from what is not.
        recorder.complete()?;
    }
    Ok(())
}

/// Watches everybody while the command runs, or until it is told to end.
fn attend(recorder: &Recorder, args: &Args) -> Result<(), Failure> {
    recorder.watch_all()?;
    if args.command.is_empty() {
        wait_for_end(args.seconds.map(Duration::from_secs))?;
    } else {
        command(&args.command)?;
        recorder.wait_quiet();
    }
    Ok(())
}

fn command(words: &[String]) -> Result<(), Failure> {
    let (program, arguments) = words.split_first().ok_or_else(|| Failure::new("no command"))?;
    let status = Command::new(program)
        .args(arguments)
        // What it prints is no part of the report.
        .stdout(std::io::stderr())
        .status()
        .map_err(|error| Failure::io("run", Path::new(program), error))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("{program} failed ({status}); nothing was written")))
}

/// Until Ctrl-C, or the service manager's request to end, or for `most`.
fn wait_for_end(most: Option<Duration>) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| Failure::new("cannot wait for signals").caused_by(error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(failed)?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let time = async {
            match most {
                Some(most) => tokio::time::sleep(most).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = time => {}
        }
        Ok(())
    })
}

impl Done {
    fn new(
        file: PathBuf,
        map: &ReadMap,
        recorded: &Recorded,
        skipped: Reasons,
        troubles: Troubles,
    ) -> Self {
        let Troubles { failed, incomplete } = troubles;
        let Counts { events, attributed, ended, lost, .. } = recorded.counts();
        Self {
            file,
            units: map.units().count(),
            paths: map.len(),
            events,
            attributed,
            ended,
            lost,
            skipped,
            failed,
            incomplete,
            not_watched: recorded.not_watched(),
        }
    }
}

impl Report for Done {
    fn to_text(&self) -> String {
        let mut text = format!(
            "{}  {} files and directories that {} units read\n{} events, {} of the units, {} of processes that had ended, {} lost",
            self.file.display(),
            self.paths,
            self.units,
            self.events,
            self.attributed,
            self.ended,
            self.lost
        );
        for (what, list) in [
            ("left out", &self.skipped),
            ("failed", &self.failed),
            ("incomplete", &self.incomplete),
            ("not watched", &self.not_watched),
        ] {
            for (name, why) in list {
                text.push_str(&format!("\n{what:<11} {name}: {why}"));
            }
        }
        text
    }

    fn to_json(&self) -> String {
        json("vireo.record/1", self)
    }

    /// A unit that did not come back is no success.
    fn exit_code(&self) -> ExitCode {
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
    }
}
