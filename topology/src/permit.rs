//! Whether a node may be restarted now: what would become of the groups that it hosts without it.
//!
//! A permit (design 5.8) is granted when each of those groups keeps a majority of voters that have caught up and were heard
//! of a moment ago. A shard with one replica cannot keep one: its outage is granted and said. A group that changes
//! its voters just now refuses, and so does one whose leader did not answer: of that one nothing is known.

use std::collections::BTreeSet;

use crate::{Membership, NodeId, ReplicaId, ShardId, quorum::majority};

/// A replica this many entries behind its group, or fewer, has caught up: it counts for a permit, may vote, and may lead. How
/// many bytes it may lack beside that is for each of the three to say.
pub const CAUGHT_UP_ENTRIES: u64 = 1_000;

/// A replica that lacks more bytes of what is committed does not count for a permit. Little, since until it has them a restart
/// would make writes wait.
const STAYING_BYTES: u64 = 1 << 20;

/// A node that was heard of within so many heartbeats is there. Design 5.8 says two; one more since a heartbeat is left out
/// when an answer has just come, and the next one goes out up to two ticks late.
const HEARTBEATS_MAX: u64 = 3;

/// A group, as its leader described it a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group<'a> {
    /// The membership in effect.
    pub membership: &'a Membership,
    /// What the leader knows of each member, itself included.
    pub members: Vec<Evidence>,
}

/// What a leader knows of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The member.
    pub replica: ReplicaId,
    /// Where it is.
    pub node: NodeId,
    /// Since its node was last heard of; 0 at the leader itself. `None`: never.
    pub heard_ms_ago: Option<u64>,
    /// Entries of the log that it lacks, up to the commit index.
    pub lag_entries: u64,
    /// The same in bytes. `None`: not known, then the entries decide.
    pub lag_bytes: Option<u64>,
}

/// A shard that the node hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The shard.
    pub shard: ShardId,
    /// How many replicas are wished for.
    pub factor: usize,
    /// `None`: no leader answered.
    pub group: Option<Group<'a>>,
}

/// Why a permit is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// No leader of the group answered.
    NoLeader,
    /// Two voter sets decide together.
    ChangeUnderWay,
    /// Too few voters would stay.
    QuorumAtRisk {
        /// Voters that have caught up and were heard of, without the node.
        staying: usize,
        /// As many must stay.
        needed: usize,
        /// What is wrong with each of the others.
        why: Vec<String>,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The node may be restarted.
    Granted {
        /// Shards that have no quorum meanwhile; only such with one replica.
        outages: BTreeSet<ShardId>,
    },
    /// All that speaks against it. `None`: it is not about one shard.
    Refused(Vec<(Option<ShardId>, Objection)>),
}

/// Whether `node`, which hosts the shards `asked` about, may be restarted while those that are `down` are down.
///
/// `heartbeat_ms`: how often the leaders are in touch with their followers.
pub fn evaluate(node: NodeId, down: &BTreeSet<NodeId>, asked: &[Asked<'_>], heartbeat_ms: u64) -> Verdict {
    let absent = Absent { node, down, silent_ms: heartbeat_ms.saturating_mul(HEARTBEATS_MAX) };
    let mut outages = BTreeSet::new();
    let mut objections = Vec::new();
    for asked in asked {
        match absent.objection(asked.group.as_ref()) {
            None => {}
            // With one replica there is no other way to restart its node.
            Some(Objection::NoLeader | Objection::QuorumAtRisk { .. }) if asked.factor <= 1 => {
                outages.insert(asked.shard);
            }
            Some(objection) => objections.push((Some(asked.shard), objection)),
        }
    }
    if objections.is_empty() { Verdict::Granted { outages } } else { Verdict::Refused(objections) }
}

/// Who does not count: the node that is to be restarted, those that are down, those that are silent.
struct Absent<'a> {
    node: NodeId,
    down: &'a BTreeSet<NodeId>,
    /// Not heard of for longer.
    silent_ms: u64,
}

impl Absent<'_> {
    fn objection(&self, group: Option<&Group<'_>>) -> Option<Objection> {
        let Some(group) = group else { return Some(Objection::NoLeader) };
        if group.membership.is_joint() {
            return Some(Objection::ChangeUnderWay);
        }
        let voters = group.membership.all_voters();
        let faults: Vec<Option<String>> = voters.iter().map(|voter| self.fault(group, *voter)).collect();
        let staying = faults.iter().filter(|fault| fault.is_none()).count();
        let needed = majority(voters.len());
        let why = || faults.into_iter().flatten().collect();
        (staying < needed).then(|| Objection::QuorumAtRisk { staying, needed, why: why() })
    }

    /// What keeps a voter from being counted on.
    fn fault(&self, group: &Group<'_>, voter: ReplicaId) -> Option<String> {
        let Some(evidence) = group.members.iter().find(|evidence| evidence.replica == voter) else {
            return Some(format!("{voter} is not known to its leader"));
        };
        let Evidence { replica, node, heard_ms_ago, lag_entries, lag_bytes } = *evidence;
        let who = format!("{replica} on {node}");
        if node == self.node {
            return Some(format!("{who} would be away"));
        }
        if self.down.contains(&node) {
            return Some(format!("{who} counts as down: stopping, silent, or not back yet"));
        }
        match heard_ms_ago {
            None => return Some(format!("{who} was never heard of")),
            Some(ago) if ago > self.silent_ms => {
                return Some(format!("{who} was last heard of {ago} ms ago"));
            }
            Some(_) => {}
        }
        if lag_entries > CAUGHT_UP_ENTRIES {
            return Some(format!("{who} lags {lag_entries} entries behind"));
        }
        let lag_bytes = lag_bytes.filter(|bytes| *bytes > STAYING_BYTES)?;
        Some(format!("{who} lags {lag_bytes} bytes behind"))
    }
}

#[cfg(test)]
mod tests;
