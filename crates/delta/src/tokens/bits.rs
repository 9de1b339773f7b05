//! Bits of a deflate stream, the lowest of each byte first (RFC 1951, 3.1.1).

/// Reads bits; what is behind the end is never given out.
#[derive(Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// How many bytes are held or used up.
    at: usize,
    held: u64,
    count: u32,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, held: 0, count: 0 }
    }

    // Called for every third token or so; what calls it is small without it.
    #[inline(never)]
    fn fill(&mut self) {
        if let Some(word) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            self.held |= u64::from_le_bytes(*word) << self.count;
            let whole = (63 - self.count) / 8;
            self.at += whole as usize;
            self.count += 8 * whole;
            // Bits of the next byte came along; it is read again.
            self.held &= (1 << self.count) - 1;
            return;
        }
        while self.count <= 56
            && let Some(byte) = self.bytes.get(self.at)
        {
            self.held |= u64::from(*byte) << self.count;
            self.count += 8;
            self.at += 1;
        }
    }

    /// The next `width` bits, at most 16; `None` if there are fewer.
    #[inline]
    pub(super) fn take(&mut self, width: u32) -> Option<u32> {
        let bits = self.peek(width);
        self.skip(width)?;
        Some(bits)
    }

    /// The same without going on; zeros behind the end.
    #[inline]
    pub(super) fn peek(&mut self, width: u32) -> u32 {
        if self.count < width {
            self.fill();
        }
        (self.held & ((1 << width) - 1)) as u32
    }

    #[inline]
    pub(super) fn skip(&mut self, width: u32) -> Option<()> {
        self.count = self.count.checked_sub(width)?;
        self.held >>= width;
        Some(())
    }

    /// A stored block behind its kind: the rest of this byte is skipped, length and bytes follow
    /// (RFC 1951, 3.2.4).
    pub(super) fn stored(&mut self) -> Option<&'a [u8]> {
        // Of padding that is not zeros nothing is kept, and the stream would come out differently.
        self.skip(self.count % 8)?;
        let (len, check) = (self.take(16)?, self.take(16)?);
        if len ^ check != 0xffff {
            return None;
        }
        // What is held are whole bytes by now, which are read anew.
        let start = self.at - (self.count / 8) as usize;
        (self.held, self.count) = (0, 0);
        self.at = start + len as usize;
        self.bytes.get(start..self.at)
    }

    /// Whether nothing but the padding of the last byte is left.
    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len() && self.count < 8
    }
}

/// Writes bits.
#[derive(Debug)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    held: u64,
    count: u32,
}

impl BitWriter {
    /// An empty one, with room for so many bytes.
    pub(super) fn new(room: usize) -> Self {
        Self { bytes: Vec::with_capacity(room), held: 0, count: 0 }
    }

    /// Appends the lowest `width` bits, at most 32; the others are zero.
    #[inline]
    pub(super) fn put(&mut self, bits: u32, width: u32) {
        self.held |= u64::from(bits) << self.count;
        self.count += width;
        if self.count >= 32 {
            self.write_word();
        }
    }

    fn write_word(&mut self) {
        self.bytes.extend_from_slice(&(self.held as u32).to_le_bytes());
        self.held >>= 32;
        self.count -= 32;
    }

    /// A stored block behind its kind; `None` if it is too long for one.
    pub(super) fn stored(&mut self, block: &[u8]) -> Option<()> {
        let len = u16::try_from(block.len()).ok()?;
        self.pad();
        self.bytes.extend(len.to_le_bytes());
        self.bytes.extend((!len).to_le_bytes());
        self.bytes.extend_from_slice(block);
        Some(())
    }

    fn pad(&mut self) {
        let len = self.count.div_ceil(8) as usize;
        self.bytes.extend_from_slice(&self.held.to_le_bytes()[..len]);
        (self.held, self.count) = (0, 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.pad();
        self.bytes
    }
}
