//! The block device by which an instance sees a volume, made to hold a disk image: only blocks that differ
//! are written, so the volume's next snapshot is as small as the change.
//!
//! # What a crash leaves
//!
//! A device that holds some blocks of either. The next run compares it anew and writes the rest; no
//! snapshot is asked for before all is durable.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, major, minor};
use vireo_cloud::blocks::{self, BLOCK_LEN};

use crate::Source;
use crate::calls::Calls;
use crate::error::{Ec2Error, ErrorKind, io_error};
use crate::journal::Disk;
use crate::upload::blocking;

/// Where the kernel says what its block devices are, by their numbers (sysfs(5)).
const BLOCK_DEVICES: &str = "/sys/dev/block";

/// Where beneath that a device's serial number is: of NVMe and of virtio.
const SERIALS: [&str; 2] = ["device/serial", "serial"];

/// What devices are that are made of others, by what only they have there.
const MADE: [(&str, &str); 2] = [("dm", "a device of the device mapper"), ("md", "a RAID")];

/// A device that nobody else uses, as long as this lives.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    path: PathBuf,
}

impl Device {
    /// Takes the device of `source`, which has to be the whole of `volume`, for this process alone.
    pub(crate) fn open(source: &Source<'_>, volume: &str, write: bool) -> Result<Self, Ec2Error> {
        let path = source.device;
        let is_block = |metadata: Metadata| match metadata.file_type().is_block_device() {
            true => Ok(metadata.rdev()),
            false => Err(Ec2Error::refused(format!(
                "{} is no block device; name the one that {volume} is attached as (`lsblk`)",
                path.display()
            ))),
        };
        is_block(fs::metadata(path).map_err(io_error("open", path))?)?;
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
        // Of what is open: the name can have become another device's.
        let number = is_block(file.metadata().map_err(io_error("read", path))?)?;
        let known = format!("{BLOCK_DEVICES}/{}:{}", major(number), minor(number));
        let known = fs::canonicalize(&known).map_err(io_error("find", Path::new(&known)))?;
        match why_not(&known, volume, source.unidentified) {
            None => Ok(Self { file, path: path.to_owned() }),
            Some(why) => {
                let what = format!("{} {why}; nothing was written", path.display());
                Err(Ec2Error::refused(what))
            }
        }
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

/// Why the device that the kernel describes in the directory `known` is not taken for the whole of
/// `volume`. EBS volumes that are NVMe devices have their identity, without its dash, as serial number
/// (EC2 user guide, "Map Amazon EBS volumes to NVMe device names"); disks of instance store have another
/// one, and instances of the Xen generation none, which is taken only if it may be `unidentified`.
fn why_not(known: &Path, volume: &str, unidentified: bool) -> Option<String> {
    if known.join("partition").exists() {
        let why = "is a partition; the disk image has partitions of its own: name the whole device";
        return Some(why.to_owned());
    }
    if let Some((_, what)) = MADE.iter().find(|(name, _)| known.join(name).exists()) {
        return Some(format!(
            "is {what}, not a volume; name the device that {volume} is attached as"
        ));
    }
    let mut serials = SERIALS.iter().filter_map(|name| fs::read_to_string(known.join(name)).ok());
    let serial = serials.find(|serial| !serial.trim().is_empty()).unwrap_or_default();
    let serial = serial.trim();
    let number = serial.strip_prefix("vol").map(|number| number.trim_start_matches('-'));
    match number {
        Some(number) if volume.strip_prefix("vol-") == Some(number) => None,
        Some(number) => Some(format!("is the volume vol-{number}, not {volume}")),
        None if serial.is_empty() && unidentified => None,
        None if serial.is_empty() => Some(format!(
            "does not say which volume it is; if you are certain that it is {volume}, say so \
             (--unidentified)"
        )),
        None => Some(format!("is the disk {serial}, which is no volume of EBS, and not {volume}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of a device: files with their content.
    #[track_caller]
    fn check(files: &[(&str, &str)], unidentified: bool, says: Option<&str>) {
        let known = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = known.path().join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(path, text).expect("written");
        }
        let found = why_not(known.path(), "vol-0123abc", unidentified);
        match (says, &found) {
            (None, found) => assert_eq!(*found, None),
            (Some(says), Some(why)) => assert!(why.contains(says), "{why}"),
            (Some(says), None) => panic!("taken, although it {says}"),
        }
    }

    #[test]
    fn only_the_volume_itself_is_taken_for_it() {
        let own = ("device/serial", "vol0123abc\n");
        check(&[own], false, None);
        check(&[("serial", "vol-0123abc")], false, None);
        for unidentified in [false, true] {
            let refused = |files: &[_], says| check(files, unidentified, Some(says));
            refused(&[("device/serial", "vol0123abd \n")], "is the volume vol-0123abd");
            refused(&[("device/serial", "AWS2233445566\n")], "AWS2233445566, which is no volume");
            refused(&[own, ("partition", "1")], "is a partition");
            refused(&[("dm/name", "vg-lv")], "the device mapper");
            refused(&[("md/level", "raid1")], "is a RAID");
        }
    }

    #[test]
    fn what_says_nothing_is_taken_only_by_somebody_who_is_certain() {
        for files in [&[][..], &[("device/serial", " \n")], &[("loop/backing_file", "/x")]] {
            check(files, false, Some("--unidentified"));
            check(files, true, None);
        }
    }

    #[test]
    fn a_file_is_no_volume() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let source = Source { device: file.path(), disk: file.path(), unidentified: true };
        let error = Device::open(&source, "vol-1", true).expect_err("a file");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(
            error.to_string().contains("no block device") && error.to_string().contains("vol-1")
        );
    }
}
