//! The state machine against a plain model, and the rules that a model would only repeat.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

#[path = "state_apply/meta.rs"]
mod meta;
mod state_support;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use kv_proto::{
    disk::v1::{Get, Operation, Txn, TxnOperation, operation::Kind, txn_operation},
    kv::v1::{Compare, compare, key_value, precondition::Condition},
    peer::v1::{Outcome, ReadBlob, ScanPage, outcome, read_request, read_response, txn_result},
};
use kv_topology::{KeyspaceId, Slot};
use kvnode::state::{
    keys::{Kind as RecordKind, Name},
    memory::MemoryEngine,
};
use proptest::prelude::*;
use state_support::*;

const CHUNK: usize = 256 << 10;
/// Slots up to this one are owned; of the keys below, some are beyond.
const LAST_SLOT: u32 = 2_500;
const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

fn fresh() -> Driven {
    Driven::open(Arc::new(MemoryEngine::new()), REPLICA).unwrap()
}

fn owning_all() -> Driven {
    let driven = fresh();
    driven.apply(0, own_all());
    driven
}

// ---- The model -----------------------------------------------------------------------------------------------

#[derive(Clone, Debug, PartialEq)]
enum ModelValue {
    Inline(Vec<u8>),
    Blob(u8, u64),
}

#[derive(Clone, Debug, PartialEq)]
struct ModelKey {
    create: u64,
    modified: u64,
    version: u64,
    value: ModelValue,
}

#[derive(Clone, Debug)]
struct ModelUpload {
    key: String,
    precondition: Option<Condition>,
    chunks: Vec<Vec<u8>>,
    touched: u64,
}

/// The rules said once more, as plainly as possible, with one map for each kind of thing.
#[derive(Default)]
struct Model {
    revision: u64,
    time: u64,
    keys: BTreeMap<String, ModelKey>,
    uploads: BTreeMap<u8, ModelUpload>,
    /// Chunks of values that a key has.
    blobs: BTreeMap<u8, Vec<Vec<u8>>>,
}

/// What both sides are asked: did it happen, and what was seen.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Refused(String),
    Write { applied: bool, modified: u64, version: u64, previous: Option<u64> },
    Range { deleted: u64, next: String },
    Txn { succeeded: bool, results: Vec<Seen> },
    Read(Option<(u64, Option<Vec<u8>>)>),
    Upload { applied: bool, next: u32, stored: u64, modified: Option<u64> },
    Done,
}

#[derive(Clone, Debug)]
enum Step {
    Put { key: usize, value: u8, condition: Option<Condition>, previous: bool },
    Delete { key: usize, condition: Option<Condition>, previous: bool },
    DeleteRange { start: usize, end: usize, limit: u32 },
    Txn { compare: Vec<(usize, u64)>, then: Vec<TxnStep>, other: Vec<TxnStep> },
    Begin { key: usize, id: u8, condition: Option<Condition> },
    Chunk { key: usize, id: u8, number: u32, full: bool, fill: u8 },
    Commit { key: usize, id: u8, chunks: u32, size: u64 },
    Abort { key: usize, id: u8 },
    Tick,
}

#[derive(Clone, Debug)]
enum TxnStep {
    Get(usize),
    Put(usize, u8),
    Delete(usize),
}

fn owned(key: &str) -> bool {
    u32::from(Slot::of(KeyspaceId(0), key.as_bytes()).get()) <= LAST_SLOT
}

fn wrong_shard() -> Seen {
    Seen::Refused("WRONG_SHARD".to_owned())
}

fn refused(reason: &str) -> Seen {
    Seen::Refused(reason.to_owned())
}

impl Model {
    fn holds(&self, key: &str, condition: Option<&Condition>) -> bool {
        let current = self.keys.get(key);
        match condition {
            None => true,
            Some(Condition::Absent(wanted)) => current.is_none() == *wanted,
            Some(Condition::Present(wanted)) => current.is_some() == *wanted,
            Some(Condition::ModRevision(wanted)) => current.map_or(0, |key| key.modified) == *wanted,
            Some(Condition::Version(wanted)) => current.map_or(0, |key| key.version) == *wanted,
        }
    }

    fn remove(&mut self, key: &str) -> Option<ModelKey> {
        let old = self.keys.remove(key);
        if let Some(ModelKey { value: ModelValue::Blob(id, _), .. }) = &old {
            self.blobs.remove(id);
        }
        old
    }

    fn set(&mut self, key: &str, value: ModelValue, revision: u64) -> (Option<u64>, u64) {
        let old = self.remove(key);
        let (create, version) = old.as_ref().map_or((revision, 1), |old| (old.create, old.version + 1));
        self.keys.insert(key.to_owned(), ModelKey { create, modified: revision, version, value });
        (old.map(|old| old.modified), version)
    }

    fn failed(&self, key: &str) -> Seen {
        let previous = self.keys.get(key).map(|key| key.modified);
        Seen::Write { applied: false, modified: 0, version: 0, previous }
    }

