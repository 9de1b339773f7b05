//! Unit files: sections, keys, and the paths that a unit declares to use (`systemd.syntax(7)`,
//! `systemd.service(5)`, `systemd.exec(5)`).
//!
//! Not here: the merged view of a unit that the manager has; a drop-in is read as one more file
//! whose assignments come later.

use std::collections::{BTreeMap, BTreeSet};

use vireo_model::ImagePath;

use crate::{Declared, DeclaredBy, Unit};

/// Longest line after joining continuations, in bytes; systemd's own limit is 1 MiB.
const MAX_LINE_LEN: usize = 1 << 20;

/// The assignments of one unit file, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitFile {
    /// Section, key, value.
    pub entries: Vec<(String, String, Vec<u8>)>,
    /// Lines that are neither section, assignment nor comment.
    pub unread: usize,
}

/// What one unit's files say it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    /// Programs that it starts, first the main one.
    pub programs: Vec<ImagePath>,
    /// Everything else.
    pub declared: BTreeSet<Declared>,
    /// The words of `ExecStart=` after the program.
    pub arguments: Vec<String>,
    /// Lines not understood.
    pub unread: usize,
}

impl UnitFile {
    /// Reads a unit file's content.
    #[must_use]
    pub fn parse(content: &[u8]) -> Self {
        let mut file = Self::default();
        let mut section = String::new();
        let mut lines = content.split(|b| *b == b'\n');
        while let Some(line) = lines.next() {
            let line = join_continuations(line, &mut lines);
            let line = line.trim_ascii();
            match line {
                [] | [b'#' | b';', ..] => {}
                [b'[', name @ .., b']'] => section = String::from_utf8_lossy(name).into_owned(),
                _ => match line.iter().position(|b| *b == b'=') {
                    Some(at) if at > 0 && !section.is_empty() && line.len() <= MAX_LINE_LEN => {
                        let key = String::from_utf8_lossy(line[..at].trim_ascii()).into_owned();
                        file.entries.push((
                            section.clone(),
                            key,
                            line[at + 1..].trim_ascii().to_vec(),
                        ));
                    }
                    _ => file.unread += 1,
                },
            }
        }
        file
    }
}

/// A backslash at the end of a line joins the next one; comments in between are skipped.
fn join_continuations<'a>(first: &'a [u8], lines: &mut impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut joined = first.to_vec();
    let comment = |line: &[u8]| matches!(line.trim_ascii_start().first(), Some(b'#' | b';'));
    if comment(first) {
        return joined;
    }
    while joined.last() == Some(&b'\\') {
        joined.pop();
        joined.push(b' ');
        match lines.find(|line| !comment(line)) {
            Some(line) if joined.len() + line.len() <= MAX_LINE_LEN => {
                joined.extend_from_slice(line)
            }
            _ => break,
        }
    }
    joined
}

/// What `unit` declares to use, from the contents of its file and drop-ins in their order.
#[must_use]
pub fn declarations_of<'a>(unit: &Unit, files: impl IntoIterator<Item = &'a [u8]>) -> Declarations {
    let mut entries = Vec::new();
    let mut unread = 0;
    for content in files {
        let file = UnitFile::parse(content);
        unread += file.unread;
        for (section, key, value) in file.entries {
            // An empty assignment takes back what came before it.
            if value.is_empty() {
                entries.retain(|(s, k, _)| (s, k) != (&section, &key));
            } else {
                entries.push((section, key, value));
            }
        }
    }
    let mut result = Declarations { unread, ..Declarations::default() };
    // `ExecStart` first: the main program leads the list.
    entries.sort_by_key(|(_, key, _)| key != "ExecStart");
    let context = Context::of(unit, &entries);
    for (section, key, value) in &entries {
        result.read_entry(&context, section, key, value);
    }
    result
}

/// What the words of a unit's commands depend on.
struct Context<'a> {
    unit: &'a Unit,
    /// `Environment=`; what `EnvironmentFile=` names is not known here.
    environment: BTreeMap<Vec<u8>, Vec<u8>>,
    working_directory: Option<Vec<u8>>,
}

