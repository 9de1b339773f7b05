//! What small manifests and texts mostly repeat, known to both sides.
//!
//! One edited line of configuration would travel with a kilobyte of what every bundle has: patterns of
//! paths that belong to no version, empty columns, the words of configuration. zstd may refer to them
//! in a dictionary instead. The dictionaries are part of the format and never change; other ones get
//! another bit.

use std::io;

use zstd::bulk::{Compressor, Decompressor};

use crate::format::{Header, feature};
use crate::frames::StreamId;

/// An archive without names, digests and times.
static MANIFEST: &[u8] = include_bytes!("../dictionary/manifest.bin");
/// Words of configuration files and scripts.
static TEXT: &[u8] = include_bytes!("../dictionary/text.txt");

/// What is longer is compressed without a dictionary, in bytes. Readers need not know.
const LONG_LEN: usize = 48 << 10;

/// Which one is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dictionary {
    /// For manifests.
    Manifest,
    /// For literal text.
    Text,
    /// For all else.
    None,
}

impl Dictionary {
    /// The one for frames of `stream`.
    pub(crate) fn of(stream: StreamId) -> Self {
        if stream.is_literal_text() { Self::Text } else { Self::None }
    }

    /// None, if a bundle with this `header` does without.
    pub(crate) fn if_known_by(self, header: &Header) -> Self {
        if header.incompat & feature::DICTIONARIES == 0 { Self::None } else { self }
    }

    fn bytes(self) -> &'static [u8] {
        match self {
            Self::Manifest => MANIFEST,
            Self::Text => TEXT,
            Self::None => &[],
        }
    }

    /// A zstd frame of `plain` at zstd's `level`.
    pub(crate) fn compress(self, plain: &[u8], level: i32) -> io::Result<Vec<u8>> {
        // What is long is its own dictionary: with another one zstd does not look at it twice.
        if self == Self::None || plain.len() > LONG_LEN {
            return zstd::bulk::compress(plain, level);
        }
        Compressor::with_dictionary(level, self.bytes())?.compress(plain)
    }

    /// Fills `plain` from a zstd frame. Returns how much it is.
    pub(crate) fn decompress(self, frame: &[u8], plain: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None => zstd::bulk::decompress_to_buffer(frame, plain),
            _ => {
                let mut decompressor = Decompressor::with_dictionary(self.bytes())?;
                decompressor.decompress_to_buffer(frame, plain)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_model::Digest;

    #[test]
    fn the_dictionaries_are_frozen() {
        let digests = format!("{}\n{}\n", Digest::of(MANIFEST), Digest::of(TEXT));
        assert_eq!(digests, include_str!("../frozen/dictionary-digests.txt"));
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let text = b"server {\n\tlisten 80 default_server;\n}\n";
        for dictionary in [Dictionary::Manifest, Dictionary::Text, Dictionary::None] {
            let frame = dictionary.compress(text, 19).expect("memory");
            let mut plain = vec![0; text.len()];
            assert_eq!(dictionary.decompress(&frame, &mut plain).expect("its own"), text.len());
            assert_eq!(plain, text);
            // A frame without references needs none.
            let frame = zstd::bulk::compress(text, 1).expect("memory");
            assert_eq!(dictionary.decompress(&frame, &mut plain).expect("plain"), text.len());
        }
        let len = |dictionary: Dictionary| dictionary.compress(text, 19).expect("memory").len();
        assert!(len(Dictionary::Text) < len(Dictionary::None));
    }
}
