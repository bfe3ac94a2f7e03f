//! The journal as people read it: what was done, in words, and which shards and nodes it was about.
//!
//! Meta keeps commands, not sentences: a sentence is made when it is asked for. Entries come from disk and wire: one whose
//! command this version does not know is told as that.

use std::collections::BTreeSet;

use kv_proto::{
    admin::v1 as admin,
    disk::v1::{
        JournalEntry, NodeState, StoredMembership,
        meta_command::{
            Bootstrap, Command, EndMove, GrantPermit, PreferLeaders, RegisterNode, RemoveNode, ReplaceGroup,
            SetNodeState, SetPolicy,
        },
    },
};

use super::view;

/// Wishes for leaders that are named one by one.
const NAMED_WISHES: usize = 8;

/// What an entry is about: what its command names, and what was minted or found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subjects {
    /// Shards, in order; 0 is meta.
    pub shards: BTreeSet<u32>,
    /// Nodes, in order.
    pub nodes: BTreeSet<u64>,
}

impl Subjects {
    /// The shard, if it is about one and no other.
    pub fn shard(&self) -> Option<u32> {
        self.shards.first().copied().filter(|_| self.shards.len() == 1)
    }
}

/// What `entry` is about.
pub fn subjects(entry: &JournalEntry) -> Subjects {
    let asked = entry.command.as_ref().and_then(|command| command.command.as_ref());
    let (shards, nodes) = asked.map(named).unwrap_or_default();
    let found = [entry.node_id, entry.other_node_id];
    Subjects {
        shards: shards.into_iter().collect(),
        nodes: nodes.into_iter().chain(found).filter(|node| *node != 0).collect(),
    }
}

/// Shards and nodes that a command names.
fn named(asked: &Command) -> (Vec<u32>, Vec<u64>) {
    let of_membership = |stored: Option<&StoredMembership>| {
        let membership = stored.and_then(|stored| stored.membership.as_ref());
        let members = membership.map_or(&[][..], |membership| &membership.members);
        members.iter().map(|member| member.node_id).collect()
    };
    match asked {
        // Their nodes are those that meta found or minted an id for.
        Command::Bootstrap(_) | Command::RegisterNode(_) | Command::SetPolicy(_) | Command::EndPermit(_) => {
            (vec![], vec![])
        }
        Command::CreateShards(create) => (create.shards.iter().map(|shard| shard.shard_id).collect(), vec![]),
        Command::AddReplica(add) => (vec![add.shard_id], vec![add.node_id]),
        Command::ObserveMembership(observe) => {
            (vec![observe.shard_id], of_membership(observe.membership.as_ref()))
        }
        Command::PreferLeaders(PreferLeaders { leaders, .. }) => {
            leaders.iter().map(|wish| (wish.shard_id, wish.node_id)).unzip()
        }
        Command::SetNodeState(set) => (vec![], vec![set.node_id]),
        Command::BeginMove(begin) => (vec![begin.shard_id], vec![begin.to_node_id]),
        Command::EndMove(end) => (vec![end.shard_id], vec![]),
        Command::BeginChange(begin) => (vec![begin.shard_id], vec![]),
        Command::EndChange(end) => (vec![end.shard_id], vec![]),
        Command::DropReplica(drop) => (vec![drop.shard_id], vec![]),
        Command::RemoveNode(remove) => (vec![], vec![remove.node_id]),
        Command::SetZone(set) => (vec![], vec![set.node_id]),
        Command::GrantPermit(grant) => (grant.outage_shard_ids.clone(), vec![grant.node_id]),
        Command::ReplaceGroup(replace) => (vec![replace.shard_id], vec![replace.node_id]),
        Command::Note(note) => (note.shard_id.into_iter().collect(), vec![note.node_id]),
    }
}

/// The entry as `admin.v1` shows it.
pub fn entry(entry: &JournalEntry) -> admin::JournalEntry {
    let subjects = subjects(entry);
    let command = entry.command.clone().unwrap_or_default();
    let event = match &command.command {
        Some(asked) => event(asked, entry),
        None => "something that this version does not know".to_owned(),
    };
    admin::JournalEntry {
        sequence: entry.sequence,
        unix_ms: command.unix_ms,
        epoch: entry.epoch,
        actor: command.actor,
        event,
        reason: command.reason,
        shard_id: subjects.shard(),
        node_ids: subjects.nodes.into_iter().collect(),
    }
}

