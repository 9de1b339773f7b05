//! The other way to a snapshot: a volume that this host, an instance, writes to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use vireo_cloud::{Cloud as _, blocks};
use vireo_ec2::{Ec2, ErrorKind, Source};
use vireo_sys::loopdev::{LoopDevice, Window};
use vireo_testkit::programs;

use crate::site::{BLOCK, DISK_LEN, Site, block_on, content, listener, sdk, tree};

impl Site {
    /// A volume at EC2.
    fn volume(&self) -> String {
        let volume = self.client().create_volume().size(3).availability_zone("eu-central-1a");
        block_on(volume.send()).expect("made").volume_id.expect("an identity")
    }

    /// The device that a volume of `len` bytes is attached as here.
    fn attach(&self, len: u64) -> Attached {
        let path = self.disk("volume");
        let options = &mut File::options();
        let file = options.create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.expect("writable");
        file.set_len(len).expect("a hole");
        let window = Window { offset: 0, len: 0, read_only: false };
        let device = LoopDevice::attach(&file, window).expect("a loop device (root)");
        Attached { device, file }
    }
}

/// A device, and what is behind it.
struct Attached {
    device: LoopDevice,
    file: File,
}

impl Attached {
    /// Expects it to have the bytes of `disk`, and zeros behind them.
    fn assert_holds(&self, disk: &Path) {
        let disk = File::open(disk).expect("there");
        let found = blocks::changed(&disk, &self.file).expect("compared");
        assert_eq!(found.indices, [0_u32; 0], "blocks of the device that differ");
    }
}

#[test]
fn a_volume_that_was_patched_in_ec2_is_published_without_the_direct_interface() {
    let site = Site::new();
    let ec2 = site.ec2();
    let volume = site.volume();
    let publish = || {
        ec2.hold(&site.image)
            .and_then(|hold| hold.publish_volume(4, tree(4), &volume, None))
            .expect("published")
    };
    let launchable = publish();
    assert_eq!(publish(), launchable, "twice is once");
    assert_eq!(site.aws.calls_of("CreateSnapshot").len(), 1);
    assert_eq!(site.aws.world().ebs.puts.len(), 0);
    assert_eq!(ec2.current(&site.image).expect("it answers"), Some(launchable));
    assert!(site.state().join("web.lock").exists());
}

#[test]
fn a_snapshot_that_failed_is_not_waited_for_again() {
    let site = Site::new();
    let ec2 = site.ec2();
    let volume = site.volume();
    let publish =
        || ec2.hold(&site.image).and_then(|hold| hold.publish_volume(4, tree(4), &volume, None));
    // Complete, but nothing comes of it: and then it fails.
    site.aws.world().denied.insert("RegisterImage".to_owned());
    publish().expect_err("it is not allowed");
    site.aws.world().denied.clear();
    let filter =
        aws_sdk_ec2::types::Filter::builder().name("tag:vireo:image").values("web").build();
    let made = site.client().describe_snapshots().filters(filter).send();
    let made = block_on(made).expect("listed").snapshots.unwrap_or_default();
    let failed = made[0].snapshot_id.clone().expect("an identity");
    site.aws.world().failed.insert(failed.clone());

    publish().expect("another one is made");
    assert_eq!(site.aws.calls_of("CreateSnapshot").len(), 2);
    assert_ne!(site.snapshot_of(1), failed);
}

