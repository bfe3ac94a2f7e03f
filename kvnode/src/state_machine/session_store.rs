//! Where sessions lie in the store: a record for each block of each, see [`crate::state::keys`].

use std::ops::ControlFlow;

use bytes::Bytes;
use kv_proto::disk::v1::SessionRecord;
use kv_topology::ShardId;
use prost::Message;

use super::{overlay::Overlay, sessions::Sessions, value};
use crate::state::{
    Direction, StateError, View,
    keys::{Name, Scope},
};

/// Reads the sessions of a replica.
///
/// # Errors
/// Damage, and failures of the store.
pub fn load(view: &dyn View, scope: Scope, shard: ShardId) -> Result<Sessions, StateError> {
    let (mut records, mut damage) = (Vec::new(), None);
    view.scan(&scope.sessions(), Direction::Forward, &mut |name, bytes| match look(scope, name, bytes) {
        Ok(record) => {
            records.push(record);
            ControlFlow::Continue(())
        }
        Err(error) => {
            damage = Some(error);
            ControlFlow::Break(())
        }
    })?;
    match damage {
        Some(error) => Err(error),
        None => Sessions::read(shard, records).map_err(|what| StateError::damage(scope.replica, what)),
    }
}

fn look(scope: Scope, name: &[u8], bytes: &[u8]) -> Result<((u64, u64), SessionRecord), StateError> {
    let block = Name::parse(name).and_then(|name| name.session_block());
    let block = block.ok_or_else(|| StateError::damage(scope.replica, "the name of a session's record"))?;
    let record = value::decode(scope.replica, "a session's record", Bytes::copy_from_slice(bytes))?;
    Ok((block, record))
}

/// Puts what changed into the batch.
pub fn seal(sessions: &mut Sessions, scope: Scope, overlay: &mut Overlay<'_>) {
    for ((id, block), record) in sessions.take_changes() {
        let name = scope.session(id, block);
        match record {
            Some(record) => overlay.put(name, record.encode_to_vec()),
            None => overlay.delete(name),
        }
    }
}
