//! What the kernel, the service manager, unit files and policies say.

use vireo_classify::{
    ChangedFile, Facts, HEAD_LEN, Policy, PolicyFile, ReadMap, Unit, UnitFacts, UnitFile, class_of,
    declarations_of, elf_kind, owner_of, parse_maps, parse_show, plan,
};
use vireo_model::{ChangeKind, ImagePath};

/// Paths that policies are asked about.
const PATHS: [&str; 5] = [
    "/etc/nginx/nginx.conf",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/systemd/system/ssh.service",
    "/srv/www/index.html",
    "/boot/vmlinuz-6.1",
];

/// The first byte of `input` chooses the parser.
pub fn run(input: &[u8]) {
    let Some((choice, text)) = input.split_first() else { return };
    match choice % 7 {
        0 => {
            let maps = parse_maps(text);
            assert!(maps.files.len() + maps.unread <= text.split(|byte| *byte == b'\n').count());
        }
        1 => drop(owner_of(u32::from(*choice), text)),
        2 => show(text),
        3 => unit_files(text),
        4 => policy(text),
        5 => content(text),
        _ => read_map(text),
    }
}

/// Units as the service manager lists them, and a plan for them.
fn show(text: &[u8]) {
    let (units, _) = parse_show(text);
    let facts = units.into_values().fold(Facts::new(), Facts::with_unit);
    let changed = PATHS.iter().filter_map(|path| {
        Some(ChangedFile::new(ImagePath::parse(path.as_bytes()).ok()?, ChangeKind::Modified))
    });
    let changed: Vec<ChangedFile> = changed.collect();
    let made = plan(&changed, &facts, &Policy::default());
    assert_eq!(made.to_string(), plan(&changed, &facts, &Policy::default()).to_string());
}

/// A unit's file and drop-ins, separated by form feeds, and a plan by what they declare.
fn unit_files(text: &[u8]) {
    let files = || text.split(|byte| *byte == 0x0c);
    for file in files() {
        let _ = UnitFile::parse(file);
    }
    let declared = declarations_of(&Unit::new("app@1.service"), files());
    let unit = UnitFacts {
        declared: declared.declared.into_iter().collect(),
        ..UnitFacts::running("app@1.service")
    };
    let paths = declared.programs.into_iter();
    let changed: Vec<ChangedFile> =
        paths.map(|path| ChangedFile::new(path, ChangeKind::Modified)).collect();
    let _ = plan(&changed, &Facts::new().with_unit(unit), &Policy::default()).to_string();
}

fn policy(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(file) = PolicyFile::parse("50-site.toml", text) else { return };
    let Ok(policy) = Policy::from_layers(&[], &[file]) else { return };
    for path in PATHS.iter().filter_map(|path| ImagePath::parse(path.as_bytes()).ok()) {
        let _ = policy.drift_rule(&path, class_of(&path, 0o644, None));
    }
    let _ = policy.hold_reason(&Unit::new("ssh.service"));
}

/// A read map that is taken is written again, and the same for whoever reads it next.
fn read_map(text: &[u8]) {
    let Ok(map) = ReadMap::from_json(text) else { return };
    for path in PATHS.iter().filter_map(|path| ImagePath::parse(path.as_bytes()).ok()) {
        let _ = (map.is_shared(&path), map.listers_of(&path).count());
    }
    // Only folded paths may come out longer than what came in.
    if let Ok(written) = map.to_json() {
        assert_eq!(ReadMap::from_json(written.as_bytes()).as_ref(), Ok(&map));
    }
}

/// A path up to the first NUL, then a file's first bytes.
fn content(text: &[u8]) {
    let (path, head) = text.split_at(text.iter().position(|byte| *byte == 0).unwrap_or(0));
    let head = &head[..head.len().min(HEAD_LEN)];
    let _ = elf_kind(head);
    if let Ok(path) = ImagePath::parse(path) {
        let _ = class_of(&path, 0o755, Some(head));
    }
}
