//! What the survivors of a cluster have on their disks. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kv_client::{
    Address,
    admin::{InspectResponse, LogPosition, MembershipOnDisk, RecordOnDisk, ReplicaOnDisk},
};

/// A node that answered, and what is on its disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Survivor {
    /// Where it was asked.
    pub address: Address,
    /// What it said.
    pub disk: InspectResponse,
}

/// All that is known. At least one survivor, all of one cluster.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// In the order of their node ids.
    pub survivors: Vec<Survivor>,
}

/// A replica and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// On whose disk.
    pub survivor: &'a Survivor,
    /// The replica.
    pub replica: &'a ReplicaOnDisk,
}

impl Held<'_> {
    /// Its bytes are sound: it is in service, or was only given up with its group.
    pub fn is_sound(&self) -> bool {
        self.replica.quarantine_reason.is_empty() || self.replica.replaced_by_group_id != 0
    }

    /// It is sound and was not given up.
    pub fn is_in_service(&self) -> bool {
        self.replica.quarantine_reason.is_empty()
    }

    /// How far its log reaches, in Raft's order: the later term wins, then the longer log. `None`: it never had anything.
    pub fn reach(&self) -> Option<(u64, u64)> {
        self.replica.last.as_ref().map(|last| (last.term, last.index))
    }
}

impl Evidence {
    /// Puts the answers together.
    ///
    /// # Errors
    /// Why they cannot be of one cluster's survivors.
    pub fn of(mut survivors: Vec<Survivor>) -> Result<Self, String> {
        survivors.sort_by_key(|survivor| survivor.disk.node_id);
        let Some(first) = survivors.first() else { return Err("no node answered".to_owned()) };
        for survivor in &survivors {
            let (disk, address) = (&survivor.disk, &survivor.address);
            if disk.cluster_id.is_empty() {
                return Err(format!("{address} belongs to no cluster"));
            }
            if disk.cluster_id != first.disk.cluster_id {
                let (own, other) = (&first.disk.cluster_id, &disk.cluster_id);
                return Err(format!(
                    "{} is of cluster {own}, and {address} of cluster {other}",
                    first.address
                ));
            }
            if !disk.fenced.is_empty() {
                return Err(format!(
                    "the folder of {} at {address} is fenced: {}",
                    disk.node_name, disk.fenced
                ));
            }
        }
        let twice = survivors.windows(2).find(|pair| pair[0].disk.node_id == pair[1].disk.node_id);
        if let Some([one, other]) = twice {
            let (name, one, other) = (&one.disk.node_name, &one.address, &other.address);
            return Err(format!(
                "{name} answers at {one} and at {other}: one is a copy of its disk; leave it out"
            ));
        }
        Ok(Self { survivors })
    }

    /// Of all of them.
    pub fn cluster_id(&self) -> &str {
        self.survivors.first().map_or("", |survivor| &survivor.disk.cluster_id)
    }

    /// The survivor with this node id.
    pub fn survivor(&self, node_id: u64) -> Option<&Survivor> {
        self.survivors.iter().find(|survivor| survivor.disk.node_id == node_id)
    }

    /// The replicas of a shard.
    pub fn of_shard(&self, shard: u32) -> Vec<Held<'_>> {
        let held = |survivor| replicas_of(survivor).map(move |replica| Held { survivor, replica });
        self.survivors.iter().flat_map(held).filter(|held| held.replica.shard_id == shard).collect()
    }

    /// The newest record that anybody has.
    pub fn newest_record(&self) -> Option<&RecordOnDisk> {
        self.survivors
            .iter()
            .filter_map(|survivor| survivor.disk.record.as_ref())
            .max_by_key(|record| record.epoch)
    }

    /// The newest record that is surely decided: what only stands at the end of a log may be taken back by those who keep the
    /// quorum of meta.
    pub fn newest_settled(&self) -> Option<&RecordOnDisk> {
        let disks = self.survivors.iter().map(|survivor| &survivor.disk);
        let settled = disks.filter_map(|disk| disk.settled.as_ref().or(disk.record.as_ref()));
        settled.max_by_key(|record| record.epoch)
    }

    /// All shards of which anything is known, meta among them.
    pub fn shards(&self, record: Option<&RecordOnDisk>) -> BTreeSet<u32> {
        let recorded = record.into_iter().flat_map(|record| &record.shards).map(|shard| shard.shard_id);
        let on_disk = self.survivors.iter().flat_map(replicas_of).map(|replica| replica.shard_id);
        recorded.chain(on_disk).collect()
    }
}

fn replicas_of(survivor: &Survivor) -> impl Iterator<Item = &ReplicaOnDisk> {
    survivor.disk.replicas.iter()
}

impl Evidence {
    /// Without nodes that a record does not know: to the cluster that goes on from it they are strangers, and what they have
    /// counts for nothing.
    pub fn known_to(&self, record: &RecordOnDisk) -> Self {
        let is_known = |survivor: &&Survivor| {
            record.nodes.iter().any(|node| node.node_id == survivor.disk.node_id && !node.removed)
        };
        Self { survivors: self.survivors.iter().filter(is_known).cloned().collect() }
    }
}

/// The names of all nodes that a record tells, by id.
pub fn names(record: Option<&RecordOnDisk>) -> BTreeMap<u64, String> {
    let nodes = record.into_iter().flat_map(|record| &record.nodes);
    nodes.map(|node| (node.node_id, node.name.clone())).collect()
}

/// Whether these replicas are a majority of every set of voters. A membership without voters has none.
pub fn is_quorum(membership: &MembershipOnDisk, present: &BTreeSet<u64>) -> bool {
    let has_majority = |set: &Vec<u64>| {
        let there = set.iter().filter(|id| present.contains(id)).count();
        there > set.len() / 2
    };
    let sets: Vec<Vec<u64>> = membership.voters.iter().map(|set| set.replica_ids.clone()).collect();
    !sets.is_empty() && sets.iter().all(has_majority)
}

/// Voters of either set.
pub fn voters(membership: &MembershipOnDisk) -> BTreeSet<u64> {
    membership.voters.iter().flat_map(|set| set.replica_ids.iter().copied()).collect()
}

/// What is surely committed and of one set, as this replica knows it.
pub fn settled_membership(replica: &ReplicaOnDisk) -> Option<&MembershipOnDisk> {
    let index = |position: Option<&LogPosition>| position.map(|position| position.index);
    let is_uniform = |membership: &&MembershipOnDisk| membership.voters.len() == 1 && membership.at.is_some();
    let is_committed =
        |membership: &&MembershipOnDisk| index(membership.at.as_ref()) <= index(replica.committed.as_ref());
    let newest = replica.membership.as_ref().filter(is_uniform).filter(is_committed);
    newest.or_else(|| replica.applied_membership.as_ref().filter(is_uniform))
}
