//! The place of each write of a bulk in the session of its shard.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_proto::kv::v1 as proto;

use crate::{
    batch::{BulkOutcome, again},
    call::Call,
    client::slot,
    error::Error,
    retry::Kind,
    session::Stamp,
    sessions::Ticket,
};

/// What an operation of a bulk has before it is sent.
#[derive(Debug)]
pub(crate) enum Place {
    /// It is not in a session.
    Anywhere,
    /// It is in the session of its shard.
    Session(Ticket),
    /// There is no session for it.
    Nowhere(Error),
}

/// Places for as many operations from the front as the windows of their sessions have room for; at least one.
///
/// Only the first one waits for a window. Several bulks that wait with what they have could wait for one another for ever.
pub(crate) async fn places(call: &Call, operations: &[proto::WriteOperation]) -> Vec<Place> {
    let mut places = Vec::with_capacity(operations.len());
    if call.plan.kind != Kind::Once {
        places.resize_with(operations.len(), || Place::Anywhere);
        return places;
    }
    // A shard without a session now must not take the time that the others need.
    let call = call.hurried();
    let mut nowhere: BTreeMap<u32, Error> = BTreeMap::new();
    for operation in operations {
        let key = key_of(operation);
        let slot = slot(key);
        let shard = call.client.core().knowledge.shard_of(slot);
        if let Some(error) = nowhere.get(&shard) {
            places.push(Place::Nowhere(again(error)));
            continue;
        }
        let ticket = if places.is_empty() {
            call.ticket(slot, key).await.map(Some)
        } else {
            call.ticket_unless_full(slot, key).await
        };
        match ticket {
            Ok(Some(ticket)) => places.push(Place::Session(ticket)),
            Ok(None) => break,
            Err(error) => {
                places.push(Place::Nowhere(again(&error)));
                nowhere.insert(shard, error);
            }
        }
    }
    places
}

/// Gives a new place to those that were refused together with their session.
pub(crate) async fn renew(
    call: &Call,
    pending: &mut Vec<usize>,
    operations: &[proto::WriteOperation],
    tickets: &mut [Option<Ticket>],
    outcomes: &mut [Option<BulkOutcome>],
) {
    let mut ready = Vec::with_capacity(pending.len());
    for index in pending.drain(..) {
        if call.plan.kind != Kind::Once || tickets[index].is_some() {
            ready.push(index);
            continue;
        }
        let key = key_of(&operations[index]);
        match call.ticket(slot(key), key).await {
            Ok(ticket) => {
                tickets[index] = Some(ticket);
                ready.push(index);
            }
            Err(error) => outcomes[index] = Some(BulkOutcome::Failed(error)),
        }
    }
    *pending = ready;
}

pub(crate) fn key_of(operation: &proto::WriteOperation) -> &Bytes {
    static NONE: Bytes = Bytes::new();
    match &operation.operation {
        Some(proto::write_operation::Operation::Put(put)) => &put.key,
        Some(proto::write_operation::Operation::Delete(delete)) => &delete.key,
        None => &NONE,
    }
}

pub(crate) fn stamp(operation: &mut proto::WriteOperation, stamp: Stamp) {
    let Stamp { session_id, sequence, lowest_outstanding } = stamp;
    let fields = match &mut operation.operation {
        Some(proto::write_operation::Operation::Put(put)) => {
            (&mut put.session_id, &mut put.sequence, &mut put.lowest_outstanding)
        }
        Some(proto::write_operation::Operation::Delete(delete)) => {
            (&mut delete.session_id, &mut delete.sequence, &mut delete.lowest_outstanding)
        }
        None => return,
    };
    (*fields.0, *fields.1, *fields.2) = (session_id, sequence, lowest_outstanding);
}
