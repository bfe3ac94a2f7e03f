//! Whether a cluster is as it should be when nothing is left to do. Pure questions to what a node tells of all of them, and
//! the wait for good answers.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::admin::v1::{ClusterStatus, NodeState, NodeView, Phase, ReplicaStatus, Role, ShardStatus};

use crate::{
    api::in_words,
    cluster::Cluster,
    wait::{DEADLINE, SLOW_POLL, wait_until_every},
};

/// The meta group has at least so many voters, as far as there are nodes.
const META_VOTERS: usize = 3;

/// What a cluster should be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Beside meta.
    pub data_shards: usize,
    /// Replicas of each.
    pub replication_factor: usize,
}

impl Wanted {
    /// Members that a shard has in a cluster with so many active nodes, and how many of them vote.
    fn members(self, shard: u32, active: usize) -> (usize, usize) {
        let goal =
            if shard == 0 { self.replication_factor.max(META_VOTERS) } else { self.replication_factor };
        let members = goal.min(active);
        (members, if members.is_multiple_of(2) { members.saturating_sub(1) } else { members })
    }
}

impl Cluster {
    /// Waits until nothing is left to do, as the node `via` sees it: see [`is_settled`]. No change of voters is under way
    /// then either, which a permit would have to wait for.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_settled(&self, via: usize) -> ClusterStatus {
        self.wait_settled_as(via, self.wanted()).await
    }

    /// The same for a cluster that should be another one by now.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_settled_as(&self, via: usize, wanted: Wanted) -> ClusterStatus {
        let (admin, name) = (self.admin(via), &self.nodes[via].name);
        let what = format!("a settled cluster, {wanted:?}");
        let settled = wait_until_every(SLOW_POLL, what, DEADLINE, || async {
            let cluster = admin.cluster_status().await.map_err(|status| in_words(&status))?;
            is_settled(&cluster, wanted)?;
            let asked = admin.would_permit(name).await.map_err(|status| in_words(&status))?;
            match asked.objections.into_iter().find(|objection| objection.reason == "CHANGE_UNDER_WAY") {
                Some(change) => Err(change.message),
                None => Ok(cluster),
            }
        });
        settled.await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until the cluster, as the node `via` sees it, is so.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_cluster<T>(
        &self,
        via: usize,
        what: &str,
        is_so: impl Fn(&ClusterStatus) -> Result<T, String>,
    ) -> T {
        let admin = self.admin(via);
        let seen = wait_until_every(SLOW_POLL, what, DEADLINE, || async {
            is_so(&admin.cluster_status().await.map_err(|status| in_words(&status))?)
        });
        seen.await.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Says what is left to do: see [`stands_still`] and [`is_even`].
///
/// # Errors
/// The first thing that is missing.
pub fn is_settled(cluster: &ClusterStatus, wanted: Wanted) -> Result<(), String> {
    stands_still(cluster, wanted)?;
    is_even(cluster)
}

/// Says what keeps the cluster from rest: each shard has as many members as wanted, on active nodes that serve, and nobody
/// holds or moves anything else.
///
/// # Errors
/// The first thing that is missing.
pub fn stands_still(cluster: &ClusterStatus, wanted: Wanted) -> Result<(), String> {
    if let Some(moving) = cluster.moves.first() {
        return Err(format!("{} moves, the first: {moving:?}", cluster.moves.len()));
    }
    for node in &cluster.nodes {
        is_in_service(node)?;
    }
    if cluster.shards.len() != wanted.data_shards + 1 {
        return Err(format!("{} shards, meta included", cluster.shards.len()));
    }
    for shard in &cluster.shards {
        has_its_members(cluster, shard, wanted)?;
    }
    cluster.nodes.iter().try_for_each(|node| holds_what_is_placed(cluster, node))
}

/// Says which of two active nodes in one zone holds more data replicas than one above the other.
///
/// # Errors
/// When there are such.
pub fn is_even(cluster: &ClusterStatus) -> Result<(), String> {
    let mut zones: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let loads = loads(cluster, |shard| shard.replicas.iter().map(|replica| replica.node_id).collect());
    for node in &cluster.nodes {
        if let (Some(info), Some(load)) = (&node.info, loads.get(&id(node))) {
            zones.entry(&info.zone).or_default().push(*load);
        }
    }
    let uneven = zones.values().find(|loads| spread(loads) > 1);
    uneven.map_or(Ok(()), |_| Err(format!("data replicas by node: {loads:?}")))
}

/// Says how uneven the leaders of the data shards are spread over the active nodes.
///
/// # Errors
/// When one leads more than one more than another.
pub fn has_even_leaders(cluster: &ClusterStatus) -> Result<(), String> {
    let loads = loads(cluster, |shard| vec![shard.leader_node_id]);
    if spread(&loads.values().copied().collect::<Vec<_>>()) > 1 {
        return Err(format!("leaders by node: {loads:?}"));
    }
    Ok(())
}

/// The node's id.
pub fn id(node: &NodeView) -> u64 {
    node.info.as_ref().map_or(0, |info| info.node_id)
}

/// Ids of the nodes that take part.
pub fn active(cluster: &ClusterStatus) -> BTreeSet<u64> {
    cluster.nodes.iter().filter(|node| state(node) == NodeState::Active).map(id).collect()
}

/// Shards of which the node with this id has a placement, meta included.
pub fn placed_at(cluster: &ClusterStatus, node: u64) -> BTreeSet<u32> {
    let held = cluster.shards.iter().filter(|shard| shard.replicas.iter().any(|held| held.node_id == node));
    held.map(|shard| shard.shard_id).collect()
}

fn state(node: &NodeView) -> NodeState {
    node.info.as_ref().map_or(NodeState::Unspecified, |info| info.state())
}

/// How often each active node is named for a data shard.
fn loads(cluster: &ClusterStatus, named: impl Fn(&ShardStatus) -> Vec<u64>) -> BTreeMap<u64, usize> {
    let mut loads: BTreeMap<u64, usize> = active(cluster).into_iter().map(|node| (node, 0)).collect();
    for node in cluster.shards.iter().filter(|shard| shard.shard_id != 0).flat_map(named) {
        if let Some(load) = loads.get_mut(&node) {
            *load += 1;
        }
    }
    loads
}

fn spread(loads: &[usize]) -> usize {
    loads.iter().max().unwrap_or(&0) - loads.iter().min().unwrap_or(&0)
}

fn is_in_service(node: &NodeView) -> Result<(), String> {
    let name = node.info.as_ref().map_or("a node without a record", |info| info.name.as_str());
    match (state(node), &node.status) {
        (NodeState::Active, None) => Err(format!("{name} does not answer")),
        (NodeState::Active, Some(status)) if status.phase() != Phase::Running || !status.ready => {
            Err(format!("{name} is {:?}, ready {}: {}", status.phase(), status.ready, status.message))
        }
        (NodeState::Active | NodeState::Drained | NodeState::Lost | NodeState::Removed, _) => Ok(()),
        (state @ (NodeState::Unspecified | NodeState::Joining | NodeState::Draining), _) => {
            Err(format!("{name} is {state:?}"))
        }
    }
}

/// What the leader of a shard says of it.
fn leader<'a>(cluster: &'a ClusterStatus, shard: &ShardStatus) -> Option<&'a ReplicaStatus> {
    let leading = cluster.nodes.iter().find(|node| id(node) == shard.leader_node_id)?;
    let mut replicas = leading.status.iter().flat_map(|status| &status.replicas);
    replicas.find(|replica| replica.group_id == shard.group_id && replica.role() == Role::Leader)
}

