//! The machine's policy files, from the directories where they stand.
//!
//! The first directory belongs to the version: its files come with updates, signed with them. The
//! others are the site's, whose word counts before. A file in a later directory takes the place of
//! one with the same name in an earlier one; of files with different names, one whose name comes
//! later in the alphabet counts first. An empty file, or a link to `/dev/null`, says nothing, and
//! so masks the one that it takes the place of. What is in the others is described in
//! `docs/format/policy.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use vireo_classify::{ClassifyError, MAX_POLICY_LEN, Policy, PolicyFile};

use crate::error::{AgentError, ErrorKind};

/// Directories of policy files below the root: of the version, which an update brings; of the
/// administrator; of this boot.
pub const POLICY_DIRS: [&str; 3] =
    ["usr/lib/vireo/policy.d", "etc/vireo/policy.d", "run/vireo/policy.d"];

/// Policy files that an update brings, or removes (none), by their paths below the root.
pub type Brought = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// The policy of the machine whose files are below `root`.
///
/// # Errors
///
/// `Failed` if a file cannot be read, has an unknown key or a bad pattern: the message names file
/// and line.
pub fn load_policy(root: &Path) -> Result<Policy, AgentError> {
    load_policy_with(root, &Brought::new())
}

/// The policy as it will be when an update has brought its files.
///
/// # Errors
///
/// As [`load_policy`]; `Refused` if it is a file of the update.
pub fn load_policy_with(root: &Path, brought: &Brought) -> Result<Policy, AgentError> {
    let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for dir in POLICY_DIRS.map(Path::new) {
        let mut paths = files_in(root, dir)?;
        for (path, content) in brought.iter().filter(|(path, _)| path.parent() == Some(dir)) {
            match content {
                Some(_) => paths.insert(path.clone()),
                None => paths.remove(path),
            };
        }
        let is_policy = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "toml");
        let named = paths.into_iter().filter(is_policy);
        files.extend(named.filter_map(|path| Some((path.file_name()?.to_owned(), path))));
    }
    let (mut of_version, mut of_site) = (Vec::new(), Vec::new());
    for path in files.values() {
        let file = match brought.get(path) {
            Some(Some(text)) => parse_brought(path, text)?,
            _ => read_policy(&root.join(path))?,
        };
        let layer = if path.starts_with(POLICY_DIRS[0]) { &mut of_version } else { &mut of_site };
        layer.push(file);
    }
    Policy::from_layers(&of_version, &of_site).map_err(unusable)
}

/// The paths, below the root, of what is in the directory `dir`; nothing if it is not there.
fn files_in(root: &Path, dir: &Path) -> Result<BTreeSet<PathBuf>, AgentError> {
    let place = root.join(dir);
    let failed = |error| AgentError::io("list the policy files in", &place, error);
    let entries = match fs::read_dir(&place) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(failed(error)),
    };
    entries.map(|entry| entry.map(|it| dir.join(it.file_name())).map_err(failed)).collect()
}

fn parse_brought(path: &Path, text: &[u8]) -> Result<PolicyFile, AgentError> {
    let name = format!("/{}", path.display());
    // As strict as reading it will be when it is there: what passes here must not fail then.
    let Ok(text) = str::from_utf8(text) else {
        let message =
            format!("the update brings the policy {name}, which is not UTF-8; nothing was changed");
        return Err(AgentError::new(ErrorKind::Refused, message));
    };
    parse(&name, text).map_err(|error| {
        let message = "the update brings a policy that cannot be used, nothing was changed";
        AgentError::new(ErrorKind::Refused, message).caused_by(error)
    })
}

fn read_policy(path: &Path) -> Result<PolicyFile, AgentError> {
    let failed = |error| AgentError::io("read the policy", path, error);
    // Should it be a pipe, opening must not wait for a writer.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        let message = format!("the policy {} is no regular file; remove it", path.display());
        return Err(AgentError::new(ErrorKind::Failed, message));
    }
    let mut text = String::new();
    // One byte more than allowed shows that it is too long.
    file.take(MAX_POLICY_LEN as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    parse(&path.display().to_string(), &text).map_err(unusable)
}

