//! Disk images of the guest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cache::{Cache, Key};
use crate::error::{TestkitError, failed};
use crate::fixture;
use crate::rootfs::{rootfs, rootfs_with};
use crate::run::Run;
use crate::web;

const RECIPE: &str = include_str!("../recipes/image.sh");
const ZOO: &str = include_str!("../recipes/zoo.sh");
const JAR: &str = include_str!("../recipes/jar.py");

/// Size of the guest's file system; sparse, about a quarter of it is in use.
pub const IMAGE_BYTES: u64 = 1 << 30;

/// Size of the zoo's file system; sparse, about a third of it is in use.
const ZOO_BYTES: u64 = 3 << 30;

/// What the zoo has beside the guest's packages: servers of many kinds, interpreters, and the
/// programs that others use to find out what needs a restart.
const ZOO_PACKAGES: &[&str] = &[
    "apache2",
    "bind9",
    "cron",
    "debian-goodies",
    "gunicorn",
    "libcap2-bin",
    "libnginx-mod-mail",
    "libnss-systemd",
    "libpam-systemd",
    "logrotate",
    "mariadb-server",
    "memcached",
    "needrestart",
    "nodejs",
    "openjdk-17-jre-headless",
    "openssl",
    "perl",
    "php8.2-fpm",
    "polkitd",
    "postfix",
    "postgresql-15",
    "python3-yaml",
    "redis-server",
    "rsyslog",
    "ruby",
    "sudo",
    "supervisor",
];

/// Where the partition starts on partitioned disks: one MiB, as every tool of today aligns.
pub const PARTITION_OFFSET: u64 = 1 << 20;

/// Time to unpack the root and make the file system; about five seconds is usual.
const DEADLINE: Duration = Duration::from_secs(300);

/// The agent to be put into an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The statically linked program; installed as `/usr/bin/vireo-agent`.
    pub program: PathBuf,
    /// Its unit files; installed and enabled under their own names.
    pub units: Vec<PathBuf>,
}

/// The guest's disk image to be made: unpartitioned ext4.
#[derive(Clone, Debug, Default)]
pub struct BaseImage {
    agent: Option<Agent>,
}

impl BaseImage {
    /// An image with the agent installed and enabled.
    #[must_use]
    pub fn with_agent(agent: Agent) -> Self {
        Self { agent: Some(agent) }
    }

    /// The image, made or from the cache. It is shared: boot and change copies ([`clone_image`]).
    ///
    /// # Errors
    ///
    /// As [`rootfs`]; also making the image failed, or the agent's files cannot be read.
    pub fn build(&self, cache: &Cache) -> Result<PathBuf, TestkitError> {
        self.build_from(cache, "image", IMAGE_BYTES, &rootfs(cache)?)
    }

    /// An image with real services of many kinds, some forty, beside the guest's own: databases,
    /// mail, interpreters, templates, sockets, timers, a user's. Their ports are open inside alone.
    /// Cost: about two minutes and 300 MB the first time, nothing later.
    ///
    /// # Errors
    ///
    /// As [`BaseImage::build`].
    pub fn zoo(cache: &Cache) -> Result<PathBuf, TestkitError> {
        let archive = rootfs_with(cache, "zoo-rootfs", ZOO_PACKAGES)?;
        let plain = Self::default().build_from(cache, "zoo-plain", ZOO_BYTES, &archive)?;
        let key = Key::of(ZOO).and(JAR).and(&plain.to_string_lossy());
        cache.entry("zoo", "img", &key, |out| {
            clone_image(&plain, out)?;
            fixture::edit(out, 0, ZOO, &[JAR])
        })
    }

    fn build_from(
        &self,
        cache: &Cache,
        name: &str,
        bytes: u64,
        archive: &Path,
    ) -> Result<PathBuf, TestkitError> {
        let public = login_key(cache)?.with_added_extension("pub");
        let mut key = Key::of(RECIPE).and(include_str!("web.rs")).and_file(&public)?;
        key = key.and(&archive.to_string_lossy());
        if let Some(agent) = &self.agent {
            key = key.and_file(&agent.program)?;
            for unit in &agent.units {
                key = key.and_file(unit)?;
            }
        }
        cache.entry(name, "img", &key, |out| self.make(cache, archive, &public, bytes, out))
    }

