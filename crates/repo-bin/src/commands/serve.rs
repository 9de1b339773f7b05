//! `vireo-repo serve`

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use vireo_cloud::Local;
use vireo_repo::Event;
use vireo_repo::serve::Server;
use vireo_repo::{ImageBuilder, WorkerImages};

use super::Data;
use crate::exit::Failure;
use crate::report::{self, Report};

/// Serve a repository over HTTPS
///
/// Prints its address when it is ready, and what happens to the standard error. Works on disk images in
/// processes of their own, which can do little else; as root by mounting them, else by debugfs(8). SIGTERM and SIGINT end it after the requests that run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data: Data,
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "VIREO_LISTEN", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// One more DNS name or IP address that machines reach the server by
    #[arg(long = "listen-name", value_name = "NAME")]
    names: Vec<String>,
    /// Directory where every newest disk image is put for launching, under IMAGE/current
    #[arg(long, value_name = "DIR", env = "VIREO_LAUNCH_DIR")]
    launch_dir: Option<PathBuf>,
    /// Work on disk images in this process instead of in confined ones, one for each job
    #[arg(long)]
    no_worker: bool,
    #[cfg(feature = "ec2")]
    #[command(flatten)]
    ec2: super::ec2::Place,
}

/// The server is ready.
#[derive(Debug, Serialize)]
struct Listening {
    url: String,
    data: PathBuf,
}

impl Report for Listening {
    const SCHEMA: &'static str = "vireo.serve/1";
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "serving {} at {}", self.data.display(), self.url)
    }
}

pub(crate) fn run(args: &Args, json: bool) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "warning: not run as root: images are patched by debugfs, without names that have a line end"
        );
    }
    let observer = move |event: &Event| log(event, json);
    let opened = if args.no_worker { args.data.open()? } else { args.data.open_with(workers()?)? };
    let mut repository = opened.with_observer(Arc::new(observer));
    if let Some(dir) = &args.launch_dir {
        repository = repository.with_cloud(Arc::new(Local::new(dir)));
    }
    #[cfg(feature = "ec2")]
    if let Some(ec2) = args.ec2.connect(&args.data.dir, json)? {
        if args.launch_dir.is_some() {
            let both = "machines start from --launch-dir or from --ec2, not from both";
            return Err(Failure::usage(both.to_owned()));
        }
        repository = repository.with_cloud(Arc::new(ec2));
    }
    let swept = repository.sweep()?;
    for path in &swept.removed {
        eprintln!("removed {}, which an interrupted run left", path.display());
    }
    for path in &swept.detached {
        eprintln!("detached {}, which an interrupted run left attached", path.display());
    }
    for path in &swept.in_use {
        eprintln!("warning: {} is still attached: something uses it", path.display());
    }
    let server = Server::bind(Arc::new(repository), args.listen, &args.names)?;
    let url = format!("https://{}", server.local_addr());
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::io("start threads for", &args.data.dir, &error))?;
    runtime.block_on(async {
        let stop = Stop::new()
            .map_err(|error| Failure::io("wait for signals at", &args.data.dir, &error))?;
        report::print(&Listening { url, data: args.data.dir.clone() }, json)?;
        let repository = server.repository();
        // Nobody waits for its end: what it was at is completed after the next start.
        std::thread::spawn(move || repository.keep_launched());
        server.run(stop.wait()).await?;
        Ok(())
    })
}

/// Workers, if they can be confined here.
fn workers() -> Result<Box<dyn ImageBuilder>, Failure> {
    let workers = WorkerImages::default();
    let confinement = workers.probe()?;
    if !confinement.is_tight() {
        return Err(Failure::refused(format!(
            "processes that work on disk images cannot be confined on this host ({confinement:?}); \
             --no-worker does without"
        )));
    }
    Ok(Box::new(workers))
}

struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    schema: &'static str,
    time: Timestamp,
    #[serde(flatten)]
    event: &'a Event,
}

fn log(event: &Event, json: bool) {
    let time = Timestamp::now();
    if !json {
        eprintln!("{time:.0} {event}");
        return;
    }
    let line = Line { schema: "vireo.event/1", time, event };
    match serde_json::to_string(&line) {
        Ok(line) => eprintln!("{line}"),
        Err(error) => eprintln!("{time:.0} {event} (no JSON: {error})"),
    }
}
