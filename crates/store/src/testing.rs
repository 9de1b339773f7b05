//! For tests of whoever builds on the store: the contract of [`Writes`] as code, and a fake that
//! stops as a crash would.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::files::{Durable, Fill, Writes};

/// Writes that stop for good after a number of them, and leave behind what a crash in the middle
/// of the next one would: half a file under a name that is no finished one's.
#[derive(Debug)]
pub struct StopAfter {
    left: AtomicU64,
}

impl StopAfter {
    /// Lets `allowed` writes through.
    #[must_use]
    pub fn new(allowed: u64) -> Self {
        Self { left: AtomicU64::new(allowed) }
    }

    /// `Ok` while writes are left; `residue` is run by the one that comes too late.
    fn step(&self, residue: impl FnOnce()) -> io::Result<()> {
        let take = |left: u64| left.checked_sub(1);
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => Ok(()),
            Err(_) => {
                residue();
                Err(io::Error::other("stopped here by the test"))
            }
        }
    }
}

fn half_of(path: &Path, suffix: &str, content: &[u8]) {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    fs::write(name, &content[..content.len() / 2]).expect("the test's directory is writable");
}

impl Writes for StopAfter {
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.step(|| ())?;
        Durable.make_dir(path)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.step(|| half_of(path, ".new", content))?;
        Durable.replace(path, content)
    }

    fn create(&self, path: &Path, content: &[u8]) -> io::Result<bool> {
        self.step(|| half_of(path, ".new-1", content))?;
        Durable.create(path, content)
    }

    fn write(&self, path: &Path, fill: Fill<'_>) -> io::Result<()> {
        let mut content = Vec::new();
        fill(&mut content)?;
        self.step(|| half_of(path, "", &content))?;
        Durable.write(path, &mut |out| out.write_all(&content))
    }

    fn spool(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.step(|| half_of(path, ".part", content))?;
        Durable.spool(path, content)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| ())?;
        Durable.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(|| ())?;
        Durable.remove(path)
    }
}

/// Holds `writes` to the contract of [`Writes`], in the empty directory `dir`.
///
/// # Panics
///
/// If it does not keep it.
pub fn check_writes(writes: &dyn Writes, dir: &Path) {
    let file = dir.join("file");
    let read = |path: &Path| fs::read(path).expect("it is there");
    writes.replace(&file, b"1").expect("replace makes a file");
    writes.replace(&file, b"2").expect("replace replaces it");
    assert_eq!(read(&file), b"2");
    assert!(!writes.create(&file, b"3").expect("create answers"), "create does not replace");
    assert_eq!(read(&file), b"2");

    let other = dir.join("other");
    assert!(writes.create(&other, b"3").expect("create answers"), "create makes what is not there");
    assert_eq!(read(&other), b"3");
    writes.write(&other, &mut |out| out.write_all(b"4")).expect("write replaces");
    let failed = writes.write(&other, &mut |_| Err(io::Error::other("fill fails")));
    assert_eq!(failed.expect_err("the error of fill comes out").to_string(), "fill fails");
    writes.spool(&other, b"5").expect("spool replaces");
    assert_eq!(read(&other), b"5");
    writes.rename(&other, &file).expect("rename replaces");
    assert_eq!(read(&file), b"5");
    assert!(!other.exists());

    let sub = dir.join("sub");
    writes.make_dir(&sub).expect("make_dir makes it");
    writes.make_dir(&sub).expect("make_dir again changes nothing");
    writes.spool(&sub.join("x"), b"6").expect("it is a directory");
    writes.remove(&sub).expect("remove takes a whole directory");
    writes.remove(&sub).expect("what is not there is removed already");
    writes.remove(&file).expect("remove takes a file");
    assert_eq!(fs::read_dir(dir).expect("readable").count(), 0, "nothing is left over");
}
