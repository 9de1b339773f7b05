//! Changes of a tree: what an update brings.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use vireo_testkit::Run;

/// What makes a rebuilt program another file: nobody reads behind an ELF file's sections.
const REBUILT: &[u8] = b"rebuilt for the zoo";

/// One change of a tree. Paths may have `*` in their last component if one file matches.
#[derive(Clone, Copy, Debug)]
pub enum Edit {
    /// A file gets this content.
    Write(&'static str, &'static str),
    /// A file gets these lines at its end.
    Append(&'static str, &'static str),
    /// A text in a file becomes another.
    Replace(&'static str, &'static str, &'static str),
    /// A file gets another file's content.
    Copy(&'static str, &'static str),
    /// A program or library becomes another file that does the same.
    Rebuild(&'static str),
    /// A symbolic link leads there.
    Link(&'static str, &'static str),
    /// A file goes.
    Remove(&'static str),
    /// A command is run with the file as its last argument.
    Run(&'static str, &'static str),
}

impl Edit {
    /// What it changes.
    pub(super) const fn path(&self) -> &'static str {
        match self {
            Self::Write(path, _)
            | Self::Append(path, _)
            | Self::Replace(path, ..)
            | Self::Copy(_, path)
            | Self::Rebuild(path)
            | Self::Link(path, _)
            | Self::Remove(path)
            | Self::Run(_, path) => path,
        }
    }

    /// What must be in the tree, if it is in the guest.
    pub(super) fn needs(&self) -> Vec<&'static str> {
        match self {
            Self::Copy(from, path) => vec![from, path],
            other => vec![other.path()],
        }
    }

    /// Does it to the tree `root`.
    pub(super) fn apply(&self, root: &Path) -> anyhow::Result<()> {
        let path = resolve(root, self.path())?;
        match self {
            Self::Write(_, content) => replace_file(&path, content.as_bytes()),
            Self::Append(_, text) => {
                replace_file(&path, &[&read(&path)?, text.as_bytes()].concat())
            }
            Self::Replace(_, text, by) => {
                let content = String::from_utf8(read(&path)?)?;
                ensure!(content.contains(text), "{} has no {text:?}", path.display());
                replace_file(&path, content.replace(text, by).as_bytes())
            }
            Self::Copy(from, _) => replace_file(&path, &read(&resolve(root, from)?)?),
            Self::Rebuild(_) => replace_file(&path, &[&read(&path)?, REBUILT].concat()),
            Self::Link(_, target) => {
                if path.symlink_metadata().is_ok() {
                    fs::remove_file(&path)?;
                }
                make_parent(&path)?;
                Ok(symlink(target, &path)?)
            }
            Self::Remove(_) => Ok(fs::remove_file(&path)?),
            Self::Run(command, _) => {
                let mut words = command.split(' ');
                let program = words.next().context("a command")?;
                Run::new(program).args(words).arg(&path).text()?;
                Ok(())
            }
        }
        .with_context(|| format!("cannot do {self:?}"))
    }
}

/// The place of `path` below `root`; with a `*` in its last component, the one file that matches.
pub(super) fn resolve(root: &Path, path: &str) -> anyhow::Result<PathBuf> {
    let whole = root.join(path.trim_start_matches('/'));
    let Some((before, after)) = path.rsplit('/').next().and_then(|name| name.split_once('*'))
    else {
        return Ok(whole);
    };
    let dir = whole.parent().context("a directory")?;
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if text.starts_with(before) && text.ends_with(after) {
            found.push(dir.join(&name));
        }
    }
    ensure!(found.len() == 1, "{path}: not one file but {found:?}");
    found.pop().context("one file")
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn make_parent(path: &Path) -> anyhow::Result<()> {
    Ok(fs::create_dir_all(path.parent().context("a directory")?)?)
}

/// Puts a new file in the place of what is there, with its owner and mode, as an update does.
fn replace_file(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    make_parent(path)?;
    let part = path.with_added_extension("part");
    fs::write(&part, content)?;
    if let Ok(stat) = path.metadata() {
        chown(&part, Some(stat.uid()), Some(stat.gid()))?;
        fs::set_permissions(&part, fs::Permissions::from_mode(stat.mode()))?;
    }
    Ok(fs::rename(&part, path)?)
}
