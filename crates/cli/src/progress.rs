//! Progress on standard error, where a person watches.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::Context;

const TICK: Duration = Duration::from_millis(100);

/// A line that shows what is being done; gone when dropped. Invisible when nobody watches.
#[derive(Debug)]
pub(crate) struct Step(ProgressBar);

impl Step {
    pub(crate) fn new(context: &Context, what: impl Into<String>) -> Self {
        if context.quiet || !stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner().with_message(what.into());
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Another thing is being done now.
    pub(crate) fn set(&self, what: impl Into<String>) {
        self.0.set_message(what.into());
    }

    /// Bytes done of those to do.
    pub(crate) fn bytes(&self, done: u64, total: Option<u64>) {
        if let Some(total) = total.filter(|_| self.0.length().is_none()) {
            let template = "{msg} {wide_bar} {bytes}/{total_bytes}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.0.set_style(style);
            }
            self.0.set_length(total);
        }
        self.0.set_position(done);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
