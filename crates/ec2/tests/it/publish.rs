//! Publishing, and all that follows from it.

use std::collections::BTreeSet;

use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use vireo_cloud::Cloud as _;
use vireo_cloud::testing::check_cloud;
use vireo_ec2::ErrorKind;

use crate::site::{BLOCK, Site, block_on, content, listener, tree};

#[test]
fn ec2_keeps_the_contract_of_clouds() {
    let site = Site::new();
    check_cloud(&site.ec2(), site.dir.path());
    site.assert_nothing_invalid();
}

#[test]
fn a_child_snapshot_equals_the_patched_image_and_only_changed_blocks_travel() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", (0..40).chain([199]));
    let first = site.publish(&ec2, 1, &base, &[]).expect("published");
    assert_eq!(site.aws.world().ebs.puts.len(), 41, "holes are left out of a whole upload");
    site.assert_holds(&site.snapshot_of(0), &base);

    let zeros = vec![0; BLOCK as usize];
    let target = site.patch(
        &base,
        "target.img",
        &[
            (3, content(1003)),
            (7, vec![1; 10]),
            (20, zeros),
            (90, content(90)),
            (200, vec![5; 4096]),
        ],
    );
    let second = site.publish(&ec2, 2, &target, &[(1, &base)]).expect("published");
    assert_ne!(first.address, second.address);
    let world = site.aws.world();
    let put: Vec<u32> = world.ebs.puts[41..].iter().map(|(_, index)| *index).collect();
    let changed = BTreeSet::from([3, 7, 20, 90, 200]);
    assert_eq!(put.iter().copied().collect::<BTreeSet<_>>(), changed, "zeros are written too");
    assert!(put.len() * 5 <= changed.len() * 6, "within 1.2 times the changed blocks");
    drop(world);
    let child = site.snapshot_of(1);
    site.assert_holds(&child, &target);
    let parent = site.aws.world().ebs.snapshots[&child].parent.clone();
    assert_eq!(parent, Some(site.snapshot_of(0)));
    assert_eq!(ec2.current(&site.image).expect("it answers"), Some(second));
    site.assert_nothing_invalid();
}

#[test]
fn a_version_with_the_same_disk_shares_the_snapshot() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..3);
    let same = site.patch(&base, "same.img", &[]);
    let first = site.publish(&ec2, 1, &base, &[]).expect("published");
    let second = site.publish(&ec2, 2, &same, &[(1, &base)]).expect("published");
    assert_ne!(first.address, second.address);
    assert_eq!(site.snapshot_of(0), site.snapshot_of(1));
    assert_eq!(site.aws.world().ebs.snapshots.len(), 1);
}

#[test]
fn a_base_that_was_made_anew_is_not_relied_on() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..5);
    site.publish(&ec2, 1, &base, &[]).expect("published");
    std::fs::remove_file(&base).expect("removed");
    let base = site.make_disk("base.img", 0..6);
    let target = site.patch(&base, "target.img", &[(1, content(77))]);
    site.publish(&ec2, 2, &target, &[(1, &base)]).expect("published");
    let snapshot = site.snapshot_of(1);
    assert_eq!(site.aws.world().ebs.snapshots[&snapshot].parent, None, "uploaded whole");
    site.assert_holds(&snapshot, &target);
}

#[test]
fn throttling_and_internal_errors_only_take_time() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..30);
    site.aws.world().is_faulty = true;
    site.publish(&ec2, 1, &base, &[]).expect("published");
    let world = site.aws.world();
    assert!(world.faults > 20, "{} faults", world.faults);
    assert_eq!((world.ebs.snapshots.len(), world.ebs.puts.len()), (1, 30));
    drop(world);
    site.assert_holds(&site.snapshot_of(0), &base);
    site.assert_nothing_invalid();
}

#[test]
fn a_machine_image_is_like_its_model_and_has_its_tags() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", [0]);
    let launchable = site.publish(&ec2, 1, &base, &[]).expect("published");
    let asked = &site.aws.calls_of("RegisterImage")[0];
    let expected = [
        ("Architecture", "arm64"),
        ("BootMode", "uefi"),
        ("RootDeviceName", "/dev/xvda"),
        ("UefiData", "dWVmaQ=="),
        ("VirtualizationType", "hvm"),
        ("EnaSupport", "true"),
        ("SriovNetSupport", "simple"),
        ("TpmSupport", "v2.0"),
        ("ImdsSupport", "v2.0"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "15"),
        ("BlockDeviceMapping.1.Ebs.VolumeType", "standard"),
    ];
    for (key, value) in expected {
        assert_eq!(asked.get(key).map(String::as_str), Some(value), "{key}");
    }
    let client = site.client();
    let images = block_on(client.describe_images().image_ids(&launchable.address).send());
    let images = images.expect("described").images.unwrap_or_default();
    let tag = |key: &str| {
        let tags = images[0].tags();
        tags.iter()
            .find(|tag| tag.key() == Some(key))
            .and_then(|tag| tag.value())
            .map(str::to_owned)
    };
    assert_eq!(tag("vireo:image").as_deref(), Some("web"));
    assert_eq!(tag("vireo:version").as_deref(), Some("1"));
    assert_eq!(tag("vireo:tree"), Some(tree(1).to_string()));
    assert_eq!(tag("vireo:snapshot"), Some(site.snapshot_of(0)));
}

