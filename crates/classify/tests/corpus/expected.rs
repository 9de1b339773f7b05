//! What a row expects, from its own words.

use vireo_classify::Action;

/// What a row of the catalogue says is to be done.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Expected {
    /// What the service manager does.
    pub(crate) manager: Option<&'static str>,
    /// The reboot that waits.
    pub(crate) reboot: Option<&'static str>,
    /// Parts of the command lines that run.
    pub(crate) tools: Vec<String>,
    /// What is done to units, in the order of the words; the first is meant unless a clause says
    /// whom it is about.
    pub(crate) actions: Vec<(Action, String)>,
    /// The units that the row names.
    pub(crate) units: Vec<String>,
}

/// Commands that rows name in other ways than by `run X` and `derive(X)`.
const COMMANDS: &[(&str, &str)] =
    &[("udevadm control --reload", "udevadm control --reload"), ("modprobe the", "modules-load")];

impl Expected {
    /// Reads the words of the columns `expected_operation` and `unit`.
    pub(crate) fn of(words: &str, unit: &str) -> Self {
        let mut expected = Self { units: units_named(unit), ..Self::default() };
        let words =
            words.replace("same op as change", "reload").replace("staged restart", "restart");
        expected.read_tools(&words);
        for clause in clauses(&words) {
            expected.read_clause(clause.trim());
        }
        expected
    }

    fn read_tools(&mut self, words: &str) {
        let mut rest = words;
        while let Some(at) = rest.find("derive(") {
            let inner = &rest[at + "derive(".len()..];
            let end = inner.find(')').expect("a closing bracket");
            // What only a machine of its own kind needs is not this one's.
            if !inner[end + 1..].trim_start().starts_with("only when") {
                self.tools.push(inner[..end].to_owned());
            }
            rest = &inner[end..];
        }
        if let Some((_, command)) = words.split_once("run systemd-") {
            let name = command.split_whitespace().next().expect("a command");
            self.tools.push(format!("systemd-{name}"));
        }
        let said = COMMANDS.iter().filter(|(said, _)| words.contains(said));
        self.tools.extend(said.map(|(_, command)| (*command).to_owned()));
    }

    fn read_clause(&mut self, clause: &str) {
        let verb = clause.split([' ', ',']).next().unwrap_or_default();
        let about = clause[verb.len()..].trim().to_owned();
        match verb {
            "daemon-reload" => self.manager = self.manager.or(Some("daemon-reload")),
            "daemon-reexec" => self.manager = Some("daemon-reexec"),
            "soft-reboot" | "reboot" => self.reboot = Some("reboot"),
            _ if clause.contains("=> reboot") => self.reboot = Some("reboot"),
            _ => {}
        }
        let action = match verb {
            "reload" => Action::Reload,
            "restart" => Action::Restart,
            "start" => Action::Start,
            "stop" => Action::Stop,
            "hold" => Action::Hold,
            "refuse" => Action::Refuse,
            _ => return,
        };
        self.actions.push((action, about));
    }
}

/// The parts of a sentence; what stands in brackets explains and is left out.
fn clauses(words: &str) -> Vec<String> {
    let plain = without_brackets(words);
    let plain = plain.replace(" + ", ";").replace(", ", ";").replace(" or ", ";");
    // A full stop ends what is to be done.
    let plain = plain.split(". ").next().unwrap_or_default().to_owned();
    plain.split([';', '/']).map(|clause| clause.trim().to_owned()).collect()
}

fn without_brackets(words: &str) -> String {
    let mut depth = 0_usize;
    let outside = |c: &char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => return depth == 0,
        }
        false
    };
    words.chars().filter(outside).collect()
}

/// Names of units among the words of the column.
fn units_named(unit: &str) -> Vec<String> {
    let kinds = [".service", ".socket", ".timer", ".mount", ".scope"];
    let plain = without_brackets(unit);
    let words = plain.split([' ', ',', ';']).filter(|word| !word.is_empty());
    words.filter(|word| kinds.iter().any(|kind| word.ends_with(kind))).map(str::to_owned).collect()
}

#[test]
fn the_words_of_a_row_are_understood() {
    let of = Expected::of;
    let expected = of("daemon-reload; restart. Must not trust X (=no on 252)", "nginx.service");
    assert_eq!(expected.manager, Some("daemon-reload"));
    assert_eq!(expected.actions, [(Action::Restart, String::new())]);
    assert_eq!(of("derive(newaliases); no unit op", "-").tools, ["newaliases"]);
    assert_eq!(of("none (cron polls)", "-"), Expected::default());
    let held =
        of("restart each mapping unit; daemon-reexec for PID 1; hold dbus/logind/user@", "x");
    assert_eq!(held.manager, Some("daemon-reexec"));
    assert_eq!(held.actions[1], (Action::Hold, "dbus".to_owned()));
    let refused =
        of("refuse before commit (nginx -t rc=1); if committed: no restart", "nginx.service");
    assert_eq!(refused.actions[0].0, Action::Refuse);
    assert_eq!(refused.units, ["nginx.service"]);
}
