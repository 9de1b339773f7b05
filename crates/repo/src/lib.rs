//! The repository: accepts bundles, patches the stored disk image, publishes versions, serves
//! administrators and agents.
//!
//! [`Repository`] is the whole of it as plain blocking calls, on a directory; [`serve`] puts HTTPS
//! before it. Both can be used on one directory at the same time, by several processes.
//!
//! # Guarantees
//!
//! - A version is published only after its disk image was built from the one before, by the bundle
//!   that a trusted key signed, and found to hold exactly the tree that the bundle names.
//! - A push that is interrupted anywhere, by whatever, leaves the image on the version before or on
//!   the pushed one. A test stops it at every write.
//! - Two pushes onto one version: one wins, the other is told so, with both digests.
//! - The server's certificate is made at every start and its key is never written down.
//!
//! # Not here
//!
//! What is on the disk (`vireo-store`), how an image is patched (`vireo-image`), who decides which
//! machine updates when. No output: what happens is told to an observer, [`Event`] by event.
//!
//! # Example
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//! use jiff::Timestamp;
//! use vireo_repo::{HostImages, Repository};
//! use vireo_wire::api::CreateImage;
//!
//! // As root: images are mounted.
//! let root = Path::new("/srv/vireo");
//! Repository::init(root, &["repo.example".into()], Timestamp::now())?;
//! let repository = Repository::open(root, Box::new(HostImages), Arc::new(Timestamp::now))?;
//! let web = "web".parse()?;
//! repository.create_image(&web, Path::new("debian-12.img"), &CreateImage::default())?;
//! repository.trust("vireo-key-v1:...".parse()?, Some(&web))?;
//! let reply = repository.push_bundle(&web, &std::fs::read("update.vireo")?)?;
//! println!("web@{} has tree {}", reply.version.number, reply.version.tree);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod authority;
mod builder;
mod error;
mod event;
mod fleet;
mod images;
mod machines;
mod repository;
mod sandbox;
pub mod serve;
pub mod testing;
pub mod worker;

pub use builder::{BundleFile, HostImages, ImageBuilder};
pub use error::{ErrorKind, RepoError};
pub use event::Event;
pub use fleet::Caller;
pub use machines::{AGENT_RECENT, FleetMachine};
pub use repository::{Clock, Repository, Swept};
pub use vireo_store::{Finding, FsckReport};
pub use worker::{Confinement, WorkerImages};
