//! Instances and their receipts.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vireo_model::{Digest, ImageName};

use crate::error::{Detail, StoreError, io_error};
use crate::{Store, names_in, read_record};

/// How many receipts of one instance are kept.
pub const RECEIPTS_KEPT: usize = 100;

/// One machine: `instances/<id>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its identity; one safe file name.
    pub id: String,
    /// What it calls itself.
    pub name: String,
    /// Its image.
    pub image: ImageName,
    /// Digest of the version that it last said it is on.
    pub tree: Digest,
    /// When it was enrolled.
    pub enrolled: Timestamp,
    /// When it last asked or reported, roughly.
    pub last_seen: Timestamp,
    /// Outcome of its last receipt.
    pub last_outcome: Option<String>,
    /// How the cloud calls its machine, if it said so when it was enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_id: Option<String>,
}

/// What an update did to an instance: `instances/<id>/receipts/<n>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiptRecord {
    /// Digest of the version that the instance was on afterwards.
    pub tree: Digest,
    /// One word.
    pub outcome: String,
    /// When it arrived.
    pub received: Timestamp,
    /// The receipt itself.
    pub receipt: serde_json::Value,
}

impl Store {
    /// Writes an instance's record, its first or a later one.
    ///
    /// A crash leaves the one before or this one.
    ///
    /// # Errors
    ///
    /// `NotFound` if the identity is no file name; `NoSpace`, `Io`.
    pub fn put_instance(&self, record: &InstanceRecord) -> Result<(), StoreError> {
        self.write_record(&self.instance_path(&record.id)?, record)
    }

    /// An instance's record.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such instance; `Io`, `Corrupt`.
    pub fn instance(&self, id: &str) -> Result<InstanceRecord, StoreError> {
        let path = self.instance_path(id)?;
        read_record(&path)?.ok_or_else(|| Detail::NoInstance { id: id.to_owned() }.into())
    }

    /// All instances, in order of their identities.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`.
    pub fn instances(&self) -> Result<Vec<InstanceRecord>, StoreError> {
        let mut instances = Vec::new();
        for name in names_in(&self.root.join("instances"))? {
            if let Some(id) = name.strip_suffix(".json") {
                instances.push(self.instance(id)?);
            }
        }
        Ok(instances)
    }

    /// Keeps a receipt, unless it is the last one again, and drops the oldest beyond
    /// [`RECEIPTS_KEPT`].
    ///
    /// A crash leaves it or not.
    ///
    /// # Errors
    ///
    /// `NotFound` if the identity is no file name; `NoSpace`, `Io`, `Corrupt`.
    pub fn add_receipt(&self, id: &str, receipt: &ReceiptRecord) -> Result<(), StoreError> {
        let directory = self.receipts_dir(id)?;
        self.make_dir(directory.parent().unwrap_or(&self.root))?;
        self.make_dir(&directory)?;
        let numbers = self.receipt_numbers(id)?;
        let same = |last: &ReceiptRecord| {
            last.receipt == receipt.receipt
                && last.outcome == receipt.outcome
                && last.tree == receipt.tree
        };
        if self.last_receipt(id)?.as_ref().is_some_and(same) {
            return Ok(());
        }
        let mut number = numbers.last().copied().unwrap_or(0) + 1;
        while !self.create_record(&directory.join(format!("{number}.json")), receipt)? {
            number += 1;
        }
        for number in numbers.iter().rev().skip(RECEIPTS_KEPT - 1) {
            let path = directory.join(format!("{number}.json"));
            self.writes.remove(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    /// The last receipt of an instance, if it sent one.
    ///
    /// # Errors
    ///
    /// `NotFound` if the identity is no file name; `Io`, `Corrupt`.
    pub fn last_receipt(&self, id: &str) -> Result<Option<ReceiptRecord>, StoreError> {
        match self.receipt_numbers(id)?.last() {
            Some(number) => read_record(&self.receipts_dir(id)?.join(format!("{number}.json"))),
            None => Ok(None),
        }
    }

    fn receipt_numbers(&self, id: &str) -> Result<Vec<u64>, StoreError> {
        let names = names_in(&self.receipts_dir(id)?)?;
        let mut numbers: Vec<u64> =
            names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn instance_path(&self, id: &str) -> Result<PathBuf, StoreError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if id.is_empty() || id.len() > 64 || !id.bytes().all(plain) {
            return Err(Detail::NoInstance { id: id.escape_default().to_string() }.into());
        }
        Ok(self.root.join("instances").join(format!("{id}.json")))
    }

    fn receipts_dir(&self, id: &str) -> Result<PathBuf, StoreError> {
        Ok(self.instance_path(id)?.with_extension("").join("receipts"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Durable, ErrorKind};

    fn receipt(outcome: &str, number: usize) -> ReceiptRecord {
        ReceiptRecord {
            tree: Digest::of(b"t"),
            outcome: outcome.into(),
            received: Timestamp::UNIX_EPOCH,
            receipt: serde_json::json!({ "n": number }),
        }
    }

    #[test]
    fn a_record_from_before_clouds_were_noted_is_read_and_written_as_it_was() {
        let tree = Digest::of(b"t");
        let time = "1970-01-01T00:00:00Z";
        let json = format!(
            r#"{{"id":"i-1","name":"web-1","image":"web","tree":"{tree}","enrolled":"{time}","last_seen":"{time}","last_outcome":null}}"#
        );
        let record: InstanceRecord = serde_json::from_str(&json).expect("a record");
        assert_eq!(record.cloud_id, None);
        assert_eq!(serde_json::to_string(&record).expect("it is plain data"), json);
    }

    #[test]
    fn the_last_receipts_are_kept_and_a_repeated_one_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store =
            Store::init(dir.path(), Timestamp::UNIX_EPOCH, Arc::new(Durable)).expect("made");
        assert_eq!(store.last_receipt("i-1").expect("readable"), None);
        for number in 0..RECEIPTS_KEPT + 5 {
            store.add_receipt("i-1", &receipt("done", number)).expect("kept");
        }
        let last = receipt("undone", 1000);
        store.add_receipt("i-1", &last).expect("kept");
        store.add_receipt("i-1", &last).expect("known already");
        assert_eq!(store.last_receipt("i-1").expect("readable"), Some(last));
        let numbers = store.receipt_numbers("i-1").expect("readable");
        assert_eq!(numbers.len(), RECEIPTS_KEPT);
        assert_eq!(numbers.last(), Some(&(RECEIPTS_KEPT as u64 + 6)));
    }

    #[test]
    fn an_identity_that_is_no_file_name_is_unknown() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store =
            Store::init(dir.path(), Timestamp::UNIX_EPOCH, Arc::new(Durable)).expect("made");
        for id in ["", "..", "a/b", "a.json", &"a".repeat(65)] {
            let error = store.instance(id).expect_err("no instance");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{id}");
        }
    }
}
