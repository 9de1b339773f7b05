//! Real guests and fixtures for tests, benches and the demonstration.
//!
//! Builds a Debian guest root from the distribution's packages, makes disk images of it, makes a
//! *really* updated copy, and boots images with real systemd in a container ([`Nspawn`]) or with a
//! real kernel ([`Uml`]), behind one port, [`Guest`]. Whole disks ([`bootdisk`]) boot by their own boot loader
//! ([`boot()`]). Everything slow is kept in a [`Cache`] outside
//! the checkout, by content; everything that runs belongs to a [`Lab`], which leaves nothing behind.
//!
//! # Guarantees
//!
//! - Every wait has a deadline, and what failed says so with the end of the guest's console.
//! - A lab's processes, control groups, network, loop devices and files go away when it is finished
//!   or dropped, and also when its owner is killed: a guard process outlives it.
//! - A recording disk ([`logdisk`]) and its mount go away with their owner, however it ends.
//! - Nothing of the host is changed but the cache directory and, by [`host::install`] alone, its
//!   packages.
//!
//! # Not here
//!
//! Vireo's own libraries and programs: this crate knows where a build puts the programs
//! ([`programs::find`]), no more. Fakes of ports live beside the ports.
//!
//! # Example
//!
//! ```no_run
//! use vireo_testkit::{Cache, Guest as _, Lab, Nspawn, image::{BaseImage, clone_image}};
//!
//! let cache = Cache::open()?;
//! let base = BaseImage::default().build(&cache)?;
//! let lab = Lab::new(&cache)?;
//! let disk = lab.dir().join("disk.img");
//! clone_image(&base, &disk)?;
//! let mut guest = Nspawn::new(&lab, &disk)?;
//! guest.start()?;
//! assert_eq!(guest.http_get("/")?.status, 200);
//! drop(guest);
//! lab.finish()?;
//! # Ok::<(), vireo_testkit::TestkitError>(())
//! ```

pub mod bootdisk;
mod cache;
mod error;
pub mod fixture;
mod guest;
pub mod host;
mod http;
pub mod image;
mod lab;
pub mod leaks;
pub mod logdisk;
mod moto;
pub mod oracle;
pub mod powercut;
pub mod programs;
mod random;
mod rootfs;
mod run;
mod sources;
pub mod update;
mod wait;
pub mod web;

pub use cache::{Cache, Key};
pub use error::{ErrorKind, TestkitError};
pub use guest::{Booted, Exit, Firmware, Guest, Nspawn, Uml, boot, boot_for_good};
pub use http::Response;
pub use lab::{HOST_ADDRESS, Lab};
pub use moto::Moto;
pub use random::Random;
pub use rootfs::rootfs;
pub use run::{Output, Run};
pub use sources::{SUITE, Sources};
