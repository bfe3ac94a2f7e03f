//! Majorities: of one voter set, of a joint configuration, of the whole cluster.
//!
//! A joint configuration (Raft thesis, 4.3) holds two voter sets while one is exchanged for the other; whatever is
//! decided then needs a majority of each.

use std::{collections::BTreeSet, fmt};

use crate::ReplicaId;

/// The least number of voters that decides, of `voters`. Of no voters: one, which nobody can reach.
pub const fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// How many of `alive` may fail, whichever they are, and the rest still decides for a set of `voters`. `None`: they do not
/// decide now.
pub const fn spare_voters(alive: usize, voters: usize) -> Option<usize> {
    alive.checked_sub(majority(voters))
}

/// How many voters a group should have: the number of nodes, at most `factor`, and odd.
///
/// An even voter adds no fault tolerance and one more node that can fail; it stays a learner. 0 only of 0 nodes.
pub fn odd_voters(nodes: usize, factor: usize) -> usize {
    let voters = nodes.min(factor);
    voters - usize::from(voters > 0 && voters.is_multiple_of(2))
}

/// The meta group has at least so many replicas, as far as there are nodes for them, whatever the replication factor.
const META_REPLICAS_MIN: usize = 3;

/// How many replicas the meta group should have: as many as a data shard, and at least three as far as nodes stay
/// ([`NodeState::stays`](crate::map::NodeState::stays)).
///
/// With one copy of everything it goes down with the nodes: a drain that leaves two of them, or one, must come to its end.
/// Of two replicas one votes and the other learns, as everywhere: two voters tolerate no more than one, and need both.
pub fn meta_factor(replication_factor: usize, staying: usize) -> usize {
    replication_factor.max(META_REPLICAS_MIN.min(staying))
}

/// Who takes part in a group: its voters, and its learners, which only follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// One set: uniform. Two: joint, the second being where it goes. None: the group was never formed.
    pub voters: Vec<BTreeSet<ReplicaId>>,
    /// Disjoint from the voters.
    pub learners: BTreeSet<ReplicaId>,
}

impl Membership {
    /// One voter set and no learners.
    pub fn uniform(voters: impl IntoIterator<Item = ReplicaId>) -> Self {
        Self { voters: vec![voters.into_iter().collect()], learners: BTreeSet::new() }
    }

    /// Whether two voter sets decide together.
    pub fn is_joint(&self) -> bool {
        self.voters.len() > 1
    }

    /// The voter set that a joint configuration goes to; of a uniform one the only one.
    pub fn goal(&self) -> Option<&BTreeSet<ReplicaId>> {
        self.voters.last()
    }

    /// Whether `replica` votes, in any set.
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.iter().any(|set| set.contains(&replica))
    }

    /// Whether `replica` votes or learns.
    pub fn names(&self, replica: ReplicaId) -> bool {
        self.is_voter(replica) || self.learners.contains(&replica)
    }

    /// Voters of any set, each once.
    pub fn all_voters(&self) -> BTreeSet<ReplicaId> {
        self.voters.iter().flatten().copied().collect()
    }

    /// Whether those who are `alive` can decide: a majority of every voter set.
    pub fn has_quorum(&self, alive: impl Fn(ReplicaId) -> bool) -> bool {
        self.fault_tolerance(alive).is_some()
    }

    /// How many of the voters that are `alive` may fail, whichever they are, and the rest still decides.
    ///
    /// `None`: there is no quorum now. In a joint configuration the weaker set counts, since all failures may hit it.
    pub fn fault_tolerance(&self, alive: impl Fn(ReplicaId) -> bool) -> Option<usize> {
        let spare = |set: &BTreeSet<ReplicaId>| {
            spare_voters(set.iter().filter(|replica| alive(**replica)).count(), set.len())
        };
        if self.voters.is_empty() {
            return None;
        }
        self.voters.iter().map(spare).collect::<Option<Vec<_>>>()?.into_iter().min()
    }
}

/// `{r1 r2 r3}`, a joint one `{r1}+{r1 r2 r3}`, learners after a bar.
impl fmt::Display for Membership {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list =
            |set: &BTreeSet<ReplicaId>| set.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let sets: Vec<String> = self.voters.iter().map(list).collect();
        let learners = if self.learners.is_empty() { "" } else { " | " };
        write!(formatter, "{{{}{learners}{}}}", sets.join("}+{"), list(&self.learners))
    }
}

