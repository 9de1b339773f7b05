//! Publishes patched disk images to EC2: as machine images (AMIs), from changed blocks alone.
//!
//! [`Ec2`] is an adapter of the port [`vireo_cloud::Cloud`]. A version becomes a snapshot that starts from
//! the one of an earlier version and gets the blocks that differ, through the EBS direct interface; a
//! machine image that is made from it like the one that the settings name; and a version of a launch
//! template, if they name one.
//!
//! # Guarantees
//!
//! - Publishing twice is publishing once. A crash at any point leaves what the next call goes on with,
//!   or what [`Ec2::sweep`] removes; never a machine image that is current and incomplete.
//! - Every block travels with its checksum, the snapshot is completed with the checksum of all.
//! - A dry run ([`Ec2::dry_run`]) makes no call that changes anything, and tells of all that it left out.
//! - Credentials come from the SDK's own chain alone. There is one TLS stack, that of the other crates.
//!
//! # Not here
//!
//! Launching, stopping and terminating machines; account settings; sharing images with other accounts or
//! copying them to other regions. `docs/ec2.md` has the rights that are needed, and what was not tested.
//!
//! # Example
//!
//! ```no_run
//! use std::path::Path;
//! use vireo_cloud::{Cloud as _, Publication};
//! use vireo_ec2::{Ec2, ImageSettings, Settings};
//! use vireo_model::Digest;
//!
//! let web = "web".parse()?;
//! let mut settings = Settings { region: Some("eu-central-1".into()), ..Settings::default() };
//! settings.images.insert("web".parse()?, ImageSettings::like("ami-0123456789abcdef0"));
//! let ec2 = Ec2::connect(settings, Path::new("/var/lib/vireo/ec2"))?;
//! let launchable = ec2.publish(&Publication {
//!     image: &web,
//!     version: 1,
//!     tree: Digest::of(b"the tree's digest"),
//!     disk: Path::new("web.img"),
//!     earlier: &[],
//! })?;
//! println!("launch {}", launchable.address);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ami;
mod attributes;
mod calls;
mod client;
mod device;
mod error;
mod hold;
mod instances;
mod journal;
mod launch;
mod settings;
mod settle;
mod snapshot;
mod sweep;
mod tags;
mod upload;
mod verify;
mod volume;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use vireo_cloud::{Cloud, CloudError, Launchable, Machine, Publication};
use vireo_model::{Digest, ImageName};

/// The SDK's configuration, for [`Ec2::with_sdk`].
pub use aws_config::SdkConfig;
pub use calls::{Call, Observer};
pub use error::{Ec2Error, ErrorKind};
pub use hold::{Hold, Source};
pub use settings::{ImageSettings, Settings};
pub use verify::Verified;

use ami::Published;
use calls::Calls;
use error::io_error;
use journal::{Disk, Held, Journal};
use upload::Upload;

/// Threads that make calls and hash blocks.
const THREADS: usize = 2;

/// Time that calls under way get when an adapter is dropped.
const DROP_WAIT: Duration = Duration::from_millis(200);

/// Who wrote what a version's snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// This program, through the EBS direct interface.
    Uploaded,
    /// This program, to the volume's device.
    Here,
    /// Somebody else, who answers for it.
    Elsewhere,
}

/// EC2 in one account and region.
///
/// Its methods block, and must not be called on a thread of an asynchronous runtime.
#[derive(Debug)]
pub struct Ec2 {
    settings: Settings,
    region: String,
    calls: Calls,
    dir: PathBuf,
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

impl Drop for Ec2 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(DROP_WAIT);
        }
    }
}

impl Ec2 {
    /// Publishes by `settings`, with the region and the credentials of the SDK's chain; what this host
    /// has to remember is kept in `dir`, which is made if need be.
    ///
    /// # Errors
    ///
    /// `Settings` if they cannot be meant or there is no region, `Denied` without credentials, `Io`.
    pub fn connect(settings: Settings, dir: &Path) -> Result<Self, Ec2Error> {
        let runtime = runtime()?;
        let sdk = runtime.block_on(client::load(&settings))?;
        Self::new(runtime, &sdk, settings, dir)
    }

