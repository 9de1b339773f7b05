//! Whatever happens in the middle: the next run completes it, and nothing is left over.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vireo_cloud::{Cloud as _, ErrorKind};
use vireo_testkit::programs;

use crate::aws::Lost;
use crate::ebs::Status;
use crate::site::{Site, block_on, content};

/// Time for a program to do its work.
const DEADLINE: Duration = Duration::from_secs(60);

fn put_twice(site: &Site) -> usize {
    let world = site.aws.world();
    let mut times = BTreeMap::<_, usize>::new();
    for put in &world.ebs.puts {
        *times.entry(put.clone()).or_default() += 1;
    }
    times.values().map(|times| times - 1).sum()
}

/// Every snapshot is complete, and is one that a machine image was registered from.
fn assert_nothing_left(site: &Site) {
    let used: Vec<String> = (0..site.aws.calls_of("RegisterImage").len())
        .map(|number| site.snapshot_of(number))
        .collect();
    for (id, snapshot) in &site.aws.world().ebs.snapshots {
        assert_eq!(snapshot.status, Status::Completed, "{id}");
        assert!(used.contains(id), "{id} belongs to no machine image");
    }
}

#[test]
fn an_upload_that_failed_half_way_is_gone_on_with() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..180);
    site.aws.world().puts_left = Some(100);
    let error = site.publish(&site.ec2(), 1, &base, &[]).expect_err("it may put only 100 blocks");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("docs/ec2.md"), "{error}");
    assert_eq!(site.aws.world().ebs.snapshots.len(), 1);

    site.aws.world().puts_left = None;
    site.publish(&site.ec2(), 1, &base, &[]).expect("published");
    assert!(put_twice(&site) <= 8, "what was on its way, at most: {}", put_twice(&site));
    site.assert_holds(&site.snapshot_of(0), &base);
    assert_nothing_left(&site);
    site.assert_nothing_invalid();
}

#[test]
fn a_lost_journal_finds_the_same_snapshot_by_its_token() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..20);
    site.aws.world().puts_left = Some(10);
    site.publish(&site.ec2(), 1, &base, &[]).expect_err("it may put only 10 blocks");
    fs::remove_dir_all(site.state()).expect("removed");
    site.aws.world().puts_left = None;
    site.publish(&site.ec2(), 1, &base, &[]).expect("published");
    assert_eq!(site.aws.world().ebs.snapshots.len(), 1);
    site.assert_holds(&site.snapshot_of(0), &base);
    assert_nothing_left(&site);
}

#[test]
fn what_was_begun_of_another_version_is_removed() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..20);
    let target = site.patch(&base, "target.img", &[(2, content(99))]);
    site.aws.world().puts_left = Some(10);
    site.publish(&site.ec2(), 1, &base, &[]).expect_err("it may put only 10 blocks");
    site.aws.world().puts_left = None;
    site.publish(&site.ec2(), 2, &target, &[(1, &base)]).expect("published");
    assert_eq!(site.aws.calls_of("DeleteSnapshot").len(), 1);
    assert_eq!(site.aws.world().ebs.snapshots.len(), 1);
    site.assert_holds(&site.snapshot_of(0), &target);
    assert_nothing_left(&site);
}

#[test]
fn a_snapshot_that_ebs_gave_up_is_begun_anew() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..20);
    site.aws.world().puts_left = Some(10);
    site.publish(&site.ec2(), 1, &base, &[]).expect_err("it may put only 10 blocks");
    site.aws.world().puts_left = None;
    site.aws.world().ebs.snapshots.clear();
    site.publish(&site.ec2(), 1, &base, &[]).expect("published");
    site.assert_holds(&site.snapshot_of(0), &base);
    assert_nothing_left(&site);
}

#[test]
fn every_call_of_ec2_can_fail_and_the_next_run_completes_it() {
    let steps = ["DescribeImages", "DescribeSnapshots", "RegisterImage", "CreateTags"];
    for step in steps {
        let site = Site::new();
        let base = site.make_disk("base.img", 0..4);
        site.aws.world().denied.insert(step.to_owned());
        let error = site.publish(&site.ec2(), 1, &base, &[]).expect_err("it is not allowed");
        assert_eq!(error.kind(), ErrorKind::Denied, "{step}: {error}");
        site.aws.world().denied.clear();
        let ec2 = site.ec2();
        assert_eq!(ec2.current(&site.image).expect("it answers"), None, "{step}");
        let launchable = site.publish(&ec2, 1, &base, &[]).expect("published");
        assert_eq!(ec2.current(&site.image).expect("it answers"), Some(launchable), "{step}");
        assert_eq!(site.aws.world().ebs.puts.len(), 4, "{step}: no block twice");
        assert_nothing_left(&site);
        site.assert_nothing_invalid();
    }
}

