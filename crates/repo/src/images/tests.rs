//! Every write can be the last; nothing is lost by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use vireo_cloud::testing::FakeCloud;
use vireo_cloud::{Cloud, CloudError, Launchable, Machine, Publication};
use vireo_delta::SecretKey;
use vireo_image::RootPartition;
use vireo_model::{Grow, Ignore, ImageName, Tree};
use vireo_store::testing::StopAfter;
use vireo_store::{Durable, Writes};
use vireo_wire::api::{BuildStep, CreateImage, PushOptions};
use vireo_wire::limits::MAX_IMAGE_LEN;

use crate::builder::{BundleFile, ImageBuilder};
use crate::repository::Repository;
use crate::testing::{FakeImages, bundle, tree};
use crate::{ErrorKind, RepoError};

type Files<'a> = &'a [(&'a str, &'a [u8])];

const BASE: Files<'static> = &[("/a", b"1"), ("/b", b"2")];
const TARGET: Files<'static> = &[("/a", b"one"), ("/c", b"3")];

fn web() -> ImageName {
    "web".parse().expect("a name")
}

fn open(root: &Path, writes: Arc<dyn Writes>) -> Repository {
    let builder = Box::new(FakeImages::writing_by(Arc::clone(&writes)));
    let clock = Arc::new(|| Timestamp::UNIX_EPOCH);
    Repository::open_with(root, builder, clock, writes).expect("it is a repository")
}

fn made(dir: &Path) -> (PathBuf, PathBuf) {
    let root = dir.join("repo");
    Repository::init(&root, &[], Timestamp::UNIX_EPOCH).expect("made");
    let disk = dir.join("base.img");
    fs::write(&disk, FakeImages::disk(&tree(BASE))).expect("writable");
    (root, disk)
}

/// After a crash and a restart: the newest version is whole, whatever it is.
fn check_whole(root: &Path, what: &str) -> Repository {
    let repository = open(root, Arc::new(Durable));
    assert!(!repository.sweep().expect("sweepable").busy, "{what}");
    assert_eq!(repository.fsck().expect("readable").findings, [], "{what}");
    for image in repository.images().expect("readable") {
        let newest = image.newest.number;
        let verified = repository.verify(&image.name, newest).expect("readable");
        assert!(verified.matches(), "{what}: version {newest}");
    }
    let leftovers = repository.sweep().expect("sweepable").removed;
    assert_eq!(leftovers, Vec::<PathBuf>::new(), "{what}: one sweep is enough");
    repository
}

#[test]
fn a_push_stopped_at_any_write_leaves_the_base_or_the_target() {
    let key = SecretKey::generate().expect("there is a random source");
    let update = bundle(BASE, TARGET, &key);
    let [base, target] = [tree(BASE).digest(), tree(TARGET).digest()];
    for allowed in 0.. {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (root, disk) = made(dir.path());
        let options = CreateImage { trusted: vec![key.public()], ..CreateImage::default() };
        open(&root, Arc::new(Durable)).create_image(&web(), &disk, &options).expect("created");

        let outcome = open(&root, Arc::new(StopAfter::new(allowed))).push_bundle(&web(), &update);

        let what = format!("after {allowed} writes");
        let repository = check_whole(&root, &what);
        let newest = repository.newest(&web()).expect("there").tree;
        match &outcome {
            Ok(_) => assert_eq!(newest, target, "{what}"),
            Err(_) => assert!(newest == base || newest == target, "{what}"),
        }
        let again = repository.push_bundle(&web(), &update).expect("it can be repeated");
        assert_eq!(again.already, newest == target, "{what}");
        check_whole(&root, &what);
        if outcome.is_ok() {
            assert!(allowed > 8, "only {allowed} writes were visited");
            return;
        }
    }
}

#[test]
fn a_creation_stopped_at_any_write_leaves_the_image_or_none() {
    for allowed in 0.. {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (root, disk) = made(dir.path());
        let options = CreateImage::default();
        let stopped = open(&root, Arc::new(StopAfter::new(allowed)));
        let outcome = stopped.create_image(&web(), &disk, &options);
        let repository = check_whole(&root, &format!("after {allowed} writes"));
        let there = repository.images().expect("readable").len();
        assert_eq!(there, usize::from(outcome.is_ok()), "after {allowed} writes");
        if outcome.is_ok() {
            return;
        }
        repository.create_image(&web(), &disk, &options).expect("it can be repeated");
    }
}