#[test]
fn a_launch_template_gets_one_version_for_each() {
    let site = Site::new();
    site.make_template();
    let ec2 = site.ec2_with(|image| image.launch_template = Some("shop".to_owned()));
    let base = site.make_disk("base.img", [0]);
    let target = site.patch(&base, "target.img", &[(1, content(1))]);
    let first = site.publish(&ec2, 1, &base, &[]).expect("published");
    assert_eq!(site.template(), (2, Some(first.address.clone()), 2));
    site.publish(&ec2, 1, &base, &[]).expect("published");
    assert_eq!(site.template().2, 2, "twice is once");
    let second = site.publish(&ec2, 2, &target, &[(1, &base)]).expect("published");
    assert_eq!(site.template(), (3, Some(second.address), 3));
    let asked = &site.aws.calls_of("CreateLaunchTemplateVersion")[1];
    assert_eq!(asked["SourceVersion"], "2", "the rest is as in the default version");
    let tags: Vec<&String> =
        asked.iter().filter(|(key, _)| key.ends_with(".Key")).map(|(_, value)| value).collect();
    assert_eq!(tags, ["vireo:image", "vireo:version", "vireo:tree"]);
}

#[test]
fn a_template_whose_default_is_left_alone_keeps_it() {
    let site = Site::new();
    site.make_template();
    let ec2 = site.ec2_with(|image| {
        (image.launch_template, image.make_default) = (Some("shop".to_owned()), false);
    });
    let base = site.make_disk("base.img", [0]);
    for _ in 0..2 {
        site.publish(&ec2, 1, &base, &[]).expect("published");
        assert_eq!(site.template(), (1, Some("ami-like".to_owned()), 2));
    }
}

#[test]
fn the_root_volume_has_the_size_that_the_settings_ask_for() {
    let site = Site::new();
    let ec2 = site.ec2_with(|image| image.volume_gib = Some(20));
    let base = site.make_disk("base.img", [0]);
    site.publish(&ec2, 1, &base, &[]).expect("published");
    let asked = &site.aws.calls_of("RegisterImage")[0];
    assert_eq!(asked["BlockDeviceMapping.1.Ebs.VolumeSize"], "20");
}

#[test]
fn a_template_that_the_settings_name_later_is_brought_up_once_and_then_left_to_people() {
    let site = Site::new();
    site.make_template();
    let base = site.make_disk("base.img", [0]);
    let launchable = site.publish(&site.ec2(), 1, &base, &[]).expect("published");
    let ec2 = site.ec2_with(|image| image.launch_template = Some("shop".to_owned()));
    site.aws.world().denied.insert("ModifyLaunchTemplate".to_owned());
    ec2.settle(&site.image).expect_err("it may not");
    assert_eq!(site.template(), (1, Some("ami-like".to_owned()), 2));
    site.aws.world().denied.clear();
    ec2.settle(&site.image).expect("settled");
    assert_eq!(site.template(), (2, Some(launchable.address), 2), "gone on with");

    let client = site.client();
    let modify = client.modify_launch_template().launch_template_name("shop");
    block_on(modify.default_version("1").send()).expect("rolled back");
    ec2.settle(&site.image).expect("settled");
    assert_eq!(site.template(), (1, Some("ami-like".to_owned()), 2), "somebody chose it");
}

#[test]
fn a_template_that_was_made_anew_under_its_name_is_brought_up_again() {
    let site = Site::new();
    site.make_template();
    let base = site.make_disk("base.img", [0]);
    let ec2 = site.ec2_with(|image| image.launch_template = Some("shop".to_owned()));
    let launchable = site.publish(&ec2, 1, &base, &[]).expect("published");
    let client = site.client();
    let delete = client.delete_launch_template().launch_template_name("shop");
    block_on(delete.send()).expect("deleted");
    site.make_template();
    site.bring_up(&ec2, 1, &base, &[]).expect("settled");
    assert_eq!(site.template(), (2, Some(launchable.address), 2));
}