/// Tries of a call whose connection ends: as many as the adapter makes.
const TRIES: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// The call is refused, and nothing done.
    Denied(&'static str),
    /// So many of its answers are lost, once so many have arrived; what was asked for is done.
    Lost(&'static str, usize, usize),
}

impl Trouble {
    fn begin(self, site: &Site) {
        let mut world = site.aws.world();
        match self {
            Self::Denied(action) => {
                world.denied.insert(action.to_owned());
            }
            Self::Lost(action, after, times) => world.lost = Some(Lost { action, after, times }),
        }
    }

    fn end(site: &Site) {
        let mut world = site.aws.world();
        world.denied.clear();
        world.lost = None;
    }
}

/// Publishes a child with everything that can follow from it, in spite of `trouble`: there is one of
/// everything then, whether the run itself got through or the next had to.
#[track_caller]
fn check_trouble(trouble: Trouble, gets_through: bool) {
    let site = Site::new();
    site.make_template();
    let ec2 = site.ec2_with(|image| {
        (image.launch_template, image.keep) = (Some("shop".to_owned()), Some(1));
    });
    let base = site.make_disk("base.img", 0..4);
    let target = site.patch(&base, "target.img", &[(2, content(99))]);
    let first = site.publish(&ec2, 1, &base, &[]).expect("published");
    trouble.begin(&site);
    let outcome = site.bring_up(&ec2, 2, &target, &[(1, &base)]);
    assert_eq!(outcome.is_ok(), gets_through, "{trouble:?}: {outcome:?}");
    Trouble::end(&site);
    site.bring_up(&ec2, 2, &target, &[(1, &base)]).expect("the next run completes it");

    let current = ec2.current(&site.image).expect("it answers").expect("published");
    assert_eq!(current.version, 2, "{trouble:?}");
    assert_eq!(site.machine_images(), 2, "{trouble:?}");
    assert_eq!(site.template(), (3, Some(current.address), 3), "{trouble:?}");
    assert_eq!(site.aws.world().deprecated, [first.address].into(), "{trouble:?}");
    assert_eq!(site.aws.world().ebs.snapshots.len(), 2, "{trouble:?}");
    site.assert_holds(&site.last_snapshot(), &target);
    assert_nothing_left(&site);
}

#[test]
fn a_right_that_is_missing_anywhere_only_delays_a_child_and_what_follows() {
    let actions = [
        "DescribeImages",
        "StartSnapshot",
        "PutSnapshotBlock",
        "CompleteSnapshot",
        "DescribeSnapshots",
        "RegisterImage",
        "CreateTags",
        "DescribeLaunchTemplateVersions",
        "CreateLaunchTemplateVersion",
        "ModifyLaunchTemplate",
        "EnableImageDeprecation",
    ];
    for action in actions {
        check_trouble(Trouble::Denied(action), false);
    }
}

#[test]
fn an_answer_that_is_lost_after_its_effect_makes_nothing_twice() {
    // The number of the call: some are made for several ends.
    let calls = [
        ("StartSnapshot", 0),
        ("PutSnapshotBlock", 0),
        ("CompleteSnapshot", 0),
        ("RegisterImage", 0),
        ("CreateTags", 0),
        ("CreateTags", 1),
        ("CreateLaunchTemplateVersion", 0),
        ("ModifyLaunchTemplate", 0),
        ("EnableImageDeprecation", 0),
    ];
    for (action, after) in calls {
        check_trouble(Trouble::Lost(action, after, 1), true);
        check_trouble(Trouble::Lost(action, after, TRIES), false);
    }
}

#[test]
fn a_completion_without_an_answer_is_waited_for_though_its_repetition_is_refused() {
    for times in [1, TRIES] {
        let site = Site::new();
        let base = site.make_disk("base.img", 0..4);
        site.aws.world().ebs.looks = 2;
        Trouble::Lost("CompleteSnapshot", 0, times).begin(&site);
        let outcome = site.publish(&site.ec2(), 1, &base, &[]);
        assert_eq!(outcome.is_ok(), times == 1, "{outcome:?}");
        Trouble::end(&site);
        site.publish(&site.ec2(), 1, &base, &[]).expect("published");
        assert_eq!(site.aws.world().ebs.puts.len(), 4, "no block twice");
        assert_eq!(site.aws.calls_of("DeleteSnapshot").len(), 0, "it is good");
        site.assert_holds(&site.snapshot_of(0), &base);
        assert_nothing_left(&site);
    }
}

#[test]
fn a_snapshot_that_failed_after_its_blocks_were_put_is_made_anew() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..4);
    Trouble::Lost("CompleteSnapshot", 0, TRIES).begin(&site);
    site.publish(&site.ec2(), 1, &base, &[]).expect_err("no answer");
    Trouble::end(&site);
    let failed: Vec<String> = site.aws.world().ebs.snapshots.keys().cloned().collect();
    site.aws.world().failed.extend(failed.iter().cloned());
    site.publish(&site.ec2(), 1, &base, &[]).expect("published");
    assert_ne!(site.snapshot_of(0), failed[0]);
    site.assert_holds(&site.snapshot_of(0), &base);
    assert_nothing_left(&site);
}

