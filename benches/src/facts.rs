//! Who of thousands of processes holds a replaced library, beside the tools that ask the same; and
//! the plan for thousands of changed files.
//!
//! The processes are real ones, in a process name space of their own, so that every contestant sees
//! exactly them: each loads two dozen libraries, and a few of them one that is then replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use vireo_agent::{LiveSystem, SystemView as _};
use vireo_classify::{
    ChangedFile, Facts, FileId, Phase, Planner, Policy, ReadMap, Unit, UnitFacts, parse_maps,
};
use vireo_model::{ChangeKind, ImagePath};
use vireo_sys::procmap::FileMappings;
use vireo_testkit::{Key, Run, SUITE, Sources};

use crate::bench::Bench;
use crate::contest::{self, Contestant, Done, Sample, hold};
use crate::measured::{argv, run};
use crate::report::Section;

const TOOLS: &str = include_str!("../recipes/tools.sh");

/// Processes, and those of a quick run.
const PROCESSES: usize = 3000;
const PROCESSES_QUICK: usize = 200;

/// Libraries that each loads beside its own; each is mapped in five parts.
const LIBRARIES: usize = 22;

/// Of so many processes one holds a library that is replaced. Few, because needrestart asks the
/// package manager about each, which is another matter than finding it.
const HOLDERS_EACH: usize = 1000;

/// Changed files of the plan.
const CHANGES: usize = 5000;

/// Units that run when it is made.
const UNITS: usize = 200;

/// Longest for the tools to be fetched, and for the crowd to be looked at by all.
const FETCH_DEADLINE: Duration = Duration::from_secs(900);

/// What the crowd's first process found.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Found {
    processes: usize,
    mappings: usize,
    holders: usize,
    /// Seconds of each round, by contestant.
    seconds: BTreeMap<String, Vec<f64>>,
}

const OURS: &str = "vireo: facts (holders of replaced files)";
const NEEDRESTART: &str = "needrestart -b -l";
const CHECKRESTART: &str = "checkrestart";
const QUERY: &str = "of ours: mappings alone, PROCMAP_QUERY, one thread";
const TEXT: &str = "of ours: mappings alone, as text, one thread";

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Section>> {
    Ok(vec![holders_section(bench)?, plan_section(bench)?])
}

fn holders_section(bench: &Bench) -> anyhow::Result<Section> {
    let dir = bench.path("crowd");
    fs::create_dir(&dir).context("cannot make the crowd's directory")?;
    let tools = tools(bench)?;
    let root = dir.join("root");
    fs::create_dir(&root).context("cannot make the tools' root")?;
    Run::new("tar").arg("-xf").arg(&tools).arg("-C").arg(&root).text()?;
    let own = std::env::current_exe().context("cannot find the running program")?;
    let mut argv =
        argv!["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", own, "crowd"];
    argv.extend(argv![&dir, bench.rounds.to_string()]);
    if bench.quick {
        argv.push("--quick".into());
    }
    let printed = run(bench.dir(), argv)?;
    let found: Found = serde_json::from_str(&printed).context("what the crowd printed")?;
    fs::remove_dir_all(&dir).context("cannot remove the crowd's directory")?;
    let done = [OURS, NEEDRESTART, CHECKRESTART, QUERY, TEXT].into_iter().filter_map(|name| {
        let seconds = found.seconds.get(name)?;
        let sample = |seconds: &f64| Sample { seconds: *seconds, ..Sample::default() };
        let ours = name.contains("ours") || name == OURS;
        let samples = seconds.iter().map(sample).collect();
        Some(Done { name: name.to_owned(), ours, samples, ..Done::default() })
    });
    let rows = contest::rows(&done.collect::<Vec<_>>());
    let about = format!(
        "{} processes with {} mappings, of which {} hold a library that was replaced; no service \
         manager runs there. Every contestant looks at the same processes in turn, and each has \
         to find the holders.",
        found.processes, found.mappings, found.holders
    );
    let left_out = if bench.quick { vec![CHECKRESTART.to_owned()] } else { Vec::new() };
    Ok(Section { name: "Facts", about, rows, left_out })
}

/// A root with the other tools, as a tar archive from the cache.
fn tools(bench: &Bench) -> anyhow::Result<PathBuf> {
    let sources = Sources::of_host()?;
    let key = Key::of(TOOLS).and(SUITE).and(&sources.main).and_week();
    Ok(bench.cache.entry("restart-tools", "tar", &key, |out| {
        let run = Run::script("tools.sh", TOOLS).arg(out).arg(bench.cache.subdir("debs")?);
        run.args([&sources.main, SUITE]).deadline(FETCH_DEADLINE).text().map(drop)
    })?)
}

