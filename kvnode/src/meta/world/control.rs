//! What the controller asks of the nodes of the model.

use std::collections::BTreeMap;

use kv_proto::{
    disk::v1::{LogId, Member, Membership, ReplicaPlacement, StoredMembership, VoterSet},
    peer::v1::{
        AddLearner, ChangeVoters, ControlRequest, ControlResponse, CreateReplica, Done, InitializeGroup,
        Refusal, RemoveLearner, TransferLeader, control_request::Request, control_response::Response,
        refusal::Kind,
    },
};
use kv_topology::ReplicaId;

use super::{Group, World};
use crate::{
    meta::{machine, view},
    refusal,
};

/// Log entries of a group between two changes: enough that a new learner visibly lags.
const ENTRIES_BETWEEN: u64 = 10;

fn refused(reason: &str, leader_node_id: u64) -> ControlResponse {
    let refusal = Refusal { leader_node_id, ..refusal::of(Kind::NotApplied, reason, "") };
    ControlResponse { response: Some(Response::Refusal(refusal)) }
}

fn done() -> ControlResponse {
    ControlResponse { response: Some(Response::Done(Done {})) }
}

impl World {
    pub(in crate::meta) fn control(
        &mut self,
        node: u64,
        request: &ControlRequest,
    ) -> Option<ControlResponse> {
        if !self.is_up(node) {
            return None;
        }
        self.sweep();
        let request = request.request.as_ref().expect("a request");
        let group = match request {
            Request::CreateReplica(create) => return Some(self.create(node, create)),
            Request::DescribeNode(_) => {
                let described = self.describe_node(node)?;
                return Some(ControlResponse { response: Some(Response::Node(described)) });
            }
            Request::InitializeGroup(initialize) => {
                if let Some(refused) = self.initialize(node, initialize) {
                    return Some(refused);
                }
                initialize.group_id
            }
            Request::AddLearner(add) => add.group_id,
            Request::RemoveLearner(remove) => remove.group_id,
            Request::ChangeVoters(change) => change.group_id,
            Request::TransferLeader(transfer) => transfer.group_id,
            Request::DescribeGroup(describe) => describe.group_id,
            Request::FetchMap(_) | Request::HandOver(_) => unreachable!("not asked by a controller"),
        };
        match self.leader_node(group) {
            Some(leader) if leader == node => Some(self.lead(group, request)),
            leader => Some(refused("NOT_LEADER", leader.unwrap_or(0))),
        }
    }

    fn create(&mut self, node: u64, create: &CreateReplica) -> ControlResponse {
        let CreateReplica { shard_id: _, group_id, replica_id } = *create;
        let placed = |known: &ReplicaPlacement| (known.replica_id, known.node_id) == (replica_id, node);
        let is_placed = self.shard_of(group_id).replicas.iter().any(placed);
        assert!(is_placed, "#{node} was told to create a replica that meta did not place there: {create:?}");
        assert!(!self.deleted.contains(&replica_id), "r{replica_id} was deleted, and is asked for again");
        assert_eq!(*self.homes.entry(replica_id).or_insert(node), node, "r{replica_id} is on two nodes");
        if self.damaged.contains(&replica_id) {
            let refusal = refusal::quarantined("damaged");
            return ControlResponse { response: Some(Response::Refusal(refusal)) };
        }
        let hosted = self.hosted.entry(node).or_default();
        let other = hosted.iter().find(|(other, group)| **group == group_id && **other != replica_id);
        let in_its_place = other.is_none_or(|(other, _)| self.damaged.contains(other));
        assert!(in_its_place, "two replicas of g{group_id} on #{node}: r{replica_id} and {other:?}");
        hosted.insert(replica_id, group_id);
        done()
    }

    /// Why it cannot be done now.
    fn initialize(&mut self, node: u64, initialize: &InitializeGroup) -> Option<ControlResponse> {
        let group = initialize.group_id;
        let Some(replica) = self.replica_on(node, group) else { return Some(refused("NOT_HOSTED", 0)) };
        let up = initialize.members.iter().filter(|member| self.lives(member.replica_id));
        if 2 * up.count() <= initialize.members.len() {
            return Some(refused("NO_QUORUM", 0));
        }
        if !self.groups.contains_key(&group) {
            self.form(group, replica, &initialize.members);
        }
        let formed = self.groups[&group].membership.membership.clone().unwrap();
        assert_eq!(formed.members, initialize.members, "a group formed twice must be formed alike");
        None
    }

    pub(super) fn form(&mut self, group: u64, leader: u64, members: &[Member]) {
        let voters = vec![VoterSet { replica_ids: members.iter().map(|member| member.replica_id).collect() }];
        let membership = Membership { voters, members: members.to_vec() };
        let log_id = Some(LogId { term: 1, replica_id: leader, index: 1 });
        let membership = StoredMembership { log_id, membership: Some(membership) };
        let (term, elected, index) = (1, leader, 1);
        let matching = BTreeMap::new();
        self.groups.insert(group, Group { membership, leader, elected, term, index, matching, transfers: 0 });
    }

