use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{Context, block_on};
use crate::exit::{Failure, Output};

/// Wait for new versions and apply them, until told to stop
///
/// Made for the service manager: SIGTERM or SIGINT stops it when the update under way, if any,
/// is over. One line per event goes to stderr.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(super) fn run(_args: &Args, context: &Context) -> Result<Output, Failure> {
    let session = context.session()?;
    block_on(async {
        let (stopper, stop) = watch::channel(false);
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))
        };
        let (mut term, mut int) =
            (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            // If nobody listens any more it has stopped already.
            let _ = stopper.send(true);
            // A second signal must not end an update either: keep taking them.
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
            }
        });
        Ok(session.run(stop).await?)
    })?;
    Output::new(String::new(), &serde_json::json!({"schema": "vireo.stopped/1"}))
}
