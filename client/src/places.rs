//! The place of each write of a bulk in the session of its shard.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kv_proto::kv::v1 as proto;

use crate::{
    bulk::{BulkOutcome, Part},
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
            places.push(Place::Nowhere(error.again()));
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
                places.push(Place::Nowhere(error.again()));
                nowhere.insert(shard, error);
            }
        }
    }
    places
}

/// Gives a new place to those that were refused together with their session. Which can be sent now, and which come after
/// these.
///
/// Who holds a place waits for no other: bulks that did could wait for one another, or for themselves, when the window of
/// the new session is smaller.
pub(crate) async fn renew(call: &Call, pending: Vec<usize>, parts: &mut [Part]) -> (Vec<usize>, Vec<usize>) {
    let has_place = |index: &usize| call.plan.kind != Kind::Once || parts[*index].ticket.is_some();
    let (mut ready, mut without): (VecDeque<usize>, VecDeque<usize>) =
        pending.into_iter().partition(has_place);
    while let Some(index) = without.pop_front() {
        let part = &mut parts[index];
        let key = key_of(&part.operation);
        let ticket = if ready.is_empty() {
            call.ticket(slot(key), key).await.map(Some)
        } else {
            call.ticket_unless_full(slot(key), key).await
        };
        match ticket {
            Ok(Some(ticket)) => {
                part.ticket = Some(ticket);
                ready.push_back(index);
            }
            Ok(None) => {
                without.push_front(index);
                break;
            }
            Err(error) => part.outcome = Some(BulkOutcome::Failed(error)),
        }
    }
    (ready.into(), without.into())
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