#[test]
fn a_version_of_a_template_that_somebody_deleted_does_not_come_back() {
    let site = Site::new();
    site.make_template();
    let base = site.make_disk("base.img", [0]);
    let delete = || {
        let client = site.client();
        let modify = client.modify_launch_template().launch_template_name("shop");
        block_on(modify.default_version("1").send()).expect("rolled back");
        let delete = client.delete_launch_template_versions().launch_template_name("shop");
        block_on(delete.versions("2").send()).expect("deleted");
    };
    let ec2 = site.ec2_with(|image| image.launch_template = Some("shop".to_owned()));
    site.publish(&ec2, 1, &base, &[]).expect("published");
    assert_eq!(site.template().2, 2);
    delete();
    site.bring_up(&ec2, 1, &base, &[]).expect("settled");
    assert_eq!(site.template(), (1, Some("ami-like".to_owned()), 1));
    assert_eq!(site.aws.calls_of("CreateLaunchTemplateVersion").len(), 1);
}

#[test]
fn machine_images_that_could_not_be_deprecated_are_by_the_next_run() {
    let site = Site::new();
    let base = site.make_disk("base.img", [0]);
    let target = site.patch(&base, "target.img", &[(1, content(1))]);
    let first = site.publish(&site.ec2(), 1, &base, &[]).expect("published");
    let ec2 = site.ec2_with(|image| image.keep = Some(1));
    site.aws.world().denied.insert("EnableImageDeprecation".to_owned());
    site.bring_up(&ec2, 2, &target, &[(1, &base)]).expect_err("it may not");
    let current = ec2.current(&site.image).expect("it answers").expect("published");
    assert_eq!((current.version, site.aws.world().deprecated.len()), (2, 0));
    site.aws.world().denied.clear();
    site.bring_up(&ec2, 2, &target, &[(1, &base)]).expect("settled");
    assert_eq!(site.aws.world().deprecated, [first.address].into());
    site.bring_up(&ec2, 2, &target, &[(1, &base)]).expect("nothing to do");
    assert_eq!(site.aws.calls_of("EnableImageDeprecation").len(), 2, "denied once, done once");
}

#[test]
fn machines_are_found_by_tag_and_by_machine_image_over_several_pages() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", [0]);
    let launchable = site.publish(&ec2, 1, &base, &[]).expect("published");
    let client = site.client();
    // One by one: pages are counted in launches, not in machines.
    let run = |ami: &str, count: usize, tags: &[(&str, &str)]| {
        let tags = tags.iter().map(|(key, value)| Tag::builder().key(*key).value(*value).build());
        let tags = TagSpecification::builder()
            .resource_type(ResourceType::Instance)
            .set_tags(Some(tags.collect()))
            .build();
        let launch = || {
            let launch = client.run_instances().image_id(ami).min_count(1).max_count(1);
            let launched = block_on(launch.tag_specifications(tags.clone()).send());
            launched.expect("launched").instances.unwrap_or_default().remove(0)
        };
        (0..count).map(|_| launch()).collect::<Vec<_>>()
    };
    run(&launchable.address, 7, &[("team", "shop")]);
    run("ami-like", 6, &[("vireo:image", "web"), ("vireo:version", "9")]);
    run("ami-like", 2, &[("vireo:image", "db")]);
    let ended = run(&launchable.address, 1, &[("team", "shop")]);
    let ended = ended[0].instance_id().expect("an identity");
    block_on(client.terminate_instances().instance_ids(ended).send()).expect("terminated");

    let machines = ec2.machines(&site.image).expect("it answers");
    let of = |version| machines.iter().filter(|machine| machine.version == Some(version)).count();
    assert_eq!((machines.len(), of(1), of(9)), (13, 7, 6));
    assert!(machines.windows(2).all(|pair| pair[0].name < pair[1].name), "in order");
    assert!(machines.iter().all(|machine| machine.address.is_some()));
    assert!(site.aws.calls_of("DescribeInstances").len() >= 4, "several pages");
}

#[test]
fn earlier_machine_images_are_deprecated_and_one_that_comes_back_is_not() {
    let site = Site::new();
    let ec2 = site.ec2_with(|image| image.keep = Some(1));
    let mut addresses = Vec::new();
    let mut disks = Vec::new();
    for version in 1..=3 {
        let disk = site.make_disk(&format!("{version}.img"), 0..version);
        addresses.push(site.publish(&ec2, version, &disk, &[]).expect("published").address);
        disks.push(disk);
    }
    assert_eq!(site.aws.world().deprecated, addresses[..2].iter().cloned().collect());
    assert_eq!(site.aws.calls_of("EnableImageDeprecation").len(), 2, "each once");
    site.publish(&ec2, 1, &disks[0], &[]).expect("published");
    assert_eq!(site.aws.world().deprecated, addresses[1..].iter().cloned().collect());
}

