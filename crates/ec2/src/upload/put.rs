//! Putting blocks into a pending snapshot, each with its checksum, and completing it with that of all.

use aws_sdk_ebs::operation::complete_snapshot::CompleteSnapshotOutput;
use aws_sdk_ebs::primitives::ByteStream;
use aws_sdk_ebs::types::{ChecksumAggregationMethod, ChecksumAlgorithm};
use aws_smithy_types::base64;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use vireo_cloud::blocks::{self, BLOCK_LEN};

use super::{Upload, blocking, internal};
use crate::calls::Calls;
use crate::error::{Ec2Error, ErrorKind, io_error};
use crate::journal::{Disk, Pending};

/// The journal is written after so many blocks (32 MiB): so much is put twice after a crash, at most,
/// besides what was on its way.
const SAVE_EVERY: usize = 64;

pub(super) type Sum = [u8; 32];

impl Upload<'_> {
    /// Puts the blocks that are not certainly written; gives the checksums of all.
    pub(super) async fn put_all(
        &mut self,
        pending: &mut Pending,
        id: &str,
        indices: &[u32],
    ) -> Result<Vec<Sum>, Ec2Error> {
        let written = pending.written.min(indices.len());
        let mut done = vec![false; indices.len()];
        done[..written].fill(true);
        for at in &pending.ahead {
            if let Some(done) = done.get_mut(*at) {
                *done = true;
            }
        }
        let left: Vec<usize> = (0..indices.len()).filter(|at| !done[*at]).collect();
        let len = left.len() as u64 * BLOCK_LEN;
        self.calls
            .tell("PutSnapshotBlock", format!("{} blocks, {len} bytes, into {id}", left.len()));
        if self.calls.dry {
            return Ok(Vec::new());
        }
        let mut sums = vec![[0; 32]; indices.len()];
        let before: Vec<usize> = (0..indices.len()).filter(|at| done[*at]).collect();
        let blocks: Vec<u32> = before.iter().map(|at| indices[*at]).collect();
        for (at, sum) in before.into_iter().zip(self.sums_of(blocks).await?) {
            sums[at] = sum;
        }
        let (mut next, mut unsaved) = (left.into_iter(), 0);
        let mut under_way = JoinSet::new();
        loop {
            while under_way.len() < self.parallel
                && let Some(at) = next.next()
            {
                let (calls, disk) = (self.calls.clone(), self.disk.clone());
                under_way.spawn(put(calls, id.to_owned(), disk, indices[at], at));
            }
            let Some(outcome) = under_way.join_next().await else { return Ok(sums) };
            let (at, sum) = match outcome.map_err(internal).and_then(|outcome| outcome) {
                Ok(put) => put,
                Err(error) => {
                    // Those under way are let go; what is certain is remembered.
                    self.save(pending, &done)?;
                    return Err(error);
                }
            };
            (sums[at], done[at]) = (sum, true);
            unsaved += 1;
            if unsaved == SAVE_EVERY {
                self.save(pending, &done)?;
                unsaved = 0;
            }
        }
    }

    /// Remembers which blocks are certainly written: all up to one, and those that overtook it.
    fn save(&mut self, pending: &mut Pending, done: &[bool]) -> Result<(), Ec2Error> {
        pending.written = done.iter().take_while(|done| **done).count();
        pending.ahead = (pending.written..done.len()).filter(|at| done[*at]).collect();
        self.journal.set_pending(Some(pending.clone()))
    }

    /// Checksums of blocks that were put before.
    async fn sums_of(&self, indices: Vec<u32>) -> Result<Vec<Sum>, Ec2Error> {
        let disk = self.disk.clone();
        blocking(move || indices.iter().map(|index| Ok(read(&disk, *index)?.1)).collect()).await?
    }

    /// Asks for completion, also when that was asked for before a crash and may be under way.
    pub(super) async fn complete_once(
        &mut self,
        pending: &mut Pending,
        id: &str,
        sums: &[Sum],
    ) -> Result<(), Ec2Error> {
        let again = std::mem::replace(&mut pending.completing, true);
        (pending.written, pending.ahead) = (sums.len(), Vec::new());
        self.journal.set_pending(Some(pending.clone()))?;
        match self.complete(id, sums).await {
            Err(error) if again && error.kind() == ErrorKind::Refused => Ok(()),
            // The call's own repetition was refused: the try before, which had no answer, may have been done. The
            // snapshot's state tells, once it is waited for.
            Err(error) if error.kind() == ErrorKind::Refused && error.is_after_silence() => Ok(()),
            Err(error) if error.kind() == ErrorKind::Refused => {
                if self.is_complete(id).await? {
                    return Ok(());
                }
                // What EBS has is not what was put: nothing of it is relied on.
                (pending.completing, pending.written) = (false, 0);
                self.journal.set_pending(Some(pending.clone()))?;
                Err(error)
            }
            outcome => outcome,
        }
    }

    async fn complete(&self, id: &str, sums: &[Sum]) -> Result<(), Ec2Error> {
        let count = i32::try_from(sums.len())
            .map_err(|_| Ec2Error::refused(format!("{} blocks are too many", sums.len())))?;
        let linear = linear(sums);
        let call = || {
            let ebs = self.calls.ebs.complete_snapshot();
            ebs.snapshot_id(id)
                .changed_blocks_count(count)
                .checksum(&linear)
                .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256)
                .checksum_aggregation_method(ChecksumAggregationMethod::ChecksumAggregationLinear)
                .send()
        };
        let instead = || CompleteSnapshotOutput::builder().build();
        self.calls.change("CompleteSnapshot", id.to_owned(), instead, call).await.map(drop)
    }
}

/// Reads and puts one block; gives its place among the blocks and its checksum.
async fn put(
    calls: Calls,
    id: String,
    disk: Disk,
    index: u32,
    at: usize,
) -> Result<(usize, Sum), Ec2Error> {
    let (bytes, sum) = blocking(move || read(&disk, index)).await??;
    let text = base64::encode(sum);
    let call = || {
        let ebs = calls.ebs.put_snapshot_block();
        ebs.snapshot_id(&id)
            .block_index(index.cast_signed())
            .block_data(ByteStream::from(bytes.clone()))
            .data_length(BLOCK_LEN as i32)
            .checksum(&text)
            .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256)
            .send()
    };
    let what = format!("block {index} of {id}");
    let answer = calls.ask("PutSnapshotBlock", &what, call).await?;
    if answer.checksum().is_some_and(|stored| stored != text) {
        let what = format!("{what} was stored with another checksum than it was sent with");
        return Err(Ec2Error::plain(ErrorKind::Damaged, what));
    }
    Ok((at, sum))
}

fn read(disk: &Disk, index: u32) -> Result<(Vec<u8>, Sum), Ec2Error> {
    let bytes = blocks::read(&disk.file, index).map_err(io_error("read", &disk.path))?;
    let sum = Sha256::digest(&bytes).into();
    Ok((bytes, sum))
}

/// The checksum over all blocks (`LINEAR`): SHA-256 of their checksums in the order of their indices.
fn linear(sums: &[Sum]) -> String {
    base64::encode(Sha256::digest(sums.as_flattened()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linear_checksum_is_that_of_the_checksums_in_order() {
        // Computed with sha256sum and base64 over the 64 bytes.
        let sums: [Sum; 2] = [Sha256::digest(b"a").into(), Sha256::digest(b"b").into()];
        assert_eq!(linear(&sums), "5aAf7hTg7VxIcU8iGA8lrYNltT+XefedxKPX6Tlj+Uo=");
        assert_ne!(linear(&[sums[1], sums[0]]), linear(&sums));
    }
}