/// The first process of the name space: fills it, measures, prints what it found. All others end
/// with it.
pub(crate) fn crowd(dir: &Path, rounds: usize, quick: bool) -> anyhow::Result<()> {
    let libraries = make_libraries(dir)?;
    let processes = if quick { PROCESSES_QUICK } else { PROCESSES };
    let _crowd = start(processes, &libraries)?;
    let mut found =
        Found { processes, holders: processes.div_ceil(HOLDERS_EACH), ..Found::default() };
    let wanted = wait_for(processes, &libraries)?;
    found.mappings = wanted;
    let special = &libraries[LIBRARIES];
    let before = fs::metadata(special).context("cannot look at the library")?;
    // Kept by another name, as an update keeps it for its undo, and replaced by a rename.
    fs::hard_link(special, dir.join("kept.so")).context("cannot keep the library")?;
    fs::copy(&libraries[0], dir.join("next.so")).context("cannot copy the library")?;
    fs::rename(dir.join("next.so"), special).context("cannot replace the library")?;
    let file = format!("{}:{}", before.dev(), before.ino());

    let root = dir.join("root");
    let proc = root.join("proc");
    Run::new("mount").args(["-t", "proc", "proc"]).arg(&proc).text()?;
    for round in 0..rounds {
        for name in [OURS, NEEDRESTART, CHECKRESTART, QUERY, TEXT] {
            if quick && name == CHECKRESTART {
                continue;
            }
            let started = Instant::now();
            let answer = contestant(name, &root, &file)?;
            let seconds = started.elapsed().as_secs_f64();
            if round == 0 {
                check(name, &answer, &root, found.holders)?;
            }
            eprintln!("{:>3}/{rounds} {name:<58} {seconds:8.3} s", round + 1);
            found.seconds.entry(name.to_owned()).or_default().push(seconds);
        }
    }
    Run::new("umount").arg(&proc).text()?;
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

fn contestant(name: &str, root: &Path, file: &str) -> anyhow::Result<String> {
    let own = || std::env::current_exe().context("cannot find the running program");
    let command = match name {
        OURS => Run::new(own()?).args(["holders", file]),
        NEEDRESTART => Run::new("chroot").arg(root).args(["needrestart", "-b", "-l"]),
        CHECKRESTART => Run::new("chroot").arg(root).args(["checkrestart", "-a"]),
        QUERY => return mapped(|maps| FileMappings::of(maps.as_fd()).count()),
        _ => {
            return mapped(|mut maps| {
                use std::io::Read as _;
                let mut text = Vec::new();
                // A process that has ended meanwhile maps nothing.
                let _ = maps.read_to_end(&mut text);
                parse_maps(&text).files.len()
            });
        }
    };
    let output = command.deadline(FETCH_DEADLINE).output()?;
    ensure!(output.success(), "{name} failed\n{}", output.tail());
    Ok(output.stdout)
}

/// Hands the maps of all processes to `count`; gives the sum.
fn mapped(count: impl Fn(&fs::File) -> usize) -> anyhow::Result<String> {
    let mut sum = 0;
    for entry in fs::read_dir("/proc").context("cannot list processes")?.flatten() {
        let maps = entry.path().join("maps");
        if entry.file_name().to_string_lossy().parse::<u32>().is_ok()
            && let Ok(maps) = fs::File::open(maps)
        {
            sum += count(&maps);
        }
    }
    Ok(sum.to_string())
}

/// Expects that a contestant found what there is to be found.
fn check(name: &str, answer: &str, root: &Path, holders: usize) -> anyhow::Result<()> {
    match name {
        OURS => ensure!(answer.trim() == holders.to_string(), "{answer} of {holders} found"),
        NEEDRESTART => {
            // Its short answer names services alone; with -v it names the processes.
            let verbose = Run::new("chroot").arg(root).args(["needrestart", "-b", "-l", "-v"]);
            let output = verbose.deadline(FETCH_DEADLINE).output()?;
            let text = format!("{}{}", output.stdout, output.tail());
            ensure!(text.contains("exe => "), "needrestart found nothing: {}", output.tail());
        }
        CHECKRESTART => {
            ensure!(answer.contains("Found ") && !answer.contains("Found 0 "), "{answer}");
        }
        _ => ensure!(answer.parse::<usize>().is_ok_and(|sum| sum > holders), "{answer} mappings"),
    }
    Ok(())
}

/// The libraries that all load, and as the last one that which some load.
fn make_libraries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let found = Run::script("find", "ls /usr/lib/*/libz.so.1 | head -1").text()?;
    let make = |number: usize| {
        let path = dir.join(format!("lib{number}.so"));
        fs::copy(found.trim(), &path).context("cannot copy a library").map(|_| path)
    };
    (0..=LIBRARIES).map(make).collect()
}

