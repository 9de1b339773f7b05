//! The repository itself: opening, keys, tokens, looking after it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use vireo_cloud::Cloud;
use vireo_delta::PublicKey;
use vireo_image::ImageError;
use vireo_image::journal::{Begun, Journal, Recovered, Work};
use vireo_model::ImageName;
use vireo_store::{CredentialKind, CredentialRecord, Durable, FsckReport, Store, Writes};
use vireo_wire::{Secret, Token, TokenKind, tree_text};

use crate::authority::{Authority, restrict};
use crate::builder::ImageBuilder;
use crate::error::{Detail, RepoError, io_error};
use crate::event::Event;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How long fsck waits for builds that run.
const SETTLE_WAIT: Duration = Duration::from_secs(3600);

const ADMIN_TOKEN_FILE: &str = "admin-token";
const NAMES_FILE: &str = "listen-names.json";

/// What [`Repository::sweep`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files and directories that it removed.
    pub removed: Vec<PathBuf>,
    /// An image is being built by another process, so no unfinished files but those of dead builds
    /// were removed.
    pub busy: bool,
    /// Mount points that it unmounted, and disk images that it took from loop devices.
    pub detached: Vec<PathBuf>,
    /// Disk images that are still attached, because something uses them.
    pub in_use: Vec<PathBuf>,
}

/// A repository in a directory, as blocking calls.
///
/// All calls can come from several threads and processes at once; what must not overlap waits.
pub struct Repository {
    pub(crate) store: Store,
    journal: Journal,
    pub(crate) builder: Box<dyn ImageBuilder>,
    pub(crate) clock: Clock,
    pub(crate) authority: Authority,
    pub(crate) cloud: Option<Arc<dyn Cloud>>,
    pub(crate) launch_due: LaunchDue,
    observer: Arc<dyn Fn(&Event) + Send + Sync>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("root", &self.store.root()).finish_non_exhaustive()
    }
}

impl Repository {
    /// Makes a repository in the directory `root`, which must be empty or absent: its certificate
    /// authority, and the administrator's token, which is also kept in `root/admin-token`.
    ///
    /// `names` are the DNS names and IP addresses that its server is reached by.
    ///
    /// # Errors
    ///
    /// `Conflict` if there is something in `root`, `Refused` if a name is none, `Io`.
    pub fn init(root: &Path, names: &[String], now: Timestamp) -> Result<Token, RepoError> {
        Self::init_with(root, names, now, Arc::new(Durable))
    }

    pub(crate) fn init_with(
        root: &Path,
        names: &[String],
        now: Timestamp,
        writes: Arc<dyn Writes>,
    ) -> Result<Token, RepoError> {
        let store = Store::init(root, now, writes)?;
        let authority = Authority::create(&store)?;
        // Shows at once whether the names can be used.
        authority.server_config(names, now)?;
        let path = names_path(root);
        let json = serde_json::to_vec_pretty(names)
            .map_err(|source| Detail::Record { path: path.clone(), source })?;
        store.writes().replace(&path, &json).map_err(io_error("write", &path))?;
        let token = add_token(&store, &authority, CredentialKind::Admin, now)?;
        let path = root.join(ADMIN_TOKEN_FILE);
        let line = format!("{token}\n");
        store.writes().replace(&path, line.as_bytes()).map_err(io_error("write", &path))?;
        restrict(&path)?;
        Ok(token)
    }

    /// Opens the repository in `root`.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is none, `Unsupported`, `Corrupt`, `Io`.
    pub fn open(
        root: &Path,
        builder: Box<dyn ImageBuilder>,
        clock: Clock,
    ) -> Result<Self, RepoError> {
        Self::open_with(root, builder, clock, Arc::new(Durable))
    }

    pub(crate) fn open_with(
        root: &Path,
        builder: Box<dyn ImageBuilder>,
        clock: Clock,
        writes: Arc<dyn Writes>,
    ) -> Result<Self, RepoError> {
        let store = Store::open(root, writes)?;
        let authority = Authority::load(&store)?;
        Ok(Self {
            store,
            journal: Journal::new(root),
            builder,
            clock,
            authority,
            cloud: None,
            launch_due: LaunchDue::default(),
            observer: Arc::new(|_| ()),
        })
    }

    /// Publishes every newest version to `cloud` too.
    #[must_use]
    pub fn with_cloud(mut self, cloud: Arc<dyn Cloud>) -> Self {
        self.cloud = Some(cloud);
        self
    }