/// Variables that say where an interpreter finds modules.
const MODULE_PATHS: &[&[u8]] =
    &[b"PYTHONPATH", b"PERL5LIB", b"RUBYLIB", b"NODE_PATH", b"CLASSPATH", b"LUA_PATH"];

impl<'a> Context<'a> {
    fn of(unit: &'a Unit, entries: &[(String, String, Vec<u8>)]) -> Self {
        let mut context = Self { unit, environment: BTreeMap::new(), working_directory: None };
        for (_, key, value) in entries {
            match key.as_str() {
                "Environment" => {
                    for word in context.words(value) {
                        if let Some(at) = word.iter().position(|b| *b == b'=') {
                            let (name, value) = (word[..at].to_vec(), word[at + 1..].to_vec());
                            context.environment.insert(name, value);
                        }
                    }
                }
                "WorkingDirectory" => {
                    let word = context.words(value).pop().unwrap_or_default();
                    let word = word.strip_prefix(b"-").unwrap_or(&word).to_vec();
                    context.working_directory = Some(word).filter(|word| word.starts_with(b"/"));
                }
                _ => {}
            }
        }
        context
    }

    /// The words of a value, with the specifiers filled in.
    fn words(&self, value: &[u8]) -> Vec<Vec<u8>> {
        words_of(value).into_iter().filter_map(|word| expand(self.unit, &word)).collect()
    }

    /// The words of a command line: `$NAME` as a word of its own becomes several, `${NAME}` is
    /// filled in (`systemd.service(5)`). Unknown variables stay.
    fn command(&self, value: &[u8]) -> Vec<Vec<u8>> {
        let mut command = Vec::new();
        for word in self.words(value) {
            let variable = word.strip_prefix(b"$").and_then(|name| self.environment.get(name));
            match variable {
                Some(value) => command.extend(words_of(value)),
                None => command.push(self.filled_in(&word)),
            }
        }
        command
    }

    fn filled_in(&self, word: &[u8]) -> Vec<u8> {
        let mut rest = word;
        let mut filled = Vec::new();
        while let Some(at) = rest.windows(2).position(|pair| pair == b"${") {
            let Some(len) = rest[at..].iter().position(|b| *b == b'}') else { break };
            filled.extend_from_slice(&rest[..at]);
            let name = &rest[at + 2..at + len];
            let whole = &rest[at..=at + len];
            filled.extend_from_slice(self.environment.get(name).map_or(whole, Vec::as_slice));
            rest = &rest[at + len + 1..];
        }
        filled.extend_from_slice(rest);
        filled
    }

    /// The paths in an argument, which can be a whole script for a shell.
    fn paths_within(&self, word: &[u8]) -> Vec<Vec<u8>> {
        let is_script = word.iter().any(u8::is_ascii_whitespace);
        let separates = |b: &u8| b.is_ascii_whitespace() || b";|&<>()\"'".contains(b);
        let parts: Vec<&[u8]> = if is_script && !word.starts_with(b"/") && !word.starts_with(b"-") {
            word.split(separates).filter(|part| !part.is_empty()).collect()
        } else {
            vec![word]
        };
        let path = |part: &&[u8]| path_within(part).or_else(|| self.relative_path(part));
        parts.iter().filter_map(path).collect()
    }

    /// The path that a relative argument means: one with the look of a file's name.
    fn relative_path(&self, word: &[u8]) -> Option<Vec<u8>> {
        let directory = self.working_directory.as_ref()?;
        let value = word.iter().position(|b| *b == b'=').map_or(word, |at| &word[at + 1..]);
        let value = value.strip_prefix(b"./").unwrap_or(value);
        let name = value.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let ending = &name[name.iter().rposition(|b| *b == b'.').filter(|at| *at > 0)? + 1..];
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"._-/+".contains(b);
        let is_file = ending.first().is_some_and(u8::is_ascii_alphabetic)
            && ending.iter().all(u8::is_ascii_alphanumeric)
            && value.iter().all(is_plain)
            && !value.starts_with(b"-");
        is_file.then(|| [directory.as_slice(), b"/", value].concat())
    }
}