/// Processes that do nothing; they end with the name space.
fn start(count: usize, libraries: &[PathBuf]) -> anyhow::Result<Vec<Child>> {
    let list = |libraries: &[PathBuf]| {
        libraries.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
    };
    let (common, all) = (list(&libraries[..LIBRARIES]), list(libraries));
    let start = |number: usize| {
        let preload = if number.is_multiple_of(HOLDERS_EACH) { &all } else { &common };
        let mut command = Command::new("sleep");
        command.arg("100000").env("LD_PRELOAD", preload).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().context("cannot start a process")
    };
    (0..count).map(start).collect()
}

/// Waits until all have loaded their libraries; gives the number of mappings.
fn wait_for(count: usize, libraries: &[PathBuf]) -> anyhow::Result<usize> {
    let last = libraries[LIBRARIES - 1].display().to_string();
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let (mut ready, mut mappings) = (0, 0);
        for entry in fs::read_dir("/proc").context("cannot list processes")?.flatten() {
            let text = fs::read_to_string(entry.path().join("maps")).unwrap_or_default();
            ready += usize::from(text.contains(&last) && text.contains("/sleep"));
            mappings += text.lines().count();
        }
        if ready >= count {
            return Ok(mappings);
        }
        if Instant::now() > until {
            bail!("only {ready} of {count} processes have loaded their libraries");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What the agent does before it plans, as a program of its own.
pub(crate) fn holders(files: &[String]) -> anyhow::Result<()> {
    let parse = |text: &String| {
        let (dev, ino) = text.split_once(':')?;
        Some(FileId { dev: dev.parse().ok()?, ino: ino.parse().ok()? })
    };
    let files: Option<BTreeSet<FileId>> = files.iter().map(parse).collect();
    let facts = LiveSystem::default().facts(&files.context("a file is DEVICE:INODE")?)?;
    println!("{}", facts.processes.len());
    Ok(())
}

/// The plan for thousands of files of all kinds, on a machine with many units and a full read map.
fn plan_section(bench: &Bench) -> anyhow::Result<Section> {
    let (facts, reads, changes) = machine()?;
    let policy = Policy::default();
    let planner = Planner::new(&policy).with_reads(&reads);
    let acting = planner.plan(&changes, &facts).units.len();
    ensure!(acting > UNITS / 2, "{acting} units act");
    let run = |_| {
        Sample::time(|| {
            let plan = planner.plan(&changes, &facts);
            ensure!(plan.units.len() == acting, "another plan");
            Ok(())
        })
    };
    let name = format!("vireo: plan of {CHANGES} changed files");
    let (rows, left_out) =
        hold(bench, vec![Contestant::ours(name, run).amount(CHANGES as f64, "files")])?;
    let about = format!(
        "In memory: {UNITS} running units, a read map of {} paths; {acting} units need something.",
        reads.len()
    );
    Ok(Section { name: "Plan", about, rows, left_out })
}

/// Facts, read map and changes: of each unit some configuration, scripts and pages.
fn machine() -> anyhow::Result<(Facts, ReadMap, Vec<ChangedFile>)> {
    let (mut facts, mut reads, mut changes) = (Facts::new(), ReadMap::new(), Vec::new());
    facts.manager = true;
    for number in 0..UNITS {
        let unit = Unit::new(format!("app{number}.service"));
        facts =
            facts.with_unit(UnitFacts { can_reload: true, ..UnitFacts::running(unit.as_str()) });
        reads.watched(&unit, Phase::Start);
        for file in 0..CHANGES / UNITS {
            let path = match file % 4 {
                0 => format!("/etc/app{number}/conf.d/{file}.conf"),
                1 => format!("/opt/app{number}/lib/module{file}.py"),
                2 => format!("/usr/share/app{number}/template{file}.html"),
                _ => format!("/usr/lib/app{number}/libplugin{file}.so"),
            };
            let path = ImagePath::parse(path.as_bytes()).context("a path")?;
            reads.add_file(&path, &unit, Phase::Start);
            changes.push(ChangedFile::new(path, ChangeKind::Modified));
        }
    }
    Ok((facts, reads, changes))
}