#[test]
fn a_snapshot_whose_fate_was_not_learnt_is_gone_on_with_or_removed() {
    for action in ["StartSnapshot", "CompleteSnapshot"] {
        for next in [2, 3] {
            let site = Site::new();
            let ec2 = site.ec2();
            let base = site.make_disk("base.img", 0..4);
            let second = site.patch(&base, "2.img", &[(2, content(99))]);
            let third = site.patch(&base, "3.img", &[(3, content(98))]);
            site.publish(&ec2, 1, &base, &[]).expect("published");
            Trouble::Lost(action, 0, TRIES).begin(&site);
            site.publish(&ec2, 2, &second, &[(1, &base)]).expect_err("no answer arrives");
            assert_eq!(site.aws.world().ebs.snapshots.len(), 2, "{action}: but it was done");
            Trouble::end(&site);
            let disk = if next == 2 { &second } else { &third };
            site.publish(&site.ec2(), next, disk, &[(1, &base)]).expect("published");
            assert_eq!(site.aws.world().ebs.snapshots.len(), 2, "{action}, then {next}");
            site.assert_holds(&site.snapshot_of(1), disk);
            assert_nothing_left(&site);
        }
    }
}

#[test]
fn a_complete_snapshot_that_no_machine_image_came_of_goes_with_the_next_version() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..4);
    let second = site.patch(&base, "2.img", &[(2, content(99))]);
    let third = site.patch(&second, "3.img", &[(3, content(98))]);
    site.publish(&ec2, 1, &base, &[]).expect("published");
    site.aws.world().denied.insert("RegisterImage".to_owned());
    site.publish(&ec2, 2, &second, &[(1, &base)]).expect_err("it may not");
    site.aws.world().denied.clear();
    assert_eq!(site.aws.world().ebs.snapshots.len(), 2);

    site.aws.world().denied.insert("DeleteSnapshot".to_owned());
    let earlier: [(u64, &Path); 2] = [(2, &second), (1, &base)];
    site.bring_up(&ec2, 3, &third, &earlier).expect_err("it may not remove");
    let current = ec2.current(&site.image).expect("it answers").expect("published");
    assert_eq!((current.version, site.aws.world().ebs.snapshots.len()), (3, 3));
    site.aws.world().denied.clear();
    site.bring_up(&ec2, 3, &third, &earlier).expect("settled");
    assert_eq!(site.aws.world().ebs.snapshots.len(), 2, "the first one's and the third one's");
    site.assert_holds(&site.last_snapshot(), &third);
    let first = site.snapshot_of(0);
    assert!(site.aws.world().ebs.snapshots.contains_key(&first));
}

#[test]
fn the_snapshot_of_a_machine_image_that_somebody_deregistered_stays_until_a_sweep() {
    let site = Site::new();
    let ec2 = site.ec2();
    let base = site.make_disk("base.img", 0..4);
    let second = site.patch(&base, "2.img", &[(2, content(99))]);
    let third = site.patch(&second, "3.img", &[(3, content(98))]);
    let first = site.publish(&ec2, 1, &base, &[]).expect("published");
    site.publish(&ec2, 2, &second, &[(1, &base)]).expect("published");
    let client = site.client();
    let deregister = client.deregister_image().image_id(first.address);
    block_on(deregister.send()).expect("deregistered");

    site.bring_up(&ec2, 2, &second, &[(1, &base)]).expect("settled");
    site.bring_up(&ec2, 3, &third, &[(2, &second), (1, &base)]).expect("published");
    assert_eq!(site.aws.world().ebs.snapshots.len(), 3, "it was kept on purpose");
    let swept = ec2.sweep(&site.image, Duration::ZERO).expect("swept");
    assert_eq!(swept, [site.snapshot_of(0)]);
}

