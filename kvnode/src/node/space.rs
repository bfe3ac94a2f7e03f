//! What a filling disk means for this node.
//!
//! [`Disk`] keeps what [`watch_space`] measures, from the start of the node on, and the ballast with it. [`enforce`]
//! draws the conclusions for the replicas that live here: below the soft limit their leaderships go to nodes that have
//! room, what this node goes on leading admits only deletes, and downloads pin nothing; below the hard limit the transport refuses entries
//! and snapshots. Other nodes hear of the level with every batch, so that no leader admits what a quorum cannot store.
//!
//! A full disk does not make a node unready: its reads are as good as any. It falls behind and says so by its lag.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kv_proto::{
    admin::v1 as admin,
    disk::v1::{Membership, VoterSet},
    peer::v1::{DiskLevel, GroupDescription},
};
use kv_topology::{NodeId, ReplicaId};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::replicas::LocalReplicas;
use crate::{
    config::DiskLimits,
    data_dir::{Ballast, DataDir, Level, Space, SpaceLimits, SpaceWatch, space_of, watch_space},
    group::{membership::TRANSFER_LAG_ENTRIES_MAX, replica::Replica, room::room},
    state::pins::Pins,
    transport::Transport,
};

/// How often the conclusions are drawn: as often as free space is measured, and once between.
const ENFORCE_EVERY: Duration = Duration::from_millis(500);

/// For so long a leader goes on admitting below the soft limit while somebody can take over: clients then notice
/// nothing. At 500 MB/s it costs 1.5 GB, which the distance between the limits leaves room for.
const HAND_OVER_GRACE: Duration = Duration::from_secs(3);

/// The volume of the data folder as it was last measured.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    ballast: Ballast,
    limits: SpaceLimits,
    now: Mutex<Measured>,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    space: Option<Space>,
    level: Level,
    /// When the node last had enough space.
    since: Instant,
}

impl Disk {
    /// Measures the volume for the first time, and gives the ballast up when it is full: before the databases are
    /// opened, which need room.
    pub fn of(dir: &DataDir, configured: DiskLimits) -> Self {
        let space = space_of(dir.path()).ok();
        let limits = SpaceLimits::of_volume(space.map(|space| space.total).unwrap_or_default(), configured);
        let level = space.map_or(Level::Enough, |space| SpaceWatch::new(limits).observe(space.free));
        let now = Mutex::new(Measured { space, level, since: Instant::now() });
        Self { path: dir.path().to_owned(), ballast: Ballast::at(dir.ballast()), limits, now }
    }

    /// Measures for ever.
    pub async fn watch(&self) {
        let measure = || space_of(&self.path);
        watch_space(self.limits, self.ballast.clone(), measure, |space, level| {
            let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
            let before = *now;
            let began = before.level == Level::Enough && level != Level::Enough;
            let since = if began { Instant::now() } else { before.since };
            *now = Measured { space: Some(space), level, since };
        })
        .await;
    }

    /// The level of the last measurement.
    pub fn level(&self) -> Level {
        self.now().level
    }

    /// The last measurement; `None` when the volume cannot be measured.
    pub fn space(&self) -> Option<Space> {
        self.now().space
    }

    /// The level for the status.
    pub fn told_level(&self) -> admin::DiskLevel {
        match self.level() {
            Level::Enough => admin::DiskLevel::DiskEnough,
            Level::Soft => admin::DiskLevel::DiskSoft,
            Level::Hard => admin::DiskLevel::DiskHard,
        }
    }

    /// What a person should know of the disk; `None` when there is enough space.
    pub fn complaint(&self) -> Option<String> {
        let now = self.now();
        let (what, limit) = match now.level {
            Level::Enough => return None,
            Level::Soft => ("nearly full", self.limits.soft),
            Level::Hard => ("full", self.limits.hard),
        };
        let free = now.space.map_or(0, |space| space.free.get());
        let path = self.path.display();
        Some(format!("the disk of {path} is {what}: {free} B are free, below the limit of {limit} B"))
    }

