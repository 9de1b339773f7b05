//! What recording costs the machine that is recorded: the same work with and without, in pairs.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use vireo_testkit::image::{BaseImage, clone_image};
use vireo_testkit::{Guest, Lab, Nspawn, fixture};

use crate::bench::Bench;
use crate::contest::{self, Done, Sample};
use crate::report::{Section, Spread};

const TOOLCHAIN: &str = include_str!("../recipes/toolchain.sh");

/// Pairs in each of the bench's rounds: the difference is small.
const PAIRS: usize = 10;

/// Longest for one run of the work.
const DEADLINE: Duration = Duration::from_secs(120);

const WORK: [&str; 2] = ["sh", "/opt/build/work.sh"];

/// Who logs in works in a scope of its own, not in the service manager's.
const LOGIN: [&str; 4] = ["systemd-run", "--scope", "--quiet", "--slice=user.slice"];

/// What one run of the work took, in seconds.
struct Took {
    seconds: f64,
    /// Of all processors, for everything in the guest.
    cpu: f64,
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let lab = Lab::new(&bench.cache)?;
    let disk = lab.dir().join("recorded.img");
    clone_image(&BaseImage::default().build(&bench.cache)?, &disk)?;
    fixture::edit(&disk, 0, TOOLCHAIN, &[])?;
    let mut guest = Nspawn::new(&lab, &disk)?;
    guest.start()?;
    let program = fs::read(&bench.vireo).context("cannot read vireo")?;
    let put = "cat > /tmp/vireo; chmod 755 /tmp/vireo";
    guest.exec_with(&["sh", "-c", put], &program, DEADLINE)?;
    // The first run reads everything from the disk.
    work(&guest, false)?;
    let (mut plain, mut recorded) = (Vec::new(), Vec::new());
    for pair in 0..bench.rounds * PAIRS {
        // Whoever comes second finds the machine as the first left it: they take turns.
        let first = pair % 2 == 0;
        let one = work(&guest, first)?;
        let two = work(&guest, !first)?;
        let (with, without) = if first { (one, two) } else { (two, one) };
        eprintln!(
            "{:>3} recorded {:.3} s, {:.3} of the processors; not recorded {:.3} s, {:.3}",
            pair + 1,
            with.seconds,
            with.cpu,
            without.seconds,
            without.cpu
        );
        recorded.push(with);
        plain.push(without);
    }
    drop(guest);
    lab.finish()?;
    let pairs = recorded.iter().zip(&plain);
    let percent = |ratios: &mut dyn Iterator<Item = f64>| (Spread::of(ratios).median - 1.0) * 100.0;
    let cost = percent(&mut pairs.clone().map(|(with, without)| with.seconds / without.seconds));
    let cpu = percent(&mut pairs.map(|(with, without)| with.cpu / without.cpu));
    let count = plain.len();
    let samples = |all: Vec<Took>| {
        all.into_iter().map(|took| Sample { seconds: took.seconds, ..Sample::default() }).collect()
    };
    let done = [
        Done {
            name: "the work, recorded".to_owned(),
            ours: true,
            samples: samples(recorded),
            ..Done::default()
        },
        Done { name: "the work alone".to_owned(), samples: samples(plain), ..Done::default() },
    ];
    let about = format!(
        "40 C files of 20 headers each compiled, nginx reloaded and nginx and sshd restarted four \
         times, in a container with real systemd; {count} pairs, in turns. Recording costs \
         {cost:.1} % of the time and {cpu:.1} % of the processors (medians of the pairs' ratios)."
    );
    Ok(Section { name: "Record", about, rows: contest::rows(&done), left_out: Vec::new() })
}

/// Does the work, recorded or not; gives the seconds it took, by the clock and of all processors,
/// without starting the recorder and writing the map.
fn work(guest: &dyn Guest, recorded: bool) -> anyhow::Result<Took> {
    let record = ["/tmp/vireo", "record", "-o", "/tmp/map.json", "--quiet", "--"];
    let record: &[&str] = if recorded { &record } else { &[] };
    let argv = [&LOGIN, record, &WORK].concat();
    let output = guest.exec_with(&argv, &[], DEADLINE)?;
    ensure!(output.success(), "the work failed\n{}", output.tail());
    let took = guest.exec(&["cat", "/tmp/took"])?.stdout;
    let micros = |field: Option<&str>| -> anyhow::Result<f64> {
        field.and_then(|field| field.parse().ok()).with_context(|| format!("it took {took:?}"))
    };
    let mut fields = took.split_whitespace();
    let (seconds, cpu) = (micros(fields.next())? / 1e6, micros(fields.next())? / 1e6);
    if recorded {
        let map = guest.exec(&["grep", "-c", "/etc/nginx/nginx.conf", "/tmp/map.json"])?;
        ensure!(map.success(), "nginx's configuration was not seen");
    }
    Ok(Took { seconds, cpu })
}
