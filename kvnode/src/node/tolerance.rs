//! How many voters of a group that is led here may fail. Pure; the arithmetic is [`kv_topology::quorum`]'s.

use std::collections::BTreeMap;

use kv_proto::peer::v1::GroupDescription;
use kv_topology::{NodeId, ReplicaId};

use crate::meta::view;

/// Of the voters whose nodes are `alive`, so many may fail, whichever they are, and the rest still decides. -1: the group
/// has no quorum.
pub fn tolerance(group: &GroupDescription, alive: impl Fn(NodeId) -> bool) -> i64 {
    let Some(stored) = &group.membership else { return -1 };
    let members = stored.membership.iter().flat_map(|membership| &membership.members);
    let nodes: BTreeMap<_, _> =
        members.map(|member| (ReplicaId(member.replica_id), NodeId(member.node_id))).collect();
    let votes = |replica: ReplicaId| nodes.get(&replica).is_some_and(|node| alive(*node));
    let spare = view::membership(stored).fault_tolerance(votes);
    spare.map_or(-1, |spare| i64::try_from(spare).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{Member, Membership, StoredMembership, VoterSet};

    use super::*;

    #[test]
    fn voters_whose_nodes_are_silent_have_failed() {
        // Replica 10 + N lives on node N; the last is a learner.
        let members = (1..=4).map(|node| Member { replica_id: 10 + node, node_id: node }).collect();
        let voters = vec![VoterSet { replica_ids: vec![11, 12, 13] }];
        let membership = Some(Membership { voters, members });
        let group = GroupDescription {
            membership: Some(StoredMembership { log_id: None, membership }),
            ..GroupDescription::default()
        };
        assert_eq!(tolerance(&group, |_| true), 1);
        assert_eq!(tolerance(&group, |node| node != NodeId(4)), 1, "a learner does not vote");
        assert_eq!(tolerance(&group, |node| node != NodeId(2)), 0);
        assert_eq!(tolerance(&group, |node| node == NodeId(1)), -1);
        assert_eq!(tolerance(&GroupDescription::default(), |_| true), -1, "never formed");
    }
}
