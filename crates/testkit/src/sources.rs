//! Where this host gets the distribution's packages from.
//!
//! Read from the host's own package sources, so that guests are built from the same servers and no
//! server is named in the project.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{ErrorKind, TestkitError, failed};

/// The release that guests are made of.
pub const SUITE: &str = "bookworm";

/// Directory of the host's package sources.
const APT: &str = "/etc/apt";

/// The addresses of one release's archives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The release itself.
    pub main: String,
    /// Its security updates.
    pub security: String,
    /// Its other updates, if the host uses them.
    pub updates: Option<String>,
}

impl Sources {
    /// The host's own.
    ///
    /// # Errors
    ///
    /// The host's sources cannot be read or do not name the release and its security updates.
    pub fn of_host() -> Result<Self, TestkitError> {
        let mut entries = Vec::new();
        for file in source_files()? {
            let text = fs::read_to_string(&file).map_err(failed("read", &file))?;
            entries.extend(match file.extension() {
                Some(extension) if extension == "sources" => deb822(&text),
                _ => one_line(&text),
            });
        }
        let find = |suite: &str| {
            let entry = entries.iter().find(|entry| entry.suite == suite)?;
            Some(resolve_mirror(&entry.uri))
        };
        let need = |suite: &str| {
            find(suite).unwrap_or_else(|| {
                let message =
                    format!("the package sources in {APT} name no suite {suite:?}: add it");
                Err(TestkitError::new(ErrorKind::Host, message))
            })
        };
        Ok(Self {
            main: need(SUITE)?,
            security: need(&format!("{SUITE}-security"))?,
            updates: find(&format!("{SUITE}-updates")).transpose()?,
        })
    }

    /// A one-line-style list of the updates alone.
    #[must_use]
    pub fn updates_list(&self) -> String {
        let mut list = format!("deb {} {SUITE}-security main\n", self.security);
        if let Some(updates) = &self.updates {
            list.push_str(&format!("deb {updates} {SUITE}-updates main\n"));
        }
        list
    }
}

fn source_files() -> Result<Vec<PathBuf>, TestkitError> {
    let parts = Path::new(APT).join("sources.list.d");
    let mut files = Vec::new();
    if parts.is_dir() {
        for entry in fs::read_dir(&parts).map_err(failed("list", &parts))? {
            files.push(entry.map_err(failed("list", &parts))?.path());
        }
    }
    files.retain(|file| file.extension().is_some_and(|end| end == "list" || end == "sources"));
    files.sort();
    let single = Path::new(APT).join("sources.list");
    files.extend(single.exists().then_some(single));
    Ok(files)
}

/// One suite at one address, with the component that guests are made of.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    uri: String,
    suite: String,
}

/// Entries of the one-line style of sources.list(5): `deb [options] uri suite component...`.
fn one_line(text: &str) -> Vec<Entry> {
    let parse = |line: &str| {
        let rest = line.trim().strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        words.any(|component| component == "main").then(|| entry(uri, suite))
    };
    text.lines().filter_map(parse).collect()
}

/// Entries of the deb822 style of sources.list(5): stanzas of `Field: value` lines.
fn deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            let value = stanza.lines().find_map(|line| {
                let (field, value) = line.split_once(':')?;
                field.eq_ignore_ascii_case(name).then_some(value)
            });
            value.unwrap_or_default().split_whitespace().collect::<Vec<_>>()
        };
        let on = !field("Enabled").contains(&"no");
        if on && field("Types").contains(&"deb") && field("Components").contains(&"main") {
            for uri in field("URIs") {
                entries.extend(field("Suites").iter().map(|suite| entry(uri, suite)));
            }
        }
    }
    entries
}

fn entry(uri: &str, suite: &str) -> Entry {
    Entry { uri: uri.to_owned(), suite: suite.to_owned() }
}

/// Cloud images name a file that lists mirrors (apt-transport-mirror(1)); takes its first line.
fn resolve_mirror(uri: &str) -> Result<String, TestkitError> {
    let Some(path) = uri.strip_prefix("mirror+file:") else {
        return Ok(uri.to_owned());
    };
    let path = Path::new("/").join(path.trim_start_matches('/'));
    let text = fs::read_to_string(&path).map_err(failed("read the mirror list", &path))?;
    let first = text.lines().find_map(|line| line.split_whitespace().next());
    first.map(str::to_owned).ok_or_else(|| {
        let message = format!("the mirror list {} is empty", path.display());
        TestkitError::new(ErrorKind::Host, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_style_is_read_with_and_without_options() {
        let text = "# deb http://no.example/ bookworm main\n\
                    deb http://a.example/debian bookworm main contrib\n\
                    deb-src http://a.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://b.example/ bookworm-security main\n\
                    deb http://c.example/ tools extra\n";
        let expected = [
            entry("http://a.example/debian", "bookworm"),
            entry("http://b.example/", "bookworm-security"),
        ];
        assert_eq!(one_line(text), expected);
    }

    #[test]
    fn deb822_style_is_read_stanza_by_stanza() {
        let text = "Types: deb\n# a comment\nURIs: http://a.example/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\n\n\
                    Types: deb\nEnabled: no\nURIs: http://b.example/\nSuites: x\nComponents: main\n";
        let expected = [
            entry("http://a.example/debian", "bookworm"),
            entry("http://a.example/debian", "bookworm-updates"),
        ];
        assert_eq!(deb822(text), expected);
    }
}