    /// What a leader does.
    fn lead(&mut self, group: u64, request: &Request) -> ControlResponse {
        match request {
            Request::DescribeGroup(_) => {
                let description = self.describe(group).expect("the leader describes its group");
                ControlResponse { response: Some(Response::Group(description)) }
            }
            Request::TransferLeader(transfer) => self.transfer(group, *transfer),
            Request::AddLearner(add) => self.add_learner(group, *add),
            Request::RemoveLearner(remove) => self.remove_learner(group, *remove),
            Request::ChangeVoters(change) => self.change_voters(group, change),
            Request::InitializeGroup(_)
            | Request::CreateReplica(_)
            | Request::DescribeNode(_)
            | Request::FetchMap(_)
            | Request::HandOver(_) => done(),
        }
    }

    fn transfer(&mut self, group: u64, transfer: TransferLeader) -> ControlResponse {
        let to = transfer.to_replica;
        assert!(!self.deleted.contains(&to), "r{to} was deleted, and should lead");
        let target = self.host_of(to);
        assert!(target.is_none_or(|target| !self.stopping.contains(&target)), "given to a node that stops");
        let voter = view::membership(&self.groups[&group].membership).is_voter(ReplicaId(to));
        assert!(voter && self.has_caught_up(group, to), "r{to} cannot lead g{group}");
        if !self.lives(to) {
            return refused("TARGET_NOT_READY", 0);
        }
        let state = self.groups.get_mut(&group).unwrap();
        (state.leader, state.transfers) = (to, state.transfers + 1);
        done()
    }

    fn add_learner(&mut self, group: u64, add: AddLearner) -> ControlResponse {
        let member = add.member.unwrap();
        assert!(!self.deleted.contains(&member.replica_id), "{member:?} was deleted, and should learn");
        let placed = |known: &ReplicaPlacement| {
            (known.replica_id, known.node_id) == (member.replica_id, member.node_id)
        };
        assert!(self.shard_of(group).replicas.iter().any(placed), "{member:?} is not placed there");
        self.change(group, |membership| {
            if !membership.members.contains(&member) {
                membership.members.push(member);
            }
        });
        done()
    }

    fn remove_learner(&mut self, group: u64, remove: RemoveLearner) -> ControlResponse {
        let replica = remove.replica_id;
        if remove.expected_membership != self.groups[&group].membership.log_id {
            return refused("MEMBERSHIP_MOVED_ON", 0);
        }
        let known = view::membership(&self.groups[&group].membership);
        assert!(!known.is_voter(ReplicaId(replica)), "r{replica} votes");
        self.change(group, |membership| membership.members.retain(|member| member.replica_id != replica));
        self.groups.get_mut(&group).unwrap().matching.remove(&replica);
        done()
    }

    fn change_voters(&mut self, group: u64, change: &ChangeVoters) -> ControlResponse {
        assert!(machine::open_permit(&self.record).is_none(), "voters change while a permit is open");
        let begun = self.shard_of(group).change.clone();
        let before = self.groups[&group].membership.clone();
        let joint = view::membership(&before).is_joint();
        assert!(
            begun.is_some_and(|begun| joint || begun.voter_replica_ids == change.voter_replica_ids),
            "a change that was not begun: {change:?}"
        );
        if change.expected_membership != before.log_id {
            return refused("MEMBERSHIP_MOVED_ON", 0);
        }
        let goal = VoterSet { replica_ids: change.voter_replica_ids.clone() };
        let sets = before.membership.map(|membership| membership.voters).unwrap_or_default();
        let is_goal = sets.contains(&goal);
        assert!(sets.len() == 1 || is_goal, "a joint configuration is left for one of its sets");
        let leader = self.groups[&group].leader;
        assert!(goal.replica_ids.contains(&leader), "r{leader} leads and would not vote");
        if !is_goal {
            let able = |voter: &&u64| self.lives(**voter) && self.has_caught_up(group, **voter);
            let able = goal.replica_ids.iter().filter(able).count();
            assert!(2 * able > goal.replica_ids.len(), "{goal:?} cannot decide");
            self.change(group, |membership| membership.voters.push(goal.clone()));
            if std::mem::take(&mut self.stay_joint) {
                return refused("LEADER_LOST", 0);
            }
        }
        // Who does not vote any more leaves wholly.
        self.change(group, |membership| {
            let old = std::mem::replace(&mut membership.voters, vec![goal.clone()]);
            let dropped = |replica: u64| {
                old.iter().any(|set| set.replica_ids.contains(&replica))
                    && !goal.replica_ids.contains(&replica)
            };
            membership.members.retain(|member| !dropped(member.replica_id));
        });
        done()
    }

    fn change(&mut self, group: u64, edit: impl FnOnce(&mut Membership)) {
        let state = self.groups.get_mut(&group).unwrap();
        let mut edited = state.membership.membership.clone().unwrap();
        edit(&mut edited);
        if Some(&edited) == state.membership.membership.as_ref() {
            return;
        }
        state.index += ENTRIES_BETWEEN;
        let log_id = Some(LogId { term: state.term, replica_id: state.leader, index: state.index });
        state.membership = StoredMembership { log_id, membership: Some(edited) };
        let membership = view::membership(&self.groups[&group].membership);
        let decides = membership.has_quorum(|replica| self.lives(replica.0));
        assert!(decides, "a change below a quorum: {membership}");
    }
}