/// What was done, in words.
fn event(asked: &Command, entry: &JournalEntry) -> String {
    let (node, replica) = (entry.node_id, entry.replica_id);
    match asked {
        Command::Bootstrap(bootstrap) => founded(bootstrap),
        Command::RegisterNode(register) => registered(register, entry),
        Command::CreateShards(create) => format!("{} data shards created", create.shards.len()),
        Command::AddReplica(add) => format!("s{}: r{replica} placed on #{node}", add.shard_id),
        Command::ObserveMembership(observe) => {
            format!("s{}: {}", observe.shard_id, seen(observe.membership.as_ref()))
        }
        Command::PreferLeaders(prefer) => wished(prefer),
        Command::SetNodeState(set) => changed_state(*set),
        Command::BeginMove(begin) => {
            let (shard, from, left) = (begin.shard_id, begin.from_replica_id, entry.other_node_id);
            let why = view::move_reason(begin.reason());
            format!("s{shard}: r{replica} on #{node} is to take the place of r{from} on #{left} ({why})")
        }
        Command::EndMove(EndMove { shard_id, abandoned, .. }) => {
            let end = if *abandoned { "given up" } else { "done" };
            format!("s{shard_id}: the move from #{} to r{replica} on #{node} is {end}", entry.other_node_id)
        }
        Command::BeginChange(begin) => {
            format!("s{}: the voters are to be {}", begin.shard_id, replicas(&begin.voter_replica_ids))
        }
        Command::EndChange(end) => format!("s{}: the change of voters did not happen", end.shard_id),
        Command::DropReplica(drop) => {
            format!("s{}: r{} on #{node} is given up", drop.shard_id, drop.replica_id)
        }
        Command::RemoveNode(remove) => removed(*remove),
        Command::SetZone(set) => match set.zone.as_deref() {
            None => format!("#{node} has the zone that it tells"),
            Some("") => format!("#{node} is labelled as in no zone"),
            Some(zone) => format!("#{node} is labelled as in zone {zone}"),
        },
        Command::SetPolicy(set) => format!("policy: {}", wishes(*set)),
        Command::GrantPermit(grant) => granted(grant),
        Command::EndPermit(_) => format!("the permit of #{node} is over"),
        Command::ReplaceGroup(replace) => replaced(*replace),
        Command::Note(note) => note.event.clone(),
    }
}

fn founded(bootstrap: &Bootstrap) -> String {
    let Bootstrap { cluster_id, shards, replication_factor, node, token: _ } = bootstrap;
    let name = node.as_ref().map_or("", |node| &node.name);
    format!("{name} founds cluster {cluster_id}: {shards} shards, replication factor {replication_factor}")
}

fn registered(register: &RegisterNode, entry: &JournalEntry) -> String {
    let node = register.node.clone().unwrap_or_default();
    let (id, name, start) = (entry.node_id, node.name, node.boot_counter);
    let (at, version) = (node.client_address, node.version);
    let told = format!("#{id} ({name}) registers at {at}, start {start}, version {version}");
    match entry.other_node_id {
        0 => told,
        old => format!("{told}; it takes the name of #{old}, which is removed"),
    }
}

fn seen(membership: Option<&StoredMembership>) -> String {
    let seen = membership.map(view::membership).unwrap_or_default();
    format!("the group has {seen}")
}

fn wished(prefer: &PreferLeaders) -> String {
    let PreferLeaders { leaders, chosen, expected_epoch: _ } = prefer;
    let named: Vec<String> = leaders
        .iter()
        .take(NAMED_WISHES)
        .map(|wish| format!("s{} on #{}", wish.shard_id, wish.node_id))
        .collect();
    let more = match leaders.len().saturating_sub(NAMED_WISHES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let verb = if *chosen { "chosen" } else { "wished" };
    format!("leaders {verb}: {}{more}", named.join(", "))
}

fn changed_state(set: SetNodeState) -> String {
    format!("#{} goes from {} to {}", set.node_id, state(set.from()), state(set.to()))
}

/// The word for a node's state.
const fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified => "unknown",
        NodeState::Joining => "joining",
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Drained => "drained",
        NodeState::Lost => "lost",
        NodeState::Removed => "removed",
    }
}

fn removed(remove: RemoveNode) -> String {
    let RemoveNode { node_id, lost, accept_data_loss, alive: _ } = remove;
    let how = match (lost, accept_data_loss) {
        (false, _) => "",
        (true, false) => " as lost",
        (true, true) => " as lost; loss of data is accepted",
    };
    format!("#{node_id} is removed{how}")
}

