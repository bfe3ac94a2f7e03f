//! How many voters of a group that is led here may fail. Pure; the arithmetic is [`kv_topology::quorum`]'s.

use std::{collections::BTreeSet, time::Duration};

use kv_proto::peer::v1::{GroupDescription, Progress};
use kv_topology::ReplicaId;

use crate::meta::view;

/// Followers answer heartbeats: one that was not heard of for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Of the voters that were heard of lately, so many may fail, whichever they are, and the rest still decides. -1: the group
/// has no quorum.
pub fn tolerance(group: &GroupDescription) -> i64 {
    let Some(stored) = &group.membership else { return -1 };
    let leads = |progress: &Progress| progress.replica_id == group.leader_replica_id;
    let lately = |ms: u64| Duration::from_millis(ms) <= SILENCE_MAX;
    let heard = group.progress.iter().filter(|one| leads(one) || one.heard_ms_ago.is_some_and(lately));
    let heard: BTreeSet<ReplicaId> = heard.map(|progress| ReplicaId(progress.replica_id)).collect();
    let spare = view::membership(stored).fault_tolerance(|replica| heard.contains(&replica));
    spare.map_or(-1, |spare| i64::try_from(spare).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{Member, Membership, StoredMembership, VoterSet};

    use super::*;

    #[test]
    fn voters_that_are_silent_have_failed() {
        // The first leads; the last is a learner.
        let members = (1..=4).map(|node| Member { replica_id: 10 + node, node_id: node }).collect();
        let voters = vec![VoterSet { replica_ids: vec![11, 12, 13] }];
        let membership = Some(Membership { voters, members });
        let group = |silent: &[(u64, Option<u64>)]| {
            let heard_ms_ago = |id: u64| {
                let silent = silent.iter().find(|(silent, _)| *silent == id);
                silent.map_or(Some(100), |(_, heard)| *heard)
            };
            let progress = |replica_id| Progress {
                replica_id,
                heard_ms_ago: heard_ms_ago(replica_id),
                ..Progress::default()
            };
            GroupDescription {
                membership: Some(StoredMembership { log_id: None, membership: membership.clone() }),
                leader_replica_id: 11,
                progress: (11..=14).map(progress).collect(),
                ..GroupDescription::default()
            }
        };
        assert_eq!(tolerance(&group(&[])), 1);
        assert_eq!(tolerance(&group(&[(11, None)])), 1, "a leader need not hear itself");
        assert_eq!(tolerance(&group(&[(14, Some(3_001))])), 1, "a learner does not vote");
        assert_eq!(tolerance(&group(&[(12, Some(3_000))])), 1);
        assert_eq!(tolerance(&group(&[(12, Some(3_001))])), 0);
        assert_eq!(tolerance(&group(&[(12, Some(3_001)), (13, None)])), -1);
        assert_eq!(tolerance(&GroupDescription::default()), -1, "never formed");
    }
}
