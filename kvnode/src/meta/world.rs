//! A model of nodes and groups that keeps the promises of `ControlRequest` and checks those of its caller.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::{
    disk::v1::{
        LogId, Member, Membership, MetaCommand, MetaRecord, NodeRecord, StoredMembership, VoterSet,
        meta_command::{Bootstrap, Command, RegisterNode},
    },
    peer::v1::{
        ControlRequest, ControlResponse, Done, GroupDescription, MetaOutcome, NodeDescription, Progress,
        Refusal, control_request::Request, control_response::Response, refusal::Kind,
    },
};
use kv_topology::{GroupId, NodeId, ReplicaId};

use super::{machine, view};

/// Log entries of a group between two changes: enough that a new learner visibly lags.
const ENTRIES_BETWEEN: u64 = 10;

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) record: MetaRecord,
    pub(super) groups: BTreeMap<u64, Group>,
    /// Node → group → replica.
    pub(super) hosted: BTreeMap<u64, BTreeMap<u64, u64>>,
    pub(super) down: BTreeSet<u64>,
    /// Nodes that are about to go down: whoever leads there gives its group away.
    pub(super) stopping: BTreeSet<u64>,
    /// The next change of voters stops in the joint configuration, as if its leader died.
    pub(super) stay_joint: bool,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) membership: StoredMembership,
    pub(super) leader: u64,
    index: u64,
    pub(super) transfers: u32,
}

/// What a node tells of itself when it starts for the first time.
pub(super) fn node(number: u8) -> NodeRecord {
    NodeRecord {
        name: format!("n{number}"),
        disk_uuid: vec![number; 16].into(),
        client_address: format!("host-{number}:50051"),
        peer_address: format!("host-{number}:50061"),
        version: "0.1.0".to_owned(),
        boot_counter: 1,
        ..NodeRecord::default()
    }
}

pub(super) fn command(command: Command) -> MetaCommand {
    MetaCommand { command: Some(command) }
}

fn refused(reason: &str, leader_node_id: u64) -> ControlResponse {
    let refusal = Refusal {
        kind: Kind::NotApplied.into(),
        reason: reason.to_owned(),
        leader_node_id,
        ..Refusal::default()
    };
    ControlResponse { response: Some(Response::Refusal(refusal)) }
}

fn done() -> ControlResponse {
    ControlResponse { response: Some(Response::Done(Done {})) }
}

impl World {
    /// A cluster founded by n1.
    pub(super) fn founded(shards: u32, replication_factor: u32) -> Self {
        let mut world = Self::default();
        let (cluster_id, token) = ("c".to_owned(), "t".to_owned());
        let node = Some(node(1));
        let bootstrap = Bootstrap { cluster_id, token, shards, replication_factor, node };
        world.propose(&command(Command::Bootstrap(bootstrap))).unwrap();
        world.hosted.entry(1).or_default().insert(0, 1);
        world.form(0, 1, &[Member { replica_id: 1, node_id: 1 }]);
        world
    }

    pub(super) fn register(&mut self, number: u8) -> u64 {
        let register = RegisterNode { node: Some(node(number)), name_holder_alive: false };
        self.propose(&command(Command::RegisterNode(register))).unwrap().node_id
    }

    pub(super) fn propose(&mut self, command: &MetaCommand) -> Result<MetaOutcome, Refusal> {
        machine::apply(&mut self.record, command)
    }

    fn form(&mut self, group: u64, leader: u64, members: &[Member]) {
        let voters = vec![VoterSet { replica_ids: members.iter().map(|member| member.replica_id).collect() }];
        let membership = Membership { voters, members: members.to_vec() };
        let log_id = Some(LogId { term: 1, replica_id: leader, index: 1 });
        let membership = StoredMembership { log_id, membership: Some(membership) };
        self.groups.insert(group, Group { membership, leader, index: 1, transfers: 0 });
    }

    pub(super) fn is_up(&self, node: u64) -> bool {
        !self.down.contains(&node)
    }

    pub(super) fn heard(&self) -> BTreeSet<NodeId> {
        self.record
            .nodes
            .iter()
            .map(|node| node.node_id)
            .filter(|node| self.is_up(*node))
            .map(NodeId)
            .collect()
    }