#[test]
fn a_tree_may_come_back() {
    let key = SecretKey::generate().expect("there is a random source");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let repository = open(&root, Arc::new(Durable));
    repository.create_image(&web(), &disk, &CreateImage::default()).expect("created");
    repository.trust(key.public(), None).expect("trusted");
    let (there, back) = (bundle(BASE, TARGET, &key), bundle(TARGET, BASE, &key));
    for (number, update) in (2..).zip([&there, &back, &there]) {
        let reply = repository.push_bundle(&web(), update).expect("pushed");
        assert_eq!((reply.version.number, reply.already), (number, false));
    }
    assert_eq!(repository.fsck().expect("readable").findings, []);
}

#[test]
fn no_image_is_made_that_could_not_be_fetched() {
    let key = SecretKey::generate().expect("there is a random source");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let repository = open(&root, Arc::new(Durable));
    let options = CreateImage { trusted: vec![key.public()], ..CreateImage::default() };
    repository.create_image(&web(), &disk, &options).expect("created");
    let update = bundle(BASE, TARGET, &key);
    let push = |len| {
        let options = PushOptions { grow: Grow::To(len) };
        repository.push_bundle_with(&web(), &update, options)
    };
    let error = push(MAX_IMAGE_LEN + 1).expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        error.to_string().contains("1099511627777 bytes; the most is 1099511627776"),
        "{error}"
    );
    push(MAX_IMAGE_LEN).expect("as long as it may be");

    let large = fs::File::create(dir.path().join("large.img")).expect("writable");
    large.set_len(MAX_IMAGE_LEN + 1).expect("a hole of a tebibyte");
    let name = "large".parse().expect("a name");
    let error = repository.create_image(&name, &dir.path().join("large.img"), &options);
    let error = error.expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.chain().contains("more than 1099511627776 bytes"), "{}", error.chain());
}

/// A cloud that is waited for while another process pushes, the first time.
#[derive(Debug)]
struct Slow {
    cloud: FakeCloud,
    root: PathBuf,
    update: Mutex<Option<Vec<u8>>>,
}

impl Cloud for Slow {
    fn publish(&self, publication: &Publication<'_>) -> Result<Launchable, CloudError> {
        let update = self.update.lock().expect("not poisoned").take();
        if let Some(update) = update {
            let other = open(&self.root, Arc::new(Durable));
            other.push_bundle(&web(), &update).expect("pushed");
        }
        self.cloud.publish(publication)
    }

    fn current(&self, image: &ImageName) -> Result<Option<Launchable>, CloudError> {
        self.cloud.current(image)
    }

    fn machines(&self, image: &ImageName) -> Result<Vec<Machine>, CloudError> {
        self.cloud.machines(image)
    }
}

#[test]
fn the_cloud_ends_with_the_newest_version_whoever_made_it_meanwhile() {
    let key = SecretKey::generate().expect("there is a random source");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let options = CreateImage { trusted: vec![key.public()], ..CreateImage::default() };
    open(&root, Arc::new(Durable)).create_image(&web(), &disk, &options).expect("created");
    let update = Mutex::new(Some(bundle(BASE, TARGET, &key)));
    let cloud = Arc::new(Slow { cloud: FakeCloud::default(), root: root.clone(), update });
    let repository = open(&root, Arc::new(Durable)).with_cloud(Arc::clone(&cloud) as _);
    repository.launch_all_current().expect("published");
    let current = cloud.current(&web()).expect("it answers").expect("published");
    assert_eq!((current.version, current.tree), (2, tree(TARGET).digest()));
}

#[test]
fn what_follows_from_a_version_that_is_current_already_is_done_by_the_next_run() {
    let key = SecretKey::generate().expect("there is a random source");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let options = CreateImage { trusted: vec![key.public()], ..CreateImage::default() };
    open(&root, Arc::new(Durable)).create_image(&web(), &disk, &options).expect("created");
    let cloud = Arc::new(FakeCloud::default());
    let repository = open(&root, Arc::new(Durable)).with_cloud(Arc::clone(&cloud) as _);
    repository.launch_all_current().expect("published");
    assert!(cloud.settled().is_empty(), "publishing does it itself");
    repository.launch_all_current().expect("settled");
    assert_eq!(cloud.settled(), [web()]);
}

#[test]
fn damage_is_found_and_named() {
    let key = SecretKey::generate().expect("there is a random source");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let repository = open(&root, Arc::new(Durable));
    let options = CreateImage { trusted: vec![key.public()], ..CreateImage::default() };
    repository.create_image(&web(), &disk, &options).expect("created");
    let reply = repository.push_bundle(&web(), &bundle(BASE, TARGET, &key)).expect("pushed");
    let stored = reply.version.bundle.expect("it has one");
    let victims = [
        repository.store.bundle_path(stored),
        root.join("trees").join(reply.version.tree.to_string()),
        root.join("images/web/versions/2.json"),
        repository.store.disk_path(reply.version.tree),
    ];
    for victim in victims {
        let whole = fs::read(&victim).expect("readable");
        fs::write(&victim, &whole[..whole.len() - 3]).expect("writable");
        let report = open(&root, Arc::new(Durable)).fsck().expect("readable");
        let named = report.findings.iter().any(|finding| finding.path == victim);
        assert!(named, "{victim:?}: {report:?}");
        fs::write(&victim, whole).expect("writable");
    }
    assert_eq!(repository.fsck().expect("readable").findings, []);
}

