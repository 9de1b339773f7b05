use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;

/// A directory that stands for the copy of the machine's files, and one with staged files.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["root/etc/d", "root/opt/gone/deep", "staged", "outside"] {
            fs::create_dir_all(dir.path().join(name)).expect("made");
        }
        fs::write(dir.path().join("root/etc/a.conf"), "base").expect("written");
        fs::write(dir.path().join("root/opt/gone/deep/file"), "base").expect("written");
        fs::write(dir.path().join("outside/a.conf"), "outside").expect("written");
        fs::write(dir.path().join("staged/0"), "target").expect("written");
        Self(dir)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn change(&self, changes: &[(&str, What)]) -> Result<(), String> {
        let items: Vec<Item> = changes
            .iter()
            .map(|(path, what)| Item { path: path.as_bytes().to_vec(), what: copy_of(what) })
            .collect();
        view::change(&self.at("root"), &[self.at("staged")], &items)
    }

    fn rights(&self, mode: u32) -> Rights {
        let own = fs::metadata(self.0.path()).expect("there");
        Rights { mode, uid: own.uid(), gid: own.gid() }
    }

    fn file(&self, mode: u32) -> What {
        What::File { part: 0, name: b"0".to_vec(), rights: self.rights(mode) }
    }
}

fn copy_of(what: &What) -> What {
    let text = serde_json::to_vec(what).expect("plain data");
    serde_json::from_slice(&text).expect("it reads back")
}

#[test]
fn the_view_has_what_the_update_brings_and_not_what_it_removes() {
    let lab = Lab::new();
    lab.change(&[
        ("/etc/a.conf", lab.file(0o640)),
        ("/etc/d", lab.file(0o644)),
        ("/etc/link", What::Link { target: b"a.conf".to_vec() }),
        ("/etc/new", What::Dir(lab.rights(0o750))),
        ("/etc/new/b.conf", lab.file(0o600)),
        ("/opt/gone", What::Gone),
        ("/opt/gone/deep", What::Gone),
        ("/opt/gone/deep/file", What::Gone),
    ])
    .expect("changed");
    let read = |name: &str| fs::read_to_string(lab.at("root").join(name)).expect("readable");
    let mode = |name: &str| {
        fs::metadata(lab.at("root").join(name)).expect("there").permissions().mode() & 0o7777
    };
    assert_eq!((read("etc/a.conf").as_str(), mode("etc/a.conf")), ("target", 0o640));
    assert_eq!(read("etc/d"), "target", "a file in the place of a directory");
    assert_eq!(read("etc/link"), "target");
    assert_eq!((mode("etc/new"), mode("etc/new/b.conf")), (0o750, 0o600));
    assert!(!lab.at("root/opt/gone").exists());
    lab.change(&[("/etc/a.conf", What::Rights(lab.rights(0o400)))]).expect("changed");
    assert_eq!(mode("etc/a.conf"), 0o400);
}

#[test]
fn no_link_leads_out_of_the_view() {
    let lab = Lab::new();
    symlink(lab.at("outside"), lab.at("root/etc/trap")).expect("linked");
    let error = lab.change(&[("/etc/trap/a.conf", lab.file(0o644))]).expect_err("a link");
    assert!(error.starts_with("/etc/trap/a.conf cannot be shown"), "{error}");
    lab.change(&[("/etc/trap/a.conf", What::Gone)]).expect_err("a link");
    lab.change(&[("/etc/trap", What::Gone)]).expect("the link itself goes");
    assert_eq!(fs::read_to_string(lab.at("outside/a.conf")).expect("readable"), "outside");
}

#[test]
fn a_helper_that_says_nothing_is_no_verdict() {
    let order = Order {
        scratch: PathBuf::from("/nonexistent"),
        parts: Vec::new(),
        changes: Vec::new(),
        checks: Vec::new(),
    };
    let ask = |words: &[&str]| {
        let words = words.iter().map(PathBuf::from).collect();
        NamespaceChecker::new(words, Path::new("/nonexistent")).ask(&order).map(|answer| answer.0)
    };
    assert!(ask(&["true"]).expect_err("nothing said").contains("ended without an answer"));
    assert!(ask(&["/nonexistent/helper"]).expect_err("no program").contains("cannot be run"));
    assert!(ask(&[]).is_err());
    let said = ask(&["sh", "-c", "echo '{\"Err\":\"no right\"}'"]).expect("an answer");
    assert_eq!(said, Err("no right".to_owned()));
}