    fn now(&self) -> Measured {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the ballast up when the volume is below its hard limit: a node whose disk is full needs room to start. Touches
/// nothing else, and does nothing when there is no folder yet.
pub fn make_room(data_dir: &Path, configured: DiskLimits) {
    let Ok(space) = space_of(data_dir) else { return };
    let limits = SpaceLimits::of_volume(space.total, configured);
    if SpaceWatch::new(limits).observe(space.free) < Level::Hard {
        return;
    }
    let free_bytes = space.free.get();
    match Ballast::at(data_dir.join(crate::data_dir::BALLAST)).release() {
        Ok(()) => {
            tracing::warn!(free_bytes, "the disk is full at the start: the ballast is given up");
        }
        Err(error) => {
            tracing::error!(free_bytes, %error, "the disk is full and the ballast cannot be removed");
        }
    }
}

/// Draws the conclusions for the replicas of this node, for ever.
pub async fn enforce(
    disk: Arc<Disk>,
    me: NodeId,
    replicas: Arc<LocalReplicas>,
    transport: Transport,
    pins: Arc<Pins>,
) {
    let mut ticks = interval(ENFORCE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (own, since) = (disk.level(), disk.now().since);
        transport.set_disk_level(wire_level(own));
        // They keep compaction from freeing what was deleted.
        pins.set_room(own == Level::Enough);
        let level_of = |node| if node == me { own } else { level(transport.disk_level(node)) };
        for replica in replicas.all() {
            replica.gate.set_stuck(own == Level::Hard);
            let complaint = || disk.complaint().unwrap_or_else(|| full_voters(&replica, &level_of));
            if replica.control.leader() != Some(me) {
                // It says who leads instead.
                replica.proposer.set_room(room(Level::Enough, &[]), "");
                continue;
            }
            let handing = own >= Level::Soft && hand_over(&replica, &level_of).await;
            if handing && own == Level::Soft && since.elapsed() < HAND_OVER_GRACE {
                continue;
            }
            let voters: Vec<Level> = voters(&replica).map(level_of).collect();
            replica.proposer.set_room(room(own, &voters), format!("node {me}: {}", complaint()));
        }
    }
}

fn voters(replica: &Replica) -> impl Iterator<Item = NodeId> {
    replica.control.status().voter_node_ids.into_iter().map(NodeId)
}

/// Which nodes' disks keep a group from storing more.
fn full_voters(replica: &Replica, level_of: &impl Fn(NodeId) -> Level) -> String {
    let full = voters(replica).filter(|node| level_of(*node) > Level::Enough);
    let full: Vec<String> = full.map(|node| node.to_string()).collect();
    format!("too few nodes of shard {} have room: the disks of {} are full", replica.shard, full.join(", "))
}

/// Asks the best successor to lead. False: there is none.
async fn hand_over(replica: &Replica, level_of: &impl Fn(NodeId) -> Level) -> bool {
    let Some(successor) = replica.control.describe().ok().and_then(|group| successor(&group, level_of))
    else {
        return false;
    };
    match replica.control.transfer_leader(successor).await {
        Ok(()) => {
            let (shard, to) = (replica.shard.get(), successor.get());
            tracing::info!(shard, to, "the disk is nearly full: leadership is handed over");
            true
        }
        Err(_) => false,
    }
}

/// The voter that may lead instead: with room on its disk, caught up, the furthest of them.
fn successor(group: &GroupDescription, level_of: &impl Fn(NodeId) -> Level) -> Option<ReplicaId> {
    let membership = group.membership.as_ref()?.membership.as_ref()?;
    let Membership { voters, members } = membership;
    // In a joint configuration it must be in both.
    let votes = |id: u64| voters.iter().all(|VoterSet { replica_ids }| replica_ids.contains(&id));
    let has_room = |id: u64| {
        let member = members.iter().find(|member| member.replica_id == id);
        member.is_some_and(|member| level_of(NodeId(member.node_id)) == Level::Enough)
    };
    let caught_up = |matching: u64| group.last_log_index.saturating_sub(matching) <= TRANSFER_LAG_ENTRIES_MAX;
    group
        .progress
        .iter()
        .filter(|progress| {
            progress.replica_id != group.leader_replica_id && caught_up(progress.matching_index)
        })
        .filter(|progress| votes(progress.replica_id) && has_room(progress.replica_id))
        .max_by_key(|progress| progress.matching_index)
        .map(|progress| ReplicaId(progress.replica_id))
}

/// A level as nodes tell it to each other.
const fn wire_level(level: Level) -> DiskLevel {
    match level {
        Level::Enough => DiskLevel::DiskEnough,
        Level::Soft => DiskLevel::DiskSoft,
        Level::Hard => DiskLevel::DiskHard,
    }
}

/// The level that another node told.
pub const fn level(told: DiskLevel) -> Level {
    match told {
        DiskLevel::DiskEnough => Level::Enough,
        DiskLevel::DiskSoft => Level::Soft,
        DiskLevel::DiskHard => Level::Hard,
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::{
        disk::v1::{Member, StoredMembership},
        peer::v1::Progress,
    };

    use super::*;

    /// Replica N lives on node N; the first leads.
    fn group(voters: &[u64], matching: &[(u64, u64)]) -> GroupDescription {
        let members = matching.iter().map(|(id, _)| Member { replica_id: *id, node_id: *id });
        let set = VoterSet { replica_ids: voters.to_vec() };
        let membership = Membership { voters: vec![set], members: members.collect() };
        let progress =
            matching.iter().map(|(id, index)| Progress { replica_id: *id, matching_index: *index });
        GroupDescription {
            membership: Some(StoredMembership { log_id: None, membership: Some(membership) }),
            leader_replica_id: matching[0].0,
            last_log_index: matching[0].1,
            progress: progress.collect(),
            ..GroupDescription::default()
        }
    }

    #[test]
    fn leadership_goes_to_the_furthest_voter_that_has_room() {
        let full = |node: NodeId| if node == NodeId(3) { Level::Soft } else { Level::Enough };
        let all = group(&[1, 2, 3, 4], &[(1, 9_000), (2, 8_500), (3, 9_000), (4, 8_900)]);
        assert_eq!(successor(&all, &full), Some(ReplicaId(4)));
        assert_eq!(successor(&all, &|_| Level::Soft), None, "all are full");
        let learner = group(&[1, 3], &[(1, 9_000), (2, 9_000), (3, 9_000)]);
        assert_eq!(successor(&learner, &full), None, "the only node with room does not vote");
        let behind = group(&[1, 2], &[(1, 9_000), (2, 7_999)]);
        assert_eq!(successor(&behind, &full), None, "it would keep the group waiting");
    }

    #[test]
    fn a_level_is_told_as_it_is() {
        for known in [Level::Enough, Level::Soft, Level::Hard] {
            assert_eq!(level(wire_level(known)), known);
        }
    }
}
