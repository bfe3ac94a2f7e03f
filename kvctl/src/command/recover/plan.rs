//! From what the survivors have to what is to be done, shard by shard. Pure.
//!
//! ```text
//! evidence ─► the fate of meta ─► whose record counts ─► the fate of each shard ─► who decides it
//! ```
//!
//! A shard that keeps a quorum is left alone: its survivors elect among themselves and lose nothing. One that has lost it
//! goes on with the survivor whose log reaches furthest: the one that Raft would elect.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use kv_client::{
    Address,
    admin::{LogPosition, MembershipOnDisk, RecordOnDisk, RecordedShard},
};

use super::evidence::{Evidence, Held, is_quorum, names, voters};
use crate::named::is_called;

/// Meta's number among the shards.
pub const META: u32 = 0;

/// What is to be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One data shard.
    Shard(u32),
    /// Meta.
    Meta,
    /// Whatever has lost its quorum.
    All,
}

impl Scope {
    fn covers(self, shard: u32) -> bool {
        match self {
            Self::Shard(wanted) => wanted == shard,
            Self::Meta => shard == META,
            Self::All => true,
        }
    }
}

/// A node that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Where.
    pub address: Address,
    /// It was started with `--recovery`, so that its disk may be rewritten.
    pub recovering: bool,
}

/// A replica that survived, as far as it counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Where it is.
    pub node_id: u64,
    /// Its id.
    pub replica_id: u64,
    /// Its group.
    pub group_id: u64,
    /// The last entry of its log.
    pub last: Option<LogPosition>,
    /// What it knew to be committed.
    pub committed: Option<LogPosition>,
    /// It votes, by the newest membership that a survivor knows.
    pub votes: bool,
    /// Its bytes may be used.
    pub sound: bool,
}

/// What becomes of a shard.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// So many of its voters survive, and so many are needed: it needs no recovery.
    Keeps {
        /// That survive.
        present: usize,
        /// A majority.
        needed: usize,
    },
    /// It goes on with one survivor.
    Recover(Recovery),
    /// Its group was never formed: there is nothing to lose.
    Unformed,
    /// Nothing of it survives that could be used.
    Gone,
}

/// How a shard goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// With this replica.
    pub chosen: Seen,
    /// The group that meta knows today.
    pub expected_group_id: u64,
    /// Voters that survive.
    pub present: usize,
    /// A majority.
    pub needed: usize,
    /// Meta has decided it before: in this group. Only the disk is to be rewritten.
    pub decided: Option<u64>,
}

/// A shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its number; 0: meta.
    pub shard: u32,
    /// What becomes of it.
    pub fate: Fate,
    /// Its replicas on the survivors' disks.
    pub survivors: Vec<Seen>,
}

impl Group {
    /// How it goes on, when it has to.
    pub fn recovery(&self) -> Option<&Recovery> {
        match &self.fate {
            Fate::Recover(recovery) => Some(recovery),
            Fate::Keeps { .. } | Fate::Unformed | Fate::Gone => None,
        }
    }
}

