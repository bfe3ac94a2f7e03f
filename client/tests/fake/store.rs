//! The data: one ordered map, one revision.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use kv_proto::kv::v1 as proto;
use proto::precondition::Condition;
use sha2::{Digest, Sha256};

#[derive(Clone)]
pub struct Record {
    pub value: Bytes,
    pub uploaded: bool,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub version: u64,
}

pub struct Store {
    pub records: BTreeMap<Bytes, Record>,
    pub revision: u64,
    /// Uploads that broke and may be continued, by id.
    pub partial: BTreeMap<Bytes, BytesMut>,
    /// Bytes of uploads that came, whole or not.
    pub received_bytes: u64,
    /// Uploads whose stream did not end in order.
    pub interrupted_uploads: u32,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            records: BTreeMap::new(),
            revision: 1,
            partial: BTreeMap::new(),
            received_bytes: 0,
            interrupted_uploads: 0,
        }
    }
}

impl Record {
    pub fn blob(&self) -> proto::Blob {
        proto::Blob {
            size_bytes: self.value.len() as u64,
            sha256: Bytes::copy_from_slice(&Sha256::digest(&self.value)),
        }
    }
}

impl Store {
    /// The bytes that came of an upload so far.
    pub fn take_partial(&mut self, upload_id: &Bytes) -> BytesMut {
        self.partial.remove(upload_id).unwrap_or_default()
    }

    pub fn describe(&self, key: &Bytes, with_value: bool) -> Option<proto::KeyValue> {
        let record = self.records.get(key)?;
        let value = match (record.uploaded, with_value) {
            (true, _) => Some(proto::key_value::Value::Blob(record.blob())),
            (false, true) => Some(proto::key_value::Value::Inline(record.value.clone())),
            (false, false) => None,
        };
        Some(proto::KeyValue {
            key: key.clone(),
            create_revision: record.create_revision,
            mod_revision: record.mod_revision,
            version: record.version,
            value,
        })
    }

    pub fn holds(&self, key: &Bytes, precondition: Option<proto::Precondition>) -> bool {
        let record = self.records.get(key);
        match precondition.and_then(|precondition| precondition.condition) {
            None => true,
            Some(Condition::Absent(_)) => record.is_none(),
            Some(Condition::Present(_)) => record.is_some(),
            Some(Condition::ModRevision(revision)) => {
                record.is_some_and(|record| record.mod_revision == revision)
            }
            Some(Condition::Version(version)) => record.is_some_and(|record| record.version == version),
        }
    }

    pub fn put(&mut self, request: proto::PutRequest, uploaded: bool) -> proto::PutResponse {
        let previous = self.describe(&request.key, true);
        if !self.holds(&request.key, request.precondition) {
            let previous = self.describe(&request.key, false);
            return proto::PutResponse { previous, ..Default::default() };
        }
        self.revision += 1;
        let (create_revision, version) = self
            .records
            .get(&request.key)
            .map_or((self.revision, 0), |old| (old.create_revision, old.version));
        let record = Record {
            value: request.value,
            uploaded,
            create_revision,
            mod_revision: self.revision,
            version: version + 1,
        };
        self.records.insert(request.key, record);
        proto::PutResponse {
            header: None,
            applied: true,
            previous: previous.filter(|_| request.return_previous),
            mod_revision: self.revision,
            version: version + 1,
            replayed: false,
        }
    }

    pub fn delete(&mut self, request: proto::DeleteRequest) -> proto::DeleteResponse {
        let previous = self.describe(&request.key, true);
        if previous.is_none() || !self.holds(&request.key, request.precondition) {
            return proto::DeleteResponse { previous, ..Default::default() };
        }
        self.revision += 1;
        self.records.remove(&request.key);
        proto::DeleteResponse {
            header: None,
            applied: true,
            previous: previous.filter(|_| request.return_previous),
            replayed: false,
        }
    }

    pub fn get(&self, request: &proto::GetRequest) -> proto::GetResponse {
        proto::GetResponse { header: None, kv: self.describe(&request.key, !request.metadata_only) }
    }

    pub fn compare(&self, compare: &proto::Compare) -> bool {
        use proto::compare::{Operator, Target};
        let record = self.records.get(&compare.key);
        let number = |field: fn(&Record) -> u64| record.map_or(0, field);
        let order = match &compare.target {
            None => return false,
            Some(Target::Present(present)) => record.is_some().cmp(present),
            Some(Target::ModRevision(revision)) => number(|record| record.mod_revision).cmp(revision),
            Some(Target::CreateRevision(revision)) => number(|record| record.create_revision).cmp(revision),
            Some(Target::Version(version)) => number(|record| record.version).cmp(version),
            Some(Target::Value(value)) => match record {
                Some(record) => record.value.cmp(value),
                None => return false,
            },
        };
        match compare.operator() {
            Operator::Unspecified | Operator::Equal => order.is_eq(),
            Operator::NotEqual => order.is_ne(),
            Operator::Less => order.is_lt(),
            Operator::Greater => order.is_gt(),
        }
    }

    /// The keys of a range, in the order asked for.
    pub fn keys(&self, range: &proto::KeyRange, reverse: bool) -> Vec<Bytes> {
        let inside = |key: &&Bytes| {
            key.starts_with(&range.prefix)
                && **key >= range.start
                && (range.end.is_empty() || **key < range.end)
        };
        let mut keys: Vec<Bytes> = self.records.keys().filter(inside).cloned().collect();
        if reverse {
            keys.reverse();
        }
        keys
    }
}
