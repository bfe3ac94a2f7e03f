//! From a committed operation to its outcome.
//!
//! [`Step`] is what an operation may touch: the group's record and the batch under construction. Every operation
//! ends in one of three ways: it did something, it was refused and did nothing, or it stops the replica, because
//! this replica cannot do what the others do.

use bytes::Bytes;
use kv_proto::{
    disk::v1::{
        GroupRecord, KeyRecord, MetaCommand, MetaRecord, OpenSession, Operation, key_record, operation,
    },
    peer::v1::{self as peer, Outcome, Refusal, ReplyContext, SessionOutcome, outcome},
};
use kv_topology::{KeyspaceId, ShardId};
use prost::Message;

use super::{
    delete,
    heads::Heads,
    journal,
    overlay::Overlay,
    put, range, recovered, refusal, replay,
    sessions::{Sessions, Stamp, Verdict},
    slots, txn, upload, validate, value,
};
use crate::{
    meta::machine::{self, Applied},
    state::{
        StateError,
        keys::{SCOPE_BYTES, Scope, UploadId},
    },
};

/// Why a replica must stop applying.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The store failed, or bytes are damaged.
    #[error(transparent)]
    State(#[from] StateError),
    /// A newer version wrote it. The replica goes on when it is upgraded.
    #[error("entry {index} holds an operation that this version does not know")]
    UnknownOperation {
        /// Index of the entry.
        index: u64,
    },
    /// The entry is no proposal.
    #[error("entry {index} cannot be decoded: {detail}")]
    Undecodable {
        /// Index of the entry.
        index: u64,
        /// What the decoder said.
        detail: String,
    },
    /// Entries come in order, without gaps.
    #[error("entry {index} follows {applied}")]
    OutOfOrder {
        /// Index of the entry.
        index: u64,
        /// Index of the last one applied.
        applied: u64,
    },
    /// The replica stopped earlier.
    #[error("the replica stopped before: {0}")]
    Stopped(String),
}

/// Why an operation did nothing.
pub(crate) enum Rejection {
    /// It was refused, on every replica alike.
    Refused(Box<Refusal>),
    /// This replica cannot go on.
    Stop(ApplyError),
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<StateError> for Rejection {
    fn from(error: StateError) -> Self {
        Self::Stop(error.into())
    }
}

/// What an operation may touch.
pub(crate) struct Step<'a, 'v> {
    /// Names of the replica's records.
    pub(crate) scope: Scope,
    /// Revision, log time and slots.
    pub(crate) group: &'a mut GroupRecord,
    /// Which writes were applied already.
    pub(crate) sessions: &'a mut Sessions,
    /// The meta group's state.
    pub(crate) meta: Option<&'a mut MetaRecord>,
    /// The batch under construction.
    pub(crate) overlay: &'a mut Overlay<'v>,
    /// What is known of keys without the store.
    pub(crate) heads: &'a mut Heads,
}

impl Step<'_, '_> {
    /// The record of a key.
    pub(crate) fn key(&self, keyspace: KeyspaceId, key: &[u8]) -> Result<Option<KeyRecord>, StateError> {
        let bytes = self.overlay.get(&self.scope.key(keyspace, key))?;
        bytes.map(|bytes| value::decode(self.scope.replica, "a key's record", bytes)).transpose()
    }

    /// The record of a key, whose inline value the caller does not need: it may be left out.
    pub(crate) fn head(&mut self, keyspace: KeyspaceId, key: &[u8]) -> Result<Option<KeyRecord>, StateError> {
        let name = self.scope.key(keyspace, key);
        if let Some(record) = self.heads.get(&name[SCOPE_BYTES..]) {
            return Ok(Some(record));
        }
        let record = self.key(keyspace, key)?;
        if let Some(record) = record.as_ref().filter(|record| !is_uploaded(record)) {
            self.heads.set(&name[SCOPE_BYTES..], record);
        }
        Ok(record)
    }

