//! What a message asks for: each operation is checked, routed and admitted for itself, and what is admitted is put into one
//! call for each shard and kind. Pure but for the checksums and fingerprints that are made where a write enters.
//!
//! A call has writes that share a fate, or reads with equal options. Writes in sessions may be repeated by the router, and
//! writes that store no values go on when a disk is full: neither is mixed with others. The deadline of a call is the last
//! of its operations; those with far shorter ones get a call of their own, so that no call outlives its operations for
//! long.

use std::{sync::Arc, time::Duration};

use kv_proto::{
    disk::v1::{Operation, operation},
    kv::v1::{BatchOperation, ReadOptions, batch_operation},
};
use kv_topology::{ClusterMap, ShardId, Slot, map::SlotTable};
use prost::Message;
use tokio::time::Instant;

use super::{
    detached,
    ledger::{Kind, Ledger, Reading, Waiting},
};
use crate::{
    api::{
        context::KEYSPACE,
        error::Refused,
        limits::{
            BATCH_MESSAGE_OPERATIONS_MAX, BATCH_OPERATION_OVERHEAD_BYTES, DEADLINE_DEFAULT, DEADLINE_MAX,
            INLINE_VALUE_BYTES_MAX, KEY_BYTES_MAX, REPLY_BYTES_MAX,
        },
        operation as op, txn,
        validate::{self, Violation},
    },
    group::room::stores_values,
    state_machine::{limits::TXN_REPLY_BYTES_MAX, txn::returns_value},
};

/// The reason of what does not fit into the window.
pub const WINDOW: &str = "BATCH_WINDOW";

/// The shard map, with the owner of each slot at hand.
pub struct Atlas {
    /// The map.
    pub map: Arc<ClusterMap>,
    owners: SlotTable,
}

impl Atlas {
    /// Of this map.
    pub fn new(map: Arc<ClusterMap>) -> Self {
        Self { owners: SlotTable::of(&map), map }
    }

    /// Goes on with `map`, which is mostly the same.
    pub fn turn_to(&mut self, map: Arc<ClusterMap>) {
        if !Arc::ptr_eq(&map, &self.map) {
            *self = Self::new(map);
        }
    }

    fn shard_of(&self, key: &[u8]) -> Result<ShardId, Refused> {
        self.owners.shard_of(Slot::of(KEYSPACE, key)).ok_or(Refused::Starting)
    }
}

/// What is asked of one shard.
#[derive(Debug)]
pub enum Ask {
    /// One for each operation.
    Write(Vec<Operation>),
    /// One key for each operation.
    Read(Reading),
}

/// What writes return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Returned {
    /// No values.
    Nothing,
    /// One at most: puts and deletes.
    Value,
    /// Several: transactions, of up to [`TXN_REPLY_BYTES_MAX`].
    Values,
}

impl Returned {
    /// Writes of one call: what they return fits into one large reply, of which they have the share.
    fn operations_max(self) -> usize {
        const ALL: usize = REPLY_BYTES_MAX;
        match self {
            Self::Nothing => usize::MAX,
            Self::Value => ALL / (INLINE_VALUE_BYTES_MAX + KEY_BYTES_MAX),
            Self::Values => ALL / TXN_REPLY_BYTES_MAX,
        }
    }
}

/// Operations that share it go into one call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lane {
    Write { in_session: bool, stores_values: bool, returned: Returned },
    Read { options: ReadOptions, metadata_only: bool },
}

impl Lane {
    fn operations_max(self) -> usize {
        match self {
            Self::Write { returned, .. } => returned.operations_max(),
            Self::Read { .. } => usize::MAX,
        }
    }
}

/// What becomes one call.
#[derive(Debug)]
pub struct Group {
    /// Of the call.
    pub shard: ShardId,
    lane: Lane,
    /// Powers of two of milliseconds.
    patience: u32,
    /// In the order of what is asked for.
    pub waiting: Vec<Option<Waiting>>,
    /// What is asked for.
    pub ask: Ask,
    /// The last of the operations'.
    pub deadline: Instant,
    /// Encoded size of its operations.
    pub bytes: usize,
}

impl Group {
    /// What its operations count among the bytes of the node.
    pub fn weight(&self) -> usize {
        self.bytes + self.waiting.len() * BATCH_OPERATION_OVERHEAD_BYTES
    }