/// What a builder was asked, and with which root.
type Asked = Arc<Mutex<Vec<(&'static str, RootPartition)>>>;

/// Notes what it is asked.
#[derive(Debug)]
struct Noting {
    images: FakeImages,
    asked: Asked,
}

impl Noting {
    fn note(&self, what: &'static str, root: RootPartition) {
        self.asked.lock().expect("not poisoned").push((what, root));
    }
}

impl ImageBuilder for Noting {
    fn check(&self, disk: &Path, root: RootPartition, repair: bool) -> Result<(), RepoError> {
        self.note(if repair { "repair" } else { "check" }, root);
        self.images.check(disk, root, repair)
    }

    fn read_tree(
        &self,
        disk: &Path,
        root: RootPartition,
        ignore: &Ignore,
    ) -> Result<Tree, RepoError> {
        self.note("read", root);
        self.images.read_tree(disk, root, ignore)
    }

    fn patch(
        &self,
        base: &Path,
        out: &Path,
        bundle: &BundleFile<'_>,
    ) -> Result<Vec<BuildStep>, RepoError> {
        self.note("patch", bundle.root);
        self.images.patch(base, out, bundle)
    }
}

#[test]
fn what_an_image_was_created_with_counts_for_all_its_versions() {
    let key = SecretKey::generate().expect("there is a random source");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let asked = Asked::default();
    // Another process each time: nothing is remembered but what is recorded.
    let again = || {
        let images = FakeImages::default();
        let builder = Box::new(Noting { images, asked: Arc::clone(&asked) });
        let clock = Arc::new(|| Timestamp::UNIX_EPOCH);
        Repository::open_with(&root, builder, clock, Arc::new(Durable)).expect("a repository")
    };
    let third = CreateImage {
        trusted: vec![key.public()],
        root_partition: Some(3),
        repair: true,
        ..CreateImage::default()
    };
    again().create_image(&web(), &disk, &third).expect("created");
    again().push_bundle(&web(), &bundle(BASE, TARGET, &key)).expect("pushed");
    again().push_bundle(&web(), &bundle(TARGET, &[("/a", b"three")], &key)).expect("pushed");
    again().verify(&web(), 3).expect("readable");
    let number = RootPartition::Number(3);
    let steps = ["repair", "read", "patch", "patch", "read"].map(|what| (what, number));
    assert_eq!(*asked.lock().expect("not poisoned"), steps);

    // The disk of a tree has its root in one place, whichever image it is of.
    let other: ImageName = "other".parse().expect("a name");
    let refused = again().create_image(&other, &disk, &CreateImage::default());
    let refused = refused.expect_err("that disk is the other image's too");
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.to_string().contains("image web has the tree"), "{refused}");
    again().create_image(&other, &disk, &third).expect("the same root");
}

#[test]
fn a_second_image_of_a_tree_leaves_the_disk_that_is_there() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let repository = open(&root, Arc::new(Durable));
    let options = CreateImage { ignore: vec!["/log".into()], ..CreateImage::default() };
    let first = repository.create_image(&web(), &disk, &options).expect("created");
    let (path, _) = repository.disk(&web(), 1).expect("there");
    let published = fs::read(&path).expect("readable");

    let longer = [BASE, &[("/log", b"what does not count")]].concat();
    fs::write(&disk, FakeImages::disk(&tree(&longer))).expect("writable");
    let other = "other".parse().expect("a name");
    let second = repository.create_image(&other, &disk, &options).expect("created");

    assert_eq!(second.tree, first.tree);
    assert_eq!(fs::read(&path).expect("readable"), published, "it is published");
    for version in [first, second] {
        assert_eq!(version.image_bytes, published.len() as u64);
    }
    assert!(repository.sweep().expect("sweepable").removed.is_empty());
    assert_eq!(repository.fsck().expect("readable").findings, []);
}

