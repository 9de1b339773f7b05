use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use vireo_agent::is_own_root;
use vireo_agent::learn::learn;

use super::{Context, block_on};
use crate::exit::{Failure, Output};

/// Learn on this machine which service reads which file, for the plans of later updates
///
/// Watches for a while and keeps what services read while they started; what starts at another time is not
/// learned. Nothing is restarted and nobody's access is delayed. The read map that comes with a version
/// counts as well.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Watch for so many seconds; until SIGINT or SIGTERM without it
    #[arg(long = "for", value_name = "SECONDS", value_parser = super::seconds())]
    seconds: Option<u64>,
    /// Forget what was learned instead
    #[arg(long, conflicts_with = "seconds")]
    forget: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Output, Failure> {
    if args.forget {
        context.state.forget_learned()?;
        let done = json!({"schema": "vireo.learned/1", "forgotten": true});
        return Output::new("what was learned is forgotten\n".to_owned(), &done);
    }
    if !is_own_root(&context.root) {
        return Err(Failure::new("only the machine that runs can be watched: do without --root"));
    }
    let mut outcome = Ok(());
    let most = args.seconds.map(Duration::from_secs);
    let learned = learn(&context.state, || outcome = wait_for_end(most))?;
    outcome?;
    let mut text = format!(
        "{} services started and were seen; {} files and directories of {} services are known\n\
         {} events, {} of the units, {} of processes that had ended, {} lost\n",
        learned.new_units,
        learned.paths,
        learned.units,
        learned.events,
        learned.attributed,
        learned.ended,
        learned.lost
    );
    for (mount_point, why) in &learned.not_watched {
        text.push_str(&format!("not watched {mount_point}: {why}\n"));
    }
    let mut done = serde_json::to_value(&learned)
        .map_err(|error| Failure::new(format!("cannot say what was learned: {error}")))?;
    done["schema"] = "vireo.learned/1".into();
    Output::new(text, &done)
}

/// Says that it watches, then waits; a request to end is one to keep what was seen.
fn wait_for_end(most: Option<Duration>) -> Result<(), Failure> {
    block_on(async {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))
        };
        let (mut term, mut int) =
            (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        // Services that wait for this one may start now; nobody need listen.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let time = async {
            match most {
                Some(most) => tokio::time::sleep(most).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = time => {}
        }
        Ok(())
    })
}