impl Declarations {
    fn read_entry(&mut self, context: &Context<'_>, section: &str, key: &str, value: &[u8]) {
        let words = || context.words(value).into_iter();
        match key {
            "ExecStart" | "ExecStartPre" | "ExecStartPost" | "ExecReload" | "ExecCondition" => {
                let command = context.command(value);
                let main = key == "ExecStart";
                if main {
                    let words = command.iter().skip(1).map(|word| String::from_utf8_lossy(word));
                    self.arguments.extend(words.map(|word| word.into_owned()));
                }
                self.read_command(context, command, main);
            }
            "Environment" => self.read_environment(words()),
            "EnvironmentFile" => self.declare(words(), DeclaredBy::EnvironmentFile),
            "WorkingDirectory" => self.declare(words(), DeclaredBy::WorkingDirectory),
            "BindPaths" | "BindReadOnlyPaths" => {
                let from = |word: Vec<u8>| first_field(&word, b':');
                self.declare(words().map(from), DeclaredBy::Bind);
            }
            // What has no path of its own is looked for in a store (`systemd.exec(5)`).
            "LoadCredential" => {
                self.declare(
                    words().map(|word| credential(&word, b"/etc/credstore/")),
                    DeclaredBy::Credential,
                );
            }
            "LoadCredentialEncrypted" => {
                let store = b"/etc/credstore.encrypted/";
                self.declare(words().map(|word| credential(&word, store)), DeclaredBy::Credential);
            }
            "ConfigurationDirectory" => {
                let below_etc =
                    |word: Vec<u8>| [b"/etc/", first_field(&word, b':').as_slice()].concat();
                self.declare(words().map(below_etc), DeclaredBy::ConfigurationDirectory);
            }
            "RequiresMountsFor"
            | "ConditionPathExists"
            | "AssertPathExists"
            | "ConditionFileNotEmpty"
                if section == "Unit" =>
            {
                // Elsewhere these name data, sockets and kernel interfaces.
                let below_etc = words().filter(|word| word.starts_with(b"/etc/"));
                self.declare(below_etc, DeclaredBy::Other);
            }
            _ => {}
        }
    }

    /// Values that are paths: files that the unit reads, directories that it finds modules in.
    fn read_environment(&mut self, words: impl Iterator<Item = Vec<u8>>) {
        for word in words {
            let Some(at) = word.iter().position(|b| *b == b'=') else { continue };
            let by = if MODULE_PATHS.contains(&&word[..at]) {
                DeclaredBy::WorkingDirectory
            } else {
                DeclaredBy::Environment
            };
            let values = word[at + 1..].split(|b| b":,".contains(b)).map(<[u8]>::to_vec);
            self.declare(values.filter(|value| value.starts_with(b"/")), by);
        }
    }

    fn read_command(&mut self, context: &Context<'_>, mut words: Vec<Vec<u8>>, main: bool) {
        if words.is_empty() {
            return;
        }
        let program = words.remove(0);
        let start = program.iter().position(|b| !b"@-:+!|".contains(b)).unwrap_or(0);
        if let Some(path) = as_path(&program[start..])
            && !self.programs.contains(&path)
        {
            self.programs.push(path);
        }
        let paths = words.iter().flat_map(|word| context.paths_within(word));
        self.declare(paths, if main { DeclaredBy::Argument } else { DeclaredBy::Helper });
    }

    fn declare(&mut self, words: impl Iterator<Item = Vec<u8>>, by: DeclaredBy) {
        for word in words {
            let word = word.strip_prefix(b"-").unwrap_or(&word);
            if let Some(path) = as_path(word).filter(is_specific) {
                self.declared.insert(Declared { path, by });
            }
        }
    }
}

