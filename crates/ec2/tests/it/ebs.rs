//! The EBS direct interface in memory, as strict as its documentation: sizes, checksums, lineage,
//! counts, tokens, states. What does not hold is a `ValidationException`, and is remembered.

use std::collections::BTreeMap;
use std::io::Write as _;

use aws_smithy_types::base64;
use sha2::{Digest as _, Sha256};

/// The only length of a block.
pub(crate) const BLOCK_LEN: usize = 524_288;

/// What a call that fails is answered with: status, code, message.
pub(crate) type Refusal = (u16, &'static str, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Pending,
    Completed,
}

/// A block's content, shared between parents and children.
pub(crate) type Content = std::sync::Arc<Vec<u8>>;

#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) status: Status,
    /// So often it is still seen as pending, once its completion was asked for.
    looks_left: Option<usize>,
    pub(crate) volume_gib: u64,
    pub(crate) parent: Option<String>,
    pub(crate) encrypted: bool,
    pub(crate) token: String,
    /// What was asked for: the same token must not ask for anything else.
    request: String,
    /// All that it has, its parent's included.
    pub(crate) blocks: BTreeMap<u32, Content>,
    /// What was put into it, with checksums.
    pub(crate) put: BTreeMap<u32, Vec<u8>>,
}

impl Snapshot {
    /// One look less until it is complete, if that was asked for.
    fn be_looked_at(&mut self) {
        match &mut self.looks_left {
            Some(0) => self.status = Status::Completed,
            Some(left) => *left -= 1,
            None => {}
        }
    }
}

/// All snapshots, and what was done.
#[derive(Debug, Default)]
pub(crate) struct Ebs {
    pub(crate) snapshots: BTreeMap<String, Snapshot>,
    /// Puts that were taken, by their order: (snapshot, index).
    pub(crate) puts: Vec<(String, u32)>,
    /// How often snapshots are still seen as pending after their completion was asked for.
    pub(crate) looks: usize,
    /// Everything that was refused as invalid.
    pub(crate) invalid: Vec<String>,
    /// Encrypts every snapshot that has no parent, and refuses unencrypted parents, as an account can
    /// be set to do.
    pub(crate) encrypts_by_default: bool,
    /// Blocks' tokens of listings before this one have expired.
    pub(crate) listing: u64,
    /// Expires tokens once so many blocks were read.
    pub(crate) expire_after: Option<usize>,
    reads: usize,
}

/// A request to start a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) volume_gib: u64,
    pub(crate) parent: Option<String>,
    pub(crate) token: String,
    pub(crate) encrypted: Option<bool>,
}

fn invalid(why: impl Into<String>) -> Refusal {
    (400, "ValidationException", why.into())
}

/// A page of a listing: blocks with tokens, and where the next one starts.
pub(crate) type Page = (Vec<(u32, String)>, Option<u32>);

impl Ebs {
    /// The snapshot that this token has already started, if one has.
    pub(crate) fn started(&self, start: &Start) -> Result<Option<String>, Refusal> {
        let request = format!("{start:?}");
        match self.snapshots.iter().find(|(_, snapshot)| snapshot.token == start.token) {
            Some((id, snapshot)) if snapshot.request == request => Ok(Some(id.clone())),
            Some(_) => Err((503, "ConflictException", "the token asked for something else".into())),
            None => Ok(None),
        }
    }

    pub(crate) fn check_start(&self, start: &Start) -> Result<(), Refusal> {
        let Some(parent) = &start.parent else { return Ok(()) };
        let parent = self.get(parent)?;
        if start.encrypted.is_some() {
            return Err(invalid("Encrypted must not be given with a parent"));
        }
        if parent.status != Status::Completed {
            return Err(invalid("the parent is not completed"));
        }
        if start.volume_gib < parent.volume_gib {
            return Err(invalid("the volume is smaller than the parent's"));
        }
        if self.encrypts_by_default && !parent.encrypted {
            return Err(invalid("the parent is not encrypted"));
        }
        Ok(())
    }

    pub(crate) fn start(&mut self, id: &str, start: &Start) -> &Snapshot {
        let parent = start.parent.as_ref().and_then(|parent| self.snapshots.get(parent)).cloned();
        let snapshot = Snapshot {
            status: Status::Pending,
            looks_left: None,
            volume_gib: start.volume_gib,
            parent: start.parent.clone(),
            encrypted: match &parent {
                Some(parent) => parent.encrypted,
                None => self.encrypts_by_default || start.encrypted == Some(true),
            },
            token: start.token.clone(),
            request: format!("{start:?}"),
            blocks: parent.map(|parent| parent.blocks).unwrap_or_default(),
            put: BTreeMap::new(),
        };
        self.snapshots.entry(id.to_owned()).or_insert(snapshot)
    }

    pub(crate) fn get(&self, id: &str) -> Result<&Snapshot, Refusal> {
        let missing = || (404, "ResourceNotFoundException", format!("there is no snapshot {id}"));
        self.snapshots.get(id).ok_or_else(missing)
    }