    fn step(&mut self, step: &Step) -> Seen {
        match step {
            Step::Put { key, value, condition, previous } => {
                let key = KEYS[*key];
                if !owned(key) {
                    return wrong_shard();
                }
                if !self.holds(key, condition.as_ref()) {
                    return self.failed(key);
                }
                self.revision += 1;
                let (old, version) = self.set(key, ModelValue::Inline(vec![*value; 3]), self.revision);
                let previous = old.filter(|_| *previous);
                Seen::Write { applied: true, modified: self.revision, version, previous }
            }
            Step::Delete { key, condition, previous } => {
                let key = KEYS[*key];
                if !owned(key) {
                    return wrong_shard();
                }
                if !self.holds(key, condition.as_ref()) {
                    return self.failed(key);
                }
                let old = self.remove(key);
                self.revision += u64::from(old.is_some());
                let seen = old.as_ref().map(|old| old.modified).filter(|_| *previous);
                Seen::Write { applied: old.is_some(), modified: 0, version: 0, previous: seen }
            }
            Step::DeleteRange { start, end, limit } => {
                let inside = |key: &str| key >= KEYS[*start] && key < KEYS[*end];
                let mut found: Vec<_> = self.keys.keys().filter(|key| inside(key)).cloned().collect();
                let next = found.get(*limit as usize).cloned().unwrap_or_default();
                found.truncate(*limit as usize);
                for key in &found {
                    self.remove(key);
                }
                self.revision += u64::from(!found.is_empty());
                Seen::Range { deleted: found.len() as u64, next }
            }
            Step::Txn { compare, then, other } => self.txn(compare, then, other),
            Step::Begin { .. } | Step::Chunk { .. } | Step::Commit { .. } | Step::Abort { .. } => {
                self.upload(step)
            }
            Step::Tick => {
                self.uploads.retain(|_, upload| upload.touched + 600_000 > self.time);
                Seen::Done
            }
        }
    }

    fn txn(&mut self, compare: &[(usize, u64)], then: &[TxnStep], other: &[TxnStep]) -> Seen {
        let key_of = |step: &TxnStep| match step {
            TxnStep::Get(key) | TxnStep::Put(key, _) | TxnStep::Delete(key) => *key,
        };
        for branch in [then, other] {
            let mut written: Vec<_> =
                branch.iter().filter(|step| !matches!(step, TxnStep::Get(_))).map(key_of).collect();
            written.sort_unstable();
            if written.windows(2).any(|pair| pair[0] == pair[1]) {
                return refused("INVALID_ARGUMENT");
            }
        }
        let mut all = compare.iter().map(|(key, _)| *key).chain(then.iter().chain(other).map(key_of));
        if all.any(|key| !owned(KEYS[key])) {
            return wrong_shard();
        }
        let succeeded = compare
            .iter()
            .all(|(key, version)| self.keys.get(KEYS[*key]).map_or(0, |key| key.version) == *version);
        let revision = self.revision + 1;
        let mut changed = false;
        let mut results = Vec::new();
        for step in if succeeded { then } else { other } {
            results.push(match step {
                TxnStep::Get(key) => Seen::Read(self.keys.get(KEYS[*key]).map(|key| match &key.value {
                    ModelValue::Inline(value) => (key.modified, Some(value.clone())),
                    ModelValue::Blob(..) => (key.modified, None),
                })),
                TxnStep::Put(key, value) => {
                    changed = true;
                    let (_, version) = self.set(KEYS[*key], ModelValue::Inline(vec![*value; 3]), revision);
                    Seen::Write { applied: true, modified: revision, version, previous: None }
                }
                TxnStep::Delete(key) => {
                    let applied = self.remove(KEYS[*key]).is_some();
                    changed |= applied;
                    Seen::Write { applied, modified: 0, version: 0, previous: None }
                }
            });
        }
        self.revision += u64::from(changed);
        Seen::Txn { succeeded, results }
    }

    fn upload(&mut self, step: &Step) -> Seen {
        let (Step::Begin { key, .. }
        | Step::Chunk { key, .. }
        | Step::Commit { key, .. }
        | Step::Abort { key, .. }) = step
        else {
            unreachable!()
        };
        let key = KEYS[*key];
        if !owned(key) {
            return wrong_shard();
        }
        match step {
            Step::Begin { id, condition, .. } => {
                if let Some(upload) = self.uploads.get(id) {
                    return if upload.key == key { upload.seen(true) } else { refused("INVALID_ARGUMENT") };
                }
                let named = matches!(self.keys.get(key), Some(ModelKey { value: ModelValue::Blob(blob, _), .. }) if blob == id);
                if named || self.blobs.get(id).is_some_and(|chunks| !chunks.is_empty()) {
                    return refused("UPLOAD_COMMITTED");
                }
                if !self.holds(key, condition.as_ref()) {
                    return self.not_applied(key);
                }
                let upload = ModelUpload {
                    key: key.to_owned(),
                    precondition: *condition,
                    chunks: Vec::new(),
                    touched: self.time,
                };
                let seen = upload.seen(true);
                self.uploads.insert(*id, upload);
                seen
            }
            Step::Chunk { id, number, full, fill, .. } => self.chunk(key, *id, *number, *full, *fill),
            Step::Commit { id, chunks, size, .. } => self.commit(key, *id, *chunks, *size),
            Step::Abort { id, .. } => match self.uploads.get(id).filter(|upload| upload.key == key) {
                Some(upload) => {
                    let stored = upload.stored();
                    self.uploads.remove(id);
                    Seen::Upload { applied: true, next: 0, stored, modified: None }
                }
                None => Seen::Upload { applied: false, next: 0, stored: 0, modified: None },
            },
            _ => unreachable!(),
        }
    }

