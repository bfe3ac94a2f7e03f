//! To whom a node whose disk fills up gives a leadership.
//!
//! That a transfer was begun says nothing yet: a node that stops refuses it, and one that hangs never answers. So who was
//! asked and does not lead shortly after is asked again only when nobody else is left.

use std::{cmp::Reverse, collections::BTreeMap};

use kv_proto::{
    disk::v1::{Membership, VoterSet},
    peer::v1::GroupDescription,
};
use kv_topology::{NodeId, ReplicaId, permit::CAUGHT_UP_ENTRIES};

use crate::{data_dir::Level, group::replica::Replica};

/// For so many ticks it is remembered who was asked: at two a second for ten seconds, in which a node that stops is gone.
const REMEMBERED_TICKS: u64 = 20;

/// The replicas that were asked to lead, and when.
#[derive(Debug, Default)]
pub struct Attempts {
    now: u64,
    /// By replica, at which tick. At most one for each voter of the groups that are led here.
    asked: BTreeMap<ReplicaId, u64>,
}

impl Attempts {
    /// Time goes on.
    pub fn tick(&mut self) {
        self.now += 1;
        let now = self.now;
        self.asked.retain(|_, at| now - *at < REMEMBERED_TICKS);
    }

    fn note(&mut self, replica: ReplicaId) {
        self.asked.insert(replica, self.now);
    }

    /// When a replica was asked; `None`: not lately.
    fn at(&self, replica: ReplicaId) -> Option<u64> {
        self.asked.get(&replica).copied()
    }
}

/// Asks successors to lead, one after the other, until one can. False: none of them can.
pub async fn hand_over(
    replica: &Replica,
    level_of: &impl Fn(NodeId) -> Level,
    attempts: &mut Attempts,
) -> bool {
    loop {
        let group = replica.control.describe().ok();
        let Some(successor) = group.and_then(|group| successor(&group, level_of, attempts)) else {
            return false;
        };
        attempts.note(successor);
        if replica.control.begin_transfer(successor).await.is_ok() {
            let (shard, to) = (replica.shard.get(), successor.get());
            tracing::info!(shard, to, "the disk is nearly full: leadership is handed over");
            return true;
        }
    }
}

/// The voter that may lead instead: with room on its disk, caught up, not asked in this tick; of them one that was not
/// asked lately, or else the longest ago, and the furthest.
fn successor(
    group: &GroupDescription,
    level_of: &impl Fn(NodeId) -> Level,
    attempts: &Attempts,
) -> Option<ReplicaId> {
    let membership = group.membership.as_ref()?.membership.as_ref()?;
    let Membership { voters, members } = membership;
    // In a joint configuration it must be in both.
    let votes = |id: u64| voters.iter().all(|VoterSet { replica_ids }| replica_ids.contains(&id));
    let has_room = |id: u64| {
        let member = members.iter().find(|member| member.replica_id == id);
        member.is_some_and(|member| level_of(NodeId(member.node_id)) == Level::Enough)
    };
    let caught_up = |matching: u64| group.last_log_index.saturating_sub(matching) <= CAUGHT_UP_ENTRIES;
    group
        .progress
        .iter()
        .filter(|progress| {
            progress.replica_id != group.leader_replica_id && caught_up(progress.matching_index)
        })
        .filter(|progress| votes(progress.replica_id) && has_room(progress.replica_id))
        .map(|progress| (ReplicaId(progress.replica_id), progress.matching_index))
        .filter(|(replica, _)| attempts.at(*replica) != Some(attempts.now))
        .max_by_key(|(replica, matching)| (Reverse(attempts.at(*replica)), *matching))
        .map(|(replica, _)| replica)
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
        let progress = matching.iter().map(|(id, index)| Progress {
            replica_id: *id,
            matching_index: *index,
            ..Progress::default()
        });
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
        let attempts = Attempts::default();
        let all = group(&[1, 2, 3, 4], &[(1, 9_000), (2, 8_500), (3, 9_000), (4, 8_900)]);
        assert_eq!(successor(&all, &full, &attempts), Some(ReplicaId(4)));
        assert_eq!(successor(&all, &|_| Level::Soft, &attempts), None, "all are full");
        let learner = group(&[1, 3], &[(1, 9_000), (2, 9_000), (3, 9_000)]);
        assert_eq!(successor(&learner, &full, &attempts), None, "the only node with room does not vote");
        let behind = group(&[1, 2], &[(1, 9_000), (2, 7_999)]);
        assert_eq!(successor(&behind, &full, &attempts), None, "it would keep the group waiting");
    }

    #[test]
    fn who_was_asked_and_does_not_lead_comes_after_the_others_and_is_forgiven() {
        let room = |_| Level::Enough;
        let all = group(&[1, 2, 3], &[(1, 9_000), (2, 9_000), (3, 8_900)]);
        let mut attempts = Attempts::default();
        let ask = |attempts: &mut Attempts| {
            let asked = successor(&all, &room, attempts);
            asked.inspect(|replica| attempts.note(*replica))
        };
        attempts.tick();
        assert_eq!(ask(&mut attempts), Some(ReplicaId(2)));
        assert_eq!(ask(&mut attempts), Some(ReplicaId(3)), "the first could not: the next one at once");
        assert_eq!(ask(&mut attempts), None, "everybody was asked in this tick");
        attempts.tick();
        assert_eq!(ask(&mut attempts), Some(ReplicaId(2)), "nobody else is left");
        attempts.tick();
        assert_eq!(ask(&mut attempts), Some(ReplicaId(3)), "it was asked longer ago");
        (0..REMEMBERED_TICKS).for_each(|_| attempts.tick());
        assert_eq!(ask(&mut attempts), Some(ReplicaId(2)), "what was is forgotten");
    }
}