fn has_its_members(cluster: &ClusterStatus, shard: &ShardStatus, wanted: Wanted) -> Result<(), String> {
    let active = active(cluster);
    let (members, voters) = wanted.members(shard.shard_id, active.len());
    let name = format!("shard {}", shard.shard_id);
    let leader = leader(cluster, shard).ok_or_else(|| format!("{name} has no leader"))?;
    let (voting, learning) = (&leader.voter_node_ids, &leader.learner_node_ids);
    if (voting.len(), learning.len()) != (voters, members - voters) {
        return Err(format!("{name} has the voters {voting:?} and the learners {learning:?}"));
    }
    let named: BTreeSet<u64> = voting.iter().chain(learning).copied().collect();
    let placed: BTreeSet<u64> = shard.replicas.iter().map(|replica| replica.node_id).collect();
    if named.len() != members || placed != named || shard.replicas.len() != members {
        return Err(format!("{name} is placed at {:?}, and its members are {named:?}", shard.replicas));
    }
    if !named.is_subset(&active) {
        return Err(format!("{name} has the members {named:?}, and {active:?} are active"));
    }
    Ok(())
}

/// Replicas that nobody placed there are what a move should have cleaned up.
fn holds_what_is_placed(cluster: &ClusterStatus, node: &NodeView) -> Result<(), String> {
    let Some(status) = &node.status else { return Ok(()) };
    let placed = |replica: &&ReplicaStatus| {
        let shard = cluster.shards.iter().find(|shard| shard.group_id == replica.group_id);
        shard.is_some_and(|shard| {
            let mut replicas = shard.replicas.iter();
            replicas.any(|held| (held.replica_id, held.node_id) == (replica.replica_id, id(node)))
        })
    };
    let works = |role: Role| matches!(role, Role::Leader | Role::Follower | Role::Learner);
    let wrong = status.replicas.iter().find(|replica| !placed(replica) || !works(replica.role()));
    if let Some(wrong) = wrong {
        return Err(format!("#{} has {wrong:?}", id(node)));
    }
    let (has, should) = (status.replicas.len(), placed_at(cluster, id(node)).len());
    if has == should { Ok(()) } else { Err(format!("#{} has {has} of {should} replicas", id(node))) }
}

#[cfg(test)]
mod tests {
    use kv_proto::admin::v1::{Move, NodeInfo, NodeStatus, ReplicaPlacement};

