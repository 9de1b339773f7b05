//! The agent and its repository: enrolment, fetching, the loop that waits for versions.
//!
//! Network code is async; whatever touches the disk or the service manager runs on tokio's
//! threads for blocking work. A stop is obeyed between steps, never within an update.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use vireo_classify::Plan;
use vireo_model::{Digest, Ignore, ImageName};
use vireo_wire::api::{EnrollReply, EnrollRequest, Next, ReceiptPost, VersionRef};
use vireo_wire::{Client, Token};

use crate::error::{AgentError, ErrorKind};
use crate::receipt::Receipt;
use crate::state::{Enrolment, Position, StateDir};
use crate::update::{Agent, Applied, is_bundle};
use crate::verify::{VerifyReport, read_tree};

/// How long one question for the next version may wait at the repository.
const POLL_WAIT: Duration = Duration::from_secs(240);

/// Pause after an error, doubled from the first to the second with every further one.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Longest random pause before fetching an update, so that a fleet does not ask all at once.
const FETCH_JITTER_MAX: Duration = Duration::from_millis(500);

/// Time between two tries to reach the repository after an update.
const CONFIRM_PAUSE: Duration = Duration::from_secs(2);

/// How long the repository may take to answer one of them.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(10);

/// Time between two looks for a newer version than the one that was undone.
const HELD_PAUSE: Duration = Duration::from_secs(30);

/// Most differing paths that a refused enrolment names.
const MAX_PATHS_NAMED: usize = 8;

/// Told one line per event, for people who look on.
pub type Tell = Arc<dyn Fn(&str) + Send + Sync>;

/// Where to enrol and as what.
#[derive(Clone, Debug)]
pub struct EnrollOptions {
    /// The repository's address, `https://HOST:PORT`.
    pub url: String,
    /// The enrolment token.
    pub token: Token,
    /// The image that this machine was launched from.
    pub image: ImageName,
    /// What this machine calls itself.
    pub name: String,
    /// How the cloud calls it, if somebody said so.
    pub cloud_id: Option<String>,
    /// How the cloud calls it by what was found on it: not said to a repository that refuses it.
    pub found_cloud_id: Option<String>,
}

/// Makes this machine an instance of an image. Its files must be those of one of the image's
/// versions, as proven by their digest.
///
/// # Errors
///
/// `Refused`, with the differing paths, if its files are no version's; `Unreachable`; whatever
/// else the repository says.
pub async fn enroll(
    root: &Path,
    state: &StateDir,
    options: &EnrollOptions,
    tell: &Tell,
) -> Result<(Enrolment, Position), AgentError> {
    let client = Client::connect(&options.url, &options.token).await?;
    let log = client.log(&options.image).await?;
    let ignore = Ignore::new(log.ignore.iter().cloned()).map_err(|error| {
        AgentError::new(ErrorKind::Failed, "the repository's ignore list cannot be used")
            .caused_by(error)
    })?;
    let place = root.to_owned();
    let tree = blocking(move || read_tree(&place, &ignore)).await?;
    let digest = tree.digest();
    if log.by_tree(digest).is_none() {
        let newest = log.versions.last().map_or(1, |version| version.number);
        let expected = client.tree(&options.image, newest).await?;
        let report = VerifyReport::of_trees(Some(newest), &expected, &tree);
        return Err(no_version(&options.image, &report));
    }
    let request = EnrollRequest {
        name: options.name.clone(),
        image: options.image.clone(),
        tree: digest,
        cloud_id: options.cloud_id.clone(),
    };
    let reply = enroll_at(&client, request, options.found_cloud_id.as_deref(), tell).await?;
    let enrolment = Enrolment {
        url: options.url.clone(),
        ca: reply.ca,
        instance: reply.instance,
        secret: reply.secret,
        image: reply.image,
        trusted: reply.trusted,
        ignore: reply.ignore,
    };
    let position = Position { number: Some(reply.version.number), tree: reply.version.tree };
    let (kept, state) = (enrolment.clone(), state.clone());
    blocking(move || state.enroll(&kept, &position)).await?;
    Ok((enrolment, position))
}

