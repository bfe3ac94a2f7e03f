//! Which replicas leave a shard that has too many.

use std::{cmp::Reverse, collections::BTreeSet};

use super::{Held, Shard, Why, scene::Scene};
use crate::ReplicaId;

/// Why a replica is dispensable, the best reason first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    /// It does not vote and could not take the place of a voter: unfit, or on a node that takes nothing. First of all, since
    /// the others may have to wait for somebody who takes their places.
    Useless,
    Unfit,
    /// Its node is lost or removed.
    Gone,
    /// Before one that does not vote: where that one stays, this one would have to go.
    Draining,
    NotVoting,
    Silent,
    /// Any other.
    Spare,
    /// A move under way brings it: it may not vote yet and is wanted.
    Coming,
}

pub(super) fn surplus(scene: &Scene<'_>, shard: &Shard) -> BTreeSet<ReplicaId> {
    let mut kept: Vec<&Held> = shard.held.iter().collect();
    kept.sort_by_key(|held| (held.node, held.replica));
    // Of equals, each shard begins where the one before it ended: when all shards lose some, loads stay even.
    let excess = kept.len().saturating_sub(shard.factor.max(1));
    let begin = (shard.id.0 as usize).wrapping_mul(excess) % kept.len().max(1);
    kept.rotate_left(begin);
    let mut surplus = BTreeSet::new();
    for _ in 0..excess {
        let in_zone = |held: &Held| {
            let zone = scene.zone_of(held.node);
            kept.iter().filter(|other| scene.zone_of(other.node) == zone).count()
        };
        let fit = kept.iter().filter(|held| held.fit).count();
        let has_room = |held: &Held| scene.host(held.node).is_some_and(|host| host.has_room);
        let worst = kept
            .iter()
            .enumerate()
            // Whatever speaks against the last fit one: with it the data would go.
            .filter(|(_, held)| !held.fit || fit > 1)
            .min_by_key(|(_, held)| (reason(scene, shard, held), Reverse(in_zone(held)), has_room(held)));
        let Some(at) = worst.map(|(at, _)| at) else { break };
        surplus.insert(kept.remove(at).replica);
    }
    surplus
}

fn reason(scene: &Scene<'_>, shard: &Shard, held: &Held) -> Reason {
    let comes = shard.moving.is_some_and(|(_, to)| to == held.node);
    let is_of_use = held.voter || comes || (held.fit && scene.takes(held.node));
    if !is_of_use {
        Reason::Useless
    } else if !held.fit {
        Reason::Unfit
    } else if scene.is_dead(held.node) {
        Reason::Gone
    } else if comes {
        Reason::Coming
    } else if scene.wish(held) == Some(Why::Drain) {
        Reason::Draining
    } else if !held.voter {
        Reason::NotVoting
    } else if scene.is_sound(held) {
        Reason::Spare
    } else {
        Reason::Silent
    }
}
