//! Removes replicas without which the cluster goes on for good.
//!
//! Life of one: its group has left it behind, and meta has forgotten where it lived. A new map says so → the record is read
//! as meta has it at that moment, since a map may be of a past that a later one took back → the replica is condemned, durably:
//! from then on it never starts → it is stopped, and nothing reaches it any more → its state, its entry in the list of hosted
//! replicas and its log go, in this order. A node that dies in between goes on at its next start, without asking again.
//!
//! Damaged replicas and those that have stopped go the same way. What a removed replica knew of votes is gone: it must not come
//! back under its id, so the map that shows it gone is kept before, and requests to create it are measured by that map.
//!
//! The space of a removed replica is given back in the background: no table is unlinked under who still reads it.

use std::{sync::Arc, time::Duration};

use kv_proto::disk::v1::{MetaRecord, NodeState, ReplicaDescriptor, ShardRecord};
use kv_topology::{NodeId, ReplicaId};
use openraft_rt::AsyncRuntime;
use tokio::time::{Instant, timeout};

use super::{
    host::Host, map_feed::MapFeed, points::Points, record::read_record, space::Disk, stores::Stores,
    stores::StoresError,
};
use crate::{meta::registry::View, router::store::Store, runtime::Spawner, transport::Transport};

/// What was not done is tried again after this time, if no new map comes before.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// For reading the record.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// A machine that has not ended by then waits for its disk. It is looked at again.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the cluster goes on without this replica for good, as far as `record` tells: its id was minted, its group was
/// formed, and nothing in the record names it: no placement, no move, no change of voters, no membership. A replica of a later
/// group than the record knows is never judged: its shard was recovered, and whoever tells this record has not heard of it.
pub fn is_superfluous(record: &MetaRecord, replica: &ReplicaDescriptor) -> bool {
    let id = replica.replica_id;
    let minted = id < record.next_replica_id;
    let tells_of_it = |shard: &ShardRecord| {
        shard.shard_id == replica.shard_id && shard.observed.is_some() && shard.group_id >= replica.group_id
    };
    let formed = record.shards.iter().any(tells_of_it);
    // In any shard: of a replica whose log was lost, the shard may not be known.
    minted && formed && !record.shards.iter().any(|shard| names(shard, id))
}

fn names(shard: &ShardRecord, id: u64) -> bool {
    let membership = shard.observed.as_ref().and_then(|stored| stored.membership.as_ref());
    let is_member = |membership: &kv_proto::disk::v1::Membership| {
        membership.members.iter().any(|member| member.replica_id == id)
            || membership.voters.iter().any(|set| set.replica_ids.contains(&id))
    };
    shard.replicas.iter().any(|placement| placement.replica_id == id)
        || shard
            .r#move
            .as_ref()
            .is_some_and(|moved| [moved.from_replica_id, moved.to_replica_id].contains(&id))
        || shard.change.as_ref().is_some_and(|change| change.voter_replica_ids.contains(&id))
        || membership.is_some_and(is_member)
}

/// Nodes that left the cluster.
fn removed_nodes(record: &MetaRecord) -> impl Iterator<Item = NodeId> {
    let removed = record.nodes.iter().filter(|node| node.state() == NodeState::Removed);
    removed.map(|node| NodeId(node.node_id))
}

/// What the sweep works with.
pub struct Sweep<RT, S> {
    /// What is on disk.
    pub stores: Arc<Stores>,
    /// What runs.
    pub host: Arc<Host<RT>>,
    /// To other nodes.
    pub transport: Transport,
    /// What is known of the cluster.
    pub maps: Arc<MapFeed>,
    /// Where the record is read.
    pub store: Arc<S>,
    /// What compaction may write.
    pub disk: Arc<Disk>,
    /// For what goes on in the background.
    pub spawner: Spawner,
    /// Told what is done.
    pub points: Points,
}

impl<RT: AsyncRuntime, S: Store> Sweep<RT, S> {
    /// Sweeps after each new map, for ever. What was condemned before the start goes first.
    pub async fn run(self) {
        loop {
            let view = self.maps.registry.view();
            let whole = self.round(&view).await;
            let newer = self.maps.registry.newer_than(view.epoch());
            if whole {
                newer.await;
            } else {
                // The time-out is the tick of what is left to do.
                timeout(RETRY_AFTER, newer).await.ok();
            }
        }
    }

