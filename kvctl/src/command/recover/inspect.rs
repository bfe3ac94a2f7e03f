//! What is on the disks, as a table for people and as JSON for programs.

use anyhow::Result;
use kv_client::admin::{LogPosition, MembershipOnDisk, ReplicaOnDisk};
use serde_json::{Value as Json, json};

use super::evidence::{Evidence, Survivor};
use crate::output;

/// A table for each disk.
pub fn tables(evidence: &Evidence) -> Result<()> {
    for (number, survivor) in evidence.survivors.iter().enumerate() {
        if number > 0 {
            output::line("")?;
        }
        output::line(&heading(survivor))?;
        let rows = survivor.disk.replicas.iter().map(row).collect();
        output::table(
            ["SHARD", "GROUP", "REPLICA", "LOG ENDS", "COMMITTED", "APPLIED", "VOTERS", "REVISION", "STATE"],
            rows,
        )?;
    }
    Ok(())
}

fn heading(survivor: &Survivor) -> String {
    let disk = &survivor.disk;
    let mode = if disk.recovering { "under --recovery" } else { "running" };
    let record = disk.record.clone().unwrap_or_default();
    let source = if record.of_replica { "from its replica of meta" } else { "as it last heard" };
    format!(
        "{} (node {}) at {}, {mode}; cluster {}; epoch {} {source}",
        disk.node_name, disk.node_id, survivor.address, disk.cluster_id, record.epoch
    )
}

fn row(replica: &ReplicaOnDisk) -> [String; 9] {
    let index = |at: Option<LogPosition>| at.map_or("-".to_owned(), |at| at.index.to_string());
    let last = replica.last.map_or("-".to_owned(), |last| format!("{}/{}", last.term, last.index));
    let shard = if replica.shard_id == 0 { "meta".to_owned() } else { replica.shard_id.to_string() };
    [
        shard,
        replica.group_id.to_string(),
        replica.replica_id.to_string(),
        last,
        index(replica.committed),
        index(replica.applied),
        replica.membership.as_ref().map_or("-".to_owned(), sets),
        if replica.shard_id == 0 { "-".to_owned() } else { replica.revision.to_string() },
        if replica.quarantine_reason.is_empty() {
            "sound".to_owned()
        } else {
            replica.quarantine_reason.clone()
        },
    ]
}

/// `1,2,3`; of a joint membership both sets.
fn sets(membership: &MembershipOnDisk) -> String {
    let set = |ids: &[u64]| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let sets: Vec<String> = membership.voters.iter().map(|voters| set(&voters.replica_ids)).collect();
    if sets.is_empty() { "-".to_owned() } else { sets.join(" and ") }
}

/// All disks.
pub fn json(evidence: &Evidence) -> Json {
    evidence.survivors.iter().map(disk).collect()
}

fn disk(survivor: &Survivor) -> Json {
    let disk = &survivor.disk;
    let record = disk.record.clone().unwrap_or_default();
    json!({
        "node": disk.node_id,
        "name": disk.node_name,
        "address": survivor.address.to_string(),
        "cluster_id": disk.cluster_id,
        "disk_uuid": disk.disk_uuid,
        "recovering": disk.recovering,
        "epoch": record.epoch,
        "recoveries": record.recoveries,
        "from_own_replica": record.of_replica,
        "replicas": disk.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

fn replica(replica: &ReplicaOnDisk) -> Json {
    let position = |at: Option<LogPosition>| at.map(|at| json!({ "term": at.term, "index": at.index }));
    let voters = replica.membership.as_ref().map_or(&[][..], |membership| &membership.voters);
    json!({
        "shard": replica.shard_id,
        "group": replica.group_id,
        "replica": replica.replica_id,
        "vote_term": replica.vote_term,
        "last": position(replica.last),
        "committed": position(replica.committed),
        "applied": position(replica.applied),
        "voters": voters.iter().map(|set| set.replica_ids.clone()).collect::<Vec<_>>(),
        "revision": replica.revision,
        "quarantine_reason": replica.quarantine_reason,
        "replaced_by_group": (replica.replaced_by_group_id != 0).then_some(replica.replaced_by_group_id),
    })
}