/// Enrols with what the cloud calls the machine, or without if nobody said that and the repository refuses
/// it: one of an earlier version knows no such thing.
async fn enroll_at(
    client: &Client,
    request: EnrollRequest,
    found_cloud_id: Option<&str>,
    tell: &Tell,
) -> Result<EnrollReply, AgentError> {
    let Some(found) = found_cloud_id.filter(|_| request.cloud_id.is_none()) else {
        return Ok(client.enroll(&request).await?);
    };
    let with = EnrollRequest { cloud_id: Some(found.to_owned()), ..request.clone() };
    match client.enroll(&with).await {
        Err(error) if error.kind() == vireo_wire::ErrorKind::Refused => {
            tell(&format!(
                "{}; trying without saying that the cloud calls this machine {found}",
                chain(&error)
            ));
            Ok(client.enroll(&request).await?)
        }
        reply => Ok(reply?),
    }
}

fn no_version(image: &ImageName, newest: &VerifyReport) -> AgentError {
    let named: Vec<String> =
        newest.differing.iter().take(MAX_PATHS_NAMED).map(ToString::to_string).collect();
    let more = newest.differing_count.unwrap_or(0).saturating_sub(named.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    AgentError::new(
        ErrorKind::Refused,
        format!(
            "cannot enrol: this machine's files are no version of {image}; from the newest differ {}{more}; \
             make them a version's, or add what is the machine's own to the image's ignore list",
            named.join(", ")
        ),
    )
}

/// What [`Session::update`] did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Updated {
    /// What every update did, in order.
    pub receipts: Vec<Receipt>,
    /// Whether the agent was replaced and could not be restarted.
    pub is_stale: bool,
}

impl Updated {
    fn add(&mut self, Concluded { receipt, is_stale }: Concluded) {
        self.receipts.push(receipt);
        self.is_stale |= is_stale;
    }
}

/// An update that is over.
struct Concluded {
    receipt: Receipt,
    /// Whether the agent was replaced and could not be restarted.
    is_stale: bool,
}

