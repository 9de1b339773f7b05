//! Watches which unit reads which file, and makes a [`ReadMap`](vireo_classify::ReadMap) of it.
//!
//! One fanotify mark on each disk file system reports every file and directory that is opened; the
//! control group of the process says which unit it belongs to. Nobody's access is delayed, nothing
//! is changed.
//!
//! # Guarantees
//!
//! - What is in the map was opened by a process of that unit. Processes of containers, of users and
//!   of no unit are left out, and so is what belongs to no version.
//! - What could not be attributed (the process had ended) or was lost is counted, never guessed.
//! - Memory is bounded: [`MAX_READS`], [`MAX_DIRECTORIES`], [`MAX_PROCESSES`].
//!
//! # Not here
//!
//! Reloading and restarting units (`vireo record` does), what a map is used for
//! (`vireo-classify`), how it travels (`vireo-delta`).
//!
//! # Limitations
//!
//! It is not told whether a file was opened for reading or for writing alone. On a kernel before
//! 5.9, on overlayfs and on file systems without file handles there is nothing to record.
//!
//! # Example
//!
//! ```no_run
//! use vireo_classify::{Phase, Unit};
//! use vireo_record::{Options, Recorder};
//!
//! let recorder = Recorder::start(&Options::default())?;
//! let nginx = Unit::new("nginx.service");
//! recorder.watch([&nginx], Phase::Reload)?;
//! // ... reload nginx ...
//! recorder.wait_quiet();
//! recorder.complete()?;
//! let recorded = recorder.finish()?;
//! println!("{} files and directories", recorded.map(&Default::default()).len());
//! # Ok::<(), vireo_record::RecordError>(())
//! ```

mod error;
mod log;
mod mounts;
mod places;
mod processes;
mod recorder;
mod starts;

pub use error::{ErrorKind, RecordError};
pub use log::{Counts, MAX_READS, Recorded};
pub use places::MAX_DIRECTORIES;
pub use processes::MAX_PROCESSES;
pub use recorder::{Options, Recorder};
pub use starts::{START_PROPERTIES, Starts, parse_starts};
