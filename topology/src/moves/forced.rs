//! Replicas that must leave where they are: the node is removed or lost, the replica is damaged, the node drains.

use super::{Held, Move, Room, Shard, Why, scene::Scene};
use crate::quorum::majority;

/// A replica that must leave.
struct Wish<'a> {
    shard: &'a Shard,
    held: &'a Held,
    why: Why,
}

/// Whether any replica of these must leave.
pub(super) fn is_any_wished(scene: &Scene<'_>, shards: &[Shard]) -> bool {
    shards.iter().flat_map(|shard| &shard.held).any(|held| scene.wish(held).is_some())
}

/// The forced moves that may begin now, the most urgent ones first.
///
/// A shard whose goal is busy waits for it: elsewhere it would be one that moves again.
pub(super) fn forced_moves(scene: &Scene<'_>, shards: &[Shard], room: &mut Room) -> Vec<Move> {
    let mut wishes: Vec<Wish<'_>> = shards.iter().filter_map(|shard| wish_of(scene, shard)).collect();
    // The reason first, then how few copies are left: these must not wait behind others.
    wishes.sort_by_key(|wish| (urgency(wish.why), sound_voters(scene, wish.shard), wish.shard.id));
    let leaving = |shard: &Shard| shard.held.iter().filter(|held| scene.wish(held).is_some()).count();
    let wanted: Vec<(&Shard, usize)> = wishes.iter().map(|wish| (wish.shard, leaving(wish.shard))).collect();
    let goals = scene.goals(&wanted);
    let mut moves = Vec::new();
    for Wish { shard, held, why } in wishes {
        let goals = goals.get(&shard.id).filter(|goals| !goals.is_empty());
        let goals = goals.map_or(std::slice::from_ref(&held.node), Vec::as_slice);
        if let Some(to) = goals.iter().copied().find(|to| room.allows(scene, held.node, *to)) {
            room.take(scene, held.node, to);
            moves.push(Move { shard: shard.id, from: held.replica, from_node: held.node, to, why });
        }
    }
    moves
}

/// The most urgent wish of a shard that can be granted, when the shard can take a move: it has none, neither too many
/// replicas nor too few that could be placed, and its voters decide.
fn wish_of<'a>(scene: &Scene<'_>, shard: &'a Shard) -> Option<Wish<'a>> {
    let voters = shard.held.iter().filter(|held| held.voter).count();
    let has_goal = scene.has_goal(shard);
    if shard.moving.is_some()
        || shard.held.len() > shard.factor
        || (shard.held.len() < shard.factor && has_goal)
        || sound_voters(scene, shard) < majority(voters)
    {
        return None;
    }
    let wishes = shard.held.iter().filter_map(|held| Some((held, scene.wish(held)?)));
    // Where no other node takes it, a damaged replica is replaced where it is; the others must wait.
    let granted = |held: &Held, why| has_goal || (why == Why::Damaged && scene.takes(held.node));
    let wishes = wishes.filter(|(held, why)| granted(held, *why));
    let (held, why) = wishes.min_by_key(|(held, why)| (urgency(*why), !held.voter, held.replica))?;
    Some(Wish { shard, held, why })
}

fn sound_voters(scene: &Scene<'_>, shard: &Shard) -> usize {
    shard.held.iter().filter(|held| held.voter && scene.is_sound(held)).count()
}

/// Lower goes first.
fn urgency(why: Why) -> u8 {
    match why {
        Why::Removed => 0,
        Why::Lost => 1,
        Why::Damaged => 2,
        Why::Drain => 3,
        Why::Zones => 4,
        Why::Balance => 5,
    }
}