    /// Tells `observer` what happens; it must be quick.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn Fn(&Event) + Send + Sync>) -> Self {
        self.observer = observer;
        self
    }

    /// The repository's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.store.root()
    }

    /// The certificate of its authority, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// DNS names and IP addresses that its server is reached by, as given at its making.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn listen_names(&self) -> Result<Vec<String>, RepoError> {
        let path = names_path(self.root());
        let json = std::fs::read(&path).map_err(io_error("read", &path))?;
        serde_json::from_slice(&json).map_err(|source| Detail::Record { path, source }.into())
    }

    /// Accepts bundles that `key` signed, for one image or for all.
    ///
    /// # Errors
    ///
    /// `NoSpace`, `Io`.
    pub fn trust(&self, key: PublicKey, image: Option<&ImageName>) -> Result<(), RepoError> {
        Ok(self.store.trust(key, image, self.now())?)
    }

    /// Makes a token that enrols machines: as instances of `image`, or of any.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such image; `NoSpace`, `Io`.
    pub fn create_enroll_token(&self, image: Option<&ImageName>) -> Result<Token, RepoError> {
        if let Some(image) = image {
            self.store.versions(image)?;
        }
        let kind = CredentialKind::Enroll { image: image.cloned() };
        add_token(&self.store, &self.authority, kind, self.now())
    }

    /// Undoes and removes what interrupted work left behind; for the start of a server.
    ///
    /// # Errors
    ///
    /// `Busy`, `Io`; `NoRoot` if a disk image is still attached, which only root can undo.
    pub fn sweep(&self) -> Result<Swept, RepoError> {
        let Recovered { removed, undone, .. } = self.recover()?;
        let swept = self.store.sweep()?;
        let removed = removed.into_iter().chain(swept.removed).collect();
        let detached = undone.mounts.into_iter().chain(undone.files).collect();
        Ok(Swept { removed, busy: swept.busy, detached, in_use: undone.in_use })
    }

    /// Undoes builds whose process is gone.
    pub(crate) fn recover(&self) -> Result<Recovered, RepoError> {
        self.journal.undo().map_err(|source| self.journal_error("undo builds in", source))
    }

    /// Records work with the disk image `disk`; one at a time has to do with it.
    pub(crate) fn begin(
        &self,
        work: &Work,
        disk: &Path,
        wait: Duration,
    ) -> Result<Begun, RepoError> {
        let name = disk.file_name().unwrap_or_default().to_string_lossy();
        let begun = self.journal.begin(&name, work, wait);
        begun.map_err(|source| self.journal_error("begin a build in", source))
    }

    /// Records that `disk` is read, by however many at a time.
    pub(crate) fn begin_reading(&self, disk: &Path) -> Result<Begun, RepoError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("read-{}-{number}", std::process::id());
        let begun = self.journal.begin(&name, &Work::read(disk), Duration::ZERO);
        begun.map_err(|source| self.journal_error("begin to read in", source))
    }

    fn journal_error(&self, step: &'static str, source: ImageError) -> RepoError {
        Detail::Image { step, path: self.root().to_owned(), source }.into()
    }

    /// Reads everything but the disks' content, and says what is wrong. Waits for builds that run.
    ///
    /// # Errors
    ///
    /// `Busy`, `Io`; damage is in the report.
    pub fn fsck(&self) -> Result<FsckReport, RepoError> {
        self.store.settle(SETTLE_WAIT)?;
        let digest = |listing: &[u8]| {
            tree_text::parse(listing).map(|tree| tree.digest()).map_err(|error| error.to_string())
        };
        Ok(self.store.fsck(&digest)?)
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub(crate) fn tell(&self, event: &Event) {
        (self.observer)(event);
    }
}

fn names_path(root: &Path) -> PathBuf {
    root.join("ca").join(NAMES_FILE)
}

fn add_token(
    store: &Store,
    authority: &Authority,
    kind: CredentialKind,
    created: Timestamp,
) -> Result<Token, RepoError> {
    let secret = random_secret()?;
    let token_kind = match kind {
        CredentialKind::Admin => TokenKind::Admin,
        _ => TokenKind::Enroll,
    };
    store.add_credential(secret.digest(), &CredentialRecord { kind, created })?;
    Ok(Token { kind: token_kind, ca: authority.digest(), secret })
}

pub(crate) fn random_secret() -> Result<Secret, RepoError> {
    random().map(Secret::from_bytes)
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], RepoError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Detail::Random { why: error.to_string() })?;
    Ok(bytes)
}

/// Wakes whoever keeps the cloud up to date.
#[derive(Debug, Default)]
pub(crate) struct LaunchDue {
    due: Mutex<bool>,
    told: Condvar,
}

impl LaunchDue {
    pub(crate) fn tell(&self) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }

    /// Waits until it was told, at most for `limit`.
    pub(crate) fn wait(&self, limit: Option<Duration>) {
        let due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = match limit {
            Some(limit) => {
                let waited = self.told.wait_timeout_while(due, limit, |due| !*due);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = self.told.wait_while(due, |due| !*due);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        };
        *due = false;
    }
}