/// The fault tolerance of a whole cluster: the least of its groups'. `None`: some group has no quorum, or there is
/// no group.
///
/// Right because a node holds at most one replica of a group: each failing node costs each group at most one voter.
pub fn cluster_fault_tolerance(groups: impl IntoIterator<Item = Option<usize>>) -> Option<usize> {
    let mut least = None;
    for tolerance in groups {
        let tolerance = tolerance?;
        least = Some(least.map_or(tolerance, |so_far: usize| so_far.min(tolerance)));
    }
    least
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replicas(numbers: &[u64]) -> BTreeSet<ReplicaId> {
        numbers.iter().copied().map(ReplicaId).collect()
    }

    #[test]
    fn voters_follow_the_nodes_in_odd_numbers() {
        let by_nodes = |factor| (0..8).map(|nodes| odd_voters(nodes, factor)).collect::<Vec<_>>();
        assert_eq!(by_nodes(1), [0, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(by_nodes(3), [0, 1, 1, 3, 3, 3, 3, 3]);
        assert_eq!(by_nodes(5), [0, 1, 1, 3, 3, 5, 5, 5]);
        assert_eq!(by_nodes(7), [0, 1, 1, 3, 3, 5, 5, 7]);
    }

    #[test]
    fn meta_has_three_replicas_as_far_as_nodes_stay_and_no_fewer_than_data_shards() {
        let by_staying = |factor| (0..5).map(|staying| meta_factor(factor, staying)).collect::<Vec<_>>();
        assert_eq!(by_staying(1), [1, 1, 2, 3, 3]);
        assert_eq!(by_staying(3), [3; 5]);
        assert_eq!(by_staying(5), [5; 5]);
    }

    #[test]
    fn tolerance_of_uniform_sets() {
        let three = Membership::uniform(replicas(&[1, 2, 3]));
        assert_eq!(three.fault_tolerance(|_| true), Some(1));
        assert_eq!(three.fault_tolerance(|replica| replica != ReplicaId(2)), Some(0));
        assert_eq!(three.fault_tolerance(|replica| replica == ReplicaId(2)), None);
        assert_eq!(Membership::uniform(replicas(&[1])).fault_tolerance(|_| true), Some(0));
        assert_eq!(Membership::uniform(replicas(&[1, 2])).fault_tolerance(|_| true), Some(0));
        assert_eq!(Membership::default().fault_tolerance(|_| true), None, "never formed");
        assert_eq!(Membership::uniform([]).fault_tolerance(|_| true), None, "nobody votes");
    }

    #[test]
    fn joint_configuration_needs_both_majorities() {
        let joint =
            Membership { voters: vec![replicas(&[1]), replicas(&[1, 2, 3])], learners: BTreeSet::new() };
        assert_eq!(joint.fault_tolerance(|_| true), Some(0), "the set of one");
        assert!(!joint.has_quorum(|replica| replica != ReplicaId(1)));
        assert!(joint.has_quorum(|replica| replica != ReplicaId(3)));
        assert!(!joint.has_quorum(|replica| replica == ReplicaId(1)));
        assert_eq!(joint.to_string(), "{r1}+{r1 r2 r3}");
    }

    #[test]
    fn cluster_tolerates_what_its_weakest_group_does() {
        assert_eq!(cluster_fault_tolerance([Some(1), Some(2)]), Some(1));
        assert_eq!(cluster_fault_tolerance([Some(1), None]), None);
        assert_eq!(cluster_fault_tolerance([]), None);
    }

    /// Fault tolerance by trying every way to fail.
    fn tolerance_by_trial(membership: &Membership, alive: &BTreeSet<ReplicaId>) -> Option<usize> {
        let members: Vec<ReplicaId> = alive.iter().copied().collect();
        let decides = |failed: u32| {
            membership.voters.iter().all(|set| {
                let up = set.iter().filter(|replica| {
                    members
                        .iter()
                        .position(|member| member == *replica)
                        .is_some_and(|at| failed & (1 << at) == 0)
                });
                2 * up.count() > set.len()
            })
        };
        let survives =
            |failures: u32| (0..1_u32 << members.len()).filter(|f| f.count_ones() == failures).all(decides);
        (0..=u32::try_from(members.len()).unwrap())
            .take_while(|failures| survives(*failures))
            .count()
            .checked_sub(1)
    }

    proptest! {
        #[test]
        fn tolerance_equals_trial_of_all_failures(
            old in proptest::collection::btree_set(1_u64..8, 1..6),
            new in proptest::option::of(proptest::collection::btree_set(1_u64..8, 1..6)),
            alive in proptest::collection::btree_set(1_u64..8, 0..8),
        ) {
            let ids = |set: BTreeSet<u64>| set.into_iter().map(ReplicaId).collect::<BTreeSet<_>>();
            let alive = ids(alive);
            let voters = [Some(old), new].into_iter().flatten().map(ids).collect();
            let membership = Membership { voters, learners: BTreeSet::new() };
            prop_assert_eq!(
                membership.fault_tolerance(|replica| alive.contains(&replica)),
                tolerance_by_trial(&membership, &alive)
            );
        }

        #[test]
        fn odd_voters_are_odd_and_tolerate_as_much_as_the_even_number_above(nodes in 1_usize..20, factor in 1_usize..8) {
            let voters = odd_voters(nodes, factor);
            prop_assert!(voters % 2 == 1 && voters <= nodes && voters <= factor);
            let spare = |count: usize| count - majority(count);
            prop_assert_eq!(spare(voters), spare(nodes.min(factor)));
        }
    }
}