    /// Writes a key at `revision` over its current record.
    pub(crate) fn set_key(
        &mut self,
        keyspace: KeyspaceId,
        key: &[u8],
        current: Option<&KeyRecord>,
        value: key_record::Value,
        revision: u64,
    ) -> KeyRecord {
        self.drop_value(keyspace, current);
        let record = KeyRecord {
            create_revision: current.map_or(revision, |record| record.create_revision),
            mod_revision: revision,
            version: current.map_or(0, |record| record.version) + 1,
            value: Some(value),
        };
        let name = self.scope.key(keyspace, key);
        if is_uploaded(&record) {
            self.heads.forget(&name[SCOPE_BYTES..]);
        } else {
            self.heads.set(&name[SCOPE_BYTES..], &record);
        }
        self.overlay.put(name, record.encode_to_vec());
        record
    }

    /// Removes a key.
    pub(crate) fn remove_key(&mut self, keyspace: KeyspaceId, key: &[u8], current: &KeyRecord) {
        self.drop_value(keyspace, Some(current));
        let name = self.scope.key(keyspace, key);
        self.heads.forget(&name[SCOPE_BYTES..]);
        self.overlay.delete(name);
    }

    /// Removes the chunks of an uploaded value.
    fn drop_value(&mut self, keyspace: KeyspaceId, current: Option<&KeyRecord>) {
        if let Some(key_record::Value::Blob(blob)) = current.and_then(|record| record.value.as_ref())
            // A value of no bytes has no chunks, and its id may be that of another upload by now.
            && blob.chunks > 0
            && let Ok(id) = UploadId::try_from(blob.upload_id.as_ref())
        {
            self.overlay.delete_range(self.scope.chunks(keyspace, &id, 0));
        }
    }

