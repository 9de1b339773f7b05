//! The machine's policy files, from the directories where they stand.
//!
//! A file in a later directory takes the place of one with the same name in an earlier one; of
//! files with different names, one whose name comes later in the alphabet counts first. What is
//! in them is described in `docs/format/policy.md`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use vireo_classify::{MAX_POLICY_LEN, Policy, PolicyFile};

use crate::error::{AgentError, ErrorKind};

/// Directories of policy files below the root: of the distribution, of the administrator, of
/// this boot.
pub const POLICY_DIRS: [&str; 3] =
    ["usr/lib/vireo/policy.d", "etc/vireo/policy.d", "run/vireo/policy.d"];

/// The policy of the machine whose files are below `root`.
///
/// # Errors
///
/// `Failed` if a file cannot be read, has an unknown key or a bad pattern: the message names file
/// and line.
pub fn load_policy(root: &Path) -> Result<Policy, AgentError> {
    let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for dir in POLICY_DIRS {
        let dir = root.join(dir);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(AgentError::io("list the policy files in", &dir, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| AgentError::io("list", &dir, error))?;
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "toml") {
                files.insert(entry.file_name(), path);
            }
        }
    }
    let read = files.values().map(|path| read_policy(path));
    let site = read.collect::<Result<Vec<_>, _>>()?;
    Policy::from_layers(&[], &site).map_err(unusable)
}

fn read_policy(path: &Path) -> Result<PolicyFile, AgentError> {
    let failed = |error| AgentError::io("read the policy", path, error);
    let mut text = String::new();
    // One byte more than allowed shows that it is too long.
    let file = fs::File::open(path).map_err(failed)?.take(MAX_POLICY_LEN as u64 + 1);
    let mut file = file;
    file.read_to_string(&mut text).map_err(failed)?;
    PolicyFile::parse(&path.display().to_string(), &text).map_err(unusable)
}

fn unusable(error: vireo_classify::ClassifyError) -> AgentError {
    let message = "the policy cannot be used, nothing was changed; correct the file and try again";
    AgentError::new(ErrorKind::Failed, message).caused_by(error)
}

#[cfg(test)]
mod tests {
    use vireo_classify::Unit;

    use super::*;
    use crate::client::chain;

    fn put(root: &Path, dir: usize, name: &str, text: &str) {
        let dir = root.join(POLICY_DIRS[dir]);
        fs::create_dir_all(&dir).expect("made");
        fs::write(dir.join(name), text).expect("written");
    }

    fn hold(why: &str) -> String {
        format!("version = 1\n[[unit]]\nunit = \"app.service\"\nhold = \"{why}\"\n")
    }

    #[test]
    fn later_directories_replace_files_and_later_names_count_first() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let reason = || {
            let policy = load_policy(root.path()).expect("a policy");
            policy.hold_reason(&Unit::new("app.service"))
        };
        assert_eq!(reason(), None, "there need be no file");
        put(root.path(), 0, "10-app.toml", &hold("as shipped"));
        assert_eq!(reason().as_deref(), Some("as shipped"));
        put(root.path(), 1, "20-site.toml", &hold("by the site"));
        assert_eq!(reason().as_deref(), Some("by the site"));
        put(root.path(), 2, "20-site.toml", &hold("today"));
        assert_eq!(reason().as_deref(), Some("today"));
        put(root.path(), 1, "99-old.toml.bak", "nonsense");
        assert_eq!(reason().as_deref(), Some("today"), "another ending is no policy");
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_line() {
        let root = tempfile::tempdir().expect("a temporary directory");
        put(root.path(), 1, "50-site.toml", "version = 1\n\n[[unit]]\nunit = \"a\"\nnever = 1\n");
        let error = load_policy(root.path()).expect_err("an unknown key");
        let text = chain(&error);
        assert!(
            text.contains("etc/vireo/policy.d/50-site.toml, line 5: unknown field `never`"),
            "{text}"
        );
        put(root.path(), 1, "50-site.toml", "version = 1\n[[unit]]\nunit = \"a[\"\nhold = true\n");
        let text = chain(&load_policy(root.path()).expect_err("no glob"));
        assert!(text.contains("50-site.toml, line 3: \"a[\" is not a glob"), "{text}");
        put(root.path(), 1, "50-site.toml", &"#".repeat(MAX_POLICY_LEN + 1));
        assert!(chain(&load_policy(root.path()).expect_err("long")).contains("longer than"));
    }
}
