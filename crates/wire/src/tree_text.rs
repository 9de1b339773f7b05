//! The listing of a tree as text: one line per node, one spelling per tree.
//!
//! ```text
//! vireo-tree 1
//! d 755 0 0 - /
//! d 755 0 0 - /etc
//! f 644 0 0 1700000000.000000000 3 6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85 /etc/a%20b
//! h /etc/a%20b /etc/link
//! l 777 0 0 1700000000.000000000 ../usr/lib /lib
//! c 666 0 0 1700000000.000000000 1 3 /null security.selinux=73797374656d00
//! end 6 <tree digest>
//! ```
//!
//! Fields are separated by one space. First the kind: `f` file, `d` directory, `l` symbolic link,
//! `c` and `b` devices, `p` pipe, `s` socket, `h` hard link. All but `h` go on with mode (octal),
//! owner, group (decimal) and time (seconds, a dot, nine digits of nanoseconds; `-` for
//! directories, which have none). Then what only that kind has: length and content digest of a
//! file, target of a symbolic link, major and minor number of a device; a hard link has its leader
//! alone. Then the path, and after it the extended attributes in order of their names, each as
//! `name=value` with the value in hexadecimal. Nodes are in path order.
//!
//! In paths, targets and attribute names every byte that is not printable ASCII, and `%`, space
//! and `=`, is written as `%` and two lower-case hexadecimal digits; an empty text is `%`.
//!
//! The last line has the number of nodes and [`Tree::digest`]; [`parse`] computes the digest of
//! what it read and compares, so a damaged or shortened listing cannot pass.

use std::fmt::Write as _;
use std::str::SplitN;

use vireo_model::{DeviceKind, Digest, ImagePath, Node, NodeKind, Timestamp, Tree, Xattrs};

use crate::limits::MAX_TREE_TEXT_LEN;

const FIRST_LINE: &str = "vireo-tree 1";

/// Why a text is no tree listing, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the tree listing is damaged: {why}; fetch it again")]
pub struct TreeTextError {
    line: usize,
    why: &'static str,
}

/// The listing of `tree`. Cost: about 150 bytes per node.
#[must_use]
pub fn encode(tree: &Tree) -> String {
    let mut text = format!("{FIRST_LINE}\n");
    for (path, node) in tree.iter() {
        encode_node(&mut text, path, node);
    }
    // Writing to a String cannot fail; this holds for every write in this module.
    let _ = writeln!(text, "end {} {}", tree.len(), tree.digest());
    text
}

fn encode_node(text: &mut String, path: &ImagePath, node: &Node) {
    if let NodeKind::HardLink { leader } = &node.kind {
        let _ = writeln!(text, "h {} {}", escape(leader.as_bytes()), escape(path.as_bytes()));
        return;
    }
    let _ = write!(text, "{} {:o} {} {} ", letter(&node.kind), node.mode, node.uid, node.gid);
    if node.is_dir() {
        text.push('-');
    } else {
        let _ = write!(text, "{}.{:09}", node.mtime.secs, node.mtime.nanos);
    }
    let _ = match &node.kind {
        NodeKind::File { len, content } => write!(text, " {len} {content}"),
        NodeKind::Symlink { target } => write!(text, " {}", escape(target)),
        NodeKind::Device { major, minor, .. } => write!(text, " {major} {minor}"),
        _ => Ok(()),
    };
    let _ = write!(text, " {}", escape(path.as_bytes()));
    for (name, value) in &node.xattrs {
        let _ = write!(text, " {}=", escape(name));
        for byte in value {
            let _ = write!(text, "{byte:02x}");
        }
    }
    text.push('\n');
}

fn letter(kind: &NodeKind) -> char {
    match kind {
        NodeKind::File { .. } => 'f',
        NodeKind::Dir => 'd',
        NodeKind::Symlink { .. } => 'l',
        NodeKind::Device { kind: DeviceKind::Char, .. } => 'c',
        NodeKind::Device { kind: DeviceKind::Block, .. } => 'b',
        NodeKind::Fifo => 'p',
        NodeKind::Socket => 's',
        NodeKind::HardLink { .. } => 'h',
    }
}

fn escape(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "%".to_owned();
    }
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_graphic() && !matches!(byte, b'%' | b'=') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02x}");
        }
    }
    text
}

