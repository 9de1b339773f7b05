//! What every test needs: a server, disk images, an adapter.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aws_sdk_ec2::config::{
    AppName, BehaviorVersion, Credentials, Region, SharedCredentialsProvider,
};
use aws_sdk_ec2::types::{InstanceType, RequestLaunchTemplateData};
use vireo_cloud::{Cloud as _, CloudError, Earlier, Launchable, Publication};
use vireo_ec2::{Call, Ec2, ImageSettings, SdkConfig, Settings};
use vireo_model::{Digest, ImageName};

use crate::aws::{Aws, OWN_CLIENT};

/// Blocks of the test's disks.
pub(crate) const BLOCK: u64 = 524_288;

/// Size of the test's disks: a volume of 1 GiB that is not full.
pub(crate) const DISK_LEN: u64 = 200 * BLOCK + 4096;

#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) aws: Aws,
    pub(crate) image: ImageName,
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let aws = Aws::start(dir.path());
        Self { dir, aws, image: "web".parse().expect("a name") }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn settings(&self, change: impl FnOnce(&mut ImageSettings)) -> Settings {
        let mut image = ImageSettings::like("ami-like");
        change(&mut image);
        Settings {
            region: Some("eu-central-1".to_owned()),
            endpoint: Some(self.aws.endpoint()),
            parallel: 8,
            wait_minutes: 1,
            images: [(self.image.clone(), image)].into(),
            ..Settings::default()
        }
    }

    pub(crate) fn ec2_with(&self, change: impl FnOnce(&mut ImageSettings)) -> Ec2 {
        Ec2::with_sdk(&sdk(), self.settings(change), &self.state()).expect("settings are right")
    }

    pub(crate) fn ec2(&self) -> Ec2 {
        self.ec2_with(|_| ())
    }

    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A disk with data in these blocks.
    pub(crate) fn make_disk(&self, name: &str, blocks: impl IntoIterator<Item = u64>) -> PathBuf {
        let path = self.disk(name);
        let file = File::create(&path).expect("writable");
        file.set_len(DISK_LEN).expect("a hole");
        for index in blocks {
            write(&path, index, &content(index));
        }
        path
    }

    /// A copy of a disk, with these blocks changed.
    pub(crate) fn patch(&self, from: &Path, name: &str, changes: &[(u64, Vec<u8>)]) -> PathBuf {
        let path = self.disk(name);
        fs::copy(from, &path).expect("copied");
        for (index, bytes) in changes {
            write(&path, *index, bytes);
        }
        path
    }

    pub(crate) fn publish(
        &self,
        ec2: &Ec2,
        version: u64,
        disk: &Path,
        earlier: &[(u64, &Path)],
    ) -> Result<Launchable, CloudError> {
        let earlier: Vec<Earlier> = earlier
            .iter()
            .map(|(version, disk)| Earlier {
                version: *version,
                tree: tree(*version),
                disk: disk.to_path_buf(),
            })
            .collect();
        ec2.publish(&Publication {
            image: &self.image,
            version,
            tree: tree(version),
            disk,
            earlier: &earlier,
        })
    }

    /// As a repository does at every start and push: settles what is current, publishes what is not.
    pub(crate) fn bring_up(
        &self,
        ec2: &Ec2,
        version: u64,
        disk: &Path,
        earlier: &[(u64, &Path)],
    ) -> Result<(), CloudError> {
        let current = ec2.current(&self.image)?;
        if current.is_some_and(|current| current.version == version) {
            return ec2.settle(&self.image);
        }
        self.publish(ec2, version, disk, earlier).map(drop)
    }

    /// Makes the launch template `shop`.
    pub(crate) fn make_template(&self) {
        let data = RequestLaunchTemplateData::builder()
            .image_id("ami-like")
            .instance_type(InstanceType::T4gMicro)
            .build();
        let client = self.client();
        let create = client.create_launch_template().launch_template_name("shop");
        block_on(create.launch_template_data(data).send()).expect("created");
    }

    /// The template's default version: its number and machine image; and how many versions there are.
    pub(crate) fn template(&self) -> (i64, Option<String>, usize) {
        let client = self.client();
        let ask = || client.describe_launch_template_versions().launch_template_name("shop");
        let default = block_on(ask().versions("$Default").send()).expect("described");
        let default = default.launch_template_versions.unwrap_or_default().remove(0);
        let all = block_on(ask().send()).expect("described").launch_template_versions;
        let image = default.launch_template_data.and_then(|data| data.image_id);
        (default.version_number.unwrap_or(0), image, all.unwrap_or_default().len())
    }

    /// The snapshot that a machine image was registered from.
    pub(crate) fn snapshot_of(&self, number: usize) -> String {
        let calls = self.aws.calls_of("RegisterImage");
        calls[number]["BlockDeviceMapping.1.Ebs.SnapshotId"].clone()
    }

    /// The snapshot that a machine image was asked to be registered from last.
    pub(crate) fn last_snapshot(&self) -> String {
        self.snapshot_of(self.aws.calls_of("RegisterImage").len() - 1)
    }

    /// How many machine images of the account's own there are.
    pub(crate) fn machine_images(&self) -> usize {
        let client = self.client();
        let found = block_on(client.describe_images().owners("self").send()).expect("described");
        found.images.unwrap_or_default().len()
    }

    /// A volume made from the snapshot has what the disk has, and zeros behind it.
    pub(crate) fn assert_holds(&self, snapshot: &str, disk: &Path) {
        let mut volume = tempfile::tempfile().expect("a temporary file");
        self.aws.world().ebs.restore(snapshot, &mut volume);
        let disk = File::open(disk).expect("there");
        let found = vireo_cloud::blocks::changed(&disk, &volume).expect("compared");
        assert_eq!(found.indices, [0_u32; 0], "blocks of {snapshot} that differ");
    }

    pub(crate) fn assert_nothing_invalid(&self) {
        assert_eq!(self.aws.world().ebs.invalid, [""; 0], "requests that EBS refuses");
    }

    /// A client of the test's own.
    pub(crate) fn client(&self) -> aws_sdk_ec2::Client {
        let name = AppName::new(OWN_CLIENT).expect("a name");
        let config = aws_sdk_ec2::config::Builder::from(&sdk())
            .app_name(name)
            .endpoint_url(self.aws.endpoint())
            .http_client(aws_smithy_http_client::Builder::new().build_http());
        aws_sdk_ec2::Client::from_conf(config.build())
    }
}

pub(crate) fn sdk() -> SdkConfig {
    let credentials = Credentials::new("test", "test", None, None, "the test");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a thread").block_on(work)
}

pub(crate) fn tree(version: u64) -> Digest {
    Digest::of(version.to_string().as_bytes())
}

/// Bytes of a block that no other block has.
pub(crate) fn content(seed: u64) -> Vec<u8> {
    let word = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..BLOCK / 8).flat_map(|at| (word.wrapping_mul(at + 1)).to_le_bytes()).collect()
}

pub(crate) fn write(disk: &Path, index: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(disk).expect("there");
    file.write_all_at(bytes, index * BLOCK).expect("written");
}

/// An observer that remembers, and what it has heard.
pub(crate) fn listener() -> (vireo_ec2::Observer, Arc<Mutex<Vec<Call>>>) {
    let heard = Arc::<Mutex<Vec<Call>>>::default();
    let ear = Arc::clone(&heard);
    (Arc::new(move |call: &Call| ear.lock().expect("not poisoned").push(call.clone())), heard)
}