    fn make(
        &self,
        cache: &Cache,
        archive: &Path,
        public: &Path,
        bytes: u64,
        out: &Path,
    ) -> Result<(), TestkitError> {
        let work = tempfile::tempdir_in(cache.dir())
            .map_err(failed("make a directory in", cache.dir()))?;
        let content = work.path().join("web");
        web::write_base(&content)?;
        let run = Run::script("image.sh", RECIPE).arg(archive).arg(out);
        let run = run.arg(format!("{}k", bytes >> 10)).arg(work.path()).arg(public).arg(&content);
        let run = match &self.agent {
            Some(agent) => run.arg(&agent.program).args(&agent.units),
            None => run,
        };
        run.deadline(DEADLINE).text().map(drop)
    }
}

/// The private key that logs in to guests as root, made on first use; its public half is beside it.
pub(crate) fn login_key(cache: &Cache) -> Result<PathBuf, TestkitError> {
    let key = cache.subdir("ssh")?.join("id_ed25519");
    let _lock = cache.lock("ssh")?;
    if !key.with_added_extension("pub").exists() {
        let run =
            Run::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "testkit", "-f"]);
        run.arg(&key).text()?;
    }
    Ok(key)
}

/// Copies an image, keeping holes; shares blocks where the file system can. `to` must not exist.
///
/// # Errors
///
/// `to` exists already, or copying failed.
pub fn clone_image(from: &Path, to: &Path) -> Result<(), TestkitError> {
    if to.exists() {
        let exists = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(TestkitError::io("copy an image to", to, exists));
    }
    Run::new("cp").args(["--sparse=always", "--reflink=auto"]).args([from, to]).text().map(drop)
}

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// A GUID partition table with one Linux partition.
    Gpt,
    /// A master boot record with one Linux partition.
    Mbr,
}

/// Makes a disk with a partition table whose first partition, at [`PARTITION_OFFSET`], holds the
/// file system in `filesystem`; room for the table's second copy is left at the end.
///
/// # Errors
///
/// Writing the disk or its table failed.
pub fn partitioned(filesystem: &Path, table: Table, out: &Path) -> Result<(), TestkitError> {
    let len = fs::metadata(filesystem).map_err(failed("read", filesystem))?.len();
    let disk = File::create_new(out).map_err(failed("create", out))?;
    disk.set_len(len + 2 * PARTITION_OFFSET).map_err(failed("extend", out))?;
    drop(disk);
    let (label, kind) = match table {
        Table::Gpt => ("gpt", "linux"),
        Table::Mbr => ("dos", "83"),
    };
    let script = format!(
        "label: {label}\nunit: sectors\nstart={}, size={}, type={kind}\n",
        PARTITION_OFFSET / SECTOR,
        len / SECTOR
    );
    // The kernel is not to be asked to read the table again: this is a file.
    Run::new("sfdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(out)
        .input(script)
        .text()?;
    copy_into(filesystem, out, PARTITION_OFFSET)
}

/// Bytes of a sector, as partition tables count.
const SECTOR: u64 = 512;

/// Bytes copied at a time; blocks of zeros are left out.
const COPY_BLOCK: usize = 64 << 10;

/// Copies the content of `from` to `offset` in `to`, leaving holes for zeros.
fn copy_into(from: &Path, to: &Path, offset: u64) -> Result<(), TestkitError> {
    let mut reader = File::open(from).map_err(failed("open", from))?;
    let mut writer = OpenOptions::new().write(true).open(to).map_err(failed("open", to))?;
    let mut block = vec![0; COPY_BLOCK];
    let mut at = offset;
    loop {
        let read = reader.read(&mut block).map_err(failed("read", from))?;
        if read == 0 {
            return Ok(());
        }
        let bytes = &block[..read];
        if bytes.iter().any(|byte| *byte != 0) {
            let seek = writer.seek(SeekFrom::Start(at)).and_then(|_| writer.write_all(bytes));
            seek.map_err(failed("write", to))?;
        }
        at += read as u64;
    }
}
