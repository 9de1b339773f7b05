//! systemd over the system bus (`org.freedesktop.systemd1(5)`).
//!
//! A connection lives for one call: nothing is missed by a bus that restarts, and no queue of
//! signals grows while nobody reads it.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use vireo_classify::{ManagerAction, Probe, Unit};
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath};

use crate::services::{JOB_DEADLINE, Job, MANAGER_DEADLINE, ServiceError, Services};
use crate::systemctl::Systemctl;

const DESTINATION: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// How long connecting, and each call but a reload, may take.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// How many signals may wait while jobs are queued; each job gives one.
const SIGNALS_QUEUED: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");

/// How long to wait between questions whether a manager that executes itself anew is back.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// systemd over the system bus.
#[derive(Debug)]
pub(crate) struct Systemd {
    runtime: Runtime,
}

impl Systemd {
    /// The manager on the system bus, if it answers.
    pub(crate) fn connect() -> Result<Self, ServiceError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ServiceError::new("start an event loop", error.to_string()))?;
        let this = Self { runtime };
        this.runtime.block_on(async { ping(&connect().await?).await })?;
        Ok(this)
    }
}

impl Services for Systemd {
    fn daemon_reload(&self) -> Result<(), ServiceError> {
        self.runtime
            .block_on(async {
                let bus = connect().await?;
                call(&bus, "Reload", &(), MANAGER_DEADLINE).await.map(drop)
            })
            // The bus may be down; the manager's own socket is not.
            .or_else(|_| Systemctl.daemon_reload())
    }

    fn daemon_reexec(&self) -> Result<(), ServiceError> {
        self.runtime.block_on(async {
            let bus = connect().await?;
            // No answer comes: the connection ends with the process image. Whether it worked is
            // seen by the manager being back.
            let _ = call(&bus, "Reexecute", &(), CALL_DEADLINE).await;
            wait_until_back().await
        })
    }

