//! Paths that are a machine's own and belong to no version.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::ImagePath;

/// Most patterns that one list may have; bounds what a hostile bundle makes a reader compile.
pub const MAX_PATTERNS: usize = 1024;

/// What belongs to the machine and not to the version, on every Linux system we know: identity,
/// run time state, logs, caches, the agent's own state. `**` crosses directories, `*` does not.
///
/// A pattern that ends in `/**` leaves the directory itself in the version, without its content.
pub const DEFAULT_IGNORE: &[&str] = &[
    "/.vireo",
    "/dev/**",
    "/etc/.pwd.lock",
    "/etc/.updated",
    "/etc/adjtime",
    "/etc/hostname",
    "/etc/machine-id",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/etc/ssh/ssh_host_*",
    "/lost+found",
    "/proc/**",
    "/root/.bash_history",
    "/run/**",
    "/sys/**",
    "/tmp/**",
    "/var/.updated",
    "/var/backups/**",
    "/var/cache/apt/**",
    "/var/cache/ldconfig/**",
    "/var/cache/man/**",
    "/var/lib/apt/lists/**",
    "/var/lib/apt/periodic/**",
    "/var/lib/cloud/**",
    "/var/lib/dbus/machine-id",
    "/var/lib/dhcp/**",
    "/var/lib/dpkg/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/triggers/Lock",
    "/var/lib/logrotate/**",
    "/var/lib/private/**",
    "/var/lib/systemd/backlight/**",
    "/var/lib/systemd/coredump/**",
    "/var/lib/systemd/credential.secret",
    "/var/lib/systemd/linger/**",
    "/var/lib/systemd/pstore/**",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/rfkill/**",
    "/var/lib/systemd/timers/**",
    "/var/lib/systemd/timesync/**",
    "/var/lib/vireo",
    "/var/log/**",
    "/var/tmp/**",
];

/// A list of patterns for paths that belong to no version.
///
/// A matched directory is left out with all that it holds. The list is part of what a digest
/// means, so it travels in the bundle: capture, image and machine must use the same one.
#[derive(Clone)]
pub struct Ignore {
    patterns: Vec<String>,
    set: GlobSet,
    /// What paths begin with that may match; sorted, none the beginning of another.
    beginnings: Vec<String>,
}

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// It is not absolute, so it would never match.
    #[error("ignore pattern {pattern:?} does not start with /")]
    NotAbsolute {
        /// The pattern.
        pattern: String,
    },
    /// It is not a glob.
    #[error("ignore pattern {pattern:?} is not a glob: {why}")]
    BadGlob {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// There are more than [`MAX_PATTERNS`].
    #[error("{count} ignore patterns, the most is {MAX_PATTERNS}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
}

impl Ignore {
    /// [`DEFAULT_IGNORE`] and, after it, `site`'s own patterns.
    ///
    /// # Errors
    ///
    /// As [`Ignore::new`].
    pub fn with_site<S: AsRef<str>>(site: &[S]) -> Result<Self, IgnoreError> {
        let site = site.iter().map(AsRef::as_ref);
        Self::new(DEFAULT_IGNORE.iter().copied().chain(site))
    }

    /// These patterns alone; doubles count once, order does not matter.
    ///
    /// # Errors
    ///
    /// The first pattern that is relative or no glob, or too many of them.
    pub fn new<S: Into<String>>(
        patterns: impl IntoIterator<Item = S>,
    ) -> Result<Self, IgnoreError> {
        let mut patterns: Vec<String> = patterns.into_iter().map(Into::into).collect();
        patterns.sort();
        patterns.dedup();
        if patterns.len() > MAX_PATTERNS {
            return Err(IgnoreError::TooMany { count: patterns.len() });
        }
        let mut builder = GlobSetBuilder::new();
        for pattern in &patterns {
            let bad = |why: globset::Error| IgnoreError::BadGlob {
                pattern: pattern.clone(),
                why: why.kind().to_string(),
            };
            if !pattern.starts_with('/') {
                return Err(IgnoreError::NotAbsolute { pattern: pattern.clone() });
            }
            let glob = GlobBuilder::new(pattern).literal_separator(true).build();
            builder.add(glob.map_err(bad)?);
        }
        let set = builder.build().map_err(|why| IgnoreError::BadGlob {
            pattern: patterns.join(" "),
            why: why.kind().to_string(),
        })?;
        let beginnings = beginnings(&patterns);
        Ok(Self { patterns, set, beginnings })
    }

    /// Leaves nothing out.
    #[must_use]
    pub fn nothing() -> Self {
        Self { patterns: Vec::new(), set: GlobSet::empty(), beginnings: Vec::new() }
    }

    /// Whether `path`, met on the way down from the root, is to be left out with all below it.
    #[must_use]
    pub fn matches(&self, path: &ImagePath) -> bool {
        // Most paths match nothing, and are told by their beginning in a tenth of the time.
        self.may_match(path.as_bytes())
            && self.set.is_match(Path::new(OsStr::from_bytes(path.as_bytes())))
    }

    /// Whether `path` begins as some pattern does.
    fn may_match(&self, path: &[u8]) -> bool {
        // What lies between a beginning and the path in order begins so, too, and there is only one.
        let before = self.beginnings.partition_point(|text| text.as_bytes() <= path);
        let last = before.checked_sub(1).and_then(|at| self.beginnings.get(at));
        last.is_some_and(|text| path.starts_with(text.as_bytes()))
    }

    /// Whether `path` or a directory above it is left out.
    #[must_use]
    pub fn covers(&self, path: &ImagePath) -> bool {
        let mut at = Some(path.clone());
        while let Some(path) = at {
            if self.matches(&path) {
                return true;
            }
            at = path.parent();
        }
        false
    }

    /// The patterns, sorted, each once.
    #[must_use]
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }
}

/// What the patterns begin with before their first character that is none. `patterns` are sorted.
fn beginnings(patterns: &[String]) -> Vec<String> {
    let end = |pattern: &str| pattern.find(['*', '?', '[', '{', '\\']).unwrap_or(pattern.len());
    let mut beginnings: Vec<String> =
        patterns.iter().map(|pattern| pattern[..end(pattern)].to_owned()).collect();
    beginnings.sort_unstable();
    // What has another's beginning comes right behind it, or behind others that have.
    beginnings.dedup_by(|text, before| text.starts_with(before.as_str()));
    beginnings
}

impl Default for Ignore {
    /// [`DEFAULT_IGNORE`].
    fn default() -> Self {
        // A bad default would show in this crate's tests; without patterns nothing is left out.
        Self::new(DEFAULT_IGNORE.iter().copied()).unwrap_or_else(|_| Self::nothing())
    }
}

impl fmt::Debug for Ignore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ignore").field(&self.patterns).finish()
    }
}

impl PartialEq for Ignore {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}

impl Eq for Ignore {}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(path: &str) -> bool {
        Ignore::default().covers(&ImagePath::parse(path.as_bytes()).expect("a valid path"))
    }

    #[test]
    fn identity_state_and_logs_belong_to_the_machine() {
        for path in
            ["/etc/machine-id", "/etc/ssh/ssh_host_rsa_key.pub", "/var/log/a/b", "/.vireo/txn"]
        {
            assert!(ignored(path), "{path}");
        }
        for path in ["/etc/ssh/sshd_config", "/var/log", "/usr/bin/vireo-agent", "/etc/passwd"] {
            assert!(!ignored(path), "{path}");
        }
    }

    #[test]
    fn a_path_that_begins_as_no_pattern_matches_none() {
        let lists: [&[&str]; 5] = [
            DEFAULT_IGNORE,
            &["/**/x"],
            &["/a", "/a/b*", "/a.b", "/a-?", "/b[cd]e", "/b{x,yz}", "/b\\*"],
            &["/?", "/zz"],
            &[],
        ];
        let paths = [
            "/",
            "/a",
            "/a/b",
            "/a/bc",
            "/a/b/c",
            "/a.b",
            "/a.bc",
            "/a-x",
            "/b",
            "/bce",
            "/byz",
            "/b*",
            "/zz",
            "/zzz",
            "/x",
            "/q/x",
            "/etc/hostname",
            "/etc/hostnames",
            "/dev",
            "/dev/null",
            "/devices",
            "/etc/ssh/ssh_host_rsa_key",
            "/var/log/x",
            "/var/lo",
            "/0",
        ];
        for list in lists {
            let ignore = Ignore::new(list.iter().copied()).expect("valid patterns");
            for path in paths {
                let path = ImagePath::parse(path.as_bytes()).expect("a valid path");
                let slow = ignore.set.is_match(Path::new(OsStr::from_bytes(path.as_bytes())));
                assert_eq!(ignore.matches(&path), slow, "{path} by {list:?}");
            }
        }
    }

    #[test]
    fn the_default_list_is_valid_and_a_bad_pattern_is_named() {
        assert_eq!(Ignore::default().patterns().len(), DEFAULT_IGNORE.len());
        let error = Ignore::with_site(&["/a[", "b"]).expect_err("no glob");
        assert!(error.to_string().contains("/a["), "{error}");
        let error = Ignore::with_site(&["b"]).expect_err("relative");
        assert_eq!(error, IgnoreError::NotAbsolute { pattern: "b".into() });
    }
}