#[test]
fn without_the_direct_interface_the_other_way_is_named() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..2);
    site.aws.world().denied.insert("StartSnapshot".to_owned());
    let error = site.publish(&site.ec2(), 1, &base, &[]).expect_err("it may not");
    assert_eq!(error.kind(), vireo_cloud::ErrorKind::Denied);
    for word in ["StartSnapshot", "docs/ec2.md", "vireo-repo ec2 publish-volume"] {
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[test]
fn root_a_volume_gets_the_blocks_that_differ_and_is_published() {
    let site = Site::new();
    let (observer, heard) = listener();
    let ec2 = site.ec2().with_observer(observer);
    let volume = site.volume();
    // Larger than the disk, as volumes are.
    let attached = site.attach(2 * DISK_LEN / 4096 * 4096);
    let publish = |version, disk: &Path| {
        let source = Some(Source { device: attached.device.path(), disk, unidentified: true });
        ec2.hold(&site.image)
            .and_then(|hold| hold.publish_volume(version, tree(version), &volume, source))
    };
    let written = || {
        let heard = std::mem::take(&mut *heard.lock().expect("not poisoned"));
        let write = heard.into_iter().find(|call| call.operation == "WriteDevice");
        write.map(|call| call.what)
    };
    let base = site.make_disk("base.img", 0..5);
    let first = publish(1, &base).expect("published");
    assert!(written().expect("written").starts_with("5 blocks, 2621440 bytes, to /dev/loop"));
    attached.assert_holds(&base);

    let zeros = vec![0; BLOCK as usize];
    let target = site.patch(&base, "target.img", &[(2, zeros), (90, content(90))]);
    let second = publish(2, &target).expect("published");
    assert!(written().expect("written").starts_with("2 blocks,"), "zeros are written too");
    attached.assert_holds(&target);
    assert_eq!(publish(2, &target).expect("published"), second, "twice is once");
    assert_eq!(written(), None, "what is published is not written again");
    assert_ne!(first.address, second.address);
    assert_eq!(site.aws.calls_of("CreateSnapshot").len(), 2);
    assert_eq!(ec2.current(&site.image).expect("it answers"), Some(second));
}

#[test]
fn root_a_crash_between_device_and_snapshot_is_gone_on_with() {
    let site = Site::new();
    let ec2 = site.ec2();
    let volume = site.volume();
    let attached = site.attach(DISK_LEN);
    let base = site.make_disk("base.img", 0..5);
    let publish = || {
        let source =
            Some(Source { device: attached.device.path(), disk: &base, unidentified: true });
        ec2.hold(&site.image).and_then(|hold| hold.publish_volume(1, tree(1), &volume, source))
    };
    for step in ["CreateSnapshot", "RegisterImage"] {
        site.aws.world().denied.insert(step.to_owned());
        let error = publish().expect_err("it is not allowed");
        assert_eq!(error.kind(), ErrorKind::Denied, "{step}: {error}");
        assert_eq!(ec2.current(&site.image).expect("it answers"), None, "{step}");
        attached.assert_holds(&base);
        site.aws.world().denied.clear();
    }
    publish().expect("published");
    // The refused one, and one that was made.
    assert_eq!(site.aws.calls_of("CreateSnapshot").len(), 2);
}

#[test]
fn root_a_device_that_cannot_be_the_volume_is_refused_and_not_written() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..5);
    let attached = site.attach(DISK_LEN - 4096);
    let check = |(device, unidentified): (&Path, bool), kind: ErrorKind, words: &[&str]| {
        let source = Some(Source { device, disk: &base, unidentified });
        let error =
            ec2.hold(&site.image).and_then(|hold| hold.publish_volume(1, tree(1), "vol-1", source));
        let error = error.expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    };
    let refused = |device: &Path, kind, words: &[&str]| check((device, true), kind, words);
    // A loop device does not say which volume it is.
    let says = ["does not say which volume it is", "vol-1", "--unidentified"];
    check((attached.device.path(), false), ErrorKind::Refused, &says);
    refused(attached.device.path(), ErrorKind::Refused, &["base.img", "make the volume larger"]);
    refused(&base, ErrorKind::Refused, &["base.img is no block device", "vol-1"]);
    refused(Path::new("/dev/no-such"), ErrorKind::Io, &["/dev/no-such"]);
    // Somebody has it for himself, as a mount has.
    let exclusive = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
    let path = attached.device.path();
    let held = rustix::fs::open(path, exclusive, rustix::fs::Mode::empty()).expect("free so far");
    refused(path, ErrorKind::Unavailable, &["is in use", "unmount it"]);
    drop(held);
    assert_eq!(blocks::with_data(&attached.file).expect("read").indices, [0_u32; 0]);
    assert_eq!(site.aws.calls_of("CreateSnapshot").len(), 0);
}

