//! What one walk may spend at most, so that a hostile image cannot keep it busy for ever.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Ext4Error;

/// Most bytes of attributes in one tree.
const MAX_XATTRS_LEN: u64 = 1 << 30;

/// A shared allowance that only shrinks.
#[derive(Debug)]
pub(crate) struct Budget {
    blocks: AtomicU64,
    xattrs_len: AtomicU64,
    content_len: AtomicU64,
}

impl Budget {
    /// `blocks` of maps and directories, `content_len` bytes of content.
    ///
    /// In a sound file system each block belongs to one file, so a walk that reads more blocks
    /// of maps and directories than there are blocks goes in circles.
    pub(crate) fn new(blocks: u64, content_len: u64) -> Self {
        Self {
            blocks: AtomicU64::new(blocks),
            xattrs_len: AtomicU64::new(MAX_XATTRS_LEN),
            content_len: AtomicU64::new(content_len),
        }
    }

    pub(crate) fn take_blocks(&self, blocks: u64) -> Result<(), Ext4Error> {
        let what =
            "maps and directories take more blocks than the file system has; run `e2fsck -f`";
        take(&self.blocks, blocks).ok_or_else(|| Ext4Error::damaged(what))
    }

    pub(crate) fn take_xattrs(&self, len: usize) -> Result<(), Ext4Error> {
        let what =
            format!("the attributes of all files together take more than {MAX_XATTRS_LEN} bytes");
        take(&self.xattrs_len, u64::try_from(len).unwrap_or(u64::MAX))
            .ok_or_else(|| Ext4Error::limit(what))
    }

    pub(crate) fn take_content(&self, len: u64) -> Result<(), Ext4Error> {
        let what = "the files together are longer than may be read, holes included";
        take(&self.content_len, len).ok_or_else(|| Ext4Error::limit(what))
    }
}

fn take(left: &AtomicU64, amount: u64) -> Option<()> {
    let less = |left: u64| left.checked_sub(amount);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_is_spent() {
        let budget = Budget::new(3, 10);
        budget.take_blocks(2).expect("enough");
        budget.take_blocks(2).expect_err("one is left");
        budget.take_blocks(1).expect("one was left");
        budget.take_content(11).expect_err("more than allowed");
        budget.take_content(10).expect("all of it");
    }
}