    /// Leaves its message, of which all operations have `message_bytes`: what it asks for is copied, unless it is most of
    /// the message.
    ///
    /// Keys and values are slices of the message, and one of them keeps all of it in memory: a call to a shard without a
    /// leader would hold far more than its window and what it counts. The size of an operation says nothing about that, so
    /// there is no threshold for operations: a call holds less than twice what it counts, or a buffer of its own. The copy
    /// is one allocation for a call, and less than a message in all.
    pub fn detach(&mut self, message_bytes: usize) {
        if self.bytes * 2 <= message_bytes {
            detached::detach(&mut self.ask, self.bytes);
        }
    }

    /// Whether its answer may be large although nothing is read: a call of it needs the share of a large reply before it
    /// begins, since what it returns cannot be let go and read again.
    pub fn returns_values(&self) -> bool {
        matches!(self.lane, Lane::Write { returned: Returned::Value | Returned::Values, .. })
    }
}

fn returned(operation: &Operation) -> Returned {
    let (returns, what) = match &operation.kind {
        Some(operation::Kind::Put(put)) => (put.return_previous, Returned::Value),
        Some(operation::Kind::Delete(delete)) => (delete.return_previous, Returned::Value),
        Some(operation::Kind::Txn(txn)) => {
            (txn.then.iter().chain(&txn.r#else).any(returns_value), Returned::Values)
        }
        _ => (false, Returned::Nothing),
    };
    if returns { what } else { Returned::Nothing }
}

/// An operation that is answered at once.
#[derive(Debug)]
pub struct Turned {
    /// The client's.
    pub id: u64,
    /// What it asked for.
    pub kind: Kind,
    /// Why nothing happened.
    pub refused: Refused,
}

/// What became of a message.
#[derive(Debug, Default)]
pub struct Judged {
    /// To be carried out.
    pub groups: Vec<Group>,
    /// To be answered.
    pub turned: Vec<Turned>,
}

/// Encoded sizes of the operations of a message.
pub fn sizes(operations: &[BatchOperation]) -> Vec<usize> {
    operations.iter().map(Message::encoded_len).collect()
}

/// What operations of these sizes count among the bytes of the node.
pub fn weight(sizes: &[usize]) -> usize {
    sizes.iter().map(|bytes| bytes + BATCH_OPERATION_OVERHEAD_BYTES).sum()
}

/// Notes the ids of a message.
///
/// # Errors
/// The message breaks the protocol: an answer could not say which operation it is for, or there are far too many. Nothing of
/// it was noted.
pub fn enter(operations: &[BatchOperation], ledger: &mut Ledger) -> Result<(), Violation> {
    let count = operations.len();
    if count > BATCH_MESSAGE_OPERATIONS_MAX {
        let text = format!("{count} given, at most {BATCH_MESSAGE_OPERATIONS_MAX} are allowed");
        return Err(Violation::new("operations", text));
    }
    ledger.enter(operations.iter().map(|operation| operation.id)).map_err(|position| {
        let text = format!("{} is that of an operation without an answer", operations[position].id);
        Violation::new(format!("operations[{position}].id"), text)
    })
}

/// Judges the operations of a message that came at `now`, of these sizes, all of which were [entered](enter). `until` is
/// when the stream ends.
pub fn judge(
    operations: Vec<BatchOperation>,
    sizes: &[usize],
    atlas: &Atlas,
    ledger: &mut Ledger,
    now: Instant,
    until: Option<Instant>,
) -> Judged {
    let mut judged = Judged::default();
    let room = operations.len().div_ceil(atlas.map.shards.len().max(1));
    for (operation, bytes) in operations.into_iter().zip(sizes.iter().copied()) {
        let timeout = timeout(operation.timeout_ms);
        let deadline = until.map_or(now + timeout, |until| until.min(now + timeout));
        let (id, kind) = (operation.id, kind(operation.operation.as_ref()));
        let waiting = Waiting { id, kind, deadline, bytes };
        let place = checked(operation.operation, atlas).and_then(|(shard, asked)| {
            let taken = ledger.take(shard, bytes);
            if taken { Ok((shard, asked)) } else { Err(Refused::Limit(WINDOW)) }
        });
        match place {
            Ok((shard, asked)) => join(&mut judged.groups, shard, patience(timeout), asked, waiting, room),
            Err(refused) => judged.turned.push(Turned { id, kind, refused }),
        }
    }
    judged
}

fn timeout(timeout_ms: u32) -> Duration {
    match timeout_ms {
        0 => DEADLINE_DEFAULT,
        ms => DEADLINE_MAX.min(Duration::from_millis(ms.into())),
    }
}

fn patience(timeout: Duration) -> u32 {
    timeout.as_millis().checked_ilog2().unwrap_or_default()
}

/// What an operation asks for.
pub fn kind(operation: Option<&batch_operation::Operation>) -> Kind {
    match operation {
        Some(batch_operation::Operation::Put(_)) => Kind::Put,
        Some(batch_operation::Operation::Get(_)) => Kind::Get,
        Some(batch_operation::Operation::Delete(_)) => Kind::Delete,
        Some(batch_operation::Operation::Txn(_)) => Kind::Txn,
        None => Kind::Unknown,
    }
}

/// One operation as its shard takes it.
#[allow(
    clippy::large_enum_variant,
    reason = "moved once, into its call; a box would cost an allocation for each write"
)]
enum Asked {
    Write(Operation),
    Read { key: bytes::Bytes, options: ReadOptions, metadata_only: bool },
}

