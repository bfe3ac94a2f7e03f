//! What a filling disk means for this node.
//!
//! [`Disk`] keeps what [`watch_space`] measures, from the start of the node on, and the ballast with it. [`enforce`]
//! draws the conclusions for the replicas that live here: below the soft limit their leaderships go to nodes that have
//! room, what this node goes on leading admits only deletes, whose space [`super::reclaim`] gives back, and downloads pin
//! nothing; below the hard limit the transport refuses entries and snapshots. Other nodes hear of the level with every
//! batch, so that no leader admits what a quorum cannot store.
//!
//! A full disk does not make a node unready: its reads are as good as any. It falls behind and says so by its lag.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kv_proto::{admin::v1 as admin, peer::v1::DiskLevel};
use kv_topology::NodeId;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    replicas::LocalReplicas,
    successor::{self, Attempts},
};
use crate::{
    config::{ByteCount, DiskLimits},
    data_dir::{Ballast, DataDir, Level, Space, SpaceLimits, SpaceWatch, space_of, watch_space},
    group::{replica::Replica, room::room},
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

    /// What a compaction may write now before it frees anything, bytes: see [`spare_bytes`]. Measures; blocks for a
    /// moment. 0: the volume cannot be measured.
    pub fn spare_bytes(&self) -> u64 {
        let hard = self.limits.hard;
        space_of(&self.path).map_or(0, |space| spare_bytes(self.level(), space.free, hard))
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

/// What a compaction may write. On a disk that still takes deletes so much that it goes on taking them, by the distance
/// that would end the hard limit again; on a full one all but half of the hard limit, since a flush or the log that meets
/// no space at all ends the node.
fn spare_bytes(level: Level, free: ByteCount, hard: ByteCount) -> u64 {
    let kept = if level == Level::Hard { hard.get() / 2 } else { hard.get() / 4 * 5 };
    free.get().saturating_sub(kept)
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
    let mut attempts = Attempts::default();
    loop {
        ticks.tick().await;
        attempts.tick();
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
            let handing =
                own >= Level::Soft && successor::hand_over(&replica, &level_of, &mut attempts).await;
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
    use super::*;

    #[test]
    fn compaction_leaves_half_of_the_hard_limit_alone() {
        assert_eq!(spare_bytes(Level::Soft, ByteCount(1_000), ByteCount(400)), 500, "deletes go on");
        assert_eq!(spare_bytes(Level::Soft, ByteCount(499), ByteCount(400)), 0);
        assert_eq!(spare_bytes(Level::Hard, ByteCount(499), ByteCount(400)), 299);
        assert_eq!(spare_bytes(Level::Hard, ByteCount(100), ByteCount(400)), 0);
    }

    #[test]
    fn a_level_is_told_as_it_is() {
        for known in [Level::Enough, Level::Soft, Level::Hard] {
            assert_eq!(level(wire_level(known)), known);
        }
    }
}