    fn host_of(&self, group: u64, replica: u64) -> Option<u64> {
        let hosts = |hosted: &BTreeMap<u64, u64>| hosted.get(&group) == Some(&replica);
        self.hosted.iter().find(|(_, hosted)| hosts(hosted)).map(|(node, _)| *node)
    }

    fn lives(&self, group: u64, replica: u64) -> bool {
        self.host_of(group, replica).is_some_and(|node| self.is_up(node))
    }

    /// The node that leads `group`; elects one when the leader is down.
    pub(super) fn leader_node(&mut self, group: u64) -> Option<u64> {
        let membership = view::membership(&self.groups.get(&group)?.membership);
        if !membership.has_quorum(|replica| self.lives(group, replica.0)) {
            return None;
        }
        let leader = self.groups[&group].leader;
        if !self.lives(group, leader) {
            let next = membership.all_voters().into_iter().find(|replica| self.lives(group, replica.0))?;
            self.groups.get_mut(&group)?.leader = next.0;
        }
        self.host_of(group, self.groups[&group].leader)
    }

    /// The leader hands over, to a node that is not stopping if it can: always when all are.
    pub(super) fn give_away(&mut self, group: u64) {
        let leader = self.leader_node(group);
        let leaves = |node: u64| self.stopping.contains(&node);
        if !self.stopping.is_empty() && !leader.is_some_and(leaves) {
            return;
        }
        let members = &self.groups[&group].membership.membership.as_ref().unwrap().members;
        let next = members.iter().find(|member| Some(member.node_id) != leader && !leaves(member.node_id));
        if let Some(next) = next.map(|member| member.replica_id) {
            self.groups.get_mut(&group).unwrap().leader = next;
        }
    }

    pub(super) fn describe(&mut self, group: u64) -> Option<GroupDescription> {
        self.leader_node(group)?;
        let state = &self.groups[&group];
        let members = &state.membership.membership.as_ref()?.members;
        let progress = members.iter().map(|member| Progress {
            replica_id: member.replica_id,
            matching_index: if self.host_of(group, member.replica_id).is_some() { state.index } else { 0 },
        });
        Some(GroupDescription {
            membership: Some(state.membership.clone()),
            term: 1,
            last_log_index: state.index,
            progress: progress.collect(),
            leader_replica_id: state.leader,
            committed_index: state.index,
        })
    }

    pub(super) fn control(&mut self, node: u64, request: &ControlRequest) -> Option<ControlResponse> {
        if !self.is_up(node) {
            return None;
        }
        let request = request.request.as_ref().expect("a request");
        if let Request::CreateReplica(create) = request {
            let shard = self.record.shards.iter().find(|shard| shard.group_id == create.group_id).unwrap();
            let placed = shard
                .replicas
                .iter()
                .any(|known| (known.replica_id, known.node_id) == (create.replica_id, node));
            assert!(placed, "n{node} was told to create a replica that meta did not place there: {create:?}");
            let held = self.hosted.entry(node).or_default().insert(create.group_id, create.replica_id);
            assert!(held.is_none_or(|held| held == create.replica_id), "two replicas of a group on n{node}");
            return Some(done());
        }
        if let Request::InitializeGroup(initialize) = request {
            let replica = self.hosted.get(&node).and_then(|hosted| hosted.get(&initialize.group_id)).copied();
            let Some(replica) = replica else { return Some(refused("NOT_HOSTED", 0)) };
            let up =
                initialize.members.iter().filter(|member| self.lives(initialize.group_id, member.replica_id));
            if 2 * up.count() <= initialize.members.len() {
                return Some(refused("NO_QUORUM", 0));
            }
            if !self.groups.contains_key(&initialize.group_id) {
                self.form(initialize.group_id, replica, &initialize.members);
            }
            let formed = self.groups[&initialize.group_id].membership.membership.clone().unwrap();
            assert_eq!(formed.members, initialize.members, "a group formed twice must be formed alike");
        }
        if let Request::DescribeNode(_) = request {
            let described = NodeDescription { stopping: self.stopping.contains(&node) };
            return Some(ControlResponse { response: Some(Response::Node(described)) });
        }
        let group = match request {
            Request::InitializeGroup(initialize) => initialize.group_id,
            Request::AddLearner(add) => add.group_id,
            Request::ChangeVoters(change) => change.group_id,
            Request::TransferLeader(transfer) => transfer.group_id,
            Request::DescribeGroup(describe) => describe.group_id,
            Request::CreateReplica(_) | Request::DescribeNode(_) | Request::FetchMap(_) => {
                unreachable!("not asked of a group")
            }
        };
        match self.leader_node(group) {
            Some(leader) if leader == node => Some(self.lead(group, request)),
            leader => Some(refused("NOT_LEADER", leader.unwrap_or(0))),
        }
    }