    pub(crate) fn put(
        &mut self,
        id: &str,
        index: u32,
        header: impl Fn(&str) -> Option<String>,
        body: &[u8],
    ) -> Result<String, Refusal> {
        let snapshot = self.get(id)?;
        if snapshot.status != Status::Pending || snapshot.looks_left.is_some() {
            return Err(invalid("the snapshot takes no more blocks"));
        }
        if body.len() != BLOCK_LEN || header("x-amz-data-length").as_deref() != Some("524288") {
            return Err(invalid(format!("a block has {BLOCK_LEN} bytes, not {}", body.len())));
        }
        if u64::from(index) >= snapshot.volume_gib << 11 {
            return Err(invalid(format!("block {index} is beyond the volume's end")));
        }
        if header("x-amz-checksum-algorithm").as_deref() != Some("SHA256") {
            return Err(invalid("the checksum's algorithm is not SHA256"));
        }
        let sum = Sha256::digest(body).to_vec();
        let text = base64::encode(&sum);
        if header("x-amz-checksum").as_deref() != Some(&text) {
            return Err(invalid(format!("the checksum of block {index} is wrong")));
        }
        self.puts.push((id.to_owned(), index));
        if let Some(snapshot) = self.snapshots.get_mut(id) {
            snapshot.put.insert(index, sum);
            snapshot.blocks.insert(index, Content::new(body.to_vec()));
        }
        Ok(text)
    }

    pub(crate) fn complete(
        &mut self,
        id: &str,
        header: impl Fn(&str) -> Option<String>,
    ) -> Result<(), Refusal> {
        let snapshot = self.get(id)?;
        if snapshot.status != Status::Pending || snapshot.looks_left.is_some() {
            return Err(invalid("the snapshot is not pending, or its completion was asked for"));
        }
        let count = snapshot.put.len().to_string();
        if header("x-amz-changedblockscount") != Some(count.clone()) {
            return Err(invalid(format!("{count} blocks were put")));
        }
        if header("x-amz-checksum-aggregation-method").as_deref() != Some("LINEAR") {
            return Err(invalid("the aggregation is not LINEAR"));
        }
        let all: Vec<u8> = snapshot.put.values().flatten().copied().collect();
        if header("x-amz-checksum") != Some(base64::encode(Sha256::digest(all))) {
            return Err(invalid("the checksum over all blocks is wrong"));
        }
        let looks = self.looks;
        if let Some(snapshot) = self.snapshots.get_mut(id) {
            snapshot.looks_left = Some(looks);
            snapshot.be_looked_at();
        }
        Ok(())
    }

    /// Somebody looks at the states of these; gives which are still pending then.
    pub(crate) fn look(&mut self, shown: impl Fn(&str) -> bool) -> Vec<String> {
        let shown = self.snapshots.iter_mut().filter(|(id, _)| shown(id));
        let pending = shown.filter_map(|(id, snapshot)| {
            let is_pending = snapshot.status == Status::Pending;
            snapshot.be_looked_at();
            is_pending.then(|| id.clone())
        });
        pending.collect()
    }

    /// At most `most` of the blocks from `from` on.
    pub(crate) fn list(&self, id: &str, from: u32, most: usize) -> Result<Page, Refusal> {
        let snapshot = self.get(id)?;
        if snapshot.status != Status::Completed {
            return Err(invalid("the snapshot is not completed"));
        }
        let token = |index: &u32| (*index, format!("{id}-{index}-{}", self.listing));
        let mut rest = snapshot.blocks.range(from..).map(|(index, _)| index);
        let page: Vec<_> = rest.by_ref().take(most).map(token).collect();
        Ok((page, rest.next().copied()))
    }

    pub(crate) fn read(&mut self, id: &str, index: u32, token: &str) -> Result<Content, Refusal> {
        self.reads += 1;
        if self.expire_after.is_some_and(|after| self.reads > after) {
            self.expire_after = None;
            self.listing += 1;
        }
        if token != format!("{id}-{index}-{}", self.listing) {
            return Err(invalid("the token of the block has expired"));
        }
        let blocks = &self.get(id)?.blocks;
        blocks.get(&index).cloned().ok_or_else(|| invalid("the snapshot has no such block"))
    }

    /// Writes what a volume that is made from the snapshot has into a file.
    pub(crate) fn restore(&self, id: &str, into: &mut std::fs::File) {
        use std::os::unix::fs::FileExt as _;
        let snapshot = self.get(id).expect("the snapshot is there");
        assert_eq!(snapshot.status, Status::Completed, "{id}");
        into.set_len(snapshot.volume_gib << 30).expect("a hole");
        for (index, block) in &snapshot.blocks {
            into.write_all_at(block, u64::from(*index) * BLOCK_LEN as u64).expect("written");
        }
        into.flush().expect("written");
    }
}