/// Reads a listing.
///
/// # Errors
///
/// The first line that breaks a rule; the last one if the digest is not that of the nodes, or if
/// the text is not exactly what [`encode`] would write.
pub fn parse(text: &[u8]) -> Result<Tree, TreeTextError> {
    let at = |line| move |why| TreeTextError { line, why };
    if text.len() > MAX_TREE_TEXT_LEN {
        return Err(at(1)("it is longer than any tree's"));
    }
    let text = std::str::from_utf8(text).map_err(|_| at(1)("it is not text"))?;
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    if lines.next().map(|(_, line)| line) != Some(FIRST_LINE) {
        return Err(at(1)("it does not start with `vireo-tree 1`"));
    }
    let mut tree = Tree::new();
    let mut last = 1;
    for (number, line) in lines {
        last = number;
        if let Some(end) = line.strip_prefix("end ") {
            check_end(text, &tree, end).map_err(at(number))?;
            return Ok(tree);
        }
        let (path, node) = parse_node(line).map_err(at(number))?;
        tree.insert(path, node);
    }
    Err(at(last)("it is the last one, but not an `end` line"))
}

/// One spelling per tree: comparing with a fresh listing covers order, doubles, case, leading
/// zeros and everything after the end at once.
fn check_end(text: &str, tree: &Tree, end: &str) -> Result<(), &'static str> {
    let digest = end.split_once(' ').and_then(|(_, digest)| digest.parse::<Digest>().ok());
    if digest != Some(tree.digest()) {
        return Err("its digest is not that of the nodes before it");
    }
    if encode(tree) != text {
        return Err("the listing is not spelled as it should be");
    }
    Ok(())
}

type Fields<'a> = SplitN<'a, char>;

fn parse_node(line: &str) -> Result<(ImagePath, Node), &'static str> {
    let (kind, rest) = line.split_once(' ').ok_or("it has no fields")?;
    let fields = match kind {
        "h" => 3,
        "f" | "c" | "b" => 8,
        "l" => 7,
        "d" | "p" | "s" => 6,
        _ => return Err("its kind is unknown"),
    };
    let mut parts = rest.splitn(fields, ' ');
    if kind == "h" {
        let leader = parse_path(next(&mut parts)?)?;
        let path = parse_path(next(&mut parts)?)?;
        return end_of(parts.next(), (path, Node::hard_link(leader)));
    }
    let mode = u32::from_str_radix(next(&mut parts)?, 8).map_err(|_| "its mode is not octal")?;
    let uid = number(&mut parts)?;
    let gid = number(&mut parts)?;
    let mtime = parse_time(next(&mut parts)?)?;
    let kind = parse_kind(kind, &mut parts)?;
    let path = parse_path(next(&mut parts)?)?;
    let xattrs = parse_xattrs(parts.next())?;
    Ok((path, Node { kind, mode, uid, gid, mtime, xattrs }))
}

fn end_of<T>(rest: Option<&str>, value: T) -> Result<T, &'static str> {
    if rest.is_none() { Ok(value) } else { Err("it has too many fields") }
}

fn next<'a>(parts: &mut Fields<'a>) -> Result<&'a str, &'static str> {
    parts.next().ok_or("it has too few fields")
}

fn number<T: std::str::FromStr>(parts: &mut Fields<'_>) -> Result<T, &'static str> {
    next(parts)?.parse().map_err(|_| "a field is not a number")
}

fn parse_kind(kind: &str, parts: &mut Fields<'_>) -> Result<NodeKind, &'static str> {
    Ok(match kind {
        "f" => NodeKind::File {
            len: number(parts)?,
            content: next(parts)?.parse().map_err(|_| "its content digest is no digest")?,
        },
        "l" => NodeKind::Symlink { target: unescape(next(parts)?)? },
        "c" => NodeKind::Device {
            kind: DeviceKind::Char,
            major: number(parts)?,
            minor: number(parts)?,
        },
        "b" => NodeKind::Device {
            kind: DeviceKind::Block,
            major: number(parts)?,
            minor: number(parts)?,
        },
        "p" => NodeKind::Fifo,
        "s" => NodeKind::Socket,
        _ => NodeKind::Dir,
    })
}

fn parse_time(text: &str) -> Result<Timestamp, &'static str> {
    if text == "-" {
        return Ok(Timestamp::default());
    }
    let (secs, nanos) = text.split_once('.').ok_or("its time has no dot")?;
    let nanos: u32 = nanos.parse().map_err(|_| "its time is not a number")?;
    if nanos >= 1_000_000_000 {
        return Err("its time has a second of nanoseconds or more");
    }
    Ok(Timestamp { secs: secs.parse().map_err(|_| "its time is not a number")?, nanos })
}

fn parse_path(text: &str) -> Result<ImagePath, &'static str> {
    ImagePath::parse(&unescape(text)?).map_err(|_| "its path is not absolute and normal")
}

