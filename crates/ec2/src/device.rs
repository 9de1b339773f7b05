//! The block device by which an instance sees a volume, made to hold a disk image: only blocks that differ
//! are written, so the volume's next snapshot is as small as the change.
//!
//! # What a crash leaves
//!
//! A device that holds some blocks of either. The next run compares it anew and writes the rest; no
//! snapshot is asked for before all is durable.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use vireo_cloud::blocks::{self, BLOCK_LEN};

use crate::calls::Calls;
use crate::error::{Ec2Error, ErrorKind, io_error};
use crate::journal::Disk;
use crate::upload::blocking;

/// Where the kernel says what its block devices are (sysfs(5)).
const BLOCK_DEVICES: &str = "/sys/class/block";

/// A device that nobody else uses, as long as this lives.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    path: PathBuf,
}

impl Device {
    /// Takes the device `path`, which has to be the whole of `volume`, for this process alone.
    pub(crate) fn open(path: &Path, volume: &str, write: bool) -> Result<Self, Ec2Error> {
        let metadata = fs::metadata(path).map_err(io_error("open", path))?;
        if !metadata.file_type().is_block_device() {
            let what = format!(
                "{} is no block device; name the one that {volume} is attached as (`lsblk`)",
                path.display()
            );
            return Err(Ec2Error::refused(what));
        }
        check_identity(path, volume)?;
        // open(2): of a block device it asks for exclusive use, which mounts, swap and RAID have too.
        let exclusive = OFlags::EXCL.bits().cast_signed();
        let mut options = File::options();
        let file = options.read(true).write(write).custom_flags(exclusive).open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => Ec2Error::plain(
                ErrorKind::Unavailable,
                format!("{} is in use; unmount it and try again", path.display()),
            ),
            _ => io_error("open", path)(error),
        })?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Gives it the bytes of `disk`, and zeros behind them. A dry run compares and tells.
    pub(crate) async fn fill(self, calls: &Calls, disk: &Disk) -> Result<Self, Ec2Error> {
        let room = blocks::len(&self.file).map_err(io_error("read", &self.path))?;
        if room < disk.stamp.len {
            let what = format!(
                "{} has {room} bytes, the disk image {} has {}; make the volume larger (`aws ec2 modify-volume`)",
                self.path.display(),
                disk.path.display(),
                disk.stamp.len
            );
            return Err(Ec2Error::refused(what));
        }
        let path = self.path.clone();
        let (device, image) = (self, disk.clone());
        let (device, found) = blocking(move || {
            let found = blocks::changed(&device.file, &image.file);
            (device, found)
        })
        .await?;
        let failed = io_error("compare with the disk image", &path);
        let indices = found.map_err(failed)?.indices;
        let len = indices.len() as u64 * BLOCK_LEN;
        calls.tell(
            "WriteDevice",
            format!("{} blocks, {len} bytes, to {}", indices.len(), path.display()),
        );
        if calls.dry {
            return Ok(device);
        }
        let image = disk.clone();
        blocking(move || {
            blocks::copy(&image.file, &device.file, &indices)?;
            device.file.sync_all()?;
            Ok(device)
        })
        .await?
        .map_err(io_error("write", &path))
    }
}

/// Refuses a part of a device, and a device that says that it is another volume. EBS volumes that are
/// NVMe devices have their identity, without its dash, as serial number (EC2 user guide, "Map Amazon EBS
/// volumes to NVMe device names"); others say nothing.
fn check_identity(path: &Path, volume: &str) -> Result<(), Ec2Error> {
    let real = fs::canonicalize(path).map_err(io_error("find", path))?;
    let Some(name) = real.file_name() else { return Ok(()) };
    let known = Path::new(BLOCK_DEVICES).join(name);
    if known.join("partition").exists() {
        let what = format!(
            "{} is a partition; the disk image has partitions of its own: name the whole device",
            path.display()
        );
        return Err(Ec2Error::refused(what));
    }
    let serial = fs::read_to_string(known.join("device/serial")).unwrap_or_default();
    match other_volume(serial.trim(), volume) {
        None => Ok(()),
        Some(other) => Err(Ec2Error::refused(format!(
            "{} is the volume {other}, not {volume}; nothing was written",
            path.display()
        ))),
    }
}

/// The volume that a serial number names, if it is another one.
fn other_volume(serial: &str, volume: &str) -> Option<String> {
    let number = serial.strip_prefix("vol")?.trim_start_matches('-');
    let said = format!("vol-{number}");
    (said != volume).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_says_which_volume_it_is_must_be_the_right_one() {
        assert_eq!(other_volume("vol0123abc", "vol-0123abc"), None);
        assert_eq!(other_volume("vol0123abd", "vol-0123abc").as_deref(), Some("vol-0123abd"));
        assert_eq!(other_volume("S4NLNX0R", "vol-0123abc"), None, "a disk that is none of EBS");
        assert_eq!(other_volume("", "vol-0123abc"), None);
    }

    #[test]
    fn a_file_is_no_volume() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = Device::open(file.path(), "vol-1", true).expect_err("a file");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(
            error.to_string().contains("no block device") && error.to_string().contains("vol-1")
        );
    }
}