    fn not_applied(&self, key: &str) -> Seen {
        let modified = self.keys.get(key).map(|key| key.modified);
        Seen::Upload { applied: false, next: 0, stored: 0, modified }
    }

    fn chunk(&mut self, key: &str, id: u8, number: u32, full: bool, fill: u8) -> Seen {
        let data = vec![fill; if full { CHUNK } else { 5 }];
        let time = self.time;
        let Some(upload) = self.uploads.get_mut(&id).filter(|upload| upload.key == key) else {
            return refused("UPLOAD_NOT_FOUND");
        };
        let next = u32::try_from(upload.chunks.len()).unwrap();
        if number + 1 == next {
            return if upload.chunks[number as usize] == data {
                upload.seen(true)
            } else {
                refused("INVALID_ARGUMENT")
            };
        }
        if number != next {
            return upload.seen(false);
        }
        if upload.chunks.last().is_some_and(|last| last.len() < CHUNK) {
            return refused("INVALID_ARGUMENT");
        }
        upload.chunks.push(data);
        upload.touched = time;
        upload.seen(true)
    }

    fn commit(&mut self, key: &str, id: u8, chunks: u32, size: u64) -> Seen {
        if let Some(ModelKey { value: ModelValue::Blob(named, size), modified, .. }) = self.keys.get(key)
            && *named == id
        {
            let next = u32::try_from(self.blobs[&id].len()).unwrap();
            return Seen::Upload { applied: true, next, stored: *size, modified: Some(*modified) };
        }
        let Some(upload) = self.uploads.get(&id).filter(|upload| upload.key == key).cloned() else {
            return refused("UPLOAD_NOT_FOUND");
        };
        if (upload.chunks.len() as u64, upload.stored()) != (u64::from(chunks), size) {
            return refused("UPLOAD_INCOMPLETE");
        }
        self.uploads.remove(&id);
        if !self.holds(key, upload.precondition.as_ref()) {
            return self.not_applied(key);
        }
        self.revision += 1;
        self.set(key, ModelValue::Blob(id, size), self.revision);
        self.blobs.insert(id, upload.chunks);
        Seen::Upload { applied: true, next: chunks, stored: size, modified: Some(self.revision) }
    }
}

impl ModelUpload {
    fn stored(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }

    fn seen(&self, applied: bool) -> Seen {
        let next = u32::try_from(self.chunks.len()).unwrap();
        Seen::Upload { applied, next, stored: self.stored(), modified: None }
    }
}

// ---- Both sides ----------------------------------------------------------------------------------------------

fn txn_operation(step: &TxnStep) -> TxnOperation {
    let operation = match step {
        TxnStep::Get(key) => txn_operation::Operation::Get(Get {
            key: Bytes::from_static(KEYS[*key].as_bytes()),
            metadata_only: false,
        }),
        TxnStep::Put(key, value) => txn_operation::Operation::Put(put(KEYS[*key], &[*value; 3])),
        TxnStep::Delete(key) => txn_operation::Operation::Delete(delete(KEYS[*key])),
    };
    TxnOperation { operation: Some(operation) }
}

