//! What persons wish of the whole cluster: replication factor, times, limits.

use kv_proto::{
    disk::v1::{MetaRecord, Policy, meta_command::SetPolicy},
    peer::v1::Refusal,
};

use super::{
    Found,
    check::{active_nodes_but, check_replication_factor, failed, invalid},
};
use crate::refusal::reason;

/// A silent node is lost after so long, ms: longer than a restart, a reboot, or the move of a pod takes.
const LOST_NODE_GRACE_MS: u64 = 600_000;
/// Shortest grace, ms: some election timeouts, so that no pause of a process is the loss of a node.
const LOST_NODE_GRACE_MIN_MS: u64 = 10_000;
/// Longest grace, ms: a week.
const LOST_NODE_GRACE_MAX_MS: u64 = 604_800_000;
/// Replicas that move at the same time.
const MOVES_AT_ONCE: u32 = 4;
/// Most replicas that may move at the same time.
const MOVES_AT_ONCE_MAX: u32 = 64;

/// The policy of the cluster, defaults filled in.
pub fn policy(record: &MetaRecord) -> Policy {
    let or = |stated: u64, default: u64| if stated == 0 { default } else { stated };
    let Policy { lost_node_grace_ms, moves_at_once } = record.policy.unwrap_or_default();
    Policy {
        lost_node_grace_ms: or(lost_node_grace_ms, LOST_NODE_GRACE_MS),
        moves_at_once: if moves_at_once == 0 { MOVES_AT_ONCE } else { moves_at_once },
    }
}

pub(super) fn set(record: &mut MetaRecord, set: SetPolicy) -> Result<Found, Refusal> {
    let SetPolicy { replication_factor, lost_node_grace_ms, moves_at_once } = set;
    if let Some(factor) = replication_factor {
        check_factor(record, factor)?;
    }
    if let Some(grace) = lost_node_grace_ms
        && !(LOST_NODE_GRACE_MIN_MS..=LOST_NODE_GRACE_MAX_MS).contains(&grace)
    {
        let message = format!("choose {LOST_NODE_GRACE_MIN_MS} to {LOST_NODE_GRACE_MAX_MS} ms");
        return Err(invalid("lost_node_grace_ms", "LOST_NODE_GRACE_OUT_OF_RANGE", message));
    }
    if let Some(moves) = moves_at_once
        && !(1..=MOVES_AT_ONCE_MAX).contains(&moves)
    {
        let message = format!("choose 1 to {MOVES_AT_ONCE_MAX}");
        return Err(invalid("moves_at_once", "MOVES_AT_ONCE_OUT_OF_RANGE", message));
    }
    let now = policy(record);
    let wished = Policy {
        lost_node_grace_ms: lost_node_grace_ms.unwrap_or(now.lost_node_grace_ms),
        moves_at_once: moves_at_once.unwrap_or(now.moves_at_once),
    };
    let factor = replication_factor.unwrap_or(record.replication_factor);
    if wished == now && factor == record.replication_factor {
        return Ok(Found::default());
    }
    if wished != now {
        record.policy = Some(wished);
    }
    record.replication_factor = factor;
    record.epoch += 1;
    Ok(Found::default())
}

fn check_factor(record: &MetaRecord, factor: u32) -> Result<(), Refusal> {
    check_replication_factor(factor)?;
    let active = active_nodes_but(record, None);
    if factor > record.replication_factor && factor as usize > active {
        let message =
            format!("a replication factor of {factor} needs as many active nodes, there are {active}");
        return Err(failed(reason::TOO_FEW_NODES, message));
    }
    Ok(())
}