impl Asked {
    fn lane(&self) -> Lane {
        match self {
            Self::Write(operation) => Lane::Write {
                in_session: operation.session_id != 0,
                stores_values: stores_values(operation),
                returned: returned(operation),
            },
            Self::Read { options, metadata_only, .. } => {
                Lane::Read { options: *options, metadata_only: *metadata_only }
            }
        }
    }
}

fn checked(
    operation: Option<batch_operation::Operation>,
    atlas: &Atlas,
) -> Result<(ShardId, Asked), Refused> {
    match operation {
        Some(batch_operation::Operation::Put(request)) => {
            validate::put(&request)?;
            let shard = atlas.shard_of(&request.key)?;
            let (stamp, put) = op::put(request);
            Ok((shard, Asked::Write(stamp.on(operation::Kind::Put(put)))))
        }
        Some(batch_operation::Operation::Get(request)) => {
            validate::get(&request)?;
            let shard = atlas.shard_of(&request.key)?;
            let (options, metadata_only) = (request.options.unwrap_or_default(), request.metadata_only);
            Ok((shard, Asked::Read { key: request.key, options, metadata_only }))
        }
        Some(batch_operation::Operation::Delete(request)) => {
            validate::delete(&request)?;
            let shard = atlas.shard_of(&request.key)?;
            let (stamp, delete) = op::delete(request);
            Ok((shard, Asked::Write(stamp.on(operation::Kind::Delete(delete)))))
        }
        Some(batch_operation::Operation::Txn(request)) => {
            validate::txn(&request)?;
            let shard = txn::only_shard(&atlas.map, &request)?;
            Ok((shard, Asked::Write(txn::stamped(request))))
        }
        None => Err(Violation::new("operation", "must be a put, a get, a delete or a txn").into()),
    }
}

/// Puts an operation to those that it shares a call with. There are few groups: shards times kinds. A new one has `room`.
fn join(groups: &mut Vec<Group>, shard: ShardId, patience: u32, asked: Asked, waiting: Waiting, room: usize) {
    let lane = asked.lane();
    let is_own = |group: &Group| {
        let like = group.shard == shard && group.patience == patience && group.lane == lane;
        like && group.waiting.len() < lane.operations_max()
    };
    let position = groups.iter().position(is_own).unwrap_or_else(|| {
        let ask = match &asked {
            Asked::Write(_) => Ask::Write(Vec::with_capacity(room)),
            Asked::Read { options, metadata_only, .. } => {
                let (options, metadata_only) = (*options, *metadata_only);
                Ask::Read(Reading { options, metadata_only, keys: Vec::with_capacity(room) })
            }
        };
        let waiting_room = Vec::with_capacity(room);
        let deadline = waiting.deadline;
        groups.push(Group { shard, lane, patience, waiting: waiting_room, ask, deadline, bytes: 0 });
        groups.len() - 1
    });
    let group = &mut groups[position];
    match (&mut group.ask, asked) {
        (Ask::Write(operations), Asked::Write(operation)) => operations.push(operation),
        (Ask::Read(reading), Asked::Read { key, .. }) => reading.keys.push(key),
        // Its lane says what it asks for.
        (Ask::Write(_), Asked::Read { .. }) | (Ask::Read(_), Asked::Write(_)) => return,
    }
    group.deadline = group.deadline.max(waiting.deadline);
    group.bytes += waiting.bytes;
    group.waiting.push(Some(waiting));
}
