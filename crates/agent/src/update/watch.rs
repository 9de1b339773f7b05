//! How long the steps of an update took.

use std::time::Instant;

use crate::receipt::Step;

/// Times of steps.
pub(super) struct Watch {
    start: Instant,
    last: Instant,
    pub(super) steps: Vec<Step>,
}

impl Watch {
    pub(super) fn start() -> Self {
        let now = Instant::now();
        Self { start: now, last: now, steps: Vec::new() }
    }

    pub(super) fn lap(&mut self, name: &str) {
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        self.steps.push(Step { name: name.to_owned(), seconds });
        self.last = now;
    }

    pub(super) fn total(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
