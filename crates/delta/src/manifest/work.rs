//! What decompressing the frames of a bundle costs its readers.
//!
//! A frame costs nothing as long as it is kept, and all of it once it has to be decompressed again, even
//! for one byte. Contents may go back and forth between frames, so a short manifest can ask for any
//! amount of work. It is counted before it is begun, as a reader does it that goes through the changes
//! in their order.

use vireo_model::Change;

use super::{Body, Content, Contents, Packing, Segment, new_content};
use crate::error::DeltaError;
use crate::format::{limit, limits};
use crate::frames::{CACHED_FRAMES, Frame, Method, Part, Span, StreamId};
use crate::model;

/// What a frame costs apart from its bytes, as many bytes: digest, decompressor, memory.
const FRAME_COST: u64 = 4 << 10;

/// What it costs to go to a frame that is kept.
const VISIT_COST: u64 = 1 << 10;

/// A reader of frames, without the reading.
pub(super) struct Work<'a> {
    frames: &'a [Frame],
    /// For each stream its frames: where they start in it, and their numbers.
    streams: Vec<Vec<(u64, usize)>>,
    /// The frames that are kept, the one used last at the end.
    kept: Vec<usize>,
    unpacked_len: u64,
}

impl<'a> Work<'a> {
    pub(super) fn new(frames: &'a [Frame]) -> Self {
        let mut streams: Vec<Vec<(u64, usize)>> = vec![Vec::new(); StreamId::COUNT];
        let mut ends = [0; StreamId::COUNT];
        for (number, frame) in frames.iter().enumerate() {
            let stream = frame.stream.index();
            streams[stream].push((ends[stream], number));
            ends[stream] += u64::from(frame.plain_len);
        }
        Self { frames, streams, kept: Vec::with_capacity(CACHED_FRAMES), unpacked_len: 0 }
    }

    /// Counts the contents of all files that change.
    pub(super) fn of_all(
        &mut self,
        changes: &[Change],
        contents: &Contents,
    ) -> Result<(), DeltaError> {
        let digests = changes.iter().filter_map(new_content);
        digests.filter_map(|digest| contents.get(&digest)).try_for_each(|one| self.content(one))
    }

    fn content(&mut self, content: &Content) -> Result<(), DeltaError> {
        let stream = |part| StreamId::new(content.class, part);
        match &content.body {
            Body::Segments(segments) => {
                for segment in segments {
                    if let Segment::Literal { class, offset, len } = *segment {
                        let span = Span { start: offset, len };
                        self.visit(StreamId::new(class, Part::Literal), span)?;
                    }
                }
            }
            Body::Delta(delta) => {
                self.visit(stream(Part::Control), delta.control)?;
                self.visit(stream(Part::Patch), delta.patch)?;
                self.visit(stream(Part::Refs), delta.refs)?;
                self.visit(stream(Part::Diff), delta.diff)?;
                self.visit(stream(Part::Extra), delta.extra)?;
            }
        }
        match content.packing {
            Packing::Recipe(recipe) => self.visit(stream(Part::Recipe), recipe),
            _ => Ok(()),
        }
    }

    /// Counts the frames that `span` of `stream` is in. A reader holds the one that it is in.
    fn visit(&mut self, stream: StreamId, span: Span) -> Result<(), DeltaError> {
        let end = span.start.saturating_add(span.len);
        let list = &self.streams[stream.index()];
        let mut at = list.partition_point(|(start, _)| *start <= span.start).saturating_sub(1);
        while let Some((start, number)) = self.streams[stream.index()].get(at).copied()
            && start < end
        {
            self.unpacked_len += self.cost(number);
            limit("work of decompressing", self.unpacked_len, limits::MAX_UNPACKED_LEN)?;
            at += 1;
        }
        Ok(())
    }

    fn cost(&mut self, number: usize) -> u64 {
        if let Some(at) = self.kept.iter().rposition(|kept| *kept == number) {
            self.kept[at..].rotate_left(1);
            return VISIT_COST;
        }
        if self.kept.len() == CACHED_FRAMES {
            self.kept.remove(0);
        }
        self.kept.push(number);
        let frame = &self.frames[number];
        let len = u64::from(frame.plain_len);
        FRAME_COST + if frame.method == Method::Model { model::cost(len) } else { len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::frames::Class;
    use vireo_model::Digest;

    const PLAIN_LEN: u64 = limits::MAX_FRAME_PLAIN_LEN;

    fn frames(count: usize, plain_len: u64) -> Vec<Frame> {
        let stream = StreamId::new(Class::Text, Part::Literal);
        let (digest, len, plain_len) = (Digest::of(b""), 9, plain_len as u32);
        vec![Frame { digest, stream, method: Method::Zstd, len, plain_len }; count]
    }

    /// A byte of each of `count` frames in turn, so many `times`.
    fn jumping(count: u64, times: usize) -> Content {
        let segments = (0..count).map(|frame| Segment::Literal {
            class: Class::Text,
            offset: frame * PLAIN_LEN,
            len: 1,
        });
        let segments = segments.collect::<Vec<_>>().repeat(times);
        let len = segments.len() as u64;
        let (class, packing, body) = (Class::Text, Packing::None, Body::Segments(segments));
        Content { len, sparse: false, class, packing, body }
    }

    #[test]
    fn jumping_between_frames_that_are_kept_is_cheap() {
        let frames = frames(CACHED_FRAMES, PLAIN_LEN);
        let mut work = Work::new(&frames);
        work.content(&jumping(CACHED_FRAMES as u64, 1000)).expect("kept");
        assert!(work.unpacked_len < 2 * CACHED_FRAMES as u64 * PLAIN_LEN);
    }

    #[test]
    fn jumping_between_more_frames_has_a_limit() {
        let count = CACHED_FRAMES as u64 + 1;
        let frames = frames(count as usize, PLAIN_LEN);
        let mut work = Work::new(&frames);
        let content = jumping(count, 1000);
        let error = (0..1000).try_for_each(|_| work.content(&content)).expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert!(error.to_string().contains("work of decompressing"), "{error}");
    }

    #[test]
    fn a_model_of_text_costs_its_readers_more() {
        for (len, cost) in [(PLAIN_LEN, 64 * PLAIN_LEN), (1, 1 << 20)] {
            let mut frames = frames(1, len);
            frames[0].method = Method::Model;
            let mut work = Work::new(&frames);
            work.content(&jumping(1, 1)).expect("once");
            assert_eq!(work.unpacked_len, cost + FRAME_COST);
        }
    }

    #[test]
    fn reading_through_the_smallest_frames_has_a_limit_too() {
        let frames = frames(1000, 1);
        let mut work = Work::new(&frames);
        let stream = StreamId::new(Class::Text, Part::Literal);
        let all = Span { start: 0, len: 1000 };
        work.visit(stream, all).expect("once");
        assert_eq!(work.unpacked_len, 1000 * (1 + FRAME_COST));
        let most = limits::MAX_UNPACKED_LEN / (1000 * FRAME_COST) + 1;
        assert!((0..most).any(|_| work.visit(stream, all).is_err()));
    }
}