#[test]
fn root_a_partition_is_no_volume() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..5);
    let attached = site.attach(DISK_LEN / 4096 * 4096);
    let device = attached.device.path().to_str().expect("text").to_owned();
    let sh = |script: &str| {
        let mut command = Command::new("bash");
        let output = command.args(["-euc", script, "script", &device]).output();
        let output = output.expect("bash runs");
        assert!(output.status.success(), "{script}: {output:?}");
    };
    sh(
        "printf 'label: gpt\\nstart=1MiB, size=4MiB\\n' | sfdisk -q --no-reread \"$1\"; partx --add \"$1\"",
    );
    let partition = format!("{device}p1");
    let refused = |device: &Path, says: &str| {
        let source = Some(Source { device, disk: &base, unidentified: true });
        let error =
            ec2.hold(&site.image).and_then(|hold| hold.publish_volume(1, tree(1), "vol-1", source));
        let error = error.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    refused(Path::new(&partition), "is a partition");
    sh("partx --delete \"$1\"");
    assert_eq!(site.aws.calls_of("CreateSnapshot").len(), 0);
}

#[test]
fn root_what_was_made_without_the_device_does_not_pass_for_what_is_written_to_it() {
    let site = Site::new();
    let ec2 = site.ec2();
    let volume = site.volume();
    let attached = site.attach(DISK_LEN);
    let base = site.make_disk("base.img", 0..5);
    let source = Source { device: attached.device.path(), disk: &base, unidentified: true };
    let publish = |source| {
        ec2.hold(&site.image).and_then(|hold| hold.publish_volume(1, tree(1), &volume, source))
    };
    let refused = |words: &[&str]| {
        let error = publish(Some(source)).expect_err("it is another one");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    };
    // Forgotten once, at first without a machine image.
    site.aws.world().denied.insert("RegisterImage".to_owned());
    publish(None).expect_err("it is not allowed");
    refused(&["snapshot snap-", "without --device", "delete-snapshot"]);
    site.aws.world().denied.clear();
    let mistaken = publish(None).expect("published");
    refused(&[&mistaken.address, "without --device", "deregister-image", "snap-"]);
    assert_eq!(blocks::with_data(&attached.file).expect("read").indices, [0_u32; 0]);

    let client = site.client();
    block_on(client.deregister_image().image_id(&mistaken.address).send()).expect("removed");
    let snapshot = site.snapshot_of(1);
    block_on(client.delete_snapshot().snapshot_id(snapshot).send()).expect("removed");
    let written = publish(Some(source)).expect("published");
    assert_ne!(written.address, mistaken.address);
    attached.assert_holds(&base);
    assert_eq!(publish(Some(source)).expect("published"), written, "twice is once");
    assert_eq!(publish(None).expect("published"), written, "and serves as it is");
}

/// A repository with version 3 of `web`, as `docs/format/repository.md` has it, and settings.
fn repository(site: &Site, disk: &Path) -> (PathBuf, PathBuf) {
    let (data, settings) = (site.disk("repo"), site.disk("ec2.toml"));
    let init = run(Command::new(program()).arg("init").arg(&data));
    assert!(init.status.success(), "{init:?}");
    let versions = data.join("images/web/versions");
    fs::create_dir_all(&versions).expect("made");
    for number in 1..=3 {
        let tree = tree(number);
        let record = serde_json::json!({
            "number": number, "tree": tree, "base": null, "bundle": null, "signer": null,
            "created": "2026-11-23T00:00:00Z", "wire_bytes": 0, "image_bytes": DISK_LEN, "ignore": [],
        });
        fs::write(versions.join(format!("{number}.json")), format!("{record}\n")).expect("written");
    }
    fs::copy(disk, data.join(format!("disks/{}.img", tree(3)))).expect("copied");
    let text = format!(
        "region = \"eu-central-1\"\nendpoint = \"{}\"\nwait-minutes = 1\n[images.web]\nlike = \"ami-like\"\n",
        site.aws.endpoint()
    );
    fs::write(&settings, text).expect("written");
    (data, settings)
}