/// The agent's side of one repository.
#[derive(Clone)]
pub struct Session {
    agent: Arc<Agent>,
    client: Client,
    enrolment: Arc<Enrolment>,
    tell: Tell,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Session {
    /// Prepares to speak with the repository that the machine is enrolled at. Nothing is sent.
    ///
    /// # Errors
    ///
    /// `NotEnrolled`, or `State` if the enrolment is damaged.
    pub fn open(agent: Arc<Agent>, tell: Tell) -> Result<Self, AgentError> {
        let enrolment = agent.state().require_enrolment()?;
        let client = Client::with_ca(&enrolment.url, &enrolment.ca, &enrolment.secret)?;
        Ok(Self { agent, client, enrolment: Arc::new(enrolment), tell })
    }

    /// What comes after the version that the machine is on; waits up to `wait` for something.
    ///
    /// # Errors
    ///
    /// `Unreachable`; `Refused` if the repository does not know the machine's version.
    pub async fn next(&self, wait: Duration) -> Result<Next, AgentError> {
        let have = self.position()?.tree;
        Ok(self.client.next(&self.enrolment.instance, have, wait).await?)
    }

    /// Plans the next update without applying it; none if there is none.
    ///
    /// # Errors
    ///
    /// As fetching and as [`Agent::plan`].
    pub async fn plan(&self) -> Result<Option<Plan>, AgentError> {
        let Next::Update { bundle, file_len, .. } = self.next(Duration::ZERO).await? else {
            return Ok(None);
        };
        let file = self.fetch(bundle, file_len).await?;
        let (agent, trusted) = (Arc::clone(&self.agent), self.enrolment.trusted_keys());
        blocking(move || agent.plan(&file, &trusted)).await.map(Some)
    }

    /// Updates until the machine is on the newest version; gives what was done. Reports each update.
    ///
    /// # Errors
    ///
    /// As fetching and as [`Agent::apply`]. What was applied before stays.
    pub async fn update(&self) -> Result<Updated, AgentError> {
        let mut updated = Updated::default();
        if let Some(applied) = self.recover().await? {
            updated.add(self.conclude(applied).await);
        }
        while let Next::Update { bundle, version, file_len, .. } = self.next(Duration::ZERO).await?
        {
            let applied = self.apply(bundle, version, file_len).await?;
            updated.add(self.conclude(applied).await);
        }
        Ok(updated)
    }

    /// Waits for versions and applies them, until `stop` becomes true. Errors are told and
    /// tried again later, with pauses that grow.
    ///
    /// # Errors
    ///
    /// Only what no later try can mend: damaged records.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) -> Result<(), AgentError> {
        let version = self.position()?;
        (self.tell)(&format!(
            "following image {} at {}, on {}",
            self.enrolment.image,
            self.client.url(),
            show_position(&version)
        ));
        let mut pause = BACKOFF.0;
        while !*stop.borrow() {
            match self.round(&mut stop).await {
                Ok(()) => pause = BACKOFF.0,
                Err(error) if error.kind() == ErrorKind::State => return Err(error),
                Err(error) => {
                    (self.tell)(&format!(
                        "{}; next try in about {} s",
                        chain(&error),
                        pause.as_secs()
                    ));
                    until_stopped(&mut stop, tokio::time::sleep(with_jitter(pause))).await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
        (self.tell)("stopped");
        Ok(())
    }

    /// Waits for one update and applies it, or returns when nothing came or it is to stop.
    async fn round(&self, stop: &mut watch::Receiver<bool>) -> Result<(), AgentError> {
        if let Some(applied) = self.recover().await? {
            self.conclude(applied).await;
        }
        if !self.confirm().await? {
            self.undo_unconfirmed().await?;
        }
        self.try_to_report().await;
        if self.is_held().await? {
            // Whoever does not ask for versions is taken for gone. What is answered is known already, and
            // a failure of it is in the way of nothing.
            drop(self.next(Duration::ZERO).await);
            until_stopped(stop, tokio::time::sleep(HELD_PAUSE)).await;
            return Ok(());
        }
        let Some(next) = until_stopped(stop, self.next(POLL_WAIT)).await else { return Ok(()) };
        let Next::Update { bundle, version, file_len, .. } = next? else { return Ok(()) };
        (self.tell)(&format!("version {version} is there, fetching {file_len} bytes"));
        let pause = tokio::time::sleep(random_up_to(FETCH_JITTER_MAX));
        if until_stopped(stop, pause).await.is_none() {
            return Ok(());
        }
        match self.apply(bundle, version, file_len).await {
            Ok(applied) => {
                self.conclude(applied).await;
                Ok(())
            }
            Err(error) => {
                if error.kind() == ErrorKind::Refused {
                    self.report_refusal(version, &error).await;
                }
                Err(error)
            }
        }
    }

    /// Whether the next version is the one that was undone here: then it waits for a newer one.
    async fn is_held(&self) -> Result<bool, AgentError> {
        let state = self.agent.state();
        let Some(undone) = state.hold()? else { return Ok(false) };
        let log = self.client.log(&self.enrolment.image).await?;
        let number = undone.number.or(log.by_tree(undone.tree).map(|version| version.number));
        let newest = log.versions.last().map(|version| version.number);
        if newest > number {
            (self.tell)("there is a newer version than the one that was undone");
            state.set_hold(None)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Fetches a bundle and applies it.
    async fn apply(
        &self,
        bundle: Digest,
        version: u64,
        file_len: u64,
    ) -> Result<Applied, AgentError> {
        let file = self.fetch(bundle, file_len).await?;
        let (agent, tell) = (Arc::clone(&self.agent), Arc::clone(&self.tell));
        let trusted = self.enrolment.trusted_keys();
        blocking(move || agent.apply(&file, &trusted, Some(version), &*tell)).await
    }

    /// Fetches a bundle, or goes on fetching it. A file that is not that bundle, or is damaged, is
    /// fetched anew once, and never kept: the repository may be mended by the next time.
    async fn fetch(&self, bundle: Digest, file_len: u64) -> Result<PathBuf, AgentError> {
        let file = self.agent.state().incoming(bundle)?;
        for _ in 0..2 {
            self.client.download_bundle(bundle, file_len, &file, &|_| {}).await?;
            let check = file.clone();
            if blocking(move || is_bundle(&check, bundle)).await? {
                return Ok(file);
            }
            fs::remove_file(&file).map_err(|error| AgentError::io("remove", &file, error))?;
        }
        let message = format!(
            "what the repository sends as bundle {} is damaged; run `vireo-repo fsck` on its host; \
             nothing was changed",
            bundle.short()
        );
        Err(AgentError::new(ErrorKind::Refused, message))
    }

    async fn recover(&self) -> Result<Option<Applied>, AgentError> {
        let (agent, tell) = (Arc::clone(&self.agent), Arc::clone(&self.tell));
        blocking(move || agent.recover(&*tell)).await
    }

    /// Tells and reports an update's receipt, removes its bundle, restarts the agent if it was
    /// replaced. What cannot be reported now is reported at the next occasion.
    async fn conclude(&self, applied: Applied) -> Concluded {
        let Applied { receipt, restart_self } = applied;
        for line in receipt.to_string().lines() {
            (self.tell)(line);
        }
        // An agent that was replaced has to show that the new one can do it.
        let receipt = if restart_self { receipt } else { self.confirmed(receipt).await };
        self.try_to_report().await;
        let agent = Arc::clone(&self.agent);
        if let Err(error) = blocking(move || agent.state().clear_incoming()).await {
            (self.tell)(&chain(&error));
        }
        let agent = Arc::clone(&self.agent);
        let restarted =
            blocking(move || if restart_self { agent.restart_self() } else { Ok(()) }).await;
        if let Err(error) = &restarted {
            (self.tell)(&chain(error));
        }
        Concluded { receipt, is_stale: restarted.is_err() }
    }

    /// Undoes the update that nobody could confirm: its timer may have gone with a boot.
    async fn undo_unconfirmed(&self) -> Result<(), AgentError> {
        let Some(guard) = self.agent.state().guard()? else { return Ok(()) };
        let (agent, tell) = (Arc::clone(&self.agent), Arc::clone(&self.tell));
        let undone = blocking(move || agent.undo_unconfirmed(&guard.nonce, &*tell)).await?;
        if let Some(undone) = undone {
            self.conclude(undone).await;
        }
        Ok(())
    }

    /// The receipt as it is after the update was confirmed, if it has to be.
    async fn confirmed(&self, receipt: Receipt) -> Receipt {
        match self.confirm().await {
            Ok(true) => match self.agent.state().last_receipt() {
                Ok(Some(last)) if last.target == receipt.target => last,
                _ => receipt,
            },
            Ok(false) => receipt,
            Err(error) => {
                (self.tell)(&chain(&error));
                receipt
            }
        }
    }

    /// Confirms the update that waits for it, if one does, by an answer of the repository over a
    /// connection that is made now; tries until there is one or the update's time is over. Whether
    /// the update stays.
    ///
    /// # Errors
    ///
    /// The record cannot be read or removed.
    pub async fn confirm(&self) -> Result<bool, AgentError> {
        let Some(guard) = self.agent.state().guard()? else { return Ok(true) };
        let (start, limit) = (tokio::time::Instant::now(), Duration::from_secs(guard.seconds));
        while start.elapsed() < limit {
            match self.ask_anew().await {
                Ok(()) => {
                    let agent = Arc::clone(&self.agent);
                    let confirmed = blocking(move || agent.confirm(&guard.nonce)).await?;
                    if confirmed {
                        (self.tell)("the repository is reached: the update is confirmed");
                    }
                    return Ok(confirmed);
                }
                Err(error) => (self.tell)(&format!("not confirmed yet: {}", chain(&error))),
            }
            tokio::time::sleep(CONFIRM_PAUSE).await;
        }
        Ok(false)
    }

    /// Has the repository answer over a new connection.
    async fn ask_anew(&self) -> Result<(), AgentError> {
        let Enrolment { url, ca, secret, instance, .. } = &*self.enrolment;
        let client = Client::with_ca(url, ca, secret)?;
        let have = self.position()?.tree;
        let asked = client.next(instance, have, Duration::ZERO);
        match tokio::time::timeout(CONFIRM_DEADLINE, asked).await {
            Ok(answer) => Ok(answer.map(drop)?),
            Err(_) => Err(AgentError::new(
                ErrorKind::Unreachable,
                "the repository does not answer in time",
            )),
        }
    }

    /// Sends the receipt that the repository does not have yet, if there is one. What cannot be
    /// reported now is told; it is in the way of nothing.
    async fn try_to_report(&self) {
        if let Err(error) = self.report().await {
            (self.tell)(&format!("{}; reporting later", chain(&error)));
        }
    }

    async fn report(&self) -> Result<(), AgentError> {
        let state = self.agent.state();
        let Some(post) = state.unreported()? else { return Ok(()) };
        match self.client.send_receipt(&self.enrolment.instance, &post).await {
            // It would be refused for ever.
            Err(error) if error.kind() == vireo_wire::ErrorKind::Refused => {
                (self.tell)(&format!("the last update is not reported: {}", chain(&error)));
            }
            sent => sent?,
        }
        state.set_reported()
    }

    async fn report_refusal(&self, version: u64, error: &AgentError) {
        let Ok(position) = self.position() else { return };
        let receipt = serde_json::json!({
            "schema": "vireo.refusal/1",
            "version": version,
            "reason": chain(error),
        });
        let post = ReceiptPost { tree: position.tree, outcome: "refused".to_owned(), receipt };
        if let Err(error) = self.client.send_receipt(&self.enrolment.instance, &post).await {
            (self.tell)(&format!("cannot report the refusal: {error}"));
        }
    }

    /// Compares the machine's files with its version; asks the repository for the version's
    /// files only if the digests differ, to list the paths.
    ///
    /// # Errors
    ///
    /// A file cannot be read. An unreachable repository is no error, the list is then missing.
    pub async fn verify(&self) -> Result<VerifyReport, AgentError> {
        let position = self.position()?;
        let (root, ignore) = (self.agent.root().to_owned(), self.enrolment.ignore_list()?);
        let found = blocking(move || read_tree(&root, &ignore)).await?;
        let by_digest = VerifyReport::of_digests(position.number, position.tree, found.digest());
        if by_digest.is_equal() {
            return Ok(by_digest);
        }
        match self.version_tree(&position).await {
            Ok(expected) if expected.digest() == position.tree => {
                let edits = self.agent.state().edits()?;
                Ok(VerifyReport::of_trees(position.number, &expected, &found).explained_by(&edits))
            }
            Ok(_) => Ok(by_digest),
            Err(error) => {
                (self.tell)(&chain(&error));
                Ok(by_digest)
            }
        }
    }

    async fn version_tree(&self, position: &Position) -> Result<vireo_model::Tree, AgentError> {
        let image = &self.enrolment.image;
        let number = match position.number {
            Some(number) => number,
            None => {
                let log = self.client.log(image).await?;
                let version = log.by_tree(position.tree).map(|version| version.number);
                version.ok_or_else(|| {
                    let message = format!(
                        "the repository has no version {} of {image}",
                        position.tree.short()
                    );
                    AgentError::new(ErrorKind::Failed, message)
                })?
            }
        };
        Ok(self.client.tree(image, number).await?)
    }

    fn position(&self) -> Result<Position, AgentError> {
        self.agent.state().position()?.ok_or_else(|| {
            let message = "the agent's record of its version is missing; enrol again";
            AgentError::new(ErrorKind::State, message)
        })
    }
}

/// An error with its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A version for people: `version 3 (tree 0123456789ab)`.
#[must_use]
pub fn show_position(position: &Position) -> String {
    let tree = position.tree.short();
    position
        .number
        .map_or(format!("tree {tree}"), |number| format!("version {number} (tree {tree})"))
}

/// A version as the repository names it, for people.
#[must_use]
pub fn show_version(version: &VersionRef) -> String {
    show_position(&Position { number: Some(version.number), tree: version.tree })
}

/// Runs what blocks on a thread that may.
async fn blocking<T, F>(work: F) -> Result<T, AgentError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, AgentError> + Send + 'static,
{
    spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(AgentError::new(ErrorKind::Failed, "a thread of the agent ended").caused_by(error))
    })
}

/// Waits for `work` unless it is to stop.
async fn until_stopped<T>(
    stop: &mut watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        _ = stop.wait_for(|stop| *stop) => None,
    }
}

fn with_jitter(pause: Duration) -> Duration {
    pause / 2 + random_up_to(pause)
}

/// Not for secrets: the standard library's hash keys are seeded by the system.
fn random_up_to(limit: Duration) -> Duration {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::hash::RandomState::new().build_hasher().finish();
    let limit = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX).max(1);
    Duration::from_micros(random % limit)
}

#[cfg(test)]
mod online;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_vary_around_what_is_asked() {
        let pauses: std::collections::BTreeSet<Duration> =
            (0..50).map(|_| with_jitter(Duration::from_secs(10))).collect();
        assert!(pauses.len() > 10, "{pauses:?}");
        let within = Duration::from_secs(5)..Duration::from_secs(15);
        assert!(pauses.iter().all(|pause| within.contains(pause)), "{pauses:?}");
    }

    #[tokio::test]
    async fn a_stop_ends_a_wait_and_nothing_else_does() {
        let (stopper, mut stop) = watch::channel(false);
        assert_eq!(until_stopped(&mut stop, async { 7 }).await, Some(7));
        stopper.send(true).expect("somebody listens");
        assert_eq!(until_stopped(&mut stop, std::future::pending::<i32>()).await, None);
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let error = AgentError::new(ErrorKind::Failed, "cannot do it")
            .caused_by(std::io::Error::other("why"));
        assert_eq!(chain(&error), "cannot do it: why");
    }
}
