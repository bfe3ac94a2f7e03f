//! Steps in words, for logs and golden files.

use std::fmt;

use kv_proto::{
    disk::v1::{MetaCommand, meta_command::Command},
    peer::v1::{ControlRequest, control_request::Request},
};

use super::{Action, Planned, Subject};
use crate::meta::view::membership;

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(formatter, "{node}"),
            Self::Permit(node) => write!(formatter, "permit of {node}"),
            Self::Shard(shard) => write!(formatter, "{shard}"),
            Self::Shards => formatter.write_str("shards"),
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}: {}", self.subject, self.action, self.reason)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control { node, request: ControlRequest { request: Some(request) } } => {
                write!(formatter, "{node} {}", Requested(request))
            }
            Self::Control { node, request: ControlRequest { request: None } } => {
                write!(formatter, "{node} nothing")
            }
            Self::Propose(MetaCommand { command: Some(command), .. }) => {
                write!(formatter, "meta {}", Commanded(command))
            }
            Self::Propose(MetaCommand { command: None, .. }) => formatter.write_str("meta nothing"),
        }
    }
}

fn replicas(ids: &[u64]) -> String {
    ids.iter().map(|id| format!("r{id}")).collect::<Vec<_>>().join(" ")
}

struct Requested<'a>(&'a Request);

impl fmt::Display for Requested<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Request::CreateReplica(create) => write!(formatter, "creates r{}", create.replica_id),
            Request::InitializeGroup(initialize) => {
                let members: Vec<u64> = initialize.members.iter().map(|member| member.replica_id).collect();
                write!(formatter, "initializes g{} with {}", initialize.group_id, replicas(&members))
            }
            Request::AddLearner(add) => {
                let replica = add.member.as_ref().map_or(0, |member| member.replica_id);
                write!(formatter, "adds learner r{replica}")
            }
            Request::RemoveLearner(remove) => write!(formatter, "removes learner r{}", remove.replica_id),
            Request::ChangeVoters(change) => {
                write!(formatter, "makes voters {}", replicas(&change.voter_replica_ids))
            }
            Request::TransferLeader(transfer) => write!(formatter, "hands over to r{}", transfer.to_replica),
            Request::DescribeGroup(describe) => write!(formatter, "describes g{}", describe.group_id),
            Request::DescribeNode(_) => formatter.write_str("describes itself"),
            Request::FetchMap(_) => formatter.write_str("fetches the map"),
            Request::HandOver(_) => formatter.write_str("hands all over"),
        }
    }
}

struct Commanded<'a>(&'a Command);

impl fmt::Display for Commanded<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Command::Bootstrap(_) => formatter.write_str("bootstraps"),
            Command::RegisterNode(_) => formatter.write_str("registers a node"),
            Command::CreateShards(create) => write!(formatter, "creates {} shards", create.shards.len()),
            Command::AddReplica(add) => write!(formatter, "adds a replica on #{}", add.node_id),
            Command::DropReplica(drop) => write!(formatter, "drops r{}", drop.replica_id),
            Command::ObserveMembership(observe) => {
                let seen = observe.membership.as_ref().map(membership).unwrap_or_default();
                write!(formatter, "observes {seen}")
            }
            Command::PreferLeaders(prefer) => {
                let wish = |wish: &kv_proto::disk::v1::meta_command::PreferredLeader| {
                    format!("s{}@#{}", wish.shard_id, wish.node_id)
                };
                let wishes: Vec<String> = prefer.leaders.iter().map(wish).collect();
                write!(formatter, "prefers leaders {}", wishes.join(" "))
            }
            Command::SetNodeState(set) => write!(formatter, "makes #{} {:?}", set.node_id, set.to()),
            Command::RemoveNode(remove) => write!(formatter, "removes #{}", remove.node_id),
            Command::BeginMove(begin) => {
                write!(formatter, "begins to move r{} to #{}", begin.from_replica_id, begin.to_node_id)
            }
            Command::EndMove(end) if end.abandoned => write!(formatter, "gives up move {}", end.move_id),
            Command::EndMove(end) => write!(formatter, "ends move {}", end.move_id),
            Command::BeginChange(begin) => {
                write!(formatter, "begins to change the voters to {}", replicas(&begin.voter_replica_ids))
            }
            Command::EndChange(_) => formatter.write_str("forgets the change of voters"),
            Command::SetZone(set) => write!(formatter, "labels #{}", set.node_id),
            Command::SetPolicy(_) => formatter.write_str("sets the policy"),
            Command::GrantPermit(grant) => write!(formatter, "grants #{} a permit", grant.node_id),
            Command::EndPermit(_) => formatter.write_str("ends the permit"),
            Command::Note(note) => write!(formatter, "notes: {}", note.event),
            Command::ReplaceGroup(replace) => write!(formatter, "replaces g{}", replace.expected_group_id),
        }
    }
}