/// The command, which has to be built with its feature: by `cargo xtask test`, or as that does it.
fn program() -> PathBuf {
    programs::find("vireo-repo").expect("built with the feature ec2")
}

fn run(command: &mut Command) -> Output {
    command.env_clear().env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    command.output().expect("it runs")
}

#[test]
fn root_a_version_that_was_made_while_another_was_published_is_not_passed_over() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..5);
    let (data, settings) = repository(&site, &base);
    let volume = site.volume();
    let ec2 = Ec2::with_sdk(&sdk(), site.settings(|_| ()), &data.join("ec2")).expect("settings");
    let other = ec2.hold(&site.image).expect("nobody has it");
    let mut command = Command::new(program());
    command.args(["ec2", "publish-volume", "--data"]).arg(&data);
    command.arg("--settings").arg(&settings).args(["web", &volume]);
    let waiting = thread::spawn(move || run(&mut command));
    // It is at the lock then, or will be.
    thread::sleep(Duration::from_secs(2));
    let record = |number| data.join(format!("images/web/versions/{number}.json"));
    let fourth =
        fs::read_to_string(record(3)).expect("there").replace("\"number\":3", "\"number\":4");
    fs::copy(&base, data.join(format!("disks/{}.img", tree(4)))).expect("copied");
    let fourth = fourth.replace(&tree(3).to_string(), &tree(4).to_string());
    fs::write(record(4), fourth).expect("written");
    drop(other);
    let output = waiting.join().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("web@4"), "{output:?}");
}

#[test]
fn root_the_command_plans_then_writes_and_publishes_the_newest_version() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..5);
    let (data, settings) = repository(&site, &base);
    let attached = site.attach(DISK_LEN);
    let volume = site.volume();
    let publish = |words: &[&str]| {
        let mut command = Command::new(program());
        command.args(["ec2", "publish-volume", "--data"]).arg(&data);
        command.arg("--settings").arg(&settings).args(words);
        let output = run(&mut command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let device = attached.device.path().to_str().expect("text").to_owned();
    let full = ["web", &volume, "--device", &device, "--unidentified"];
    let (code, _, error) = publish(&full[..4]);
    assert_eq!(code, Some(5), "{error}");
    assert!(error.contains("--unidentified"), "{error}");

    let (code, planned, error) = publish(&[&full[..], &["--dry-run"]].concat());
    assert_eq!(code, Some(0), "{error}");
    let calls =
        ["WriteDevice: 5 blocks", "CreateSnapshot: web@3 of vol-", "RegisterImage", "CreateTags"];
    for call in calls {
        assert!(planned.contains(&format!("would call {call}")), "{call}: {planned}");
    }
    assert_eq!(blocks::with_data(&attached.file).expect("read").indices, [0_u32; 0]);
    assert_eq!(site.aws.calls_of("CreateSnapshot").len(), 0, "a dry run changes nothing");

    let (code, done, error) = publish(&full);
    assert_eq!(code, Some(0), "{error}");
    assert!(done.contains("web@3  ami-") && !done.contains("would call"), "{done}");
    attached.assert_holds(&base);
    let current = site.ec2().current(&site.image).expect("it answers").expect("published");
    assert_eq!((current.version, current.tree), (3, tree(3)));
    let (code, again, _) = publish(&full);
    assert_eq!((code, again.lines().count()), (Some(0), 1), "nothing to call: {again}");

    let (code, _, error) = publish(&["web", "snap-1"]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("snap-1 is no volume's identity"), "{error}");
    let (code, _, error) = publish(&["mail", &volume]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("no image mail"), "{error}");
    // Without the device: the volume is taken as it is; one that is not there is named.
    fs::remove_file(data.join("images/web/versions/3.json")).expect("removed");
    let (code, _, error) = publish(&["web", "vol-0123456789abcdef0"]);
    assert_eq!(code, Some(5), "{error}");
    assert!(error.contains("CreateSnapshot") && error.contains("vol-0123456789abcdef0"), "{error}");
}