    /// One sweep, after what this view says. `false`: something is left to do.
    pub(super) async fn round(&self, view: &View) -> bool {
        removed_nodes(&view.record).for_each(|node| self.transport.forget(node));
        let judged = self.judge(&view.record).await;
        let condemned = self.stores.condemned();
        if condemned.is_empty() {
            return judged;
        }
        match self.remove(condemned).await {
            Ok(removed) => removed && judged,
            Err(error) => {
                tracing::error!(%error, "replicas could not be removed");
                false
            }
        }
    }

    /// Condemns what is superfluous. `false`: that could not be found out or noted.
    async fn judge(&self, known: &MetaRecord) -> bool {
        let suspects = superfluous(known, self.stores.log.descriptors());
        if suspects.is_empty() {
            return true;
        }
        let record = match read_record(&*self.store, Instant::now() + READ_TIMEOUT).await {
            Ok(record) => record,
            Err(refused) => {
                tracing::debug!(reason = refused.reason, "meta cannot be asked what to remove");
                return false;
            }
        };
        let doomed = superfluous(&record, suspects);
        match self.condemn(record, doomed).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "it could not be noted which replicas are to be removed");
                false
            }
        }
    }

    async fn condemn(&self, record: MetaRecord, doomed: Vec<ReplicaDescriptor>) -> Result<(), StoresError> {
        if doomed.is_empty() {
            return Ok(());
        }
        let epoch = record.epoch;
        self.maps.offer(record.clone());
        self.stores.keep_meta(record).await?;
        for replica in doomed {
            let (id, shard) = (replica.replica_id, replica.shard_id);
            tracing::info!(replica = id, shard, epoch, "the cluster goes on without this replica");
            self.stores.condemn(ReplicaId(id)).await?;
        }
        Ok(())
    }

    /// Stops and erases. `false`: some have not ended yet.
    async fn remove(&self, condemned: Vec<ReplicaId>) -> Result<bool, StoresError> {
        (self.points)("condemned-replicas");
        let all = condemned.len();
        let ends = condemned.into_iter().map(|replica| async move {
            self.host.retire(replica).await;
            let ended = timeout(END_TIMEOUT, self.stores.state.machine_ended(replica)).await.is_ok();
            if !ended {
                tracing::warn!(replica = replica.get(), "a replica that is to be removed has not ended yet");
            }
            ended.then_some(replica)
        });
        let ended: Vec<ReplicaId> = futures::future::join_all(ends).await.into_iter().flatten().collect();
        (self.points)("retired-replicas");
        self.stores.erase(ended.clone()).await?;
        (self.points)("erased-replicas");
        for replica in &ended {
            tracing::info!(replica = replica.get(), "replica removed");
        }
        let whole = ended.len() == all;
        self.give_back(ended);
        Ok(whole)
    }

    /// Gives the space of removed replicas back, some time.
    fn give_back(&self, removed: Vec<ReplicaId>) {
        let (state, disk) = (self.stores.state.clone(), self.disk.clone());
        self.spawner.spawn("space of replicas", async move {
            if let Err(error) = state.give_back(removed, move || disk.spare_bytes()).await {
                tracing::warn!(%error, "the space of removed replicas could not be given back");
            }
        });
    }
}

