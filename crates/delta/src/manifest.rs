//! The manifest: what changes, and where each content comes from.
//!
//! On the wire it is one zstd frame around an rkyv archive of columns ([`columns`]). It is
//! decompressed only after its digest was compared with the signed header's, into no more than the
//! header says; then validated by rkyv's own checks, then turned into the checked owned values here.

mod columns;
mod read;
mod weight;
mod work;
mod write;

use std::collections::HashMap;

use vireo_model::{Change, ChangeSet, Digest, Ignore, ImagePath, Node, Timestamp};

use crate::Permits;
use crate::frames::{Class, Frame, Span};

pub(crate) use read::decode;
pub(crate) use write::{Packed, encode};

/// A manifest, checked: every index is in range and every sum fits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) changes: ChangeSet,
    pub(crate) ignore: Ignore,
    pub(crate) contents: Contents,
    /// Files of the base that contents are made from.
    pub(crate) sources: Vec<Source>,
    /// The content section, in order.
    pub(crate) frames: Vec<Frame>,
    /// Times of directories in the target; no part of its digest.
    pub(crate) dir_times: Vec<(ImagePath, Timestamp)>,
    /// What the signer allows.
    pub(crate) permits: Permits,
    /// Number of paths in the base.
    pub(crate) base_paths: u64,
}

/// A file of the base that contents are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) path: ImagePath,
    /// If it is a gzip file of which something else than its bytes is meant.
    pub(crate) inside: Option<Inside>,
}

/// What is meant of a gzip file of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inside {
    pub(crate) form: Form,
    /// Length of the file in bytes, not zero.
    pub(crate) packed_len: u64,
    /// Length of what is meant.
    pub(crate) plain_len: u64,
}

/// What a gzip file is taken apart into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// Its plain text.
    Plain,
    /// The text of its tokens.
    Tokens,
    /// The text of all its streams, of whatever kind it is.
    Streams,
}

/// How a content is made from its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// It is the body.
    None,
    /// A gzip file: the body is its plain text.
    Recipe(Span),
    /// A gzip file: the body is the text of its tokens.
    Tokens,
    /// A file with streams in places: the body is the text of all of them.
    Streams,
}

/// Contents by digest; files with the same content share one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// In the order in which they were encoded.
    list: Vec<(Digest, Content)>,
    index: HashMap<Digest, usize>,
}

impl Contents {
    pub(crate) fn get(&self, digest: &Digest) -> Option<&Content> {
        self.index.get(digest).map(|at| &self.list[*at].1)
    }

    /// Adds a content; one that is there already is replaced, which is told.
    pub(crate) fn insert(&mut self, digest: Digest, content: Content) -> bool {
        if let Some(at) = self.index.get(&digest) {
            self.list[*at].1 = content;
            return true;
        }
        self.index.insert(digest, self.list.len());
        self.list.push((digest, content));
        false
    }

    /// Hands the number of every source to `each`, which may change it.
    pub(crate) fn each_source(&mut self, mut each: impl FnMut(&mut u32)) {
        for (_, content) in &mut self.list {
            match &mut content.body {
                Body::Delta(delta) => each(&mut delta.source),
                Body::Segments(list) => list.iter_mut().for_each(|segment| {
                    if let Segment::Base { source, .. } = segment {
                        each(source);
                    }
                }),
            }
        }
    }

    /// Whether any is packed this way.
    pub(crate) fn have(&self, packing: Packing) -> bool {
        self.list.iter().any(|(_, content)| content.packing == packing)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Digest, Content)> {
        self.list.iter()
    }
}

/// How one file content is put together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) len: u64,
    pub(crate) sparse: bool,
    /// Whose streams it uses.
    pub(crate) class: Class,
    pub(crate) packing: Packing,
    pub(crate) body: Body,
}

impl Content {
    /// Whether it copies nothing from the base.
    pub(crate) fn is_self_contained(&self) -> bool {
        match &self.body {
            Body::Segments(list) => !list.iter().any(|one| matches!(one, Segment::Base { .. })),
            Body::Delta(_) => false,
        }
    }