#[test]
fn images_of_a_tree_with_other_ignore_lists_share_a_disk_that_is_the_tree_by_both() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let repository = open(&root, Arc::new(Durable));
    let of = |list: &[&str]| {
        let ignore = list.iter().map(|path| (*path).to_owned()).collect();
        CreateImage { ignore, ..CreateImage::default() }
    };
    let create = |name: &str, list: &[&str]| {
        repository.create_image(&name.parse().expect("a name"), &disk, &of(list))
    };
    let longer = [BASE, &[("/log", b"what does not count")]].concat();
    fs::write(&disk, FakeImages::disk(&tree(&longer))).expect("writable");
    create("web", &["/log"]).expect("created");
    create("alike", &["/log", "/more"]).expect("neither list lets anything in");
    // Its own disk has the same tree, but that which is there has a file more by its list.
    fs::write(&disk, FakeImages::disk(&tree(BASE))).expect("writable");
    let error = create("other", &[]).expect_err("it is another disk").to_string();
    assert!(error.contains("another --ignore"), "{error}");
    assert!(repository.verify(&web(), 1).expect("readable").matches());
}

#[test]
fn a_disk_that_no_version_has_is_built_anew() {
    let key = SecretKey::generate().expect("there is a random source");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let repository = open(&root, Arc::new(Durable));
    let options = CreateImage { trusted: vec![key.public()], ..CreateImage::default() };
    repository.create_image(&web(), &disk, &options).expect("created");
    // What a creation leaves that ended between its disk and its record: with a root nobody knows where.
    let left = repository.store.disk_path(tree(TARGET).digest());
    fs::write(&left, FakeImages::disk(&tree(BASE))).expect("writable");
    let reply = repository.push_bundle(&web(), &bundle(BASE, TARGET, &key)).expect("pushed");
    assert!(!reply.steps.is_empty(), "it was built");
    assert!(repository.verify(&web(), 2).expect("readable").matches());
}

/// Holds up whoever comes to it, until a second comes, or for a while.
#[derive(Debug, Default)]
struct Meeting {
    came: Mutex<u32>,
    told: Condvar,
}

impl Meeting {
    fn wait(&self) {
        let mut came = self.came.lock().expect("not poisoned");
        *came += 1;
        self.told.notify_all();
        let second = Duration::from_secs(1);
        let waited = self.told.wait_timeout_while(came, second, |came| *came < 2);
        drop(waited.expect("not poisoned"));
    }
}

/// Has two threads do `work` with repositories of the directory `root`, which meet, if they can, when the
/// disk is there and its record is not. Gives what they were asked to build, and the outcomes.
fn at_once<T: Send>(
    root: &Path,
    work: impl Fn(&Repository, &ImageName) -> T + Sync,
) -> (usize, [T; 2]) {
    let (meeting, asked) = (Arc::new(Meeting::default()), Asked::default());
    let outcomes = std::thread::scope(|scope| {
        ["web", "other"]
            .map(|name| {
                let clock_meeting = Arc::clone(&meeting);
                let clock = Arc::new(move || {
                    clock_meeting.wait();
                    Timestamp::UNIX_EPOCH
                });
                let images = FakeImages::default();
                let builder = Box::new(Noting { images, asked: Arc::clone(&asked) });
                let repository = Repository::open_with(root, builder, clock, Arc::new(Durable));
                let repository = repository.expect("it is a repository");
                let work = &work;
                scope.spawn(move || work(&repository, &name.parse().expect("a name")))
            })
            .map(|thread| thread.join().expect("no panic"))
    });
    let asked = asked.lock().expect("not poisoned");
    (asked.iter().filter(|(what, _)| *what == "patch").count(), outcomes)
}

#[test]
fn of_two_that_come_to_one_tree_at_once_the_second_sees_the_firsts_version() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let (_, created) = at_once(&root, |repository, image| {
        let root_partition = (*image == web()).then_some(3);
        let options = CreateImage { root_partition, ..CreateImage::default() };
        repository.create_image(image, &disk, &options)
    });
    let refused: Vec<_> = created.iter().filter_map(|created| created.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "one disk has its root in one place");
    assert!(refused[0].to_string().contains("with another --root-partition"), "{}", refused[0]);

    let dir = tempfile::tempdir().expect("a temporary directory");
    let (root, disk) = made(dir.path());
    let repository = open(&root, Arc::new(Durable));
    for image in ["web", "other"] {
        let image = image.parse().expect("a name");
        repository.create_image(&image, &disk, &CreateImage::default()).expect("created");
    }
    let (built, pushed) = at_once(&root, |repository, image| {
        // Each has a bundle of its own.
        let key = SecretKey::generate().expect("there is a random source");
        repository.store.trust(key.public(), Some(image), Timestamp::UNIX_EPOCH).expect("trusted");
        repository.push_bundle(image, &bundle(BASE, TARGET, &key))
    });
    for pushed in pushed {
        assert_eq!(pushed.expect("pushed").version.number, 2);
    }
    assert_eq!(built, 1, "what is published is not built anew");
}
