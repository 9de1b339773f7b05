//! Mount hosts keep their contract, and leave nothing behind however their process ends.

use std::env;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use vireo_image::testing::{check_mount_host, devices_on, wait_released};
use vireo_image::{DetachedHost, MountHost, Window};

/// The image that a second run of this program mounts.
const IMAGE: &str = "VIREO_TEST_IMAGE";

const IMAGE_LEN: u64 = 16 << 20;

/// The second run of a test: mounts, says so, and waits for its end.
fn hold(image: &str, host: &dyn MountHost) -> ! {
    let file = File::options().read(true).write(true).open(image).expect("it opens");
    let window = Window { offset: 0, len: IMAGE_LEN, read_only: false };
    let _mount = host.mount(&file, window).expect("mounted");
    println!("\nmounted");
    std::io::stdout().flush().expect("written");
    loop {
        std::thread::park();
    }
}

/// Runs `test` of this program a second time, and waits until it has mounted the image.
fn holder(image: &Path, test: &str) -> Child {
    let mut child = Command::new(env::current_exe().expect("it has a name"))
        .args(["--exact", test, "--nocapture"])
        .env(IMAGE, image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let ready = lines.map_while(Result::ok).any(|line| line == "mounted");
    assert!(ready, "the second run ended early: run it as root");
    child
}

/// Kills a process, which runs `test`, while `host` holds a mount in it.
fn a_killed_process_leaves_nothing(test: &str, host: &dyn MountHost) {
    if let Ok(image) = env::var(IMAGE) {
        hold(&image, host);
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image.img");
    File::create(&image).and_then(|file| file.set_len(IMAGE_LEN)).expect("writable");
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&image).status();
    assert!(made.expect("mke2fs runs (package e2fsprogs)").success());
    for _ in 0..3 {
        let mut child = holder(&image, test);
        let devices = devices_on(&image);
        assert_eq!(devices.len(), 1);
        child.kill().expect("killed");
        assert_eq!(child.wait().expect("it ended").signal(), Some(9));
        wait_released(&image);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
        assert!(!mounts.contains("/run/vireo/mounts"), "{mounts}");
    }
}

#[test]
fn root_the_detached_host_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    check_mount_host(&DetachedHost, dir.path());
}

#[test]
fn root_kill_9_of_a_detached_mount_leaves_nothing() {
    a_killed_process_leaves_nothing(
        "root_kill_9_of_a_detached_mount_leaves_nothing",
        &DetachedHost,
    );
}

#[cfg(feature = "loopdev")]
#[test]
fn root_the_loopdev_host_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let host = vireo_image::LoopdevHost::new(dir.path().join("mounts"));
    check_mount_host(&host, dir.path());
    let left = std::fs::read_dir(host.dir()).expect("there").count();
    assert_eq!(left, 1, "of mount points only the lock stays");
}

#[cfg(feature = "loopdev")]
#[test]
fn root_kill_9_of_a_loopdev_mount_leaves_nothing() {
    a_killed_process_leaves_nothing(
        "root_kill_9_of_a_loopdev_mount_leaves_nothing",
        &vireo_image::LoopdevHost::default(),
    );
}