fn parse(name: &str, text: &str) -> Result<PolicyFile, ClassifyError> {
    const SAYS_NOTHING: &str = "version = 1";
    PolicyFile::parse(name, if text.is_empty() { SAYS_NOTHING } else { text })
}

fn unusable(error: ClassifyError) -> AgentError {
    let message = "the policy cannot be used, nothing was changed; correct the file and try again";
    AgentError::new(ErrorKind::Failed, message).caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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
        put(root.path(), 1, "05-site.toml", &hold("by the site, whatever its name"));
        assert_eq!(reason().as_deref(), Some("by the site, whatever its name"));
        put(root.path(), 1, "20-site.toml", &hold("by the site"));
        assert_eq!(reason().as_deref(), Some("by the site"));
        put(root.path(), 2, "20-site.toml", &hold("today"));
        assert_eq!(reason().as_deref(), Some("today"));
        put(root.path(), 1, "99-old.toml.bak", "nonsense");
        assert_eq!(reason().as_deref(), Some("today"), "another ending is no policy");
    }

    #[test]
    fn what_an_update_brings_counts_as_the_versions_word() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = PathBuf::from("usr/lib/vireo/policy.d/10-app.toml");
        let reason = |content: Option<&str>| {
            let content = content.map(|text| text.as_bytes().to_vec());
            let brought = Brought::from([(path.clone(), content)]);
            let policy = load_policy_with(root.path(), &brought)?;
            Ok::<_, AgentError>(policy.hold_reason(&Unit::new("app.service")))
        };
        assert_eq!(reason(Some(&hold("brought"))).expect("fine").as_deref(), Some("brought"));
        put(root.path(), 0, "10-app.toml", &hold("as it was"));
        assert_eq!(reason(Some(&hold("brought"))).expect("fine").as_deref(), Some("brought"));
        assert_eq!(reason(None).expect("fine"), None, "it goes");
        let error = reason(Some("version = 1\nunti = 2\n")).expect_err("an unknown key");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(chain(&error).contains("/usr/lib/vireo/policy.d/10-app.toml, line 2"), "{error}");
        // The site masks a file of the version by its name.
        put(root.path(), 1, "10-app.toml", "");
        assert_eq!(reason(Some(&hold("brought"))).expect("fine"), None);
        fs::remove_file(root.path().join(POLICY_DIRS[1]).join("10-app.toml")).expect("removed");
        symlink("/dev/null", root.path().join(POLICY_DIRS[1]).join("10-app.toml")).expect("a link");
        assert_eq!(reason(Some(&hold("brought"))).expect("fine"), None);
    }

    /// What passes when it comes must be readable when it is there: a machine that cannot read its
    /// policy takes no further update.
    #[test]
    fn what_would_not_be_read_later_does_not_come() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = PathBuf::from("usr/lib/vireo/policy.d/10-app.toml");
        let text = b"version = 1\n# caf\xe9\n".to_vec();
        let error = load_policy_with(root.path(), &Brought::from([(path, Some(text))]))
            .expect_err("no text");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("/usr/lib/vireo/policy.d/10-app.toml"), "{error}");
    }

    #[test]
    fn what_is_no_file_is_named_and_never_waited_for() {
        let root = tempfile::tempdir().expect("a temporary directory");
        put(root.path(), 1, "10-site.toml", "version = 1\n");
        let place = root.path().join(POLICY_DIRS[1]).join("20-site.toml");
        let fails = |say: &str| {
            let text = chain(&load_policy(root.path()).expect_err("no policy"));
            assert!(text.contains(say) && text.contains("20-site.toml"), "{text}");
        };
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &place, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a pipe");
        fails("no regular file");
        fs::remove_file(&place).expect("removed");
        fs::create_dir(&place).expect("a directory");
        fails("no regular file");
        fs::remove_dir(&place).expect("removed");
        symlink("nowhere", &place).expect("a link");
        fails("read the policy");
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