    /// What a leader does.
    fn lead(&mut self, group: u64, request: &Request) -> ControlResponse {
        match request {
            Request::DescribeGroup(_) => {
                let description = self.describe(group).expect("the leader describes its group");
                return ControlResponse { response: Some(Response::Group(description)) };
            }
            Request::TransferLeader(transfer) => {
                assert!(self.lives(group, transfer.to_replica), "the target of a transfer was not checked");
                let target = self.host_of(group, transfer.to_replica);
                assert!(
                    target.is_none_or(|target| !self.stopping.contains(&target)),
                    "given to a node that stops"
                );
                let state = self.groups.get_mut(&group).unwrap();
                (state.leader, state.transfers) = (transfer.to_replica, state.transfers + 1);
            }
            Request::AddLearner(add) => {
                let member = add.member.unwrap();
                let placed = view::cluster_map(&self.record).unwrap();
                let shard = placed.shards.values().find(|shard| shard.group == GroupId(group)).unwrap();
                assert_eq!(shard.node_of(ReplicaId(member.replica_id)), Some(NodeId(member.node_id)));
                self.change(group, |membership| {
                    if !membership.members.contains(&member) {
                        membership.members.push(member);
                    }
                });
            }
            Request::ChangeVoters(change) => {
                let state = &self.groups[&group];
                if change.expected_membership != state.membership.log_id {
                    return refused("MEMBERSHIP_MOVED_ON", 0);
                }
                let goal = VoterSet { replica_ids: change.voter_replica_ids.clone() };
                let before = state.membership.membership.clone().unwrap();
                let is_goal = before.voters.contains(&goal);
                assert!(
                    before.voters.len() == 1 || is_goal,
                    "a joint configuration is left for one of its sets"
                );
                if !is_goal {
                    self.change(group, |membership| membership.voters.push(goal.clone()));
                    if std::mem::take(&mut self.stay_joint) {
                        return refused("LEADER_LOST", 0);
                    }
                }
                self.change(group, |membership| {
                    let old = std::mem::replace(&mut membership.voters, vec![goal.clone()]);
                    let dropped = |replica: u64| {
                        old.iter().any(|set| set.replica_ids.contains(&replica))
                            && !goal.replica_ids.contains(&replica)
                    };
                    membership.members.retain(|member| !dropped(member.replica_id));
                });
            }
            Request::InitializeGroup(_)
            | Request::CreateReplica(_)
            | Request::DescribeNode(_)
            | Request::FetchMap(_) => {}
        }
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
        let log_id = Some(LogId { term: 1, replica_id: state.leader, index: state.index });
        state.membership = StoredMembership { log_id, membership: Some(edited) };
        let membership = view::membership(&self.groups[&group].membership);
        assert!(
            membership.has_quorum(|replica| self.lives(group, replica.0)),
            "a change below a quorum: {membership}"
        );
    }

    /// Each group on a line: `s1 g1 {r1* r2 | r3} on n1 n2 n3`.
    pub(super) fn text(&mut self) -> String {
        let mut lines = String::new();
        for shard in self.record.shards.clone() {
            let leader =
                self.leader_node(shard.group_id).map_or("nobody".to_owned(), |node| format!("n{node}"));
            let seen = self.groups.get(&shard.group_id).map(|group| view::membership(&group.membership));
            let seen = seen.map_or("not formed".to_owned(), |seen| seen.to_string());
            let nodes: Vec<String> = shard
                .replicas
                .iter()
                .map(|known| format!("r{}@n{}", known.replica_id, known.node_id))
                .collect();
            lines += &format!("s{}: {seen} {} led by {leader}\n", shard.shard_id, nodes.join(" "));
        }
        lines
    }
}
