//! Reading snapshots back: what new machines will start from is compared with the disk image.

use aws_sdk_ebs::types::{Block, ChecksumAlgorithm};
use aws_smithy_types::base64;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use vireo_cloud::blocks::{self, BLOCK_LEN};

use crate::calls::Calls;
use crate::error::{Ec2Error, ErrorKind, io_error};
use crate::journal::Disk;
use crate::upload::blocking;

/// Blocks per page of a listing, of at most 10,000.
const LISTED: i32 = 1000;

/// How often a listing is asked for anew when EBS says that its tokens have expired.
const MAX_LISTINGS: u32 = 5;

/// What was read back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blocks that were read from the snapshot.
    pub read: u64,
    /// Blocks that it does not have; the disk image has zeros there.
    pub absent: u64,
}

impl Calls {
    /// Compares every block of a snapshot with the disk image.
    ///
    /// # Errors
    ///
    /// `Damaged` names the first block that differs.
    pub(crate) async fn verify(
        &self,
        snapshot: &str,
        disk: &Disk,
        parallel: usize,
    ) -> Result<Verified, Ec2Error> {
        let data = disk.clone();
        let found = blocking(move || blocks::with_data(&data.file)).await?;
        let needed = found.map_err(io_error("read", &disk.path))?.indices;
        let mut verified = Verified::default();
        let mut missing = needed.iter().copied().peekable();
        let (mut page, mut start, mut listings) = (None, 0, 1);
        loop {
            let answer = self.list(snapshot, page.clone(), start).await?;
            let listed = answer.blocks.unwrap_or_default();
            for index in listed.iter().filter_map(Block::block_index).map(i32::cast_unsigned) {
                check_absent(snapshot, &mut missing, index)?;
            }
            match self.compare(snapshot, disk, &listed, parallel).await {
                Ok(()) => {
                    verified.read += listed.len() as u64;
                    let last = listed.last().and_then(Block::block_index);
                    start = last.map_or(start, |last| last.saturating_add(1));
                    page = answer.next_token.filter(|token| !token.is_empty());
                    if page.is_none() {
                        break;
                    }
                }
                // Tokens of blocks hold for a while only: the rest is listed anew.
                Err(error)
                    if error.code() == Some("ValidationException") && listings < MAX_LISTINGS =>
                {
                    listings += 1;
                    page = None;
                    missing = needed.iter().copied().peekable();
                    while missing.next_if(|index| index.cast_signed() < start).is_some() {}
                }
                Err(error) => return Err(error),
            }
        }
        check_absent(snapshot, &mut missing, u32::MAX)?;
        verified.absent = blocks::count(disk.stamp.len).saturating_sub(verified.read);
        Ok(verified)
    }

    async fn list(
        &self,
        snapshot: &str,
        page: Option<String>,
        start: i32,
    ) -> Result<aws_sdk_ebs::operation::list_snapshot_blocks::ListSnapshotBlocksOutput, Ec2Error>
    {
        let call = || {
            let list = self.ebs.list_snapshot_blocks().snapshot_id(snapshot).max_results(LISTED);
            match &page {
                Some(page) => list.next_token(page).send(),
                None => list.starting_block_index(start).send(),
            }
        };
        let answer = self.ask("ListSnapshotBlocks", snapshot, call).await?;
        if answer.block_size().map(i64::from) != Some(BLOCK_LEN as i64) {
            let what = format!("snapshot {snapshot} has blocks of {:?} bytes", answer.block_size());
            return Err(Ec2Error::refused(what));
        }
        Ok(answer)
    }

    async fn compare(
        &self,
        snapshot: &str,
        disk: &Disk,
        listed: &[Block],
        parallel: usize,
    ) -> Result<(), Ec2Error> {
        let mut under_way = JoinSet::new();
        let mut left = listed.iter();
        loop {
            while under_way.len() < parallel {
                let Some(block) = left.next() else { break };
                let (index, token) = (block.block_index(), block.block_token());
                let (Some(index), Some(token)) = (index, token) else { continue };
                let (calls, disk) = (self.clone(), disk.clone());
                let (snapshot, token) = (snapshot.to_owned(), token.to_owned());
                under_way.spawn(async move {
                    calls.compare_block(&snapshot, disk, index, &token).await
                });
            }
            match under_way.join_next().await {
                None => return Ok(()),
                Some(outcome) => outcome.map_err(|error| {
                    Ec2Error::plain(
                        ErrorKind::Io,
                        format!("a thread of this process ended: {error}"),
                    )
                })??,
            }
        }
    }

    async fn compare_block(
        &self,
        snapshot: &str,
        disk: Disk,
        index: i32,
        token: &str,
    ) -> Result<(), Ec2Error> {
        let what = format!("block {index} of {snapshot}");
        let call = || {
            let get = self.ebs.get_snapshot_block().snapshot_id(snapshot);
            get.block_index(index).block_token(token).send()
        };
        let answer = self.ask("GetSnapshotBlock", &what, call).await?;
        let sent = answer.checksum().map(str::to_owned);
        let is_sha256 =
            answer.checksum_algorithm() == Some(&ChecksumAlgorithm::ChecksumAlgorithmSha256);
        let bytes = answer.block_data.collect().await.map_err(|error| {
            Ec2Error::plain(ErrorKind::Unavailable, format!("{what} ended early: {error}"))
        })?;
        let bytes = bytes.to_vec();
        if is_sha256 && sent.is_some_and(|sent| sent != base64::encode(Sha256::digest(&bytes))) {
            let what = format!("{what} does not have the checksum that was sent with it");
            return Err(Ec2Error::plain(ErrorKind::Damaged, what));
        }
        let path = disk.path.clone();
        let own = blocking(move || blocks::read(&disk.file, index.cast_unsigned())).await?;
        if own.map_err(io_error("read", &path))? != bytes {
            let what = format!("{what} is not what {} has there; publish it anew", path.display());
            return Err(Ec2Error::plain(ErrorKind::Damaged, what));
        }
        Ok(())
    }
}

/// Every block with data before `index` must have been listed.
fn check_absent(
    snapshot: &str,
    missing: &mut std::iter::Peekable<impl Iterator<Item = u32>>,
    index: u32,
) -> Result<(), Ec2Error> {
    if let Some(lost) = missing.next_if(|next| *next < index) {
        let what =
            format!("snapshot {snapshot} has no block {lost}, where the disk image has data");
        return Err(Ec2Error::plain(ErrorKind::Damaged, what));
    }
    missing.next_if(|next| *next == index);
    Ok(())
}