    /// The number of the base's file that most of it comes from.
    pub(crate) fn origin(&self) -> Option<u32> {
        match &self.body {
            Body::Delta(delta) => Some(delta.source),
            Body::Segments(list) => {
                let base = list.iter().filter_map(|segment| match segment {
                    Segment::Base { source, len, .. } => Some((*len, *source)),
                    _ => None,
                });
                base.max_by_key(|(len, source)| (*len, u32::MAX - *source))
                    .map(|(_, source)| source)
            }
        }
    }

    /// Length of what the body stands for.
    pub(crate) fn plain_len(&self) -> u64 {
        match &self.body {
            Body::Segments(list) => list.iter().map(Segment::len).sum(),
            Body::Delta(delta) => delta.plain_len,
        }
    }
}

/// The bytes themselves, or those of a gzip file's plain text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Segments(Vec<Segment>),
    Delta(FileDelta),
}

/// A delta against one file of the base, as [`crate::file`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileDelta {
    pub(crate) source: u32,
    pub(crate) plain_len: u64,
    pub(crate) control: Span,
    pub(crate) patch: Span,
    pub(crate) diff: Span,
    pub(crate) extra: Span,
    pub(crate) refs: Span,
}

/// A run of bytes of a file content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// From a file of the base.
    Base { source: u32, offset: u64, len: u64 },
    /// From a class's literals, by offset in them.
    Literal { class: Class, offset: u64, len: u64 },
    /// Zeros.
    Zero { len: u64 },
}

impl Segment {
    pub(crate) fn len(&self) -> u64 {
        match *self {
            Self::Base { len, .. } | Self::Literal { len, .. } | Self::Zero { len } => len,
        }
    }

    /// `len` bytes of it from `skip` on, which it has.
    pub(crate) fn part(&self, skip: u64, len: u64) -> Self {
        match *self {
            Self::Base { source, offset, .. } => Self::Base { source, offset: offset + skip, len },
            Self::Literal { class, offset, .. } => {
                Self::Literal { class, offset: offset + skip, len }
            }
            Self::Zero { .. } => Self::Zero { len },
        }
    }

    /// Makes `self` longer by `next` if they are neighbours.
    pub(crate) fn absorb(&mut self, next: &Self) -> bool {
        match (self, *next) {
            (Self::Base { source, offset, len }, Self::Base { source: s, offset: o, len: l })
                if *source == s && *offset + *len == o =>
            {
                *len += l;
            }
            (
                Self::Literal { class, offset, len },
                Self::Literal { class: c, offset: o, len: l },
            ) if *class == c && *offset + *len == o => {
                *len += l;
            }
            (Self::Zero { len }, Self::Zero { len: l }) => *len += l,
            _ => return false,
        }
        true
    }
}

