//! What a command does to the meta group's state. A placeholder until the real one lands.

use kv_proto::{
    disk::v1::{MetaCommand, MetaRecord},
    peer::v1::{MetaOutcome, Refusal},
};

/// Applies one command: changes the record and says what came of it.
///
/// # Errors
/// The refusal; the record is then unchanged.
pub fn apply(record: &mut MetaRecord, _command: &MetaCommand) -> Result<MetaOutcome, Refusal> {
    record.epoch += 1;
    Ok(MetaOutcome { epoch: record.epoch, node_id: 0, replica_id: 0 })
}