/// Whether a declared path says something about the unit: not `/`, `/etc` or `/var/lib`, nor
/// kernel interfaces.
fn is_specific(path: &ImagePath) -> bool {
    const TOO_WIDE: &[&[u8]] = &[
        b"/usr/bin",
        b"/usr/sbin",
        b"/usr/lib",
        b"/usr/share",
        b"/var/lib",
        b"/var/log",
        b"/var/cache",
    ];
    const INTERFACES: &[&[u8]] = &[b"/dev/", b"/proc/", b"/sys/", b"/run/", b"/tmp/", b"/var/run/"];
    path.components().count() >= 2
        && !TOO_WIDE.contains(&path.as_bytes())
        && !INTERFACES.iter().any(|place| path.as_bytes().starts_with(place))
}

fn as_path(word: &[u8]) -> Option<ImagePath> {
    let word = if word.len() > 1 { word.strip_suffix(b"/").unwrap_or(word) } else { word };
    // A glob declares the directory it looks into.
    let word = match word.iter().position(|b| b"*?[".contains(b)) {
        Some(at) => &word[..word[..at].iter().rposition(|b| *b == b'/')?],
        None => word,
    };
    ImagePath::parse(word).ok()
}

/// The path in an argument: all of it, what follows `=`, or what follows an option letter.
fn path_within(word: &[u8]) -> Option<Vec<u8>> {
    if word.contains(&b'$') {
        return None;
    }
    let at = match word {
        [b'/', ..] => 0,
        [b'-', letter, b'/', ..] if letter.is_ascii_alphabetic() => 2,
        _ => word.windows(2).position(|pair| pair == b"=/")? + 1,
    };
    Some(word[at..].to_vec())
}

/// The path of `ID:PATH`, or where `ID` is looked for.
fn credential(word: &[u8], store: &[u8]) -> Vec<u8> {
    match word.iter().position(|b| *b == b':') {
        Some(at) if word[at + 1..].starts_with(b"/") => word[at + 1..].to_vec(),
        Some(at) => [store, &word[at + 1..]].concat(),
        None => [store, word].concat(),
    }
}

fn first_field(word: &[u8], separator: u8) -> Vec<u8> {
    word.split(|b| *b == separator).next().unwrap_or_default().to_vec()
}

/// Splits at blanks outside quotes; a backslash takes the next byte as it is.
fn words_of(value: &[u8]) -> Vec<Vec<u8>> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), Vec::new(), None, false);
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        match (byte, quote) {
            (b'\\', _) => {
                word.extend(bytes.next());
                begun = true;
            }
            (b'"' | b'\'', None) => {
                quote = Some(byte);
                begun = true;
            }
            (byte, Some(open)) if byte == open => quote = None,
            (b' ' | b'\t', None) => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => {
                word.push(byte);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// The keys, as `Section.Key`, whose values differ between two contents of one unit file.
/// Assignments to one key are compared as a whole, in their order.
#[must_use]
pub fn changed_keys(before: &[u8], after: &[u8]) -> BTreeSet<String> {
    let by_key = |content: &[u8]| {
        let mut keys: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for (section, key, value) in UnitFile::parse(content).entries {
            keys.entry(format!("{section}.{key}")).or_default().push(value);
        }
        keys
    };
    let (before, after) = (by_key(before), by_key(after));
    let keys = before.keys().chain(after.keys());
    keys.filter(|key| before.get(*key) != after.get(*key)).cloned().collect()
}

/// Replaces the specifiers that the name alone decides; a word with another one is dropped.
fn expand(unit: &Unit, word: &[u8]) -> Option<Vec<u8>> {
    let mut expanded = Vec::with_capacity(word.len());
    let mut bytes = word.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            expanded.push(byte);
            continue;
        }
        match bytes.next()? {
            b'%' => expanded.push(b'%'),
            b'n' => expanded.extend_from_slice(unit.as_str().as_bytes()),
            b'N' => expanded.extend_from_slice(unit.id().as_bytes()),
            b'p' => expanded.extend_from_slice(unit.stem().as_bytes()),
            b'i' => expanded.extend_from_slice(unit.instance().unwrap_or_default().as_bytes()),
            // Unescaped: `-` stands for `/`.
            b'I' => expanded.extend(unescaped(unit.instance().unwrap_or_default())),
            b'P' => expanded.extend(unescaped(unit.stem())),
            b'j' => expanded.extend_from_slice(last_part(unit.stem()).as_bytes()),
            b'J' => expanded.extend(unescaped(last_part(unit.stem()))),
            b'f' => {
                expanded.push(b'/');
                expanded.extend(unescaped(unit.instance().unwrap_or(unit.stem())));
            }
            b'E' => expanded.extend_from_slice(b"/etc"),
            b'S' => expanded.extend_from_slice(b"/var/lib"),
            b'C' => expanded.extend_from_slice(b"/var/cache"),
            b'L' => expanded.extend_from_slice(b"/var/log"),
            b't' => expanded.extend_from_slice(b"/run"),
            b'T' => expanded.extend_from_slice(b"/tmp"),
            b'V' => expanded.extend_from_slice(b"/var/tmp"),
            _ => return None,
        }
    }
    Some(expanded)
}

