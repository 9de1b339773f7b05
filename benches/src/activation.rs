//! From a push to the page that a running machine serves.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use vireo_testkit::image::{Agent, BaseImage, clone_image};
use vireo_testkit::{Guest, HOST_ADDRESS, Lab, Nspawn, Run, programs, update, web};

use crate::bench::{Bench, text};
use crate::contest::{self, Done, Sample};
use crate::report::Section;

/// The image's name in the repository.
const IMAGE: &str = "web";

/// Port of the repository.
const PORT: u16 = 8443;

/// Longest for one command of ours, for the page to be served, for the update to be done.
const DEADLINE: Duration = Duration::from_secs(90);

/// Time between two looks; it bounds the figures' precision.
const POLL: Duration = Duration::from_millis(10);

/// Time for a freshly enrolled agent to be waiting, as it mostly is.
const SETTLE: Duration = Duration::from_secs(1);

const UNITS: [(&str, &str); 2] = [
    ("vireo-agent.service", include_str!("../../crates/agent/vireo-agent.service")),
    ("vireo-agent-recover.service", include_str!("../../crates/agent/vireo-agent-recover.service")),
];

/// What one update took, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    /// The guest's start until its server answered: what replacing its image would cost at least.
    boot: f64,
    /// Until the push returned.
    push: f64,
    /// From the push's start until the new page came.
    served: f64,
    /// From the push's start until the agent had its receipt.
    receipt: f64,
    /// The receipt's steps from the commit on.
    commit: f64,
    activate: f64,
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Section> {
    make_bundle(bench)?;
    let mut runs: Vec<Times> = Vec::new();
    for number in 0..bench.rounds {
        let times = round(bench)?;
        let name = "vireo: from push to the new page served";
        eprintln!("{:>3}/{} {name:<58} {:8.3} s", number + 1, bench.rounds, times.served);
        runs.push(times);
    }
    let done = |name: &str, ours, pick: fn(&Times) -> f64| Done {
        name: name.to_owned(),
        ours,
        samples: runs
            .iter()
            .map(|times| Sample { seconds: pick(times), ..Sample::default() })
            .collect(),
        ..Done::default()
    };
    let rows = contest::rows(&[
        done("vireo: from push to the new page served", true, |times| times.served),
        done("of it: push, in which the image is patched", true, |times| times.push),
        done("of it, in the machine: commit", true, |times| times.commit),
        done("then, in the machine: activate and prove", true, |times| times.activate),
        done("vireo: from push to the machine's receipt", true, |times| times.receipt),
        done("booting the machine anew, its image at hand", false, |times| times.boot),
    ]);
    let left_out = Vec::new();
    let about = "A repository, and a container with real systemd, nginx, sshd and the agent; a new \
                 repository and a new machine in every round.";
    Ok(Section { name: "Activation", about: about.to_owned(), rows, left_out })
}

/// The images with the agent and the bundle between them: `agent-base.img`, `agent.vireo`.
fn make_bundle(bench: &Bench) -> anyhow::Result<()> {
    let units = UNITS.map(|(name, text)| {
        let path = bench.path(name);
        fs::write(&path, text).context("cannot write the agent's units").map(|()| path)
    });
    let units = units.into_iter().collect::<anyhow::Result<_>>()?;
    let agent = Agent { program: programs::find("vireo-agent")?, units };
    let base = BaseImage::with_agent(agent).build(&bench.cache)?;
    clone_image(&base, &bench.path("agent-base.img"))?;
    update::make(&bench.cache, &base, &bench.path("agent-target.img"))?;
    bench.capture("agent-base.img", "agent-target.img", "agent.vireo")?;
    bench.remove("agent-target.img")
}

/// One update, with a repository and a machine that have seen none.
fn round(bench: &Bench) -> anyhow::Result<Times> {
    let lab = Lab::new(&bench.cache)?;
    let times = Scene::new(bench, &lab)?.update()?;
    lab.finish()?;
    Ok(times)
}

/// A running repository that trusts the bench's key.
struct Scene<'a> {
    bench: &'a Bench,
    lab: &'a Lab,
    repo: PathBuf,
    server: Server,
}

impl<'a> Scene<'a> {
    fn new(bench: &'a Bench, lab: &'a Lab) -> anyhow::Result<Self> {
        let repo = programs::find("vireo-repo")?;
        let data = lab.dir().join("repository").to_string_lossy().into_owned();
        let key = format!("@{}", bench.path("key/vireo.pub").display());
        run(lab, &repo, &["init", &data, "--listen-name", &HOST_ADDRESS.to_string()])?;
        run(lab, &repo, &["trust", &key, "--data", &data])?;
        let server = Server::start(lab, &repo)?;
        Ok(Self { bench, lab, repo, server })
    }

    /// One update of one machine.
    fn update(&self) -> anyhow::Result<Times> {
        let base = self.bench.path("agent-base.img");
        let create = self.access(&["image", "create", IMAGE, &base.to_string_lossy()]);
        Run::of(create, "vireo image create").deadline(DEADLINE).text()?;
        let disk = self.lab.dir().join("machine.img");
        clone_image(&base, &disk)?;
        let mut guest = Nspawn::new(self.lab, &disk)?;
        let boot = guest.start()?.as_secs_f64();
        self.enrol(&guest)?;
        std::thread::sleep(SETTLE);
        let times = self.push(&guest)?;
        let page = guest.http_get(web::CHANGED_PAGE)?;
        ensure!(
            page.header(update::RELEASE_HEADER) == Some("2"),
            "the server still has its configuration of the base"
        );
        Ok(Times { boot, ..times })
    }

