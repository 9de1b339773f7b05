//! Contestants that take turns.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;

use crate::bench::Bench;
use crate::measured::Usage;
use crate::report::{Row, Spread};

/// Exact figures of one run, by name; names that end in `_bytes` are shown as such.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// One run of one contestant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// Only of separate processes.
    pub(crate) used: Option<Usage>,
    pub(crate) counts: Counts,
}

impl Sample {
    /// A process's, with figures of its own.
    pub(crate) fn of(used: Usage, counts: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        Self { seconds: used.wall_seconds, used: Some(used), counts: counts.into_iter().collect() }
    }

    /// The time of `work`, done in this process.
    pub(crate) fn time(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let started = Instant::now();
        work()?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Self { seconds, ..Self::default() })
    }
}

/// Whether a run's result is still to be compared with what it should be: of each contestant the
/// first.
pub(crate) type Check = bool;

/// Somebody who can do the task.
pub(crate) struct Contestant<'a> {
    name: String,
    ours: bool,
    slow: bool,
    once: bool,
    /// Work of one run, for the rate: how much, in which unit.
    amount: Option<(f64, &'static str)>,
    run: Box<dyn FnMut(Check) -> anyhow::Result<Sample> + 'a>,
}

impl<'a> Contestant<'a> {
    /// Vireo. The first of these is what the others are compared with.
    pub(crate) fn ours(
        name: impl Into<String>,
        run: impl FnMut(Check) -> anyhow::Result<Sample> + 'a,
    ) -> Self {
        Self { ours: true, ..Self::other(name, run) }
    }

    /// Anybody else.
    pub(crate) fn other(
        name: impl Into<String>,
        run: impl FnMut(Check) -> anyhow::Result<Sample> + 'a,
    ) -> Self {
        let (ours, slow, once, amount) = (false, false, false, None);
        Self { name: name.into(), ours, slow, once, amount, run: Box::new(run) }
    }

    /// Left out of quick runs, visibly.
    pub(crate) fn slow(mut self) -> Self {
        self.slow = true;
        self
    }

    /// Runs in the first round alone: it takes minutes, and its bytes are what matters.
    pub(crate) fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// Each run does `amount` of `unit`: its rate is shown.
    pub(crate) fn amount(mut self, amount: f64, unit: &'static str) -> Self {
        self.amount = Some((amount, unit));
        self
    }
}

/// Lets all run in turns; gives a row of each that ran and the names of those left out.
pub(crate) fn hold(
    bench: &Bench,
    contestants: Vec<Contestant<'_>>,
) -> anyhow::Result<(Vec<Row>, Vec<String>)> {
    let (left_out, mut running): (Vec<_>, Vec<_>) =
        contestants.into_iter().partition(|contestant| bench.quick && contestant.slow);
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); running.len()];
    for round in 0..bench.rounds {
        for (contestant, samples) in running.iter_mut().zip(&mut samples) {
            if contestant.once && round > 0 {
                continue;
            }
            let sample = (contestant.run)(round == 0).with_context(|| contestant.name.clone())?;
            eprintln!(
                "{:>3}/{} {:<58} {:8.3} s",
                round + 1,
                bench.rounds,
                contestant.name,
                sample.seconds
            );
            samples.push(sample);
        }
    }
    let done = running.iter().zip(samples).map(|(contestant, samples)| {
        let Contestant { name, ours, amount, .. } = contestant;
        Done { name: name.clone(), ours: *ours, amount: *amount, samples }
    });
    Ok((
        rows(&done.collect::<Vec<_>>()),
        left_out.into_iter().map(|contestant| contestant.name).collect(),
    ))
}

/// What somebody did, in all rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    pub(crate) name: String,
    pub(crate) ours: bool,
    pub(crate) amount: Option<(f64, &'static str)>,
    pub(crate) samples: Vec<Sample>,
}

/// A row of each; the first of ours is what all are compared with.
pub(crate) fn rows(done: &[Done]) -> Vec<Row> {
    let reference = done.iter().find(|done| done.ours).map(|done| seconds(&done.samples).median);
    done.iter().map(|done| row(done, reference)).collect()
}

fn seconds(samples: &[Sample]) -> Spread {
    Spread::of(samples.iter().map(|sample| sample.seconds))
}

fn row(done: &Done, reference: Option<f64>) -> Row {
    let samples = &done.samples;
    let seconds = seconds(samples);
    let used: Vec<Usage> = samples.iter().filter_map(|sample| sample.used).collect();
    let cpu = Spread::of(used.iter().map(|used| used.cpu_seconds));
    Row {
        name: done.name.clone(),
        ours: done.ours,
        times_ours: reference.map_or(0.0, |reference| seconds.median / reference),
        cpu_seconds: (!used.is_empty()).then_some(cpu.median),
        peak_bytes: used.iter().map(|used| used.peak_bytes).max(),
        // Exact figures do not vary; where they do, the last is as good as any.
        counts: samples.last().map(|sample| sample.counts.clone()).unwrap_or_default(),
        rate: done.amount.map(|(amount, unit)| (amount / seconds.median, unit)),
        seconds,
    }
}