/// Who decides that shards go on in new groups.
#[derive(Clone, Debug, PartialEq)]
pub enum Seat {
    /// Nothing is to be decided.
    Idle,
    /// Meta's only voter, on this node's disk: in its log, without being started.
    Offline(Seen),
    /// Meta, which works: through this running node.
    Online(Address),
    /// Nobody can now; why.
    Nobody(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Of this cluster.
    pub cluster_id: String,
    /// Names of all nodes, by id.
    pub names: BTreeMap<u64, String>,
    /// Those that answered, by id.
    pub sites: BTreeMap<u64, Site>,
    /// Nodes that are given up.
    pub lost: Vec<u64>,
    /// The shards that were asked for.
    pub groups: Vec<Group>,
    /// Who decides.
    pub seat: Seat,
    /// What a person should know beside.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The shards that go on with a survivor.
    pub fn recoveries(&self) -> impl Iterator<Item = (&Group, &Recovery)> {
        self.groups.iter().filter_map(|group| Some((group, group.recovery()?)))
    }

    /// Shards that are given up with no survivor, within what was asked for.
    pub fn gone(&self) -> impl Iterator<Item = u32> {
        self.groups.iter().filter(|group| group.fate == Fate::Gone).map(|group| group.shard)
    }

    /// The name of a node.
    pub fn name(&self, node_id: u64) -> String {
        self.names.get(&node_id).cloned().unwrap_or_else(|| format!("node {node_id}"))
    }

    /// Whether this plan does what another one does. What else the disks tell may move on while nodes run.
    pub fn does_as(&self, other: &Self) -> bool {
        self.seat == other.seat && self.lost == other.lost && self.recoveries().eq(other.recoveries())
    }

    /// Nodes that run and whose disks are to be rewritten: they must be started with `--recovery` first.
    pub fn to_restart(&self) -> BTreeSet<u64> {
        let chosen = self.recoveries().map(|(_, recovery)| recovery.chosen.node_id);
        chosen.filter(|node| self.sites.get(node).is_some_and(|site| !site.recovering)).collect()
    }
}

/// Plans. `without`: names or ids of nodes that a person has given up.
///
/// # Errors
/// Why there is nothing that may be done.
pub fn plan(evidence: &Evidence, scope: Scope, without: &[String]) -> Result<Plan, String> {
    let newest = evidence.newest_record();
    let meta = group(evidence, META, newest, None);
    let record = counting_record(evidence, &meta, scope)?;
    let names = names(Some(record));
    let strangers = strangers(evidence, record);
    let evidence = &evidence.known_to(record);
    let sites = sites(evidence);
    let lost = lost(record, &sites, without)?;
    let shards = evidence.shards(Some(record)).into_iter().filter(|shard| scope.covers(*shard));
    let known = forgets(evidence, &meta).then(|| nodes_of(record));
    let group_of = |shard| match shard {
        META => meta.clone(),
        shard => group(evidence, shard, Some(record), known.as_ref()),
    };
    let groups: Vec<Group> = shards.map(group_of).collect();
    if groups.is_empty() {
        return Err("there is no such shard".to_owned());
    }
    let seat = seat(evidence, &meta, &groups, &sites);
    let warnings = strangers.into_iter().chain(warnings(evidence, record, &names)).collect();
    let cluster_id = evidence.cluster_id().to_owned();
    Ok(Plan { cluster_id, names, sites, lost, groups, seat, warnings })
}

/// Nodes that joined after the last thing that this record tells.
fn strangers(evidence: &Evidence, record: &RecordOnDisk) -> Vec<String> {
    let known: BTreeSet<u64> =
        evidence.known_to(record).survivors.iter().map(|known| known.disk.node_id).collect();
    let unknown = evidence.survivors.iter().filter(|survivor| !known.contains(&survivor.disk.node_id));
    unknown
        .map(|survivor| {
            format!(
                "{} (node {}) is not among the nodes that meta knows when it goes on: what is on its disk counts for nothing. Set \
                 its folder aside; with an empty one it joins as a new node",
                survivor.disk.node_name, survivor.disk.node_id
            )
        })
        .collect()
}

fn sites(evidence: &Evidence) -> BTreeMap<u64, Site> {
    let site = |survivor: &super::evidence::Survivor| {
        let site = Site { address: survivor.address.clone(), recovering: survivor.disk.recovering };
        (survivor.disk.node_id, site)
    };
    evidence.survivors.iter().map(site).collect()
}

/// The record that meta goes on from. What else anybody has heard counts for nothing.
fn counting_record<'a>(
    evidence: &'a Evidence,
    meta: &Group,
    scope: Scope,
) -> Result<&'a RecordOnDisk, String> {
    let newest =
        evidence.newest_record().ok_or("nobody knows anything of this cluster's nodes and shards")?;
    let recorded = recorded(Some(newest), META).map_or(0, |shard| shard.group_id);
    if meta.survivors.iter().all(|seen| seen.group_id < recorded) && !meta.survivors.is_empty() {
        return Err(format!(
            "meta goes on in group {recorded}, and none of these disks has a replica of that: what they have was given up \
             when the cluster was recovered before"
        ));
    }
    match &meta.fate {
        Fate::Keeps { .. } => Ok(evidence.newest_settled().unwrap_or(newest)),
        Fate::Recover(_) if matches!(scope, Scope::Shard(_)) => Err(
            "meta has lost its quorum too, and decides on all others: `kvctl recover all`, or `kvctl recover meta` first"
                .to_owned(),
        ),
        Fate::Recover(recovery) => {
            let chosen = evidence.survivor(recovery.chosen.node_id);
            let own = chosen.and_then(|chosen| chosen.disk.record.as_ref()).filter(|record| record.of_replica);
            own.ok_or_else(|| format!("meta's record on node {} cannot be read", recovery.chosen.node_id))
        }
        Fate::Gone | Fate::Unformed => Err(
            "no replica of meta survives on these disks, and without the shard map nothing can go on. Where meta runs, its \
             nodes belong into --nodes too"
                .to_owned(),
        ),
    }
}

fn recorded(record: Option<&RecordOnDisk>, shard: u32) -> Option<&RecordedShard> {
    record?.shards.iter().find(|known| known.shard_id == shard)
}

