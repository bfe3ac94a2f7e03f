//! Whether there is room for a write on the disks of a group.
//!
//! Pure: the levels of the disks come in, and what the leader may admit comes out. Deletes go on as long as a quorum
//! can store them: they are how a person makes room. Operations of the cluster itself are small and go on with them.

use std::sync::{PoisonError, RwLock};

use kv_proto::{
    disk::v1::{Operation, Txn, operation::Kind, txn_operation},
    peer::v1::Refusal,
};

use crate::{data_dir::Level, refusal};

/// Advice to a refused caller, ms: somebody has to make room first.
const RETRY_AFTER_MS: u32 = 5_000;

/// What a leader may admit. Ordered: the greater, the less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Everything.
    #[default]
    Enough,
    /// What does not store values.
    NoGrowth,
    /// Nothing.
    Nothing,
}

/// What a leader whose disk is at `own` may admit when the disks of all its voters, its own included, are at these
/// levels: a write needs a majority of them.
pub fn room(own: Level, voters: &[Level]) -> Room {
    let majority = voters.len() / 2 + 1;
    let at_most = |level: Level| voters.iter().filter(|voter| **voter <= level).count() >= majority;
    // Before the group is formed it has no voters, and admits nothing anyway.
    let (store_values, store) =
        if voters.is_empty() { (true, true) } else { (at_most(Level::Enough), at_most(Level::Soft)) };
    if own == Level::Hard || !store {
        Room::Nothing
    } else if own == Level::Soft || !store_values {
        Room::NoGrowth
    } else {
        Room::Enough
    }
}

/// Whether an operation stores values. The commit of an upload does not: its bytes are there.
pub fn stores_values(operation: &Operation) -> bool {
    match &operation.kind {
        Some(Kind::Put(_) | Kind::UploadBegin(_) | Kind::UploadChunk(_)) => true,
        Some(Kind::Txn(txn)) => puts(txn),
        Some(
            Kind::Delete(_)
            | Kind::DeleteRange(_)
            | Kind::UploadCommit(_)
            | Kind::UploadAbort(_)
            | Kind::OwnSlots(_)
            | Kind::Tick(_)
            | Kind::OpenSession(_)
            | Kind::CloseSession(_)
            | Kind::Recovered(_)
            | Kind::Meta(_),
        )
        | None => false,
    }
}

/// Whichever branch will be taken is known to nobody yet.
fn puts(txn: &Txn) -> bool {
    let put = |operation: &txn_operation::Operation| matches!(operation, txn_operation::Operation::Put(_));
    txn.then.iter().chain(&txn.r#else).any(|operation| operation.operation.as_ref().is_some_and(put))
}

/// The room of one group as its proposer asks for it at each write.
#[derive(Debug, Default)]
pub struct Limit(RwLock<(Room, String)>);

impl Limit {
    /// From now on there is this room; `reason` names the disk, for people.
    pub fn set(&self, room: Room, reason: impl Into<String>) {
        let mut limit = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if limit.0 != room || room != Room::Enough {
            *limit = (room, reason.into());
        }
    }

    /// Refuses operations for which there is no room. Nothing of them has happened.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` with [`refusal::DISK_FULL`].
    pub fn admit(&self, operations: &[Operation]) -> Result<(), Refusal> {
        let limit = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (what, refused) = match limit.0 {
            Room::Enough => return Ok(()),
            Room::NoGrowth => ("deletes and reads go on", operations.iter().any(stores_values)),
            Room::Nothing => ("reads go on", true),
        };
        if refused {
            let message = format!("{}; {what}", limit.1);
            return Err(refusal::exhausted(refusal::DISK_FULL, message, RETRY_AFTER_MS));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{Delete, DeleteRange, Put, TxnOperation, UploadChunk, UploadCommit};
    use proptest::prelude::*;

    use super::*;

    const LEVELS: [Level; 3] = [Level::Enough, Level::Soft, Level::Hard];

    #[test]
    fn a_write_is_admitted_when_its_leader_and_a_majority_have_room() {
        use Level::{Enough, Hard, Soft};
        for (voters, expected) in [
            (vec![], Room::Enough),
            (vec![Enough], Room::Enough),
            (vec![Soft], Room::NoGrowth),
            (vec![Hard], Room::Nothing),
            (vec![Enough, Enough, Hard], Room::Enough),
            (vec![Soft, Enough, Enough], Room::NoGrowth),
            (vec![Enough, Soft, Hard], Room::NoGrowth),
            (vec![Enough, Hard, Hard], Room::Nothing),
            (vec![Soft, Soft, Hard], Room::NoGrowth),
            (vec![Hard, Enough, Enough], Room::Nothing),
        ] {
            let own = voters.first().copied().unwrap_or_default();
            assert_eq!(room(own, &voters), expected, "{voters:?}, of which the first leads");
        }
    }

    proptest! {
        #[test]
        fn a_fuller_disk_never_gives_room(
            levels in prop::collection::vec(0_usize..3, 1..8),
            which in any::<prop::sample::Index>(),
        ) {
            let voters: Vec<Level> = levels.iter().map(|level| LEVELS[*level]).collect();
            let which = which.index(voters.len());
            let mut fuller = voters.clone();
            fuller[which] = LEVELS[(levels[which] + 1).min(2)];
            prop_assert!(room(fuller[0], &fuller) >= room(voters[0], &voters));
        }
    }

    fn operation(kind: Kind) -> Operation {
        Operation { kind: Some(kind), ..Operation::default() }
    }

    fn txn(operation: txn_operation::Operation) -> Operation {
        let unlikely = vec![TxnOperation { operation: Some(operation) }];
        self::operation(Kind::Txn(Txn { r#else: unlikely, ..Txn::default() }))
    }

    #[test]
    fn deletes_go_on_until_nothing_can_be_stored() {
        let limit = Limit::default();
        let growing = [
            operation(Kind::Put(Put::default())),
            operation(Kind::UploadChunk(UploadChunk::default())),
            txn(txn_operation::Operation::Put(Put::default())),
        ];
        let others = [
            operation(Kind::Delete(Delete::default())),
            operation(Kind::DeleteRange(DeleteRange::default())),
            operation(Kind::UploadCommit(UploadCommit::default())),
            txn(txn_operation::Operation::Delete(Delete::default())),
        ];
        let admitted = |operation: &Operation| limit.admit(std::slice::from_ref(operation)).is_ok();
        assert!(growing.iter().chain(&others).all(admitted));
        limit.set(Room::NoGrowth, "the disk of node 2 is nearly full");
        assert!(!growing.iter().any(admitted) && others.iter().all(admitted));
        let refused = limit.admit(&growing).expect_err("no room");
        assert!(refusal::surely_not_applied(&refused));
        assert_eq!(refused.reason, refusal::DISK_FULL);
        assert!(refused.message.contains("node 2"), "{}", refused.message);
        limit.set(Room::Nothing, "the disk of node 2 is full");
        assert!(!growing.iter().chain(&others).any(admitted));
        limit.set(Room::Enough, "");
        assert!(growing.iter().all(admitted));
    }
}