    /// The revision of the transaction under way, if it changes something.
    pub(crate) fn next_revision(&self) -> u64 {
        self.group.revision + 1
    }
}

fn is_uploaded(record: &KeyRecord) -> bool {
    matches!(record.value, Some(key_record::Value::Blob(_)))
}

/// Applies one operation of the entry at `index`, proposed in `term`.
///
/// # Errors
/// When the replica must stop. The overlay is then of no use.
pub(crate) fn apply(
    step: &mut Step<'_, '_>,
    operation: &Operation,
    index: u64,
    term: u64,
) -> Result<Outcome, ApplyError> {
    let Done { result, revision, replayed } = match once(step, operation, index) {
        Ok(done) => done,
        Err(Rejection::Refused(refusal)) => Done::now(step, outcome::Result::Refusal(*refusal)),
        Err(Rejection::Stop(error)) => return Err(error),
    };
    let context = ReplyContext { shard_id: step.group.shard_id, revision, term, ..ReplyContext::default() };
    Ok(Outcome { context: Some(context), result: Some(result), replayed })
}

/// What an operation came to.
struct Done {
    result: outcome::Result,
    /// Of the shard, then.
    revision: u64,
    /// It came to that earlier.
    replayed: bool,
}

impl Done {
    fn now(step: &Step<'_, '_>, result: outcome::Result) -> Self {
        Self { result, revision: step.group.revision, replayed: false }
    }
}

/// Applies an operation, unless its session knows what it came to.
fn once(step: &mut Step<'_, '_>, operation: &Operation, index: u64) -> Result<Done, Rejection> {
    let Some(kind) = operation.kind.as_ref().filter(|kind| is_known(step, kind)) else {
        return Err(Rejection::Stop(ApplyError::UnknownOperation { index }));
    };
    validate::check_stamp(operation, kind)?;
    validate::check_shape(kind)?;
    if let Some(what) = validate::damaged(kind) {
        // Checked before it was proposed: this copy of the entry differs from the others'.
        return Err(StateError::damage(step.scope.replica, format!("{what} in entry {index}")).into());
    }
    let keyspace = KeyspaceId(operation.keyspace_id);
    let Some(stamp) = Stamp::of(operation) else {
        let result = dispatch(step, keyspace, kind)?;
        return Ok(Done::now(step, result));
    };
    let now_ms = step.group.log_time_ms;
    if let Verdict::Replay(stored) = step.sessions.judge(&stamp, now_ms)? {
        let result = replay::result(kind, &stored)?;
        return Ok(Done { result, revision: stored.revision, replayed: true });
    }
    // A refusal is not kept: nothing happened.
    let result = dispatch(step, keyspace, kind)?;
    let (branch, version) = replay::kept(&result);
    step.sessions.keep(&stamp, now_ms, step.group.revision, branch, version);
    Ok(Done::now(step, result))
}

/// Whether this version does what all others do. A command that it does not know is none of those that are refused: whoever
/// knows it applies it. And what is written at a higher feature level may mean more than it shows here.
fn is_known(step: &Step<'_, '_>, kind: &operation::Kind) -> bool {
    let level = step.meta.as_deref().map_or(0, |record| record.feature_level);
    let is_unknown = matches!(kind, operation::Kind::Meta(MetaCommand { command: None, .. }));
    !is_unknown && level <= machine::FEATURE_LEVEL
}

fn dispatch(
    step: &mut Step<'_, '_>,
    keyspace: KeyspaceId,
    kind: &operation::Kind,
) -> Result<outcome::Result, Rejection> {
    match kind {
        operation::Kind::Put(put) => put::put(step, keyspace, put).map(outcome::Result::Put),
        operation::Kind::Delete(delete) => {
            delete::delete(step, keyspace, delete).map(outcome::Result::Delete)
        }
        operation::Kind::DeleteRange(range) => {
            range::delete_range(step, keyspace, range).map(outcome::Result::DeleteRange)
        }
        operation::Kind::Txn(txn) => txn::txn(step, keyspace, txn).map(outcome::Result::Txn),
        operation::Kind::UploadBegin(begin) => {
            upload::begin(step, keyspace, begin).map(outcome::Result::Upload)
        }
        operation::Kind::UploadChunk(chunk) => {
            upload::chunk(step, keyspace, chunk).map(outcome::Result::Upload)
        }
        operation::Kind::UploadCommit(commit) => {
            upload::commit(step, keyspace, commit).map(outcome::Result::Upload)
        }
        operation::Kind::UploadAbort(abort) => {
            upload::abort(step, keyspace, abort).map(outcome::Result::Upload)
        }
        operation::Kind::OwnSlots(own) => slots::own(step, own),
        operation::Kind::Tick(_) => {
            step.sessions.sweep(step.group.log_time_ms);
            upload::sweep(step)
        }
        operation::Kind::OpenSession(open) => open_session(step, open),
        operation::Kind::CloseSession(close) => {
            step.sessions.close(close.session_id)?;
            Ok(outcome::Result::Done(peer::Done {}))
        }
        operation::Kind::Recovered(recovered) => recovered::recovered(step, *recovered),
        operation::Kind::Meta(command) => meta(step, command),
    }
}

/// Writes of clients go to data groups only.
fn open_session(step: &mut Step<'_, '_>, open: &OpenSession) -> Result<outcome::Result, Rejection> {
    if step.meta.is_some() {
        return Err(refusal::invalid("shard_id", "the meta group has no sessions").into());
    }
    let OpenSession { ttl_ms } = *open;
    let session_id = step.sessions.open(step.group, ttl_ms)?;
    Ok(outcome::Result::Session(SessionOutcome { session_id, ttl_ms }))
}

/// A command changes the record or is refused; a refused one may leave nothing behind, whatever its code does.
fn meta(step: &mut Step<'_, '_>, command: &MetaCommand) -> Result<outcome::Result, Rejection> {
    let Some(record) = step.meta.as_deref_mut() else { return Err(refusal::not_meta().into()) };
    let mut changed = record.clone();
    let Applied { outcome, journal } = machine::apply(&mut changed, command, step.group.log_time_ms)?;
    *record = changed;
    if let Some(entry) = journal {
        journal::keep(step.overlay, step.scope, &entry);
    }
    Ok(outcome::Result::Meta(outcome))
}

/// What expires in the meta group does so in log time, which every proposal brings, before the proposal's commands.
pub(crate) fn expire_permits(step: &mut Step<'_, '_>) {
    let Some(record) = step.meta.as_deref_mut() else { return };
    for entry in machine::expire(record, step.group.log_time_ms) {
        journal::keep(step.overlay, step.scope, &entry);
    }
}

/// The group's record before its first entry: an empty shard is at revision 1.
pub(crate) fn first_group(shard: ShardId) -> GroupRecord {
    GroupRecord { shard_id: shard.0, revision: 1, ..GroupRecord::default() }
}

/// A key as clients see it, without its value.
pub(crate) fn described(key: &Bytes, current: Option<&KeyRecord>) -> Option<kv_proto::kv::v1::KeyValue> {
    current.map(|record| value::describe(key.clone(), record))
}