fn to_operation(step: &Step) -> Operation {
    let precondition = |chosen: &Option<Condition>| chosen.and_then(condition);
    operation(match step {
        Step::Put { key, value, condition, previous } => {
            let mut put = put(KEYS[*key], &[*value; 3]);
            put.precondition = precondition(condition);
            put.return_previous = *previous;
            Kind::Put(put)
        }
        Step::Delete { key, condition, previous } => {
            let mut delete = delete(KEYS[*key]);
            delete.precondition = precondition(condition);
            delete.return_previous = *previous;
            Kind::Delete(delete)
        }
        Step::DeleteRange { start, end, limit } => {
            Kind::DeleteRange(delete_range(KEYS[*start], KEYS[*end], *limit))
        }
        Step::Txn { compare, then, other } => Kind::Txn(Txn {
            compare: compare
                .iter()
                .map(|(key, version)| Compare {
                    key: Bytes::from_static(KEYS[*key].as_bytes()),
                    target: Some(compare::Target::Version(*version)),
                    operator: 0,
                })
                .collect(),
            then: then.iter().map(txn_operation).collect(),
            r#else: other.iter().map(txn_operation).collect(),
        }),
        Step::Begin { key, id, condition } => {
            let mut begin = begin(KEYS[*key], *id);
            begin.precondition = precondition(condition);
            Kind::UploadBegin(begin)
        }
        Step::Chunk { key, id, number, full, fill } => {
            Kind::UploadChunk(chunk(KEYS[*key], *id, *number, &vec![*fill; if *full { CHUNK } else { 5 }]))
        }
        Step::Commit { key, id, chunks, size } => Kind::UploadCommit(commit(KEYS[*key], *id, *chunks, *size)),
        Step::Abort { key, id } => Kind::UploadAbort(abort(KEYS[*key], *id)),
        Step::Tick => return tick(),
    })
}

fn seen(result: outcome::Result) -> Seen {
    let modified = |kv: Option<kv_proto::kv::v1::KeyValue>| kv.map(|kv| kv.mod_revision);
    match result {
        outcome::Result::Refusal(refusal) => Seen::Refused(refusal.reason),
        outcome::Result::Put(put) => Seen::Write {
            applied: put.applied,
            modified: put.mod_revision,
            version: put.version,
            previous: modified(put.previous),
        },
        outcome::Result::Delete(delete) => Seen::Write {
            applied: delete.applied,
            modified: 0,
            version: 0,
            previous: modified(delete.previous),
        },
        outcome::Result::DeleteRange(range) => {
            Seen::Range { deleted: range.deleted, next: String::from_utf8(range.next_key.to_vec()).unwrap() }
        }
        outcome::Result::Upload(upload) => Seen::Upload {
            applied: upload.applied,
            next: upload.next_chunk,
            stored: upload.stored_bytes,
            modified: modified(upload.kv),
        },
        outcome::Result::Txn(txn) => Seen::Txn {
            succeeded: txn.succeeded,
            results: txn
                .results
                .into_iter()
                .map(|result| match result.result.unwrap() {
                    txn_result::Result::Put(put) => seen(outcome::Result::Put(put)),
                    txn_result::Result::Delete(delete) => seen(outcome::Result::Delete(delete)),
                    txn_result::Result::Get(get) => Seen::Read(get.kv.map(|kv| match kv.value {
                        Some(key_value::Value::Inline(value)) => (kv.mod_revision, Some(value.to_vec())),
                        Some(key_value::Value::Blob(_)) | None => (kv.mod_revision, None),
                    })),
                })
                .collect(),
        },
        outcome::Result::Done(_) => Seen::Done,
        outcome::Result::Session(_) => unreachable!("sessions have steps of their own"),
        outcome::Result::Meta(_) => unreachable!("not in a data group"),
    }
}

fn any_condition() -> impl Strategy<Value = Option<Condition>> {
    prop_oneof![
        4 => Just(None),
        1 => any::<bool>().prop_map(|wanted| Some(Condition::Absent(wanted))),
        1 => any::<bool>().prop_map(|wanted| Some(Condition::Present(wanted))),
        1 => (0..12_u64).prop_map(|wanted| Some(Condition::ModRevision(wanted))),
        1 => (0..4_u64).prop_map(|wanted| Some(Condition::Version(wanted))),
    ]
}