    fn run(&self, job: Job, units: &[Unit]) -> Vec<Result<(), ServiceError>> {
        match self.runtime.block_on(run_jobs(job, units)) {
            Ok(outcomes) => outcomes,
            Err(error) => units.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    fn restart_later(&self, unit: &Unit) -> Result<(), ServiceError> {
        self.runtime.block_on(async {
            let bus = connect().await?;
            call(&bus, "TryRestartUnit", &(unit.as_str(), "replace"), CALL_DEADLINE).await.map(drop)
        })
    }

    fn run_tool(&self, command: &[String]) -> Result<(), ServiceError> {
        Systemctl.run_tool(command)
    }

    fn reset_failed(&self, units: &[Unit]) -> Result<(), ServiceError> {
        Systemctl.reset_failed(units)
    }

    fn tell_user_manager(&self, manager: &Unit, action: ManagerAction) -> Result<(), ServiceError> {
        Systemctl.tell_user_manager(manager, action)
    }

    fn probe(&self, probe: &Probe) -> Result<String, ServiceError> {
        Systemctl.probe(probe)
    }

    fn set_timer(
        &self,
        name: &str,
        delay: Duration,
        command: &[String],
    ) -> Result<(), ServiceError> {
        Systemctl.set_timer(name, delay, command)
    }

    fn clear_timer(&self, name: &str) -> Result<(), ServiceError> {
        Systemctl.clear_timer(name)
    }
}

async fn connect() -> Result<Connection, ServiceError> {
    let failed = |why: String| ServiceError::new("connect to the system bus", why);
    match timeout(CALL_DEADLINE, Connection::system()).await {
        Ok(connected) => connected.map_err(|error| failed(error.to_string())),
        Err(_) => Err(failed("no answer".to_owned())),
    }
}

async fn call<B>(
    bus: &Connection,
    method: &str,
    body: &B,
    deadline: Duration,
) -> Result<Message, ServiceError>
where
    B: serde::Serialize + zbus::DynamicType,
{
    let call = bus.call_method(Some(DESTINATION), PATH, Some(MANAGER), method, body);
    match timeout(deadline, call).await {
        Ok(reply) => reply.map_err(|error| ServiceError::new(method, error.to_string())),
        Err(_) => {
            Err(ServiceError::new(method, format!("no answer within {} s", deadline.as_secs())))
        }
    }
}

async fn ping(bus: &Connection) -> Result<(), ServiceError> {
    let peer = Some("org.freedesktop.DBus.Peer");
    match timeout(CALL_DEADLINE, bus.call_method(Some(DESTINATION), PATH, peer, "Ping", &())).await
    {
        Ok(reply) => {
            reply.map(drop).map_err(|error| ServiceError::new("ping systemd", error.to_string()))
        }
        Err(_) => Err(ServiceError::new("ping systemd", "no answer")),
    }
}

async fn wait_until_back() -> Result<(), ServiceError> {
    let end = Instant::now() + MANAGER_DEADLINE;
    loop {
        sleep(RETRY_INTERVAL).await;
        let outcome = async { ping(&connect().await?).await }.await;
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= end => {
                return Err(ServiceError::new("daemon-reexec", error.to_string()));
            }
            Err(_) => {}
        }
    }
}

/// Queues all jobs, then waits for all of them; systemd orders them among each other.
async fn run_jobs(job: Job, units: &[Unit]) -> Result<Vec<Result<(), ServiceError>>, ServiceError> {
    let bus = connect().await?;
    // Listening before asking, or a quick job would be missed.
    let mut removed = job_signals(&bus).await?;
    call(&bus, "Subscribe", &(), CALL_DEADLINE).await?;
    let method = match job {
        Job::Reload => "ReloadOrTryRestartUnit",
        Job::Restart => "TryRestartUnit",
        Job::Start => "StartUnit",
        Job::Stop => "StopUnit",
    };
    let named = |unit: &Unit| format!("{} {unit}", job.as_str());
    let mut outcomes: Vec<Option<Result<(), ServiceError>>> = Vec::new();
    let mut waiting: HashMap<OwnedObjectPath, usize> = HashMap::new();
    for (index, unit) in units.iter().enumerate() {
        let queued = call(&bus, method, &(unit.as_str(), "replace"), CALL_DEADLINE).await;
        let path = queued.and_then(|reply| {
            let path = reply.body().deserialize::<OwnedObjectPath>();
            path.map_err(|error| ServiceError::new(method, error.to_string()))
        });
        outcomes.push(match path {
            Ok(path) => {
                waiting.insert(path, index);
                None
            }
            Err(error) => Some(Err(ServiceError::new(named(unit), error.to_string()))),
        });
    }
    let end = Instant::now() + JOB_DEADLINE;
    while !waiting.is_empty() {
        let Ok(Some(Ok(signal))) = timeout_at(end, removed.next()).await else { break };
        let body = signal.body();
        let Ok((_, path, _, result)) = body.deserialize::<(u32, OwnedObjectPath, String, String)>()
        else {
            continue;
        };
        if let Some(index) = waiting.remove(&path) {
            outcomes[index] = Some(
                outcome_of(&result).map_err(|why| ServiceError::new(named(&units[index]), why)),
            );
        }
    }
    let late = |unit: &Unit| {
        Err(ServiceError::new(named(unit), format!("no end within {} s", JOB_DEADLINE.as_secs())))
    };
    let finished =
        units.iter().zip(outcomes).map(|(unit, outcome)| outcome.unwrap_or_else(|| late(unit)));
    Ok(finished.collect())
}

async fn job_signals(bus: &Connection) -> Result<MessageStream, ServiceError> {
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(DESTINATION)
        .path(PATH)
        .interface(MANAGER)
        .member("JobRemoved")
        .build();
    let failed = |error: zbus::Error| ServiceError::new("listen for jobs", error.to_string());
    MessageStream::for_match_rule(rule.map_err(failed)?, bus, Some(SIGNALS_QUEUED))
        .await
        .map_err(failed)
}

/// A job's result as `JobRemoved` gives it; `skipped` is a unit that need do nothing.
fn outcome_of(result: &str) -> Result<(), &'static str> {
    match result {
        "done" | "skipped" => Ok(()),
        "canceled" => Err("another job took its place"),
        "timeout" => Err("it did not end in time"),
        "failed" => Err("it failed; its log says more"),
        "dependency" => Err("a unit that it needs failed"),
        _ => Err("it ended in a way unknown here"),
    }
}
