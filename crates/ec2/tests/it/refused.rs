//! Bad input and bad places: a clear error with the remedy, and nothing lost.

use std::time::{Duration, Instant};

use aws_sdk_ec2::config::Region;
use vireo_cloud::{Cloud as _, ErrorKind};
use vireo_ec2::{Ec2, ImageSettings};

use crate::site::{Site, block_on, content, sdk};

/// Publishing is refused with these words, and no snapshot is begun.
#[track_caller]
fn check(change: impl FnOnce(&mut ImageSettings), len: u64, kind: ErrorKind, words: &[&str]) {
    let site = Site::new();
    let disk = site.make_disk("base.img", [0]);
    std::fs::File::options()
        .write(true)
        .open(&disk)
        .and_then(|file| file.set_len(len))
        .expect("a hole");
    let error = site.publish(&site.ec2_with(change), 1, &disk, &[]).expect_err("refused");
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    assert_eq!(site.aws.world().ebs.snapshots.len(), 0);
}

#[test]
fn a_model_that_is_not_there_is_named_with_the_setting() {
    let change = |image: &mut ImageSettings| image.like = "ami-0bad".to_owned();
    check(change, 1 << 20, ErrorKind::Refused, &["ami-0bad", "`like`", "region"]);
}

#[test]
fn a_model_of_instance_store_is_refused_before_anything_is_uploaded() {
    let change = |image: &mut ImageSettings| image.like = "ami-store".to_owned();
    check(change, 1 << 20, ErrorKind::Refused, &["ami-store", "instance store"]);
}

#[test]
fn a_disk_that_does_not_fit_its_volume_is_refused_with_both_sizes() {
    let change = |image: &mut ImageSettings| image.volume_gib = Some(2);
    check(change, (2 << 30) + 1, ErrorKind::Refused, &["3 GiB", "2 GiB", "`volume-gib`"]);
}

#[test]
fn a_template_that_is_not_there_is_named() {
    let site = Site::new();
    let disk = site.make_disk("base.img", [0]);
    let ec2 = site.ec2_with(|image| image.launch_template = Some("shop".to_owned()));
    let error = site.publish(&ec2, 1, &disk, &[]).expect_err("there is none").to_string();
    assert!(
        error.contains("launch template shop") && error.contains("create-launch-template"),
        "{error}"
    );
    assert_eq!(ec2.current(&site.image).expect("it answers"), None, "it is not current");
}

#[test]
fn an_image_without_settings_is_not_taken() {
    let site = Site::new();
    let ec2 = site.ec2();
    assert!(ec2.takes(&site.image));
    assert!(!ec2.takes(&"db".parse().expect("a name")));
}

#[test]
fn a_place_that_is_not_reached_is_named_soon() {
    let site = Site::new();
    let disk = site.make_disk("base.img", [0]);
    let mut settings = site.settings(|_| ());
    settings.endpoint = Some("http://127.0.0.1:1".to_owned());
    let ec2 = Ec2::with_sdk(&sdk(), settings, &site.state()).expect("settings are right");
    let started = Instant::now();
    let error = site.publish(&ec2, 1, &disk, &[]).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("http://127.0.0.1:1"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_disk_that_is_not_there_is_named() {
    let site = Site::new();
    let error = site.publish(&site.ec2(), 1, &site.disk("absent.img"), &[]).expect_err("absent");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("absent.img"), "{error}");
}

#[test]
fn a_parent_that_was_deleted_is_forgotten_and_all_is_uploaded() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..5);
    site.publish(&ec2, 1, &base, &[]).expect("published");
    let client = site.client();
    let parent = site.snapshot_of(0);
    block_on(client.delete_snapshot().snapshot_id(&parent).send()).expect("deleted");
    let target = site.patch(&base, "target.img", &[(1, content(77))]);
    site.publish(&ec2, 2, &target, &[(1, &base)]).expect("published");
    let snapshot = site.snapshot_of(1);
    assert_eq!(site.aws.world().ebs.snapshots[&snapshot].parent, None, "uploaded whole");
    site.assert_holds(&snapshot, &target);
    site.assert_nothing_invalid();
}

#[test]
fn what_was_begun_in_another_account_is_begun_anew_and_left_there() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..20);
    site.publish(&site.ec2(), 1, &base, &[]).expect("published");
    let target = site.patch(&base, "target.img", &[(1, content(77))]);
    site.aws.world().puts_left = Some(0);
    site.publish(&site.ec2(), 2, &target, &[(1, &base)]).expect_err("it may put nothing");

    // Other credentials: another account, in which none of these is seen.
    let other = Site::new();
    let mut settings = site.settings(|_| ());
    settings.endpoint = Some(other.aws.endpoint());
    let ec2 = Ec2::with_sdk(&sdk(), settings, &site.state()).expect("settings are right");
    site.publish(&ec2, 2, &target, &[(1, &base)]).expect("published");
    let snapshot = other.snapshot_of(0);
    assert_eq!(other.aws.world().ebs.snapshots[&snapshot].parent, None, "uploaded whole");
    other.assert_holds(&snapshot, &target);
    assert_eq!(site.aws.world().ebs.snapshots.len(), 2, "nothing was removed in the first one");
}

#[test]
fn a_journal_of_another_region_is_refused_with_its_file() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..5);
    site.publish(&site.ec2(), 1, &base, &[]).expect("published");
    let elsewhere = sdk().into_builder().region(Region::new("us-east-1")).build();
    let ec2 = Ec2::with_sdk(&elsewhere, site.settings(|_| ()), &site.state()).expect("settings");
    let error = site.publish(&ec2, 2, &base, &[]).expect_err("another region");
    assert_eq!(error.kind(), ErrorKind::Refused);
    for word in ["web.json", "eu-central-1", "us-east-1", "move the file away"] {
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    assert_eq!(site.aws.calls_of("RegisterImage").len(), 1);
    assert_eq!(site.aws.world().ebs.snapshots.len(), 1);
}

#[test]
fn a_snapshot_with_blocks_beyond_its_volume_does_not_pass_for_the_disk() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..5);
    site.publish(&ec2, 1, &base, &[]).expect("published");
    let snapshot = site.snapshot_of(0);
    // The volume has 2048 blocks of 512 KiB.
    for beyond in [2048, i32::MAX.unsigned_abs()] {
        let block = std::sync::Arc::new(content(9));
        let blocks = |world: &mut crate::aws::World, block: Option<crate::ebs::Content>| {
            let blocks = &mut world.ebs.snapshots.get_mut(&snapshot).expect("there").blocks;
            match block {
                Some(block) => blocks.insert(beyond, block),
                None => blocks.remove(&beyond),
            };
        };
        blocks(&mut site.aws.world(), Some(block));
        let error = ec2.verify(&site.image, &base).expect_err("it has more than the disk");
        assert_eq!(error.kind(), vireo_ec2::ErrorKind::Damaged);
        assert!(error.to_string().contains(&format!("block {beyond}")), "{error}");
        blocks(&mut site.aws.world(), None);
    }
    ec2.verify(&site.image, &base).expect("without them it is the disk");
}
