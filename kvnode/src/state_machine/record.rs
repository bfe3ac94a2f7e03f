//! What a replica's record says of its state, in openraft's words. The conversions themselves are the log's.

use kv_proto::disk::v1;

use crate::{
    group::type_config::Member,
    log::codec::{CodecError, LeaderId, StoredMembership, log_id_from_disk, stored_membership_from_disk},
};

/// openraft's description of a snapshot.
pub type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Member>;

/// The membership in a record. `None`: the default, of a replica that was never initialized.
///
/// # Errors
/// What is wrong with it.
pub fn stored_membership(stored: Option<&v1::StoredMembership>) -> Result<StoredMembership, CodecError> {
    stored.map_or_else(|| Ok(StoredMembership::default()), stored_membership_from_disk)
}

/// The state as a snapshot.
///
/// # Errors
/// What is wrong with the record.
pub fn snapshot_meta(
    applied: Option<&v1::LogId>,
    membership: Option<&v1::StoredMembership>,
) -> Result<SnapshotMeta, CodecError> {
    Ok(SnapshotMeta {
        last_log_id: applied.map(log_id_from_disk),
        last_membership: stored_membership(membership)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::codec::stored_membership_to_disk;

    #[test]
    fn the_default_membership_comes_back_from_disk() {
        let stored = StoredMembership::default();
        assert_eq!(stored_membership(Some(&stored_membership_to_disk(&stored))), Ok(stored.clone()));
        assert_eq!(stored_membership(None), Ok(stored));
    }
}