fn any_txn_step() -> impl Strategy<Value = TxnStep> {
    prop_oneof![
        (0..8_usize).prop_map(TxnStep::Get),
        (0..8_usize, any::<u8>()).prop_map(|(key, value)| TxnStep::Put(key, value)),
        (0..8_usize).prop_map(TxnStep::Delete),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    // Few uploads and keys for them, or nothing ever fits together.
    let (key, id) = (0..4_usize, 1..4_u8);
    prop_oneof![
        4 => (0..8_usize, any::<u8>(), any_condition(), any::<bool>())
            .prop_map(|(key, value, condition, previous)| Step::Put { key, value, condition, previous }),
        2 => (0..8_usize, any_condition(), any::<bool>())
            .prop_map(|(key, condition, previous)| Step::Delete { key, condition, previous }),
        1 => (0..8_usize, 0..8_usize, 1..4_u32)
            .prop_map(|(start, end, limit)| Step::DeleteRange { start, end, limit }),
        3 => (
            prop::collection::vec((0..8_usize, 0..3_u64), 0..2),
            prop::collection::vec(any_txn_step(), 0..3),
            prop::collection::vec(any_txn_step(), 0..3),
        ).prop_map(|(compare, then, other)| Step::Txn { compare, then, other }),
        3 => (key.clone(), id.clone(), any_condition())
            .prop_map(|(key, id, condition)| Step::Begin { key, id, condition }),
        6 => (key.clone(), id.clone(), 0..3_u32, any::<bool>(), 0..2_u8)
            .prop_map(|(key, id, number, full, fill)| Step::Chunk { key, id, number, full, fill }),
        4 => (key.clone(), id.clone(), 0..3_u32, any::<bool>()).prop_map(|(key, id, chunks, full)| {
            let size = u64::from(chunks) * CHUNK as u64;
            let size = if full || chunks == 0 { size } else { size - CHUNK as u64 + 5 };
            Step::Commit { key, id, chunks, size }
        }),
        1 => (key, id).prop_map(|(key, id)| Step::Abort { key, id }),
        1 => Just(Step::Tick),
    ]
}

/// Chunk records in the store, as (upload, number).
fn stored_chunks(driven: &Driven) -> Vec<(u8, usize)> {
    driven
        .dump()
        .keys()
        .filter_map(|name| {
            let name = Name::parse(name).unwrap();
            let number = || u32::from_be_bytes(name.key[16..].try_into().unwrap()) as usize;
            (name.kind == RecordKind::Chunk).then(|| (name.key[0], number()))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(steps in prop::collection::vec((any_step(), 0..200_000_u64), 1..60)) {
        let driven = fresh();
        driven.apply(0, own(0, LAST_SLOT));
        let mut model = Model { revision: 1, ..Model::default() };
        for (step, elapsed) in &steps {
            model.time += elapsed;
            let expected = model.step(step);
            let got = seen(driven.apply(model.time, to_operation(step)));
            prop_assert_eq!(got, expected, "{:?}", step);
            prop_assert_eq!(driven.replica.lock().unwrap().group().revision, model.revision);
        }
        let page = driven.scan(ScanPage::default());
        let keys: BTreeMap<_, _> = page.kvs.iter().map(|kv| {
            let value = match kv.value.clone().unwrap() {
                key_value::Value::Inline(value) => ModelValue::Inline(value.to_vec()),
                key_value::Value::Blob(blob) => ModelValue::Blob(blob.sha256[0], blob.size_bytes),
            };
            let key = String::from_utf8(kv.key.to_vec()).unwrap();
            let (create, modified, version) = (kv.create_revision, kv.mod_revision, kv.version);
            (key, ModelKey { create, modified, version, value })
        }).collect();
        prop_assert_eq!(keys, model.keys);
        // Nothing leaks: the chunks in the store are those of values and of uploads that go on.
        let mut expected: Vec<_> = model.blobs.iter().map(|(id, chunks)| (*id, chunks.len()))
            .chain(model.uploads.iter().map(|(id, upload)| (*id, upload.chunks.len())))
            .flat_map(|(id, chunks)| (0..chunks).map(move |number| (id, number)))
            .collect();
        expected.sort_unstable();
        prop_assert_eq!(stored_chunks(&driven), expected);
    }

    #[test]
    fn batching_leaves_the_same_bytes(
        steps in prop::collection::vec((any_step(), 0..200_000_u64), 1..40),
        cuts in prop::collection::vec(1..9_usize, 40),
    ) {
        let mut entries = vec![proposal(0, 0, vec![own(0, LAST_SLOT)])];
        let mut time = 0;
        for (index, (step, elapsed)) in steps.iter().enumerate() {
            time += elapsed;
            entries.push(proposal(index as u64 + 1, time, vec![to_operation(step), to_operation(step)]));
        }
        let one_by_one = fresh();
        let mut expected = Vec::new();
        for entry in &entries {
            expected.extend(one_by_one.round(std::slice::from_ref(entry)).unwrap());
        }
        let batched = fresh();
        let mut outcomes: Vec<Vec<Outcome>> = Vec::new();
        let mut rest = entries.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (round, later) = rest.split_at((*cut).min(rest.len()));
            outcomes.extend(batched.round(round).unwrap());
            rest = later;
        }
        prop_assert_eq!(outcomes, expected);
        prop_assert_eq!(batched.dump(), one_by_one.dump());
    }

    #[test]
    fn a_crash_and_a_replay_leave_the_same_bytes(
        steps in prop::collection::vec((any_step(), 0..200_000_u64), 1..40),
        faults in prop::collection::vec((0..4_u8, 0..8_usize), 40),
    ) {
        let mut entries = vec![proposal(0, 0, vec![own(0, LAST_SLOT)])];
        let mut time = 0;
        for (index, (step, elapsed)) in steps.iter().enumerate() {
            time += elapsed;
            entries.push(proposal(index as u64 + 1, time, vec![to_operation(step)]));
        }
        let undisturbed = fresh();
        undisturbed.round(&entries).unwrap();
        let engine = Arc::new(MemoryEngine::new());
        let mut driven = Driven::open(engine.clone(), REPLICA).unwrap();
        let mut faults = faults.into_iter();
        loop {
            let next = driven.applied().map_or(0, |applied| usize::try_from(applied).unwrap() + 1);
            let Some(entry) = entries.get(next) else { break };
            driven.round(std::slice::from_ref(entry)).unwrap();
            match faults.next() {
                Some((0, kept)) => {
                    engine.crash(kept);
                    driven = Driven::open(engine.clone(), REPLICA).unwrap();
                }
                Some((1, _)) => kvnode::state::StateEngine::flush(engine.as_ref()).unwrap(),
                Some(_) | None => {}
            }
        }
        prop_assert_eq!(driven.dump(), undisturbed.dump());
    }
}

// ---- Rules by name -------------------------------------------------------------------------------------------

fn reason(result: outcome::Result) -> (String, String) {
    match result {
        outcome::Result::Refusal(refusal) => (refusal.reason, refusal.field),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_group_without_slots_takes_nothing() {
    let driven = fresh();
    assert_eq!(reason(driven.apply(0, operation(Kind::Put(put("k", b"v"))))).0, "WRONG_SHARD");
}

#[test]
fn slots_are_taken_once() {
    let driven = owning_all();
    assert_eq!(seen(driven.apply(0, own_all())), Seen::Done);
    assert_eq!(reason(driven.apply(0, own(0, 5))).0, "SLOTS_OWNED");
    assert_eq!(reason(fresh().apply(0, own(7, 3))).1, "slots[0]");
    assert_eq!(reason(fresh().apply(0, own(0, 4096))).1, "slots[0]");
}

#[test]
fn bad_input_is_refused_with_its_field() {
    let driven = owning_all();
    let field = |operation| reason(driven.apply(0, operation)).1;
    assert_eq!(field(operation(Kind::Put(put("", b"v")))), "key");
    assert_eq!(field(operation(Kind::Put(put(&"k".repeat(4097), b"v")))), "key");
    assert_eq!(field(operation(Kind::Put(put("k", &vec![0; (1 << 20) + 1])))), "value");
    let mut empty = put("k", b"v");
    empty.precondition = Some(kv_proto::kv::v1::Precondition { condition: None });
    assert_eq!(field(operation(Kind::Put(empty))), "precondition");
    let twice = TxnOperation { operation: Some(txn_operation::Operation::Put(put("k", b"v"))) };
    let txn = Txn { then: vec![twice.clone(), twice], ..Txn::default() };
    assert_eq!(field(operation(Kind::Txn(txn))), "then[1].key");
    let mut short = begin("k", 1);
    short.upload_id = Bytes::from_static(b"short");
    assert_eq!(field(operation(Kind::UploadBegin(short))), "upload_id");
    assert!(driven.get("k").is_none());
}

#[test]
fn log_time_never_goes_back() {
    let driven = owning_all();
    driven.apply(5_000, tick());
    driven.apply(3_000, tick());
    assert_eq!(driven.replica.lock().unwrap().group().log_time_ms, 5_000);
}

#[test]
fn an_unknown_operation_stops_the_replica() {
    let driven = owning_all();
    let unknown = Operation { kind: None, ..Operation::default() };
    let before = driven.dump();
    let error =
        driven.round(&[proposal(1, 0, vec![operation(Kind::Put(put("k", b"v"))), unknown])]).unwrap_err();
    assert!(error.contains("does not know"), "{error}");
    assert_eq!(driven.dump(), before, "nothing of the entry was written");
    let error = driven.round(&[proposal(1, 0, vec![tick()])]).unwrap_err();
    assert!(error.contains("stopped before"), "{error}");
}

#[test]
fn entries_out_of_order_stop_the_replica() {
    let driven = owning_all();
    assert!(driven.round(&[proposal(2, 0, vec![tick()])]).unwrap_err().contains("follows"));
}

#[test]
fn a_value_that_changed_since_it_was_proposed_stops_the_replica() {
    let driven = owning_all();
    let mut flipped = put("k", b"value");
    flipped.value_crc32c ^= 1;
    assert!(kvnode::state_machine::validate(&operation(Kind::Put(flipped.clone()))).is_err());
    let error = driven.round(&[proposal(1, 0, vec![operation(Kind::Put(flipped))])]).unwrap_err();
    assert!(error.contains("damaged state of r7"), "{error}");
}

#[test]
fn an_answer_that_would_be_too_large_is_refused_and_nothing_written() {
    let driven = owning_all();
    for key in ["a", "b", "c", "d"] {
        driven.apply(0, operation(Kind::Put(put(key, &vec![1; 1 << 20]))));
    }
    let get = |key: &'static str| TxnOperation {
        operation: Some(txn_operation::Operation::Get(Get {
            key: Bytes::from_static(key.as_bytes()),
            metadata_only: false,
        })),
    };
    let write = TxnOperation { operation: Some(txn_operation::Operation::Put(put("e", b"x"))) };
    let then = vec![write, get("a"), get("b"), get("c"), get("d")];
    let (refused, _) = reason(driven.apply(0, operation(Kind::Txn(Txn { then, ..Txn::default() }))));
    assert_eq!(refused, "TXN_REPLY_TOO_LARGE");
    assert!(driven.get("e").is_none());
}

#[test]
fn comparing_a_value_treats_absent_keys_as_etcd_does() {
    let driven = owning_all();
    driven.apply(0, operation(Kind::Put(put("k", b"bb"))));
    let holds = |key: &'static str, operator: compare::Operator, value: &'static [u8]| {
        let compare = Compare {
            key: Bytes::from_static(key.as_bytes()),
            target: Some(compare::Target::Value(Bytes::from_static(value))),
            operator: operator.into(),
        };
        match driven.apply(0, operation(Kind::Txn(Txn { compare: vec![compare], ..Txn::default() }))) {
            outcome::Result::Txn(txn) => txn.succeeded,
            other => panic!("{other:?}"),
        }
    };
    assert!(holds("k", compare::Operator::Equal, b"bb"));
    assert!(holds("k", compare::Operator::Less, b"c"));
    assert!(holds("k", compare::Operator::Greater, b"b"));
    assert!(holds("k", compare::Operator::NotEqual, b"x"));
    assert!(!holds("absent", compare::Operator::NotEqual, b"x"));
    assert!(!holds("absent", compare::Operator::Equal, b""));
}

#[test]
fn an_upload_is_read_back_in_chunks_until_it_is_replaced() {
    let driven = owning_all();
    let first = vec![7; CHUNK];
    driven.apply(0, operation(Kind::UploadBegin(begin("k", 1))));
    driven.apply(0, operation(Kind::UploadChunk(chunk("k", 1, 0, &first))));
    driven.apply(0, operation(Kind::UploadChunk(chunk("k", 1, 1, b"tail"))));
    assert!(driven.get("k").is_none(), "nothing is visible before the commit");
    driven.apply(0, operation(Kind::UploadCommit(commit("k", 1, 2, CHUNK as u64 + 4))));
    let read = |id| {
        let (key, upload_id) = (Bytes::from_static(b"k"), upload_id(id));
        ReadBlob { key, upload_id, chunks: 9, ..ReadBlob::default() }
    };
    let read_response::Read::Blob(blob) = driven.read(read_request::Read::Blob(read(1))) else { panic!() };
    let data: Vec<u8> = blob.chunks.iter().flat_map(|chunk| chunk.data.to_vec()).collect();
    assert_eq!(data, [first.as_slice(), b"tail"].concat());
    driven.apply(0, operation(Kind::Put(put("k", b"small"))));
    let read_response::Read::Refusal(refusal) = driven.read(read_request::Read::Blob(read(1))) else {
        panic!()
    };
    assert_eq!(refusal.reason, "VALUE_REPLACED");
    assert!(stored_chunks(&driven).is_empty());
}

#[test]
fn the_chunks_of_an_upload_under_way_are_read_back_by_who_resumes_it() {
    let driven = owning_all();
    driven.apply(0, operation(Kind::UploadBegin(begin("k", 1))));
    driven.apply(0, operation(Kind::UploadChunk(chunk("k", 1, 0, &vec![7; CHUNK]))));
    let read = |key: &'static str| {
        let key = Bytes::from_static(key.as_bytes());
        let asked = ReadBlob { key, upload_id: upload_id(1), chunks: 9, ..ReadBlob::default() };
        driven.read(read_request::Read::Blob(asked))
    };
    let read_response::Read::Blob(blob) = read("k") else { panic!("not read") };
    assert_eq!(blob.chunks.len(), 1);
    assert_eq!(blob.chunks[0].data[..], vec![7; CHUNK][..]);
    let read_response::Read::Refusal(refusal) = read("other") else { panic!("of another key") };
    assert_eq!(refusal.reason, "VALUE_REPLACED");
}

#[test]
fn pages_of_a_scan_make_up_the_whole_both_ways() {
    let driven = owning_all();
    let keys: Vec<String> = (0..50).map(|number| format!("key{number:02}")).collect();
    for key in &keys {
        driven.apply(0, operation(Kind::Put(put(key, &[0; 100]))));
    }
    for reverse in [false, true] {
        let mut found = Vec::new();
        let mut page = ScanPage { reverse, limit: 7, ..ScanPage::default() };
        loop {
            let got = driven.scan(page.clone());
            assert!(got.kvs.len() <= 7);
            found.extend(got.kvs.into_iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()));
            if got.next_key.is_empty() {
                break;
            }
            if reverse { page.end = got.next_key } else { page.start = got.next_key }
        }
        let mut expected = keys.clone();
        if reverse {
            expected.reverse();
        }
        assert_eq!(found, expected);
    }
    assert_eq!(driven.scan(ScanPage { count_only: true, ..ScanPage::default() }).count, 50);
    let small = driven.scan(ScanPage { max_bytes: 1, ..ScanPage::default() });
    assert_eq!((small.kvs.len(), small.next_key.as_ref()), (1, b"key01".as_slice()));
    let named = driven.scan(ScanPage { keys_only: true, limit: 1, ..ScanPage::default() });
    assert_eq!((named.kvs[0].value.clone(), named.kvs[0].version), (None, 1));
}

#[test]
fn a_value_that_is_larger_than_a_page_is_left_out_where_that_was_asked_for() {
    let driven = owning_all();
    for (key, size) in [("a", 10), ("b", 5_000), ("c", 10)] {
        driven.apply(0, operation(Kind::Put(put(key, &vec![0; size]))));
    }
    let apart = ScanPage { max_bytes: 1_000, large_apart: true, ..ScanPage::default() };
    let told = |page: ScanPage| {
        let got = driven.scan(page);
        let keys: Vec<String> =
            got.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
        (keys.concat(), got.next_key.to_vec(), got.next_is_large)
    };
    let from = |start: &'static str| ScanPage { start: start.into(), ..apart.clone() };
    assert_eq!(told(from("")), ("a".to_owned(), b"b".to_vec(), true));
    assert_eq!(told(from("b")), (String::new(), b"b".to_vec(), true), "the first of all");
    assert_eq!(told(ScanPage { first_whole: true, ..from("b") }).0, "b", "asked for");
    assert_eq!(told(ScanPage { keys_only: true, ..from("") }), ("abc".to_owned(), Vec::new(), false));
    let reverse = ScanPage { reverse: true, ..apart.clone() };
    assert_eq!(told(reverse.clone()), ("c".to_owned(), b"b\0".to_vec(), true));
    let rest = ScanPage { end: b"b\0".as_slice().into(), ..reverse };
    assert_eq!(told(rest), (String::new(), b"b\0".to_vec(), true), "the first of all");
}

#[test]
fn an_upload_whose_precondition_no_longer_holds_is_not_committed_and_leaves_nothing() {
    let driven = owning_all();
    let mut begun = begin("k", 1);
    begun.precondition = condition(Condition::Absent(true));
    driven.apply(0, operation(Kind::UploadBegin(begun)));
    driven.apply(0, operation(Kind::UploadChunk(chunk("k", 1, 0, b"data"))));
    driven.apply(0, operation(Kind::Put(put("k", b"meanwhile"))));
    let committed = seen(driven.apply(0, operation(Kind::UploadCommit(commit("k", 1, 1, 4)))));
    assert_eq!(committed, Seen::Upload { applied: false, next: 0, stored: 0, modified: Some(2) });
    assert!(
        matches!(driven.get("k").unwrap().value, Some(key_value::Value::Inline(value)) if value == "meanwhile")
    );
    assert!(stored_chunks(&driven).is_empty());
}

#[test]
fn idle_uploads_are_swept_in_bounded_steps_and_busy_ones_are_not() {
    let driven = owning_all();
    for id in 0..70 {
        driven.apply(0, operation(Kind::UploadBegin(begin("k", id))));
        driven.apply(0, operation(Kind::UploadChunk(chunk("k", id, 0, b"data"))));
    }
    driven.apply(300_000, operation(Kind::UploadBegin(begin("k", 200))));
    driven.apply(300_000, operation(Kind::UploadChunk(chunk("k", 200, 0, b"data"))));
    driven.apply(600_000, tick());
    let left: Vec<u8> = stored_chunks(&driven).into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, [64, 65, 66, 67, 68, 69, 200]);
    driven.apply(600_000, tick());
    assert_eq!(stored_chunks(&driven), [(200, 0)]);
}