    use super::*;

    const WANTED: Wanted = Wanted { data_shards: 2, replication_factor: 3 };

    /// Each shard with the nodes that hold it; the first leads.
    fn cluster(nodes: u64, shards: &[&[u64]]) -> ClusterStatus {
        let number = |index: usize| u32::try_from(index).unwrap();
        let shard = |(index, holders): (usize, &&[u64])| ShardStatus {
            shard_id: number(index),
            group_id: index as u64,
            leader_node_id: holders[0],
            replicas: holders
                .iter()
                .map(|node| ReplicaPlacement {
                    replica_id: index as u64 * 100 + node,
                    node_id: *node,
                    voter: true,
                })
                .collect(),
            ..ShardStatus::default()
        };
        let shards: Vec<ShardStatus> = shards.iter().enumerate().map(shard).collect();
        let replica = |shard: &ShardStatus, node: u64| ReplicaStatus {
            shard_id: shard.shard_id,
            group_id: shard.group_id,
            replica_id: shard.group_id * 100 + node,
            role: if shard.leader_node_id == node { Role::Leader } else { Role::Follower }.into(),
            voter_node_ids: shard.replicas.iter().map(|replica| replica.node_id).collect(),
            ..ReplicaStatus::default()
        };
        let node = |node_id: u64| {
            let held = shards.iter().filter(|shard| shard.replicas.iter().any(|r| r.node_id == node_id));
            let status = NodeStatus {
                phase: Phase::Running.into(),
                ready: true,
                replicas: held.map(|shard| replica(shard, node_id)).collect(),
                ..NodeStatus::default()
            };
            let info = NodeInfo {
                node_id,
                name: format!("n{node_id}"),
                state: NodeState::Active.into(),
                ..NodeInfo::default()
            };
            NodeView { info: Some(info), status: Some(status) }
        };
        ClusterStatus { nodes: (1..=nodes).map(node).collect(), shards, ..ClusterStatus::default() }
    }

    fn whole() -> ClusterStatus {
        cluster(4, &[&[1, 2, 3], &[1, 2, 4], &[3, 4, 1]])
    }

    #[test]
    fn whole_cluster_without_moves_has_settled() {
        assert_eq!(is_settled(&whole(), WANTED), Ok(()));
        assert_eq!(has_even_leaders(&whole()), Ok(()));
    }

    #[test]
    fn cluster_with_something_left_to_do_has_not_settled() {
        type Spoil = fn(&mut ClusterStatus);
        let spoiled: [(&str, Spoil); 9] = [
            ("a move", |cluster| cluster.moves.push(Move::default())),
            ("a silent node", |cluster| cluster.nodes[3].status = None),
            ("a node that drains", |cluster| {
                cluster.nodes[0].info.as_mut().unwrap().state = NodeState::Draining.into();
            }),
            ("a lost node that is a member", |cluster| {
                cluster.nodes[0].info.as_mut().unwrap().state = NodeState::Lost.into();
            }),
            ("no leader", |cluster| cluster.shards[2].leader_node_id = 0),
            ("a missing shard", |cluster| drop(cluster.shards.pop())),
            ("a learner", |cluster| {
                let leader = cluster.nodes[0].status.as_mut().unwrap();
                leader.replicas[0].learner_node_ids.push(4);
            }),
            ("a voter too many", |cluster| {
                let leader = cluster.nodes[0].status.as_mut().unwrap();
                leader.replicas[1].voter_node_ids.push(3);
            }),
            ("a replica that was not cleaned up", |cluster| {
                let left = ReplicaStatus { group_id: 1, replica_id: 7, ..ReplicaStatus::default() };
                cluster.nodes[2].status.as_mut().unwrap().replicas.push(left);
            }),
        ];
        for (what, spoil) in spoiled {
            let mut cluster = whole();
            spoil(&mut cluster);
            assert!(is_settled(&cluster, WANTED).is_err(), "{what}");
        }
    }

    #[test]
    fn uneven_loads_are_seen_within_a_zone() {
        let mut uneven = cluster(4, &[&[1, 2, 3], &[1, 2, 3], &[1, 2, 3]]);
        assert_eq!(stands_still(&uneven, WANTED), Ok(()));
        assert!(is_even(&uneven).is_err());
        assert!(has_even_leaders(&uneven).is_err());
        uneven.nodes[3].info.as_mut().unwrap().zone = "elsewhere".to_owned();
        assert_eq!(is_even(&uneven), Ok(()));
    }

    #[test]
    fn even_number_of_members_has_one_that_does_not_vote() {
        assert_eq!(WANTED.members(1, 2), (2, 1));
        assert_eq!(WANTED.members(1, 5), (3, 3));
        assert_eq!(Wanted { replication_factor: 1, ..WANTED }.members(0, 5), (3, 3));
        assert_eq!(Wanted { replication_factor: 5, ..WANTED }.members(2, 4), (4, 3));
    }
}
