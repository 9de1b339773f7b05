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

    /// Holds 56 bits at least, or all that are left.
    #[inline(always)]
    pub(super) fn fill(&mut self) {
        match self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            Some(word) => {
                // Bits of the next byte come along, and once more with that byte: the same ones.
                self.held |= u64::from_le_bytes(*word) << self.count;
                self.at += (63 - self.count as usize) / 8;
                self.count |= 56;
            }
            None => self.fill_at_end(),
        }
    }

    #[cold]
    fn fill_at_end(&mut self) {
        while self.count < 56
            && let Some(byte) = self.bytes.get(self.at)
        {
            self.held |= u64::from(*byte) << self.count;
            self.count += 8;
            self.at += 1;
        }
    }

    /// The bits that are held, zeros behind the end; those beyond what [`fill`](Self::fill) promises are not to be
    /// relied on.
    #[inline(always)]
    pub(super) fn ahead(&self) -> u64 {
        self.held
    }

    /// The next `width` bits, at most 16; `None` if there are fewer.
    pub(super) fn take(&mut self, width: u32) -> Option<u32> {
        if self.count < width {
            self.fill();
        }
        let bits = self.held & ((1 << width) - 1);
        self.skip(width)?;
        Some(bits as u32)
    }

    /// Goes on by so many bits, at most 63; `None` if there are fewer.
    #[inline(always)]
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

    /// How many bytes were begun; the rest of the last one is padding.
    pub(super) fn end(&self) -> usize {
        self.at - (self.count / 8) as usize
    }
}

/// Writes bits.
#[derive(Debug)]
pub(super) struct BitWriter {
    /// What is written, and room for more behind it.
    bytes: Vec<u8>,
    at: usize,
    /// Bits of the next byte; less than one.
    held: u64,
    count: u32,
}

/// Room is made for that many bytes more than are needed, at least.
const ROOM_LEN: usize = 4 << 10;

impl BitWriter {
    /// An empty one, with room for so many bytes.
    pub(super) fn new(room: usize) -> Self {
        Self { bytes: vec![0; room], at: 0, held: 0, count: 0 }
    }

    /// Appends the lowest `width` bits, at most 32; the others are zero.
    pub(super) fn put(&mut self, bits: u32, width: u32) {
        self.put_long(u64::from(bits), width);
    }

    /// The same of at most 56.
    #[inline(always)]
    pub(super) fn put_long(&mut self, bits: u64, width: u32) {
        let held = self.held | bits << self.count;
        if self.bytes.len() - self.at < 8 {
            self.make_room(8);
        }
        if let Some(word) = self.bytes.get_mut(self.at..).and_then(|rest| rest.first_chunk_mut()) {
            *word = held.to_le_bytes();
        }
        let count = self.count + width;
        self.at += (count / 8) as usize;
        self.held = held >> (count & !7);
        self.count = count & 7;
    }

    #[cold]
    fn make_room(&mut self, len: usize) {
        self.bytes.resize(self.bytes.len() + self.bytes.len() / 2 + len + ROOM_LEN, 0);
    }

    /// A stored block behind its kind; `None` if it is too long for one.
    pub(super) fn stored(&mut self, block: &[u8]) -> Option<()> {
        let len = u16::try_from(block.len()).ok()?;
        self.pad();
        self.put(u32::from(len), 16);
        self.put(u32::from(!len), 16);
        if self.bytes.len() - self.at < block.len() {
            self.make_room(block.len());
        }
        self.bytes.get_mut(self.at..self.at + block.len())?.copy_from_slice(block);
        self.at += block.len();
        Some(())
    }

    fn pad(&mut self) {
        if self.count > 0 {
            self.put(0, 8 - self.count);
        }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.pad();
        self.bytes.truncate(self.at);
        self.bytes
    }
}