#[test]
fn snapshots_that_nobody_uses_are_swept_and_others_are_spared() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..20);
    let target = site.patch(&base, "target.img", &[(2, content(99))]);
    let ec2 = site.ec2();
    site.publish(&ec2, 1, &base, &[]).expect("published");
    // Of a host that was lost: its journal too.
    site.aws.world().puts_left = Some(0);
    let lost = site.dir.path().join("lost");
    fs::rename(site.state(), &lost).expect("renamed");
    site.publish(&site.ec2(), 2, &target, &[]).expect_err("it may put nothing");
    fs::remove_dir_all(site.state()).expect("removed");
    fs::rename(&lost, site.state()).expect("renamed");
    // Of this host, which will go on.
    site.publish(&ec2, 3, &target, &[(1, &base)]).expect_err("it may put nothing");
    assert_eq!(site.aws.world().ebs.snapshots.len(), 3);

    let day = Duration::from_secs(24 * 3600);
    assert_eq!(ec2.sweep(&site.image, day).expect("swept"), [""; 0], "they are young");
    let planned = site.ec2().dry_run().sweep(&site.image, Duration::ZERO).expect("planned");
    assert_eq!((planned.len(), site.aws.world().ebs.snapshots.len()), (1, 3));
    assert_eq!(ec2.sweep(&site.image, Duration::ZERO).expect("swept"), planned);
    assert_eq!(site.aws.world().ebs.snapshots.len(), 2);
    site.aws.world().puts_left = None;
    site.publish(&ec2, 3, &target, &[(1, &base)]).expect("published");
    site.assert_holds(&site.snapshot_of(1), &target);
    assert_nothing_left(&site);
}

/// The example, with credentials in its environment: as an administrator runs it.
fn program(site: &Site, base: &Path) -> Command {
    let settings = site.dir.path().join("settings.json");
    let json = serde_json::to_string(&site.settings(|_| ())).expect("JSON");
    fs::write(&settings, json).expect("writable");
    let mut command =
        Command::new(programs::find("examples/publish").expect("built with the tests"));
    command.arg(settings).arg(site.state()).args(["web", "1"]).arg(base);
    command.env_clear().env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Kills the program once the server has taken so many blocks; false if it was done before.
fn kill_after(site: &Site, child: &mut Child, puts: usize) -> bool {
    let started = Instant::now();
    while started.elapsed() < DEADLINE {
        if site.aws.world().ebs.puts.len() >= puts {
            child.kill().expect("killed");
            return !child.wait().expect("it ended").success();
        }
        if child.try_wait().expect("asked").is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the program put nothing for {DEADLINE:?}");
}

#[test]
fn a_program_that_is_killed_again_and_again_still_makes_one_machine_image() {
    let site = Site::new();
    let base = site.make_disk("base.img", 0..200);
    let mut killed = 0;
    for puts in [1, 30, 90, 150, 199] {
        let mut child = program(&site, &base).spawn().expect("started");
        killed += usize::from(kill_after(&site, &mut child, puts));
    }
    assert!(killed >= 3, "it was killed {killed} times");
    let output = program(&site, &base).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(site.aws.world().ebs.snapshots.len(), 1, "no snapshot was made twice");
    assert_eq!(site.aws.calls_of("RegisterImage").len(), 1);
    site.assert_holds(&site.snapshot_of(0), &base);
    assert_nothing_left(&site);
    site.assert_nothing_invalid();
    let address = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let current = site.ec2().current(&site.image).expect("it answers").expect("published");
    assert_eq!(current.address, address);
}

#[test]
fn without_credentials_a_program_says_what_to_set() {
    let site = Site::new();
    let base = site.make_disk("base.img", [0]);
    let mut command = program(&site, &base);
    command.env_clear().env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", site.dir.path());
    let output = command.output().expect("run");
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("no AWS credentials") && error.contains("AWS_PROFILE"), "{error}");
}