/// What follows the last `-`, as `%j` names it.
fn last_part(stem: &str) -> &str {
    stem.rsplit('-').next().unwrap_or(stem)
}

/// `-` stands for `/`, and `\xNN` for a byte (`systemd-escape(1)`).
fn unescaped(name: &str) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.strip_prefix(b"x").and_then(|digits| digits.get(..2));
        let escaped = digits
            .filter(|_| *byte == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match escaped {
            Some(escaped) => {
                plain.push(escaped);
                rest = &after[3..];
            }
            None => {
                plain.push(if *byte == b'-' { b'/' } else { *byte });
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(unit: &str, content: &str, programs: &[&str], declared: &[&str]) {
        let found = declarations_of(&Unit::new(unit), [content.as_bytes()]);
        let shown: Vec<String> = found.programs.iter().map(ToString::to_string).collect();
        assert_eq!(shown, programs);
        let shown: Vec<String> =
            found.declared.iter().map(|d| format!("{} {}", d.path, d.by.as_str())).collect();
        assert_eq!(shown, declared);
        assert_eq!(found.unread, 0);
    }

    #[test]
    fn commands_give_programs_and_the_paths_among_their_arguments() {
        check(
            "memcached.service",
            "[Unit]\nDescription=x\n[Service]\n\
             ExecStartPre=-/usr/bin/test -f /etc/memcached.conf\n\
             ExecStart=@!/usr/share/memcached/wrapper --config=/etc/memcached.conf -d /run/x \"-c/opt/a b\"\n\
             ExecReload=/bin/kill -HUP $MAINPID\n",
            &["/usr/share/memcached/wrapper", "/usr/bin/test", "/bin/kill"],
            &[
                "/etc/memcached.conf argument",
                "/etc/memcached.conf argument of a helper",
                "/opt/a b argument",
            ],
        );
    }

    #[test]
    fn directories_files_and_credentials_are_declared() {
        check(
            "app.service",
            "[Service]\nEnvironmentFile=-/etc/default/app\nConfigurationDirectory=app app/sub:alias\n\
             WorkingDirectory=/opt/app\nLoadCredential=key:/etc/app/key\nBindReadOnlyPaths=-/etc/other:/x\n\
             EnvironmentFile=/etc/env.d/*.env\n",
            &[],
            &[
                "/etc/app ConfigurationDirectory",
                "/etc/app/key LoadCredential",
                "/etc/app/sub ConfigurationDirectory",
                "/etc/default/app EnvironmentFile",
                "/etc/env.d EnvironmentFile",
                "/etc/other BindPaths",
                "/opt/app WorkingDirectory",
            ],
        );
    }

    #[test]
    fn variables_relative_paths_and_scripts_for_a_shell_are_followed() {
        check(
            "site.service",
            "[Service]\nWorkingDirectory=-/opt/site\n\
             Environment=\"CONF=/etc/site/a.conf\" OPTS='-v --log /etc/site/log.conf' PYTHONPATH=/opt/lib:/opt/more\n\
             ExecStart=/usr/bin/node ./server.js --env=conf/live.json -c ${CONF} $OPTS $UNKNOWN web.main:app 127.0.0.1\n\
             ExecStartPre=/bin/sh -c 'test -r /etc/site/b.conf && exec /opt/site/prepare --to=/opt/site/x'\n\
             LoadCredential=tls\n",
            &["/usr/bin/node", "/bin/sh"],
            &[
                "/etc/credstore/tls LoadCredential",
                "/etc/site/a.conf argument",
                "/etc/site/a.conf Environment",
                "/etc/site/b.conf argument of a helper",
                "/etc/site/log.conf argument",
                "/opt/lib WorkingDirectory",
                "/opt/more WorkingDirectory",
                "/opt/site WorkingDirectory",
                "/opt/site/conf/live.json argument",
                "/opt/site/prepare argument of a helper",
                "/opt/site/server.js argument",
                "/opt/site/x argument of a helper",
            ],
        );
    }

    #[test]
    fn escaped_names_are_read_as_the_manager_reads_them() {
        check(
            r"app-web@my\x2dsite-a.service",
            "[Service]\nExecStart=/usr/bin/app --c=/etc/app/%I.conf /srv%f /etc/%j/%P/x\nWorkingDirectory=%S/app\n",
            &["/usr/bin/app"],
            &[
                "/etc/app/my-site/a.conf argument",
                "/etc/web/app/web/x argument",
                "/srv/my-site/a argument",
                "/var/lib/app WorkingDirectory",
            ],
        );
    }

    #[test]
    fn specifiers_of_the_name_are_filled_in_and_others_leave_the_word_out() {
        check(
            "postgresql@15-main.service",
            "[Unit]\nAssertPathExists=/etc/postgresql/%I/postgresql.conf\n\
             RequiresMountsFor=/etc/postgresql/%I /var/lib/postgresql/%I\n\
             [Service]\nExecStart=-/usr/bin/pg_ctlcluster %i start %h/x --f=%p-%%-%i\n",
            &["/usr/bin/pg_ctlcluster"],
            &[
                "/etc/postgresql/15/main unit file",
                "/etc/postgresql/15/main/postgresql.conf unit file",
            ],
        );
    }

    #[test]
    fn an_empty_assignment_takes_back_and_lines_continue() {
        let first: &[u8] =
            b"[Service]\nExecStart=/usr/bin/a /opt/a/x\nEnvironmentFile=/etc/default/a\n";
        let drop_in: &[u8] = b"[Service]\nExecStart=\nExecStart=/usr/bin/b \\\n# why\n  /opt/b/y\n";
        let found = declarations_of(&Unit::new("a.service"), [first, drop_in]);
        assert_eq!(found.programs, [ImagePath::parse(b"/usr/bin/b").expect("a valid path")]);
        let declared: Vec<String> = found.declared.iter().map(|d| d.path.to_string()).collect();
        assert_eq!(declared, ["/etc/default/a", "/opt/b/y"]);
    }

    #[test]
    fn keys_that_differ_are_named_with_their_section() {
        let before = b"[Unit]\nDescription=a\n[Service]\nExecStart=/x\nEnvironment=A=1\n";
        let after = b"# why\n[Unit]\nDescription=b\n[Service]\nExecStart = /x\nEnvironment=A=1\nEnvironment=B=2\n";
        let keys = changed_keys(before, after);
        assert_eq!(
            keys.into_iter().collect::<Vec<_>>(),
            ["Service.Environment", "Unit.Description"]
        );
        assert!(changed_keys(b"", b"[Service]\nMemoryMax=1G\n").contains("Service.MemoryMax"));
        assert!(changed_keys(before, before).is_empty());
    }

    #[test]
    fn what_is_no_unit_file_is_counted_and_never_panics() {
        let file =
            UnitFile::parse(b"key=before any section\n[A]\nno assignment\n=x\n\xff\xfe\n\\\n");
        assert_eq!(file.entries, []);
        assert_eq!(file.unread, 4);
        assert_eq!(UnitFile::parse(b"[A]\nk=\\").entries.len(), 1);
    }
}