fn wishes(set: SetPolicy) -> String {
    let SetPolicy { replication_factor, lost_node_grace_ms, moves_at_once } = set;
    let wishes = [
        replication_factor.map(|factor| format!("replication factor {factor}")),
        lost_node_grace_ms.map(|grace| format!("a silent node is lost after {grace} ms")),
        moves_at_once.map(|moves| format!("{moves} moves at once")),
    ];
    wishes.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn granted(grant: &GrantPermit) -> String {
    let GrantPermit { node_id, ttl_ms, outage_shard_ids, token: _, expected_epoch: _ } = grant;
    let granted = format!("#{node_id} may be restarted within {ttl_ms} ms");
    if outage_shard_ids.is_empty() {
        return granted;
    }
    let away: Vec<String> = outage_shard_ids.iter().map(|shard| format!("s{shard}")).collect();
    format!("{granted}; {} will be away with it", away.join(", "))
}

/// The evidence is part of the event: a person must be able to tell years later what was given up.
fn replaced(replace: ReplaceGroup) -> String {
    let ReplaceGroup { shard_id, expected_group_id, replica_id, node_id, last } = replace;
    let last = last.unwrap_or_default();
    format!(
        "s{shard_id}: g{expected_group_id} has lost its quorum for good; the shard goes on with r{replica_id} on #{node_id} \
         alone, whose log ends at term {}, index {}",
        last.term, last.index
    )
}

fn replicas(ids: &[u64]) -> String {
    ids.iter().map(|id| format!("r{id}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use kv_proto::disk::v1::{
        LogId, Member, Membership, MetaCommand, MoveReason, NodeRecord, ShardRecord, VoterSet,
        meta_command::{
            AddReplica, BeginChange, BeginMove, CreateShards, DropReplica, EndChange, EndPermit, Note,
            ObserveMembership, PreferredLeader, SetZone,
        },
    };

    use super::*;

    /// What an entry tells, and which nodes it is about; n4 and r9 were found, and n3 is the other node.
    fn told(asked: Command) -> (String, Option<u32>, Vec<u64>) {
        let command = MetaCommand {
            command: Some(asked),
            actor: "kvctl".to_owned(),
            reason: "why".to_owned(),
            unix_ms: 7,
        };
        let kept = JournalEntry {
            sequence: 5,
            epoch: 6,
            log_time_ms: 1,
            command: Some(command),
            node_id: 4,
            replica_id: 9,
            other_node_id: 3,
        };
        let shown = entry(&kept);
        assert_eq!((shown.sequence, shown.epoch, shown.unix_ms), (5, 6, 7));
        assert_eq!((shown.actor.as_str(), shown.reason.as_str()), ("kvctl", "why"));
        (shown.event, shown.shard_id, shown.node_ids)
    }

    fn event_of(asked: Command) -> String {
        told(asked).0
    }

    #[test]
    fn a_move_is_told_with_both_its_nodes() {
        let begin = BeginMove {
            shard_id: 5,
            from_replica_id: 2,
            to_node_id: 4,
            reason: MoveReason::Drain.into(),
            expected_epoch: 1,
        };
        let (event, shard, nodes) = told(Command::BeginMove(begin));
        assert_eq!(event, "s5: r9 on #4 is to take the place of r2 on #3 (drain)");
        assert_eq!((shard, nodes), (Some(5), vec![3, 4]));
        let end = |abandoned| Command::EndMove(EndMove { shard_id: 5, move_id: 1, abandoned });
        assert_eq!(event_of(end(false)), "s5: the move from #3 to r9 on #4 is done");
        assert_eq!(event_of(end(true)), "s5: the move from #3 to r9 on #4 is given up");
    }

    #[test]
    fn a_new_disk_is_told_with_the_node_whose_name_it_took() {
        let node = NodeRecord {
            name: "n2".to_owned(),
            client_address: "host:1".to_owned(),
            version: "1.2.3".to_owned(),
            boot_counter: 8,
            ..NodeRecord::default()
        };
        let register = Command::RegisterNode(RegisterNode { node: Some(node), name_holder_alive: false });
        let told = told(register);
        let expected =
            "#4 (n2) registers at host:1, start 8, version 1.2.3; it takes the name of #3, which is removed";
        assert_eq!(told, (expected.to_owned(), None, vec![3, 4]));
    }

    #[test]
    fn replicas_and_voters_are_told() {
        let add = AddReplica { shard_id: 1, node_id: 4, expected_epoch: 1 };
        assert_eq!(event_of(Command::AddReplica(add)), "s1: r9 placed on #4");
        let drop = DropReplica { shard_id: 1, replica_id: 9 };
        assert_eq!(event_of(Command::DropReplica(drop)), "s1: r9 on #4 is given up");
        let begin = BeginChange {
            shard_id: 1,
            group_id: 1,
            voter_replica_ids: vec![1, 2, 9],
            expected_membership: None,
        };
        assert_eq!(event_of(Command::BeginChange(begin)), "s1: the voters are to be r1 r2 r9");
        let end = EndChange { shard_id: 1, expected_membership: None };
        assert_eq!(event_of(Command::EndChange(end)), "s1: the change of voters did not happen");
        let member = |replica_id| Member { replica_id, node_id: replica_id };
        let membership = Membership {
            voters: vec![VoterSet { replica_ids: vec![1, 2] }],
            members: vec![member(1), member(2), member(7)],
        };
        let log_id = Some(LogId { term: 1, replica_id: 1, index: 3 });
        let membership = Some(StoredMembership { log_id, membership: Some(membership) });
        let observe = ObserveMembership { shard_id: 0, group_id: 0, membership };
        let (event, shard, nodes) = told(Command::ObserveMembership(observe));
        assert_eq!(event, "s0: the group has {r1 r2 | r7}");
        assert_eq!((shard, nodes), (Some(0), vec![1, 2, 3, 4, 7]));
    }

    #[test]
    fn nodes_and_their_states_are_told() {
        let (from, to) = (NodeState::Active.into(), NodeState::Draining.into());
        let set = SetNodeState { node_id: 4, from, to };
        assert_eq!(event_of(Command::SetNodeState(set)), "#4 goes from active to draining");
        let remove = |lost, accept_data_loss| {
            Command::RemoveNode(RemoveNode { node_id: 4, lost, accept_data_loss, alive: false })
        };
        assert_eq!(event_of(remove(false, false)), "#4 is removed");
        assert_eq!(event_of(remove(true, false)), "#4 is removed as lost");
        assert_eq!(event_of(remove(true, true)), "#4 is removed as lost; loss of data is accepted");
        let zone =
            |zone: Option<&str>| Command::SetZone(SetZone { node_id: 4, zone: zone.map(str::to_owned) });
        assert_eq!(event_of(zone(Some("b"))), "#4 is labelled as in zone b");
        assert_eq!(event_of(zone(Some(""))), "#4 is labelled as in no zone");
        assert_eq!(event_of(zone(None)), "#4 has the zone that it tells");
    }

    #[test]
    fn permits_are_told_without_their_tokens() {
        let grant = |outage_shard_ids| {
            Command::GrantPermit(GrantPermit {
                token: "secret".to_owned(),
                node_id: 4,
                ttl_ms: 60_000,
                outage_shard_ids,
                expected_epoch: 1,
            })
        };
        assert_eq!(event_of(grant(vec![])), "#4 may be restarted within 60000 ms");
        let (event, shard, _) = told(grant(vec![1, 2]));
        assert_eq!(event, "#4 may be restarted within 60000 ms; s1, s2 will be away with it");
        assert_eq!(shard, None, "about two of them");
        let end = EndPermit { token: "secret".to_owned() };
        assert_eq!(event_of(Command::EndPermit(end)), "the permit of #4 is over");
    }

    #[test]
    fn what_is_about_many_shards_is_found_by_each_of_them() {
        let numbered = |shard_id| ShardRecord { shard_id, ..ShardRecord::default() };
        let create = CreateShards { shards: (1..=3).map(numbered).collect(), expected_epoch: 1 };
        let command = MetaCommand { command: Some(Command::CreateShards(create)), ..MetaCommand::default() };
        let kept = JournalEntry { command: Some(command), ..JournalEntry::default() };
        assert_eq!(subjects(&kept).shards, BTreeSet::from([1, 2, 3]));
        assert_eq!(entry(&kept).event, "3 data shards created");
        let wish = |shard_id: u32| PreferredLeader { shard_id, node_id: u64::from(shard_id) };
        let prefer =
            PreferLeaders { leaders: (1..=10).map(wish).collect(), expected_epoch: 1, chosen: false };
        let event = event_of(Command::PreferLeaders(prefer));
        let one = PreferLeaders { leaders: vec![wish(5)], expected_epoch: 1, chosen: true };
        assert_eq!(event_of(Command::PreferLeaders(one)), "leaders chosen: s5 on #5");
        assert!(
            event.starts_with("leaders wished: s1 on #1, s2 on #2, ")
                && event.ends_with("s8 on #8 and 2 more")
        );
    }

    #[test]
    fn wishes_and_notes_are_told() {
        let set = SetPolicy { replication_factor: Some(5), lost_node_grace_ms: None, moves_at_once: Some(2) };
        assert_eq!(event_of(Command::SetPolicy(set)), "policy: replication factor 5, 2 moves at once");
        let note = Note { shard_id: Some(2), node_id: 6, event: "leader moved".to_owned() };
        assert_eq!(told(Command::Note(note)), ("leader moved".to_owned(), Some(2), vec![3, 4, 6]));
    }

    #[test]
    fn an_entry_of_a_newer_version_is_told_as_that() {
        assert_eq!(entry(&JournalEntry::default()).event, "something that this version does not know");
    }
}
