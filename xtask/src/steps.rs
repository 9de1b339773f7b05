//! Steps of a long command, shown while they run and timed.

use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Time between two pictures of the spinner.
const TICK: Duration = Duration::from_millis(100);

/// Runs steps one after the other: a spinner on a terminal, one line per finished step elsewhere, on
/// standard error.
#[derive(Debug)]
pub(crate) struct Steps {
    total: usize,
    done: Vec<Step>,
}

/// A finished step.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
}

impl Steps {
    /// Shows "n of `total`".
    pub(crate) fn new(total: usize) -> Self {
        Self { total, done: Vec::new() }
    }

    /// Does `work`, called `name`, which then also begins the message of its error.
    pub(crate) fn run<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let spinner = self.spinner(name);
        let started = Instant::now();
        let result = work();
        let seconds = started.elapsed().as_secs_f64();
        spinner.finish_and_clear();
        let mark = if result.is_ok() { "done" } else { "FAILED" };
        eprintln!("{:>3}/{} {name:<44} {mark:<6} {seconds:6.2} s", self.done.len() + 1, self.total);
        self.done.push(Step { name, seconds });
        result.with_context(|| format!("step {name:?}"))
    }

    /// What was done so far.
    pub(crate) fn done(&self) -> &[Step] {
        &self.done
    }

    fn spinner(&self, name: &'static str) -> ProgressBar {
        if !stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{pos:>3}/{len} {msg:<44} {spinner} {elapsed}");
        let bar = ProgressBar::new(self.total as u64);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_position(self.done.len() as u64 + 1);
        bar.set_message(name);
        bar.enable_steady_tick(TICK);
        bar
    }
}