/// The content that must travel for this change: the target's, unless the base has the same at
/// that path.
pub(crate) fn new_content(change: &Change) -> Option<Digest> {
    let (_, digest) = change.after.as_ref()?.content()?;
    let before = change.before.as_ref().and_then(Node::content);
    (before.map(|(_, digest)| digest) != Some(digest)).then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Header, feature};
    use crate::frames::{Frame, Method};
    use crate::{ErrorKind, SecretKey};
    use vireo_model::{NodeKind, Timestamp};

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    fn added(name: &str, node: Node) -> Change {
        Change { path: path(name), before: None, after: Some(node) }
    }

    /// What reading says of a signed manifest with these changes.
    fn refused(changes: Vec<Change>) -> String {
        let digest = Digest::of(b"");
        let manifest = Manifest {
            changes: ChangeSet { base: digest, target: digest, changes },
            ignore: Ignore::new(["/tmp/**"]).expect("a glob"),
            contents: Contents::default(),
            sources: Vec::new(),
            frames: Vec::new(),
            dir_times: Vec::new(),
            permits: Permits::NONE,
            base_paths: 1,
        };
        let packed = encode(&manifest, 19).expect("small");
        let header = Header {
            incompat: feature::INCOMPAT_KNOWN,
            compat: 0,
            manifest_len: packed.bytes.len() as u64,
            manifest_plain_len: packed.plain_len,
            content_len: 0,
            base: digest,
            target: digest,
            manifest_digest: Digest::of(&packed.bytes),
            signer: SecretKey::generate().expect("random bytes").public(),
            read_map_len: 0,
            read_map_plain_len: 0,
        };
        let error = decode(&header, &packed.bytes).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        error.to_string()
    }

    #[test]
    fn change_sets_that_contradict_themselves_are_refused_when_read() {
        let fifo = || Node::new(NodeKind::Fifo, 0o600);
        for (changes, what) in [
            (vec![added("/tmp/x", fifo())], "/tmp/x belongs to no version"),
            (vec![added("/.vireo/x", fifo())], "/.vireo/x is the state"),
            (vec![added("/a", fifo()), added("/a/b", fifo())], "/a/b lies below /a"),
            (
                vec![
                    added("/a", Node::new(NodeKind::Dir, 0o700)),
                    added("/b", Node::hard_link(path("/a"))),
                ],
                "/b links to /a, which is no first name of a file",
            ),
            (
                vec![
                    Change { path: path("/a"), before: Some(fifo()), after: None },
                    added("/b", Node::hard_link(path("/a"))),
                ],
                "/b links to /a, which is removed",
            ),
        ] {
            let error = refused(changes);
            assert!(error.contains(what), "{error}");
        }
    }

    /// A manifest with something in most columns.
    fn sample() -> Manifest {
        let file = |text: &[u8]| {
            let kind = NodeKind::File { len: text.len() as u64, content: Digest::of(text) };
            Node::new(kind, 0o644)
        };
        let mut capable = file(b"2");
        capable.xattrs.insert(b"security.capability".to_vec(), vec![1, 2, 3]);
        let changed = |name: &str, before: Node, after: Node| Change {
            path: path(name),
            before: Some(before),
            after: Some(after),
        };
        let link = NodeKind::Symlink { target: b"a".to_vec() };
        let device = NodeKind::Device { kind: vireo_model::DeviceKind::Block, major: 8, minor: 1 };
        let changes = vec![
            changed("/a", file(b"1"), capable),
            changed("/b", file(b"3"), Node { uid: 7, ..file(b"3") }),
            added("/c", Node::new(device, 0o600)),
            added("/d", Node::new(link, 0o777)),
            added("/e", Node::hard_link(path("/a"))),
        ];
        let span = |start, len| Span { start, len };
        let (source, plain_len) = (0, 1);
        let delta = FileDelta {
            source,
            plain_len,
            control: span(0, 3),
            patch: span(1, 2),
            diff: span(2, 1),
            extra: span(0, 1),
            refs: span(0, 0),
        };
        let list = vec![
            Segment::Zero { len: 3 },
            Segment::Base { source: 0, offset: 5, len: 6 },
            Segment::Literal { class: Class::Text, offset: 1, len: 2 },
        ];
        let mut contents = Contents::default();
        let content =
            |len, packing, body| Content { len, sparse: true, class: Class::Text, packing, body };
        contents.insert(Digest::of(b"2"), content(1, Packing::None, Body::Delta(delta)));
        let packed = content(99, Packing::Recipe(span(0, 2)), Body::Segments(list));
        contents.insert(Digest::of(b"4"), packed);
        let digest = Digest::of(b"frame");
        let frames = (0..7)
            .filter_map(crate::frames::StreamId::from_number)
            .map(|stream| {
                let method = if stream.is_text() { Method::Model } else { Method::Zstd };
                Frame { digest, stream, method, len: 9, plain_len: 10 }
            })
            .collect();
        let digest = Digest::of(b"tree");
        Manifest {
            changes: ChangeSet { base: digest, target: digest, changes },
            ignore: Ignore::new(["/tmp/**"]).expect("a glob"),
            contents,
            sources: vec![Source { path: path("/elsewhere"), inside: None }],
            frames,
            dir_times: vec![(path("/x"), Timestamp { secs: -1, nanos: 5 })],
            permits: Permits::DEVICES,
            base_paths: 4,
        }
    }

    fn header(packed: &[u8], plain_len: u64) -> Header {
        Header {
            incompat: feature::INCOMPAT_KNOWN,
            compat: 0,
            manifest_len: packed.len() as u64,
            content_len: 7 * 9,
            base: Digest::of(b"tree"),
            target: Digest::of(b"tree"),
            manifest_digest: Digest::of(packed),
            signer: SecretKey::generate().expect("random bytes").public(),
            manifest_plain_len: plain_len,
            read_map_len: 0,
            read_map_plain_len: 0,
        }
    }

    #[test]
    fn a_manifest_reads_back_what_it_wrote() {
        let packed = encode(&sample(), 19).expect("small");
        let read = decode(&header(&packed.bytes, packed.plain_len), &packed.bytes);
        assert_eq!(read.expect("its own bytes"), sample());
    }

    #[test]
    fn an_owner_that_means_none_is_refused() {
        for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
            let node = Node { uid, gid, ..Node::new(NodeKind::Dir, 0o700) };
            let changes = ChangeSet { changes: vec![added("/a", node)], ..sample().changes };
            let manifest = Manifest { changes, contents: Contents::default(), ..sample() };
            let packed = encode(&manifest, 19).expect("small");
            let error = decode(&header(&packed.bytes, packed.plain_len), &packed.bytes);
            let error = error.expect_err("no owner");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains("owner is out of range"), "{error}");
        }
    }

    #[test]
    fn a_frame_is_made_by_the_model_only_if_it_is_text_and_the_header_says_so() {
        let packed = encode(&sample(), 19).expect("small");
        let known = header(&packed.bytes, packed.plain_len);
        let without = Header { incompat: known.incompat & !feature::MODELS, ..known };
        let mut of_programs = sample();
        of_programs.frames.iter_mut().for_each(|frame| frame.method = Method::Model);
        assert!(of_programs.frames.iter().any(|frame| !frame.stream.is_text()));
        let program = encode(&of_programs, 19).expect("small");
        for (header, packed) in
            [(without, &packed), (header(&program.bytes, program.plain_len), &program)]
        {
            let error = decode(&header, &packed.bytes).expect_err("compressed as it cannot be");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains("compressed as it cannot be"), "{error}");
        }
    }

    #[test]
    fn tokens_and_streams_are_meant_only_if_the_header_says_so() {
        for (packing, form, feature) in [
            (Packing::Tokens, Form::Tokens, feature::TOKENS),
            (Packing::Streams, Form::Streams, feature::STREAMS),
        ] {
            let mut contents = Contents::default();
            let packed = Content { packing, ..in_segments(vec![Segment::Zero { len: 3 }]) };
            contents.insert(Digest::of(b"2"), packed);
            let inside = Some(Inside { form, packed_len: 9, plain_len: 8 });
            let sources = vec![Source { path: path("/elsewhere"), inside }];
            let of_target = Manifest { contents, sources: Vec::new(), ..sample() };
            let of_base = Manifest { sources, contents: of_no_source(), ..sample() };
            for manifest in [of_target, of_base] {
                let packed = encode(&manifest, 19).expect("small");
                let known = header(&packed.bytes, packed.plain_len);
                assert_eq!(decode(&known, &packed.bytes).expect("said"), manifest);
                let without = Header { incompat: known.incompat & !feature, ..known };
                let error = decode(&without, &packed.bytes).expect_err("not said");
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            }
        }
    }

    /// What the sample's change needs, of zeros.
    fn of_no_source() -> Contents {
        let mut contents = Contents::default();
        contents.insert(Digest::of(b"2"), in_segments(vec![Segment::Zero { len: 1 }]));
        contents
    }

    #[test]
    fn manifests_that_nobody_wrote_never_panic() {
        let packed = encode(&sample(), 19).expect("small");
        let mut plain = vec![0; packed.plain_len as usize];
        let dictionary = crate::dictionary::Dictionary::Manifest;
        dictionary.decompress(&packed.bytes, &mut plain).expect("its own bytes");
        let signer = header(&[], 0);
        let mut refused = 0;
        for at in 0..plain.len() {
            for byte in [plain[at] ^ 1, plain[at] ^ 0x80, 0, 0xff] {
                let mut hostile = plain.clone();
                hostile[at] = byte;
                let packed = zstd::bulk::compress(&hostile, 1).expect("memory");
                let header = Header { manifest_plain_len: plain.len() as u64, ..signer };
                refused += usize::from(decode(&header, &packed).is_err());
            }
        }
        assert!(refused > plain.len(), "{refused} of {}", 4 * plain.len());
    }

    /// What reading says of the sample with these contents instead of its own.
    fn outcome_of(list: Vec<Content>) -> Result<Manifest, crate::DeltaError> {
        outcome_with(sample().sources, list)
    }

    fn outcome_with(
        sources: Vec<Source>,
        list: Vec<Content>,
    ) -> Result<Manifest, crate::DeltaError> {
        let mut contents = Contents::default();
        for (number, content) in list.into_iter().enumerate() {
            // The first is the one that the sample's change needs.
            let digest = if number == 0 { b"2".to_vec() } else { number.to_le_bytes().to_vec() };
            contents.insert(Digest::of(&digest), content);
        }
        let packed = encode(&Manifest { contents, sources, ..sample() }, 19).expect("small");
        decode(&header(&packed.bytes, packed.plain_len), &packed.bytes)
    }

    fn in_segments(list: Vec<Segment>) -> Content {
        let len = list.iter().map(Segment::len).sum();
        let body = Body::Segments(list);
        Content { len, sparse: true, class: Class::Text, packing: Packing::None, body }
    }

    #[test]
    fn contents_cannot_hold_more_zeros_than_can_be_hashed_in_a_moment() {
        use crate::limits::MAX_ZEROS_LEN;
        let zeros = |len| in_segments(vec![Segment::Zero { len }]);
        outcome_of(vec![zeros(MAX_ZEROS_LEN)]).expect("the limit");
        let beyond = [
            vec![zeros(MAX_ZEROS_LEN + 1)],
            // None alone, but all together.
            (0..65).map(|_| zeros(MAX_ZEROS_LEN / 64)).collect(),
            vec![in_segments(vec![Segment::Zero { len: MAX_ZEROS_LEN / 2 }; 3])],
        ];
        for contents in beyond {
            let error = outcome_of(contents).expect_err("too many zeros");
            assert_eq!(error.kind(), ErrorKind::Limit);
            assert!(error.to_string().contains("number of zeros"), "{error}");
        }
    }

    #[test]
    fn the_base_cannot_be_copied_without_end() {
        use crate::limits::MAX_DECODED_LEN;
        let copy = |len| in_segments(vec![Segment::Base { source: 0, offset: 0, len }]);
        outcome_of(vec![copy(MAX_DECODED_LEN / 2), copy(MAX_DECODED_LEN / 2)]).expect("the limit");
        for contents in [
            vec![copy(crate::limits::MAX_FILE_LEN)],
            vec![copy(MAX_DECODED_LEN / 2), copy(MAX_DECODED_LEN / 2), copy(1)],
            (0..1025).map(|_| copy(MAX_DECODED_LEN / 1024)).collect(),
        ] {
            let error = outcome_of(contents).expect_err("too much");
            assert_eq!(error.kind(), ErrorKind::Limit);
            assert!(error.to_string().contains("length of all contents"), "{error}");
        }
        // Literals come from a frame of ten bytes.
        let literal = Segment::Literal { class: Class::Text, offset: 0, len: 10 };
        let error = outcome_of(vec![in_segments(vec![literal; 200]), copy(MAX_DECODED_LEN)]);
        assert_eq!(error.expect_err("too much").kind(), ErrorKind::Limit);
    }

    #[test]
    fn gzip_files_cannot_be_packed_and_unpacked_without_end() {
        let span = |start, len| Span { start, len };
        let packed = || Content {
            len: 9,
            packing: Packing::Recipe(span(0, 0)),
            ..in_segments(vec![Segment::Base {
                source: 0,
                offset: 0,
                len: crate::gzip::MAX_PLAIN_LEN,
            }])
        };
        let most = crate::limits::MAX_REPACKED_LEN / crate::gzip::MAX_PLAIN_LEN;
        outcome_of((0..most).map(|_| packed()).collect()).expect("the limit");
        let error = outcome_of((0..=most).map(|_| packed()).collect()).expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert!(error.to_string().contains("plain length of all gzip files"), "{error}");
    }

    #[test]
    fn looking_for_streams_in_files_of_the_base_has_a_limit() {
        use crate::gzip::{MAX_PACKED_LEN, MAX_PLAIN_LEN};
        let outcome = |count| {
            let (form, packed_len, plain_len) = (Form::Streams, MAX_PACKED_LEN, 1);
            let inside = Some(Inside { form, packed_len, plain_len });
            let delta = || in_delta(Span::default(), MAX_PLAIN_LEN);
            let sources = vec![Source { path: path("/elsewhere"), inside }];
            outcome_with(sources, (0..count).map(|_| delta()).collect())
        };
        let cost = 1 + MAX_PACKED_LEN * crate::streams::SEARCH_COST;
        let most = crate::limits::MAX_REPACKED_LEN / cost;
        outcome(most).expect("the limit");
        let error = outcome(most + 1).expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert!(error.to_string().contains("plain length of all gzip files"), "{error}");
    }

    /// A delta with this control stream, which makes a file of `plain_len` bytes.
    fn in_delta(control: Span, plain_len: u64) -> Content {
        let none = Span::default();
        let (patch, diff, extra, refs) = (none, none, none, none);
        let delta = FileDelta { source: 0, plain_len, control, patch, diff, extra, refs };
        Content { len: plain_len, body: Body::Delta(delta), ..in_segments(Vec::new()) }
    }

    #[test]
    fn deltas_cannot_share_a_script() {
        let delta = |start, len| in_delta(Span { start, len }, 1);
        outcome_of(vec![delta(0, 5), delta(5, 5)]).expect("its stream has ten bytes");
        let error = outcome_of(vec![delta(0, 6), delta(4, 6)]).expect_err("shared");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("share spans of a stream"), "{error}");
    }

    #[test]
    fn memory_is_counted_before_it_is_taken() {
        let mut with_attributes = Node::new(NodeKind::Dir, 0o700);
        for number in 0..5000_u16 {
            with_attributes.xattrs.insert(format!("user.{number}").into_bytes(), Vec::new());
        }
        let changes = ChangeSet { changes: vec![added("/a", with_attributes)], ..sample().changes };
        let packed = encode(&Manifest { changes, contents: Contents::default(), ..sample() }, 19);
        let packed = packed.expect("small");
        let header = header(&packed.bytes, packed.plain_len);
        decode(&header, &packed.bytes).expect("a megabyte");
        let error = read::decode_within(&header, &packed.bytes, 256 << 10);
        assert_eq!(error.expect_err("more than that").kind(), ErrorKind::Limit);
        assert!(packed.plain_len < 128 << 10, "{}", packed.plain_len);
    }

    #[test]
    fn a_node_cannot_have_more_attributes_than_linux_can_list() {
        let mut node = Node::new(NodeKind::Dir, 0o700);
        for number in 0..300 {
            node.xattrs.insert(format!("user.{number:0>249}").into_bytes(), Vec::new());
        }
        let changes = ChangeSet { changes: vec![added("/a", node)], ..sample().changes };
        let packed = encode(&Manifest { changes, contents: Contents::default(), ..sample() }, 19);
        let packed = packed.expect("small");
        let error = decode(&header(&packed.bytes, packed.plain_len), &packed.bytes);
        let error = error.expect_err("75 KiB of names");
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert!(error.to_string().contains("attribute names"), "{error}");
    }

    #[test]
    fn a_manifest_longer_than_the_header_says_is_refused() {
        let packed = encode(&sample(), 19).expect("small");
        for plain_len in [0, packed.plain_len - 1, packed.plain_len + 1] {
            let error = decode(&header(&packed.bytes, plain_len), &packed.bytes);
            assert_eq!(error.expect_err("another length").kind(), ErrorKind::Corrupt);
        }
    }
}