    /// As [`Ec2::connect`], with a configuration of the SDK that the caller has made.
    ///
    /// # Errors
    ///
    /// `Settings` if they cannot be meant, `Io`.
    pub fn with_sdk(sdk: &SdkConfig, settings: Settings, dir: &Path) -> Result<Self, Ec2Error> {
        Self::new(runtime()?, sdk, settings, dir)
    }

    fn new(
        runtime: Runtime,
        sdk: &SdkConfig,
        settings: Settings,
        dir: &Path,
    ) -> Result<Self, Ec2Error> {
        settings.check()?;
        let (ec2, ebs) = client::clients(sdk, &settings);
        let region = sdk.region().map_or("the region", |region| region.as_ref()).to_owned();
        let place = settings.endpoint.clone().unwrap_or_else(|| format!("EC2 in {region}"));
        let calls = Calls {
            ec2,
            ebs,
            dry: false,
            observer: Arc::new(|_| ()),
            patience: Duration::from_secs(settings.wait_minutes * 60),
            place,
        };
        Ok(Self { settings, region, calls, dir: dir.to_owned(), runtime: Some(runtime) })
    }

    /// Tells `observer` of every call that changes something, before it is made; it must be quick.
    #[must_use]
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.calls.observer = observer;
        self
    }

    /// From now on makes no call that changes anything, and remembers nothing on this host: the observer
    /// is told what would be called. Calls that only read are made.
    #[must_use]
    pub fn dry_run(mut self) -> Self {
        self.calls.dry = true;
        self
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn block_on<T>(&self, work: impl Future<Output = Result<T, Ec2Error>>) -> Result<T, Ec2Error> {
        let runtime = self.runtime.as_ref();
        let runtime =
            runtime.ok_or_else(|| Ec2Error::plain(ErrorKind::Io, "the adapter was dropped"))?;
        runtime.block_on(work)
    }

    fn journal(&self, image: &ImageName) -> Result<Journal, Ec2Error> {
        Journal::open(&self.dir, image, &self.region, self.calls.dry)
    }

    fn publish_version(&self, publication: &Publication<'_>) -> Result<Launchable, Ec2Error> {
        let Publication { image, version, tree, .. } = *publication;
        let settings = self.settings.image(image)?;
        let disk = Disk::open(publication.disk)?;
        let mut journal = self.journal(image)?;
        let upload = async |journal: &mut Journal| {
            let upload = Upload {
                calls: &self.calls,
                journal,
                publication,
                settings,
                disk: &disk,
                parallel: self.settings.parallel,
            };
            upload.run().await
        };
        let version = (image, version, tree);
        let work = self.publish_as(version, Written::Uploaded, &mut journal, upload);
        let published = self.block_on(work)?;
        self.block_on(self.finish(image, settings, &mut journal, &published))
    }

    /// Registers the snapshot that `snapshot` gives and has machines start from it; what of that was done
    /// before is not done again, and `snapshot` not asked for then. Gives what is published then.
    async fn publish_as(
        &self,
        (image, version, tree): (&ImageName, u64, Digest),
        written: Written,
        journal: &mut Journal,
        snapshot: impl AsyncFnOnce(&mut Journal) -> Result<Held, Ec2Error>,
    ) -> Result<Vec<Published>, Ec2Error> {
        let settings = self.settings.image(image)?;
        let published = self.calls.published(image).await?;
        let same = |ami: &&Published| ami.version == version && ami.tree == tree;
        let ami = match published.iter().find(same) {
            Some(ami) if written == Written::Here && !ami.from_disk => {
                let (id, snapshots) = (&ami.id, ami.snapshots.join(", "));
                return Err(Ec2Error::refused(format!(
                    "{image}@{version} is published as {id}, which was made of a volume as it was, without \
                     --device; if that was not meant, remove it (`aws ec2 deregister-image --image-id {id}`) \
                     and its snapshot ({snapshots}), and run this again"
                )));
            }
            Some(ami) => ami.clone(),
            None => {
                // Before the snapshot: what cannot be registered need not be made.
                let like = self.attributes(settings, &published).await?;
                let held = snapshot(journal).await?;
                let from_disk = written != Written::Elsewhere;
                let ami = self.calls.register(image, &held, from_disk, &like).await?;
                journal.note_registered(&ami.snapshots)?;
                ami
            }
        };
        self.launch(image, settings, &ami, journal).await
    }

    /// The model's, or, once that is gone, those that our current one took over from it.
    async fn attributes(
        &self,
        settings: &ImageSettings,
        published: &[Published],
    ) -> Result<attributes::Attributes, Ec2Error> {
        let like = self.calls.attributes(&settings.like, settings.encrypted).await;
        let like = match (like, ami::current(published)) {
            (Err(error), Some(current)) if error.kind() == ErrorKind::NotFound => {
                self.calls.attributes(&current.id, true).await
            }
            (like, _) => like,
        };
        Ok(attributes::Attributes { volume_gib: settings.volume_gib, ..like? })
    }

    /// Has new machines start from `ami`: the launch template first, then the tag.
    async fn launch(
        &self,
        image: &ImageName,
        settings: &ImageSettings,
        ami: &Published,
        journal: &mut Journal,
    ) -> Result<Vec<Published>, Ec2Error> {
        if let Some(template) = &settings.launch_template {
            let id = self.calls.launch_from(template, image, ami, settings.make_default).await?;
            journal.set_templated(&id, &ami.id)?;
        }
        self.calls.make_current(image, ami).await
    }

    /// Reads the current machine image's snapshot back and compares it with the disk image.
    ///
    /// # Errors
    ///
    /// `Damaged` if they differ, `NotFound` if nothing is published; those of the calls.
    pub fn verify(&self, image: &ImageName, disk: &Path) -> Result<Verified, Ec2Error> {
        let disk = Disk::open(disk)?;
        self.block_on(async {
            let ami = self.current_ami(image).await?;
            // Last of all, the one that our tag names.
            let snapshot = ami.snapshots.last().ok_or_else(|| {
                Ec2Error::plain(ErrorKind::NotFound, format!("{} has no snapshot", ami.id))
            })?;
            self.calls.verify(snapshot, &disk, self.settings.parallel).await
        })
    }

    /// Has a running instance restart from the current machine image: for machines without an agent. Its
    /// root volume is replaced, the former one stays unless `delete_replaced`. Gives EC2's task, which has
    /// then succeeded.
    ///
    /// # Errors
    ///
    /// Those of the calls: the machine image must descend from the one that the instance was launched
    /// from.
    pub fn replace_root(
        &self,
        image: &ImageName,
        instance: &str,
        delete_replaced: bool,
    ) -> Result<String, Ec2Error> {
        self.block_on(async {
            let ami = self.current_ami(image).await?;
            self.calls.replace_root(instance, &ami, delete_replaced).await
        })
    }

    async fn current_ami(&self, image: &ImageName) -> Result<Published, Ec2Error> {
        let published = self.calls.published(image).await?;
        ami::current(&published).cloned().ok_or_else(|| {
            let what = format!("no version of {image} is published at {}", self.calls.place);
            Ec2Error::plain(ErrorKind::NotFound, what)
        })
    }
}

fn runtime() -> Result<Runtime, Ec2Error> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .thread_name("vireo-ec2")
        .build()
        .map_err(io_error("start threads for", Path::new("EC2")))
}

impl Cloud for Ec2 {
    fn takes(&self, image: &ImageName) -> bool {
        self.settings.images.contains_key(image)
    }

    fn is_slow(&self) -> bool {
        true
    }

    fn publish(&self, publication: &Publication<'_>) -> Result<Launchable, CloudError> {
        Ok(self.publish_version(publication)?)
    }

    fn settle(&self, image: &ImageName) -> Result<(), CloudError> {
        Ok(self.settle_image(image)?)
    }

    fn current(&self, image: &ImageName) -> Result<Option<Launchable>, CloudError> {
        let published = self.block_on(self.calls.published(image))?;
        Ok(ami::current(&published).map(|ami| ami.launchable(image)))
    }

    fn machines(&self, image: &ImageName) -> Result<Vec<Machine>, CloudError> {
        Ok(self.block_on(async {
            let published = self.calls.published(image).await?;
            self.calls.machines(image, &published).await
        })?)
    }
}