    fn enrol(&self, guest: &dyn Guest) -> anyhow::Result<()> {
        let data = self.data();
        let made =
            run(self.lab, &self.repo, &["token", "create", "--data", &data, "--image", IMAGE])?;
        let token = text(&made["token"])?;
        agent(guest, &["enroll", &url(), "--token", &token, "--image", IMAGE])?;
        let restarted = guest.exec(&["systemctl", "restart", "vireo-agent"])?;
        ensure!(restarted.success(), "the agent's service does not start\n{}", restarted.tail());
        Ok(())
    }

    /// Pushes while it looks for the page.
    fn push(&self, guest: &dyn Guest) -> anyhow::Result<Times> {
        let started = Instant::now();
        let mut push = self
            .access(&["push", &self.bench.path("agent.vireo").to_string_lossy(), IMAGE])
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run vireo")?;
        let (mut times, mut pushed) = (Times::default(), None);
        while times.served == 0.0 || pushed.is_none() {
            if let (None, Some(status)) = (pushed, push.try_wait()?) {
                ensure!(
                    status.success(),
                    "vireo push failed: {status}\n{}",
                    self.server.log_text()
                );
                pushed = Some(started.elapsed().as_secs_f64());
            }
            let page = guest.http_get(web::ADDED_PAGE);
            // While the server reloads, a request may fail; it is asked again.
            let there =
                page.is_ok_and(|page| page.status == 200 && page.text().contains(web::ADDED_TEXT));
            if there && times.served == 0.0 {
                times.served = started.elapsed().as_secs_f64();
            }
            if started.elapsed() > DEADLINE {
                bail!("the new page is not served after {DEADLINE:?}\n{}", self.agent_log(guest)?);
            }
            std::thread::sleep(POLL);
        }
        times.push = pushed.unwrap_or_default();
        let receipt = self.receipt(guest, started)?;
        times.receipt = started.elapsed().as_secs_f64();
        let step = |name: &str| {
            let steps = receipt["steps"].as_array();
            let step = steps.and_then(|steps| steps.iter().find(|step| step["name"] == name));
            step.and_then(|step| step["seconds"].as_f64())
                .with_context(|| format!("no step {name} in {receipt}"))
        };
        (times.commit, times.activate) = (step("commit")?, step("activate")?);
        Ok(times)
    }

    /// The agent's receipt, when it has one.
    fn receipt(&self, guest: &dyn Guest, started: Instant) -> anyhow::Result<Value> {
        loop {
            let status = agent(guest, &["status"])?;
            if status["last"].is_object() && status["under_way"] == false {
                let outcome = text(&status["last"]["outcome"])?;
                ensure!(
                    outcome == "done" || outcome == "pending",
                    "the update's outcome is {outcome}: {status}"
                );
                return Ok(status["last"].clone());
            }
            if started.elapsed() > DEADLINE {
                bail!("no receipt after {DEADLINE:?}: {status}\n{}", self.agent_log(guest)?);
            }
            std::thread::sleep(POLL);
        }
    }

    fn agent_log(&self, guest: &dyn Guest) -> anyhow::Result<String> {
        Ok(guest.exec(&["journalctl", "--no-pager", "-n", "30", "-u", "vireo-agent"])?.tail())
    }

    /// The repository's directory.
    fn data(&self) -> String {
        self.lab.dir().join("repository").to_string_lossy().into_owned()
    }

    /// `vireo ARGS` with the repository's address and the administrator's token.
    fn access(&self, args: &[&str]) -> Command {
        let mut command = self.lab.command(&self.bench.vireo);
        command.args(args).args([
            "--repo",
            &url(),
            "--token",
            &format!("@{}", self.data() + "/admin-token"),
        ]);
        command.arg("--quiet");
        command
    }
}

fn url() -> String {
    format!("https://{HOST_ADDRESS}:{PORT}")
}

/// Runs a program of the host inside the lab with `--json`.
fn run(lab: &Lab, program: &Path, args: &[&str]) -> anyhow::Result<Value> {
    let mut command = lab.command(program);
    command.args(args).arg("--json");
    let printed = Run::of(command, args.join(" ")).deadline(DEADLINE).text()?;
    Ok(serde_json::from_str(&printed)?)
}

/// Runs the agent inside a guest with `--json`.
fn agent(guest: &dyn Guest, args: &[&str]) -> anyhow::Result<Value> {
    let output = guest.exec(&[&["vireo-agent"], args, &["--json"]].concat())?;
    ensure!(output.success(), "vireo-agent {} failed\n{}", args.join(" "), output.tail());
    Ok(serde_json::from_str(&output.stdout)?)
}

/// A running repository. Killed when dropped.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    fn start(lab: &Lab, program: &Path) -> anyhow::Result<Self> {
        let log = lab.dir().join("repository.log");
        let file = File::create(&log).context("cannot create the repository's log")?;
        let address = SocketAddr::from((HOST_ADDRESS, PORT));
        let mut command = lab.command(program);
        command
            .arg("serve")
            .arg("--data")
            .arg(lab.dir().join("repository"))
            .arg("--listen")
            .arg(address.to_string());
        command.stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().context("cannot start the repository")?;
        let mut server = Self { child, log };
        let started = Instant::now();
        while lab.inside(|| TcpStream::connect_timeout(&address, POLL))?.is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("the repository ended: {status}\n{}", server.log_text());
            }
            ensure!(
                started.elapsed() < DEADLINE,
                "the repository does not listen\n{}",
                server.log_text()
            );
            std::thread::sleep(POLL);
        }
        Ok(server)
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing of it stays.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
