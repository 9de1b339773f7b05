//! A case: what is changed, what that needs, and how one sees from outside that it was done.

use std::collections::BTreeSet;

use super::edit::Edit;

/// What kind of change a case is: the rows of the score table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Configuration and certificates.
    Config,
    /// Scripts and modules of interpreters.
    Script,
    /// Unit files, drop-ins, and what the service manager's tools read.
    Manager,
    /// Files that need nothing.
    Nothing,
    /// Programs, libraries, the kernel. Last: what must not restart holds on to them.
    Code,
    /// Configuration that its service would not start with.
    Broken,
}

impl Kind {
    /// Its row's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "configuration, certificates",
            Self::Script => "scripts and their modules",
            Self::Manager => "unit files, input of system tools",
            Self::Nothing => "files that need nothing",
            Self::Code => "programs, libraries, kernel",
            Self::Broken => "broken configuration",
        }
    }
}

/// A question to the guest, whose answer shows what is in effect.
#[derive(Clone, Debug)]
pub struct Probe {
    /// A script for bash.
    pub script: &'static str,
    /// What it prints before.
    pub base: Option<&'static str>,
    /// What it prints when the change is in effect.
    pub target: &'static str,
    /// What it prints once the change is taken back.
    pub undone: Option<&'static str>,
}

/// One change of the guest. Add one to a list in `cases/`: nothing else is to be done.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name: that of the catalogue's row, if it is one.
    pub id: &'static str,
    /// Its row in the score table.
    pub kind: Kind,
    /// What is changed.
    pub edits: Vec<Edit>,
    /// The operations that this needs, in the words of [`operations`](super::plan::operations).
    pub wants: BTreeSet<String>,
    /// Every unit with a process that holds a changed file needs its part, too.
    pub for_holders: bool,
    /// What the refusal says: who finds it broken, and what about it.
    pub says: &'static [&'static str],
    /// How one sees it.
    pub probes: Vec<Probe>,
    /// A script for the guest before it.
    pub prepare: Option<&'static str>,
    /// A script for the guest after the change was taken back.
    pub clean: Option<&'static str>,
    /// Units that go down and up with those that are acted upon.
    pub along: &'static [&'static str],
    /// It does not share an update with others.
    pub alone: bool,
}

/// The case `id`, which changes nothing yet.
#[must_use]
pub(super) fn case(kind: Kind, id: &'static str) -> Case {
    Case {
        id,
        kind,
        edits: Vec::new(),
        wants: BTreeSet::new(),
        for_holders: false,
        says: &[],
        probes: Vec::new(),
        prepare: None,
        clean: None,
        along: &[],
        alone: false,
    }
}

impl Case {
    fn edit(mut self, edit: Edit) -> Self {
        self.edits.push(edit);
        self
    }

    /// Writes a file, anew or over what is there.
    #[must_use]
    pub fn write(self, path: &'static str, content: &'static str) -> Self {
        self.edit(Edit::Write(path, content))
    }

    /// Adds lines at a file's end.
    #[must_use]
    pub fn append(self, path: &'static str, text: &'static str) -> Self {
        self.edit(Edit::Append(path, text))
    }

    /// Replaces a text, which must be there, wherever it is in a file.
    #[must_use]
    pub fn replace(self, path: &'static str, text: &'static str, by: &'static str) -> Self {
        self.edit(Edit::Replace(path, text, by))
    }

    /// Copies another file's content.
    #[must_use]
    pub fn copy(self, from: &'static str, path: &'static str) -> Self {
        self.edit(Edit::Copy(from, path))
    }

    /// Makes another version of a program or library, which does the same.
    #[must_use]
    pub fn rebuild(self, path: &'static str) -> Self {
        self.edit(Edit::Rebuild(path))
    }

    /// Makes a symbolic link, over whatever is there.
    #[must_use]
    pub fn link(self, path: &'static str, target: &'static str) -> Self {
        self.edit(Edit::Link(path, target))
    }

    /// Removes a file.
    #[must_use]
    pub fn remove(self, path: &'static str) -> Self {
        self.edit(Edit::Remove(path))
    }

    /// Runs a command with the file as its last argument: `chmod 700`.
    #[must_use]
    pub fn run(self, command: &'static str, path: &'static str) -> Self {
        self.edit(Edit::Run(command, path))
    }

    /// Needs these operations.
    #[must_use]
    pub fn wants(mut self, operations: &[&str]) -> Self {
        self.wants.extend(operations.iter().map(|operation| (*operation).to_owned()));
        self
    }

    /// Is refused, and the refusal says all of these.
    #[must_use]
    pub fn is_refused(mut self, says: &'static [&'static str]) -> Self {
        self.says = says;
        self.wants(&["refuse"]).alone()
    }

    /// Needs what each unit needs that holds a changed file.
    #[must_use]
    pub fn for_holders(mut self) -> Self {
        self.for_holders = true;
        self
    }

    /// `script` prints `base` before and after undoing, `target` when it is in effect.
    #[must_use]
    pub fn shows(mut self, script: &'static str, base: &'static str, target: &'static str) -> Self {
        self.probes.push(Probe { script, base: Some(base), target, undone: Some(base) });
        self
    }

    /// The same where asking beforehand would change what is to be seen.
    #[must_use]
    pub fn then_shows(mut self, script: &'static str, target: &'static str) -> Self {
        self.probes.push(Probe { script, base: None, target, undone: None });
        self
    }

    /// The same where undoing leaves it: what a tool has made stays made.
    #[must_use]
    pub fn leaves(
        mut self,
        script: &'static str,
        base: &'static str,
        target: &'static str,
    ) -> Self {
        self.probes.push(Probe { script, base: Some(base), target, undone: None });
        self
    }

    /// Runs a script in the guest before.
    #[must_use]
    pub fn prepare(mut self, script: &'static str) -> Self {
        self.prepare = Some(script);
        self
    }

    /// Runs a script in the guest when the change has been taken back.
    #[must_use]
    pub fn clean(mut self, script: &'static str) -> Self {
        self.clean = Some(script);
        self
    }

    /// These units go down and up with those that are acted upon.
    #[must_use]
    pub fn along(mut self, units: &'static [&'static str]) -> Self {
        self.along = units;
        self
    }

    /// It does not share an update with others.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// The paths that it changes.
    pub fn paths(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.edits.iter().map(Edit::path)
    }

    /// Every path that it needs from the guest.
    pub(super) fn needed(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.edits.iter().flat_map(Edit::needs)
    }

    /// Whether both can be in one update and still be told apart.
    pub(super) fn goes_with(&self, other: &Self) -> bool {
        let units = |case: &Self| -> BTreeSet<String> {
            let unit = |operation: &String| operation.split_once(' ').map(|(_, unit)| unit.into());
            case.wants.iter().filter_map(unit).collect()
        };
        let alone = self.alone || other.alone || self.for_holders || other.for_holders;
        let same_paths = self.paths().any(|path| other.paths().any(|theirs| theirs == path));
        self.kind == other.kind && !alone && !same_paths && units(self).is_disjoint(&units(other))
    }
}

/// The cases in as few updates as keep them apart, in the order of their kinds.
#[must_use]
pub fn rounds(cases: Vec<Case>) -> Vec<Vec<Case>> {
    let mut rounds: Vec<Vec<Case>> = Vec::new();
    for case in cases {
        match rounds.iter_mut().find(|round| round.iter().all(|other| case.goes_with(other))) {
            Some(round) => round.push(case),
            None => rounds.push(vec![case]),
        }
    }
    rounds.sort_by_key(|round| round[0].kind);
    rounds
}