#[test]
fn a_replica_that_stops_leaves_the_others_of_its_round_alone() {
    let engine: Arc<dyn kvnode::state::StateEngine> = Arc::new(MemoryEngine::new());
    let (sick, well) = (kv_topology::ReplicaId(1), kv_topology::ReplicaId(2));
    let drives = [sick, well].map(|id| Driven::open(engine.clone(), id).unwrap());
    let unknown = proposal(0, 0, vec![own_all(), Operation { kind: None, ..Operation::default() }]);
    let sound = proposal(0, 0, vec![own_all(), operation(Kind::Put(put("k", b"v")))]);
    let (jobs, mut results): (Vec<_>, Vec<_>) = drives
        .iter()
        .zip([(sick, unknown), (well, sound)])
        .map(|(driven, (id, entry))| driven.job(id, entry))
        .unzip();
    kvnode::state_machine::worker::step(engine.as_ref(), jobs).unwrap();
    assert!(results[0].try_recv().unwrap().is_err());
    assert!(results[1].try_recv().unwrap().is_ok());
    assert!(drives[1].get("k").is_some());
    assert!(drives[0].dump().keys().all(|name| kvnode::state::keys::owner(name) == Some(well)));
}

#[test]
fn a_command_for_the_meta_group_is_refused_by_a_data_group() {
    let driven = owning_all();
    assert_eq!(reason(driven.apply(0, meta::note(None, 1, "restarted"))).0, "WRONG_SHARD");
}