/// The nodes that are not there. Each must have been given up by name.
fn lost(record: &RecordOnDisk, sites: &BTreeMap<u64, Site>, without: &[String]) -> Result<Vec<u64>, String> {
    let members = || record.nodes.iter().filter(|node| !node.removed);
    let mut given_up = BTreeSet::new();
    for wanted in without {
        let called = members().find(|node| is_called(wanted, &node.name, node.node_id));
        let node = called.ok_or_else(|| format!("--without {wanted}: the cluster has no such node"))?;
        if sites.contains_key(&node.node_id) {
            return Err(format!("--without {wanted}: it answers, and is not lost"));
        }
        given_up.insert(node.node_id);
    }
    let missing = members().filter(|node| !sites.contains_key(&node.node_id));
    let unnamed: Vec<String> = missing
        .filter(|node| !given_up.contains(&node.node_id))
        .map(|node| format!("{} ({})", node.name, node.client_address))
        .collect();
    if unnamed.is_empty() {
        return Ok(given_up.into_iter().collect());
    }
    Err(format!(
        "{} did not answer. Every node that still has its disk belongs into this: start it with --recovery and add it to \
         --nodes. Give those up that are lost for good, each with --without NAME",
        unnamed.join(", ")
    ))
}

/// Whether meta goes on, or has gone on, from what one survivor knew: nodes that joined later it will never know.
fn forgets(evidence: &Evidence, meta: &Group) -> bool {
    let alone = |held: &Held<'_>| held.is_in_service() && is_alone(held);
    meta.recovery().is_some() || evidence.of_shard(META).iter().any(alone)
}

fn nodes_of(record: &RecordOnDisk) -> BTreeSet<u64> {
    record.nodes.iter().map(|node| node.node_id).collect()
}

/// A shard and its fate, by the record that counts. `known`: nodes beside which there will be none.
fn group(
    evidence: &Evidence,
    shard: u32,
    record: Option<&RecordOnDisk>,
    known: Option<&BTreeSet<u64>>,
) -> Group {
    let held = evidence.of_shard(shard);
    let newest = newest_membership(&held);
    let votes = newest.map(voters).unwrap_or_default();
    let survivors = held.iter().map(|held| seen(held, &votes)).collect();
    Group { shard, fate: fate(&held, newest, recorded(record, shard), known), survivors }
}

fn seen(held: &Held<'_>, voters: &BTreeSet<u64>) -> Seen {
    let replica = held.replica;
    Seen {
        node_id: held.survivor.disk.node_id,
        replica_id: replica.replica_id,
        group_id: replica.group_id,
        last: replica.last,
        committed: replica.committed,
        votes: voters.contains(&replica.replica_id),
        sound: held.is_sound(),
    }
}

/// The latest group of which a sound replica is there.
fn latest_group(held: &[Held<'_>]) -> Option<u64> {
    held.iter().filter(|held| held.is_sound()).map(|held| held.replica.group_id).max()
}

/// The newest membership that a sound replica of the latest group knows.
fn newest_membership<'a>(held: &[Held<'a>]) -> Option<&'a MembershipOnDisk> {
    let latest = latest_group(held)?;
    let of_latest = held.iter().filter(|held| held.is_sound() && held.replica.group_id == latest);
    let memberships = of_latest.filter_map(|held| held.replica.membership.as_ref());
    memberships.max_by_key(|membership| membership.at.as_ref().map(|at| (at.term, at.index)))
}

fn fate(
    held: &[Held<'_>],
    newest: Option<&MembershipOnDisk>,
    recorded: Option<&RecordedShard>,
    known: Option<&BTreeSet<u64>>,
) -> Fate {
    let Some(latest) = latest_group(held) else { return Fate::Gone };
    let of_latest: Vec<Held<'_>> =
        held.iter().filter(|held| held.is_sound() && held.replica.group_id == latest).copied().collect();
    let expected_group_id = recorded.map_or(latest, |shard| shard.group_id);
    let membership = newest.filter(|membership| !membership.voters.is_empty());
    let Some(membership) = membership else {
        // Placed on a disk a moment before the others were lost, it has nothing of what the group had.
        let was_there = recorded.is_some_and(|shard| shard.formed) || expected_group_id > latest;
        return if was_there { Fate::Gone } else { Fate::Unformed };
    };
    let in_service = of_latest.iter().filter(|held| held.is_in_service());
    let present: BTreeSet<u64> = in_service.map(|held| held.replica.replica_id).collect();
    let (there, needed) = counted(membership, &present);
    let recovery = |chosen: &Held<'_>, decided| {
        let chosen = seen(chosen, &voters(membership));
        Fate::Recover(Recovery { chosen, expected_group_id, present: there, needed, decided })
    };
    if let Some(chosen) = decided_survivor(&of_latest, latest, recorded) {
        return recovery(chosen, Some(expected_group_id));
    }
    // A group that meta does not know, or knows to be followed by another one that is lost too, needs a decision even if it
    // has a quorum; and so does one with members that meta will never know: it refuses to see such a membership.
    let members = || membership.members.iter().map(|member| member.node_id);
    let is_known = known.is_none_or(|known| members().all(|node| known.contains(&node)));
    if latest == expected_group_id && is_known && is_quorum(membership, &present) {
        return Fate::Keeps { present: there, needed };
    }
    match furthest(&of_latest, membership) {
        Some(chosen) => recovery(chosen, None),
        None => Fate::Gone,
    }
}

