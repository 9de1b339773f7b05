//! A plan as text: one line per unit with the reason, then what needs nothing, counted.

use std::fmt;

use crate::plan::{
    Action, Evidence, INPUT_OF, MANAGER_READS, ManagerAction, Plan, Reboot, Rule, USERS_READ,
    UnitPlan,
};

/// Most paths that one line lists.
const MAX_PATHS_NAMED: usize = 3;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_versions(f)?;
        let lines = self.lines();
        let explained = lines.iter().filter(|line| !line.why.is_empty());
        let width = explained.map(|line| line.name.chars().count()).max().unwrap_or(0);
        for Line { verb, name, why } in &lines {
            writeln!(f, "{}", format!("{verb:<7}  {name:<width$}  {why}").trim_end())?;
        }
        self.write_idle(f, lines.is_empty())?;
        for edit in &self.drift {
            let beside = edit.beside.as_ref().map_or(String::new(), |path| format!(", see {path}"));
            writeln!(f, "edited    {}: {}{beside}", edit.path, edit.how)?;
        }
        if !self.unclaimed.is_empty() {
            let count = files(self.unclaimed.len());
            writeln!(
                f,
                "unclear  for {count} that no unit is known to read: {}",
                listed(&self.unclaimed)
            )?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note     {note}"))
    }
}

struct Line {
    verb: &'static str,
    name: String,
    why: String,
}

impl Plan {
    fn write_versions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(target) = self.target else { return Ok(()) };
        let base = self.base.map_or_else(|| "nothing".to_owned(), |base| base.short());
        writeln!(
            f,
            "update   {base} to {}: {}, {} to fetch, {} to write",
            target.short(),
            files(self.files.len()),
            size(self.wire_bytes),
            size(self.disk_bytes)
        )
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = self.system_lines();
        let order = [
            Action::Refuse,
            Action::Stop,
            Action::Restart,
            Action::Reload,
            Action::Start,
            Action::Hold,
        ];
        for action in order {
            let units = self.units.iter().filter(|unit| unit.action == action);
            lines.extend(units.map(|unit| Line {
                verb: action.as_str(),
                name: unit.unit.to_string(),
                why: reason(unit),
            }));
        }
        lines
    }

    fn system_lines(&self) -> Vec<Line> {
        let line = |verb, name: &str, why| Line { verb, name: name.to_owned(), why };
        let mut lines: Vec<Line> = Vec::new();
        for refusal in &self.refusals {
            lines.push(line("refuse", "the update", refusal.reason.clone()));
        }
        if let Some(man) = &self.system.dead_man {
            let name = format!("undone unless confirmed within {} s", man.seconds);
            lines.push(line("guard", &name, listed(&man.because)));
        }
        if self.system.reboot != Reboot::None {
            let word = if self.system.reboot == Reboot::Soft { "user space" } else { "pending" };
            lines.push(line("reboot", word, self.because(Cause::Reboot)));
        }
        for kept in &self.system.keep {
            lines.push(line("keep", kept, "the running kernel needs it".to_owned()));
        }
        for run in &self.system.tools {
            lines.push(line("run", &run.command.join(" "), String::new()));
        }
        if let Some(word) = word_for(self.system.manager) {
            lines.push(line("manager", word, self.because(Cause::Manager)));
        }
        for manager in &self.system.user_managers {
            let word = word_for(manager.action).unwrap_or_default();
            lines.push(line("manager", &format!("{word} in {}", manager.unit), String::new()));
        }
        lines
    }

    /// The first reason of this kind for what the system needs, and how many more there are.
    fn because(&self, cause: Cause) -> String {
        reasons(self.system.because.iter().filter(|evidence| cause_of(evidence) == cause))
    }

    fn write_idle(&self, f: &mut fmt::Formatter<'_>, no_lines: bool) -> fmt::Result {
        let counts = self.idle_files();
        let total: usize = counts.values().sum();
        if total == 0 {
            return if no_lines { writeln!(f, "nothing  to do") } else { Ok(()) };
        }
        let mut counts: Vec<(crate::Class, usize)> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let parts: Vec<String> =
            counts.iter().map(|(class, count)| format!("{count} {class}")).collect();
        writeln!(f, "nothing  for {}: {}", files(total), parts.join(", "))
    }
}

/// What a piece of evidence about the system is a reason for.
#[derive(Clone, Copy, PartialEq)]
enum Cause {
    Manager,
    Users,
    Tool,
    Reboot,
}

fn cause_of(evidence: &Evidence) -> Cause {
    match evidence.source.as_str() {
        MANAGER_READS => Cause::Manager,
        USERS_READ => Cause::Users,
        source if source.starts_with(INPUT_OF) => Cause::Tool,
        _ if evidence.rule == Rule::Held => Cause::Manager,
        _ => Cause::Reboot,
    }
}

const fn word_for(action: ManagerAction) -> Option<&'static str> {
    match action {
        ManagerAction::None => None,
        ManagerAction::Reload => Some("daemon-reload"),
        ManagerAction::Reexec => Some("daemon-reexec"),
    }
}

fn reason(unit: &UnitPlan) -> String {
    let because = reasons(unit.because.iter());
    match &unit.reason {
        Some(why) => format!("{because}: {why}"),
        None => because,
    }
}

/// The strongest piece of evidence in full, the number of further files.
fn reasons<'a>(evidence: impl Iterator<Item = &'a Evidence>) -> String {
    let mut all: Vec<&Evidence> = evidence.collect();
    all.sort_by_key(|evidence| evidence.rule);
    let Some(first) = all.first() else { return String::new() };
    let mut others: Vec<&str> = all.iter().map(|evidence| evidence.path.as_str()).collect();
    others.sort_unstable();
    others.dedup();
    let more = match others.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{} ({}, {}){more}", first.path, first.class, first.source)
}

fn listed(paths: &[String]) -> String {
    let named =
        paths.iter().take(MAX_PATHS_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match paths.len().saturating_sub(MAX_PATHS_NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn files(count: usize) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

/// Bytes for people, in units of 1000.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}