/// Those that are superfluous and not condemned yet.
fn superfluous(record: &MetaRecord, replicas: Vec<ReplicaDescriptor>) -> Vec<ReplicaDescriptor> {
    replicas.into_iter().filter(|replica| !replica.removed && is_superfluous(record, replica)).collect()
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{
        Member, Membership, Move, ReplicaPlacement, StoredMembership, VoterChange, VoterSet,
    };

    use super::*;

    /// Of shard 2, and the only one in doubt.
    const DOUBTED: u64 = 7;

    fn placement(replica_id: u64) -> ReplicaPlacement {
        ReplicaPlacement { replica_id, node_id: replica_id }
    }

    fn observed(voters: &[u64], learners: &[u64]) -> StoredMembership {
        let members = voters.iter().chain(learners).map(|id| Member { replica_id: *id, node_id: *id });
        let voters = vec![VoterSet { replica_ids: voters.to_vec() }];
        StoredMembership { log_id: None, membership: Some(Membership { voters, members: members.collect() }) }
    }

    /// Shards 0 to 2; nothing names the replica.
    fn record() -> MetaRecord {
        let shard = |shard_id: u32| ShardRecord {
            shard_id,
            group_id: u64::from(shard_id),
            replicas: vec![placement(100 + u64::from(shard_id))],
            observed: Some(observed(&[100 + u64::from(shard_id)], &[])),
            ..ShardRecord::default()
        };
        MetaRecord {
            cluster_id: "c".to_owned(),
            epoch: 9,
            next_replica_id: 200,
            shards: (0..3).map(shard).collect(),
            ..MetaRecord::default()
        }
    }

    fn doubted() -> ReplicaDescriptor {
        ReplicaDescriptor { replica_id: DOUBTED, shard_id: 2, group_id: 2, ..ReplicaDescriptor::default() }
    }

    #[test]
    fn a_replica_that_nothing_names_is_superfluous_whatever_became_of_it() {
        assert!(is_superfluous(&record(), &doubted()));
        let damaged = ReplicaDescriptor { quarantine_reason: "a bit".to_owned(), ..doubted() };
        assert!(is_superfluous(&record(), &damaged));
        let of_meta = ReplicaDescriptor { shard_id: 0, group_id: 0, ..doubted() };
        assert!(is_superfluous(&record(), &of_meta));
        for (replica_id, shard_id) in [(100, 0), (101, 1), (102, 2)] {
            let placed = ReplicaDescriptor { replica_id, shard_id, ..ReplicaDescriptor::default() };
            assert!(!is_superfluous(&record(), &placed), "{replica_id}");
        }
    }

    #[test]
    fn whatever_names_a_replica_keeps_it() {
        let moved =
            |from_replica_id, to_replica_id| Some(Move { from_replica_id, to_replica_id, ..Move::default() });
        type Change = fn(&mut MetaRecord);
        let changes: [(&str, Change); 10] = [
            ("a placement", |record| record.shards[2].replicas.push(placement(DOUBTED))),
            ("a placement of another shard", |record| record.shards[1].replicas.push(placement(DOUBTED))),
            ("a voter", |record| record.shards[2].observed = Some(observed(&[DOUBTED, 102], &[]))),
            ("a learner", |record| record.shards[2].observed = Some(observed(&[102], &[DOUBTED]))),
            ("a change", |record| {
                let voter_replica_ids = vec![102, DOUBTED];
                record.shards[2].change = Some(VoterChange { voter_replica_ids, ..VoterChange::default() });
            }),
            ("an id that is not minted yet", |record| record.next_replica_id = DOUBTED),
            ("a group that was not seen", |record| record.shards[2].observed = None),
            ("a record of before its group", |record| record.shards[2].group_id = 1),
            ("an unknown shard", |record| record.shards.truncate(2)),
            ("a record of nothing", |record| *record = MetaRecord::default()),
        ];
        for (why, change) in changes {
            let mut record = record();
            change(&mut record);
            assert!(!is_superfluous(&record, &doubted()), "{why}");
        }
        for ends in [moved(DOUBTED, 102), moved(102, DOUBTED)] {
            let mut record = record();
            record.shards[2].r#move = ends;
            assert!(!is_superfluous(&record, &doubted()), "{:?}", record.shards[2].r#move);
        }
    }

    #[test]
    fn what_is_condemned_is_not_judged_again() {
        let condemned = ReplicaDescriptor { replica_id: 8, removed: true, ..doubted() };
        let placed = ReplicaDescriptor { replica_id: 102, ..doubted() };
        assert_eq!(superfluous(&record(), vec![doubted(), condemned, placed]), [doubted()]);
    }

    #[test]
    fn links_to_nodes_that_left_are_closed() {
        let node = |node_id, state: NodeState| kv_proto::disk::v1::NodeRecord {
            node_id,
            state: state.into(),
            ..Default::default()
        };
        let nodes = vec![node(1, NodeState::Active), node(2, NodeState::Removed), node(3, NodeState::Lost)];
        let record = MetaRecord { nodes, ..record() };
        assert_eq!(removed_nodes(&record).collect::<Vec<_>>(), [NodeId(2)]);
    }
}