fn parse_xattrs(text: Option<&str>) -> Result<Xattrs, &'static str> {
    let Some(text) = text else { return Ok(Xattrs::new()) };
    text.split(' ')
        .map(|field| {
            let (name, value) = field.split_once('=').ok_or("an attribute has no value")?;
            Ok((unescape(name)?, from_hex(value)?))
        })
        .collect()
}

fn unescape(text: &str) -> Result<Vec<u8>, &'static str> {
    if text == "%" {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (digits, after) = rest.split_at_checked(2).ok_or("an escape is cut")?;
            bytes.push(hex_byte(digits)?);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    Ok(bytes)
}

fn from_hex(text: &str) -> Result<Vec<u8>, &'static str> {
    if !text.len().is_multiple_of(2) {
        return Err("an attribute's value is cut");
    }
    text.as_bytes().chunks(2).map(hex_byte).collect()
}

fn hex_byte(digits: &[u8]) -> Result<u8, &'static str> {
    let text = std::str::from_utf8(digits).map_err(|_| "a byte is not hexadecimal")?;
    u8::from_str_radix(text, 16).map_err(|_| "a byte is not hexadecimal")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(bytes: &[u8]) -> ImagePath {
        ImagePath::parse(bytes).expect("a valid path")
    }

    /// One node of each kind, with odd names, negative time and attributes.
    fn sample() -> Tree {
        let time = Timestamp { secs: -5, nanos: 7 };
        let file = Node {
            mtime: time,
            uid: 1000,
            gid: 65534,
            xattrs: Xattrs::from([
                (b"user.a=b".to_vec(), b"\x00\xff".to_vec()),
                (b"user.empty".to_vec(), Vec::new()),
            ]),
            ..Node::new(NodeKind::File { len: 3, content: Digest::of(b"abc") }, 0o4755)
        };
        let device = |kind| Node::new(NodeKind::Device { kind, major: 8, minor: 1 }, 0o660);
        [
            (path(b"/"), Node::new(NodeKind::Dir, 0o755)),
            (path(b"/a b%\xff\n"), file),
            (path(b"/block"), device(DeviceKind::Block)),
            (path(b"/char"), device(DeviceKind::Char)),
            (path(b"/empty-link"), Node::new(NodeKind::Symlink { target: Vec::new() }, 0o777)),
            (path(b"/end"), Node::hard_link(path(b"/a b%\xff\n"))),
            (path(b"/link"), Node::new(NodeKind::Symlink { target: b"../x y".to_vec() }, 0o777)),
            (path(b"/pipe"), Node::new(NodeKind::Fifo, 0o600)),
            (path(b"/sock"), Node::new(NodeKind::Socket, 0o700)),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn a_listing_reads_back_as_its_tree() {
        let tree = sample();
        assert_eq!(parse(encode(&tree).as_bytes()), Ok(tree));
        assert_eq!(parse(encode(&Tree::new()).as_bytes()), Ok(Tree::new()));
    }

    #[test]
    fn the_spelling_is_frozen() {
        // Stored listings and other machines' agents depend on it.
        assert_eq!(encode(&sample()), include_str!("../frozen/tree-text.txt"));
    }

    #[test]
    fn no_changed_byte_and_no_cut_passes() {
        let text = encode(&sample()).into_bytes();
        for at in 0..text.len() {
            assert!(parse(&text[..at]).is_err(), "cut at {at}");
            for flip in [1, 0x20, 0x80] {
                let mut damaged = text.clone();
                damaged[at] ^= flip;
                assert!(parse(&damaged).is_err(), "byte {at} flipped by {flip:#x}");
            }
        }
    }

    #[test]
    fn other_spellings_of_the_same_tree_are_refused() {
        let text = encode(&sample());
        let doubled = text.replacen("p 600", "p 600 0 0 0.000000000 /pipe\np 600", 1);
        for (what, other) in [
            ("leading zero", text.replacen("d 755", "d 0755", 1)),
            ("needless escape", text.replacen("/sock", "/%73ock", 1)),
            ("capital digits", text.replacen("%ff", "%FF", 1)),
            ("double", doubled),
            ("more after the end", format!("{text}\n")),
        ] {
            assert_ne!(other, text, "{what} changes the sample");
            assert!(parse(other.as_bytes()).is_err(), "{what}");
        }
    }
}