#[test]
fn an_encrypted_first_snapshot_is_written_whole_and_its_child_is_not() {
    let site = Site::new();
    site.aws.world().ebs.encrypts_by_default = true;
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..3);
    site.publish(&ec2, 1, &base, &[]).expect("published");
    assert_eq!(site.aws.world().ebs.puts.len(), 2048, "every block of a GiB");
    let target = site.patch(&base, "target.img", &[(1, content(9))]);
    site.publish(&ec2, 2, &target, &[(1, &base)]).expect("published");
    assert_eq!(site.aws.world().ebs.puts.len(), 2049);
    site.assert_holds(&site.snapshot_of(1), &target);
    site.assert_nothing_invalid();
}

#[test]
fn a_parent_that_ebs_refuses_is_done_without() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..3);
    site.publish(&ec2, 1, &base, &[]).expect("published");
    site.aws.world().ebs.encrypts_by_default = true;
    let target = site.patch(&base, "target.img", &[(1, content(9))]);
    site.publish(&ec2, 2, &target, &[(1, &base)]).expect("published");
    assert_eq!(site.aws.world().ebs.invalid, ["the parent is not encrypted"]);
    let snapshot = site.snapshot_of(1);
    assert_eq!(site.aws.world().ebs.snapshots[&snapshot].parent, None);
    site.assert_holds(&snapshot, &target);
}

#[test]
fn a_dry_run_changes_nothing_and_tells_everything() {
    let site = Site::new();
    site.make_template();
    let with =
        |image: &mut vireo_ec2::ImageSettings| image.launch_template = Some("shop".to_owned());
    let ec2 = site.ec2_with(with);
    let base = site.make_disk("base.img", 0..3);
    site.publish(&ec2, 1, &base, &[]).expect("published");
    let journal = std::fs::read(site.state().join("web.json")).expect("there");
    let world = site.aws.world();
    let (calls, puts) = (world.asked.len(), world.ebs.puts.len());
    drop(world);

    let (observer, heard) = listener();
    let dry = site.ec2_with(with).with_observer(observer).dry_run();
    let target = site.patch(&base, "target.img", &[(1, content(9))]);
    site.publish(&dry, 2, &target, &[(1, &base)]).expect("planned");
    let heard = heard.lock().expect("not poisoned");
    let told: Vec<&str> = heard.iter().map(|call| call.operation).collect();
    let all = [
        "StartSnapshot",
        "PutSnapshotBlock",
        "CompleteSnapshot",
        "RegisterImage",
        "CreateTags",
        "CreateLaunchTemplateVersion",
        "ModifyLaunchTemplate",
        "CreateTags",
    ];
    assert_eq!(told, all);
    assert!(heard.iter().all(|call| call.planned));
    assert!(heard[1].what.contains("1 blocks, 524288 bytes"), "{}", heard[1]);
    let world = site.aws.world();
    let asked = world.asked[calls..].iter();
    let changing: Vec<_> = asked.filter(|asked| !asked.action.starts_with("Describe")).collect();
    assert!(changing.is_empty(), "{changing:?}");
    assert_eq!((world.ebs.puts.len(), world.ebs.snapshots.len()), (puts, 1));
    assert_eq!(std::fs::read(site.state().join("web.json")).expect("there"), journal);
}

#[test]
fn what_is_published_is_read_back_and_compared() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", (0..40).step_by(3));
    site.publish(&ec2, 1, &base, &[]).expect("published");
    // Half way, all tokens expire.
    site.aws.world().ebs.expire_after = Some(8);
    let verified = ec2.verify(&site.image, &base).expect("it is what was published");
    assert_eq!((verified.read, verified.absent), (14, 201 - 14));

    let snapshot = site.snapshot_of(0);
    let other = std::sync::Arc::new(content(1234));
    let damage = |block: Option<crate::ebs::Content>| {
        let mut world = site.aws.world();
        let blocks = &mut world.ebs.snapshots.get_mut(&snapshot).expect("there").blocks;
        match block {
            Some(block) => blocks.insert(9, block),
            None => blocks.remove(&9),
        };
    };
    damage(Some(other));
    let error = ec2.verify(&site.image, &base).expect_err("it is damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("block 9"), "{error}");
    damage(None);
    let error = ec2.verify(&site.image, &base).expect_err("a block is missing");
    assert!(error.to_string().contains("no block 9"), "{error}");
}

#[test]
fn a_machine_without_an_agent_gets_another_root_volume() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", [0]);
    let launchable = site.publish(&ec2, 1, &base, &[]).expect("published");
    let task = ec2.replace_root(&site.image, "i-1", true).expect("replaced");
    assert_eq!(task, "replacevol-1");
    let asked = &site.aws.calls_of("CreateReplaceRootVolumeTask")[0];
    assert_eq!(
        (&asked["ImageId"], &*asked["DeleteReplacedRootVolume"]),
        (&launchable.address, "true")
    );
    assert_eq!(site.aws.calls_of("DescribeReplaceRootVolumeTasks").len(), 3, "watched to its end");
}
