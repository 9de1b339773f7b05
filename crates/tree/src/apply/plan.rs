//! What one transaction does, as recovery and undo read it again.
//!
//! `docs/format/state.md` is the normative text: a fixed head with a checksum, then a postcard
//! record. A plan that is damaged or newer than this program is refused, never guessed at.

use serde::{Deserialize, Serialize};
use vireo_model::{Change, ChangeSet, Digest, ImagePath, Node, Timestamp};

use super::Settled;

/// First bytes of a plan.
const MAGIC: [u8; 4] = *b"VIRT";
/// Layout of the record; another number means another layout.
const VERSION: u32 = 1;
/// Magic, version, length of the record, its digest.
const HEAD_LEN: usize = 4 + 4 + 8 + Digest::LEN;
/// Longest plan that is read, in bytes: the most changes that a bundle may have.
pub(super) const MAX_PLAN_LEN: u64 = 1 << 30;

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Names its parts on other file systems, so that parts of different transactions with the
    /// same number are told apart.
    pub(super) id: u64,
    /// Digest of the version that it starts from.
    pub(super) base: Digest,
    /// Digest of the version that it leads to.
    pub(super) target: Digest,
    /// Numbers of the transactions that it takes back.
    pub(super) undoes: Vec<u64>,
    /// Further file systems that it changes.
    pub(super) mounts: Vec<ImagePath>,
    /// What it does; the position here is the name of the files that belong to it.
    pub(super) steps: Vec<Step>,
    /// Times that directories get.
    pub(super) dir_times: Vec<(ImagePath, Timestamp)>,
    /// Times that the same directories had.
    pub(super) dir_times_before: Vec<(ImagePath, Timestamp)>,
    /// Local edits that were met, and what became of them.
    pub(super) settled: Vec<Settled>,
}

/// One path of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) path: ImagePath,
    /// What stood there when the transaction was staged.
    pub(super) before: Option<Node>,
    /// What it puts there.
    pub(super) after: Option<Node>,
    pub(super) how: How,
    /// Inode number of what stood there, if anything did.
    pub(super) found: Option<u64>,
    /// Inode number of what was staged, if anything was.
    pub(super) staged: Option<u64>,
}

/// How a path gets to what it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum How {
    /// What is staged takes the place of what is there.
    Place,
    /// Mode, owner, time or attributes change on the inode that is there.
    Metadata,
    /// What is there goes.
    Remove,
}

/// Why a plan cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PlanError {
    Damaged(&'static str),
    Newer(u32),
}

impl Step {
    pub(super) fn is_dir(&self) -> bool {
        self.after.as_ref().is_some_and(Node::is_dir)
    }

    pub(super) fn was_dir(&self) -> bool {
        self.before.as_ref().is_some_and(Node::is_dir)
    }

    /// Whether what is there is kept by a link: all but directories, which cannot be linked.
    pub(super) fn keeps(&self) -> bool {
        self.how != How::Metadata && self.found.is_some() && !self.was_dir()
    }
}

impl Plan {
    /// What it changes in the tree.
    pub(super) fn change_set(&self) -> ChangeSet {
        let change = |step: &Step| Change {
            path: step.path.clone(),
            before: step.before.clone(),
            after: step.after.clone(),
        };
        ChangeSet {
            base: self.base,
            target: self.target,
            changes: self.steps.iter().map(change).collect(),
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, PlanError> {
        let record = postcard::to_allocvec(self).map_err(|_| PlanError::Damaged("its record"))?;
        let mut bytes = Vec::with_capacity(HEAD_LEN + record.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(record.len() as u64).to_le_bytes());
        bytes.extend_from_slice(Digest::of(&record).as_bytes());
        bytes.extend_from_slice(&record);
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, PlanError> {
        let (head, record) =
            bytes.split_first_chunk::<HEAD_LEN>().ok_or(PlanError::Damaged("it is cut short"))?;
        if head[..4] != MAGIC {
            return Err(PlanError::Damaged("it does not begin as a plan does"));
        }
        let version = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if version != VERSION {
            return Err(PlanError::Newer(version));
        }
        let len: [u8; 8] = std::array::from_fn(|at| head[8 + at]);
        if u64::from_le_bytes(len) != record.len() as u64 {
            return Err(PlanError::Damaged("its length is wrong"));
        }
        if Digest::of(record).as_bytes() != &head[16..] {
            return Err(PlanError::Damaged("its checksum is wrong"));
        }
        postcard::from_bytes(record).map_err(|_| PlanError::Damaged("its record"))
    }
}

#[cfg(test)]
mod tests {
    use vireo_model::NodeKind;

    use super::*;

    fn plan() -> Plan {
        let path = |text: &str| ImagePath::parse(text.as_bytes()).expect("a valid path");
        let node = Node {
            xattrs: [(b"user.x".to_vec(), vec![0, 255])].into(),
            ..Node::new(NodeKind::HardLink { leader: path("/a") }, 0o4755)
        };
        let step = Step {
            path: ImagePath::parse(b"/odd\xff").expect("bytes are fine"),
            before: None,
            after: Some(node),
            how: How::Place,
            found: None,
            staged: Some(7),
        };
        Plan {
            id: 9,
            base: Digest::of(b"base"),
            target: Digest::of(b"target"),
            undoes: vec![1],
            mounts: vec![path("/boot")],
            steps: vec![step],
            dir_times: vec![(path("/"), Timestamp { secs: -1, nanos: 5 })],
            dir_times_before: Vec::new(),
            settled: Vec::new(),
        }
    }

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        let bytes = plan().encode().expect("encodes");
        assert_eq!(Plan::decode(&bytes), Ok(plan()));
    }

    #[test]
    fn every_damaged_byte_and_every_cut_is_noticed() {
        let bytes = plan().encode().expect("encodes");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Plan::decode(&damaged).is_err(), "byte {at}");
            assert!(Plan::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        let mut newer = bytes;
        newer[4] = 2;
        assert_eq!(Plan::decode(&newer), Err(PlanError::Newer(2)));
    }
}
