//! One token, in numbers and as text.
//!
//! Kinds of tokens follow each other as if by chance, so that a branch on the kind is guessed wrongly every
//! other time, which costs more than the rest of the work. What is done for each token is therefore the same for all
//! kinds: numbers are chosen, not paths.

/// Before a byte of which the first bit is set, or that is zero.
const ESCAPE: u8 = 0;
/// First bit of a reference.
const REFERENCE: u32 = 0x80;
/// In a reference's third byte: the eighth bit of its length.
const LONG: u32 = 0x80;

/// How many [`Token::what`] there are.
pub(super) const WHATS: usize = 512;

/// A byte, or a reference back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// A byte's value; of a reference its length less 3, and 256 more. Below [`WHATS`].
    pub(super) what: u32,
    /// Of a reference its distance less 1; of a byte zero. Below 32,768.
    pub(super) distance: u32,
}

impl Token {
    #[inline(always)]
    pub(super) fn is_reference(self) -> bool {
        self.what >= 256
    }

    /// The token's text, the first byte lowest, and how many bytes it has.
    #[inline(always)]
    pub(super) fn text(self) -> (u32, usize) {
        if self.is_reference() {
            let len = self.what & 0xff;
            let high = (len & 0x80) / 0x80 * LONG;
            return (REFERENCE | (len & 0x7f) | (self.distance << 8) | (high << 16), 3);
        }
        let needs_escape = needs_escape(self.what);
        let text = if needs_escape { self.what << 8 | u32::from(ESCAPE) } else { self.what };
        (text, 1 + usize::from(needs_escape))
    }

    /// The token at the start of `text`, and what is behind it; `None` if it is none, or not in its one form.
    #[inline(always)]
    pub(super) fn next(text: &[u8]) -> Option<(Self, &[u8])> {
        let word = match text.first_chunk::<4>() {
            Some(word) => u32::from_le_bytes(*word),
            None => at_end(text),
        };
        let (first, second) = (word & 0xff, (word >> 8) & 0xff);
        let (is_reference, is_escaped) = (first & REFERENCE != 0, first == u32::from(ESCAPE));
        let byte = if is_escaped { second } else { first };
        let len = (first & 0x7f) | ((word >> 16) & LONG);
        let token = Self {
            what: if is_reference { 256 | len } else { byte },
            distance: if is_reference { (word >> 8) & 0x7fff } else { 0 },
        };
        let rest = text.get(1 + usize::from(is_escaped) + 2 * usize::from(is_reference)..)?;
        // One that is escaped without need would be a second form of the same stream.
        (!is_escaped || needs_escape(byte)).then_some((token, rest))
    }
}

#[inline(always)]
fn needs_escape(byte: u32) -> bool {
    byte.wrapping_sub(1) >= REFERENCE - 1
}

/// The last bytes of a text, and zeros behind them.
#[cold]
fn at_end(text: &[u8]) -> u32 {
    let mut word = [0; 4];
    word.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_one_form() {
        let byte = |what| Token { what, distance: 0 };
        let reference = |len: u32, distance| Token { what: 256 + len, distance };
        for (token, text) in [
            (byte(0), &[0, 0][..]),
            (byte(1), &[1]),
            (byte(0x7f), &[0x7f]),
            (byte(0x80), &[0, 0x80]),
            (byte(0xff), &[0, 0xff]),
            (reference(0, 0), &[0x80, 0, 0]),
            (reference(127, 255), &[0xff, 0xff, 0]),
            (reference(128, 256), &[0x80, 0, 0x81]),
            (reference(255, 32767), &[0xff, 0xff, 0xff]),
        ] {
            let (word, len) = token.text();
            assert_eq!(&word.to_le_bytes()[..len], text);
            for behind in [&b""[..], b"behind"] {
                let longer = [text, behind].concat();
                assert_eq!(Token::next(&longer), Some((token, behind)));
            }
            for cut in 0..text.len() {
                assert_eq!(Token::next(&text[..cut]), None, "{token:?} cut at {cut}");
            }
        }
        for needless in [[0, 1, 0, 0], [0, 0x7f, 0, 0]] {
            assert_eq!(Token::next(&needless), None);
        }
    }
}