/// The survivor that meta has decided on, when its disk is not rewritten yet.
fn decided_survivor<'a, 'h>(
    of_latest: &'h [Held<'a>],
    latest: u64,
    recorded: Option<&RecordedShard>,
) -> Option<&'h Held<'a>> {
    let replaced = recorded.filter(|shard| shard.group_id > latest)?.replaced.as_ref()?;
    let is_chosen = |held: &&Held<'_>| {
        (held.replica.replica_id, held.survivor.disk.node_id) == (replaced.replica_id, replaced.node_id)
    };
    of_latest.iter().find(is_chosen).filter(|_| replaced.group_id == latest)
}

/// The one that Raft would elect: the later term, then the longer log. A voter before a learner, and otherwise always the
/// same one.
fn furthest<'a, 'h>(of_latest: &'h [Held<'a>], membership: &MembershipOnDisk) -> Option<&'h Held<'a>> {
    let voters = voters(membership);
    let rank = |held: &&Held<'_>| {
        (held.reach(), voters.contains(&held.replica.replica_id), Reverse(held.replica.replica_id))
    };
    of_latest.iter().filter(|held| held.reach().is_some()).max_by_key(rank)
}

/// Voters that are there, and how many are needed, in the set that lacks most.
fn counted(membership: &MembershipOnDisk, present: &BTreeSet<u64>) -> (usize, usize) {
    let count = |set: &Vec<u64>| {
        let there = set.iter().filter(|id| present.contains(id)).count();
        (there, set.len() / 2 + 1)
    };
    let sets = membership.voters.iter().map(|set| count(&set.replica_ids));
    sets.max_by_key(|(there, needed)| (*needed).saturating_sub(*there)).unwrap_or_default()
}

/// Who decides what is not decided yet.
fn seat(evidence: &Evidence, meta: &Group, groups: &[Group], sites: &BTreeMap<u64, Site>) -> Seat {
    let open = groups.iter().filter_map(Group::recovery).any(|recovery| recovery.decided.is_none());
    if !open {
        return Seat::Idle;
    }
    let recovers = |node: u64| sites.get(&node).is_some_and(|site| site.recovering);
    if let Some(recovery) = meta.recovery() {
        let chosen = recovery.chosen;
        if recovers(chosen.node_id) {
            return Seat::Offline(chosen);
        }
        return Seat::Nobody(format!(
            "meta goes on with its replica on node {}, which runs: stop it, and start it with --recovery",
            chosen.node_id
        ));
    }
    // Meta's only voter decides by itself, and is nowhere else.
    let alone = evidence.of_shard(META).into_iter().find(|held| held.is_in_service() && is_alone(held));
    if let Some(alone) = alone.filter(|alone| recovers(alone.survivor.disk.node_id)) {
        return Seat::Offline(seen(&alone, &BTreeSet::from([alone.replica.replica_id])));
    }
    match sites.values().find(|site| !site.recovering) {
        Some(running) => Seat::Online(running.address.clone()),
        None => Seat::Nobody(
            "meta keeps its quorum and must decide: start as many nodes normally as it needs, and give one of them in --nodes \
             too"
                .to_owned(),
        ),
    }
}

fn is_alone(held: &Held<'_>) -> bool {
    let voters = held.replica.membership.as_ref().map_or(&[][..], |membership| &membership.voters);
    matches!(voters, [set] if set.replica_ids == [held.replica.replica_id])
}

fn warnings(evidence: &Evidence, record: &RecordOnDisk, names: &BTreeMap<u64, String>) -> Vec<String> {
    let mut warnings = Vec::new();
    for survivor in &evidence.survivors {
        let name = names.get(&survivor.disk.node_id).unwrap_or(&survivor.disk.node_name);
        let heard = survivor.disk.record.as_ref().map_or(0, |record| record.epoch);
        if heard > record.epoch {
            warnings.push(format!(
                "{name} last heard of epoch {heard}, and meta goes on from epoch {}: what was decided in between (nodes that \
                 joined, replicas that were placed) is forgotten",
                record.epoch
            ));
        }
        let unsound = survivor
            .disk
            .replicas
            .iter()
            .filter(|replica| !replica.quarantine_reason.is_empty() && replica.replaced_by_group_id == 0);
        warnings.extend(unsound.map(|replica| {
            format!(
                "{name}: replica {} of shard {} cannot be used: {}",
                replica.replica_id, replica.shard_id, replica.quarantine_reason
            )
        }));
    }
    warnings
}

#[cfg(test)]
mod tests;
