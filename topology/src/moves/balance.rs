//! Replicas that may stay where they are and would be better elsewhere: spread over zones, then evenly over nodes.

use super::{Move, Room, Shard, Why, scene::Scene};
use crate::board::{Board, Shift};

/// The moves that may begin now, of those that make the placement even.
///
/// All of them at once may be too many. So each one is worth something by itself, in whatever order they come to
/// their ends: what is planned after some of them can only be better.
pub(super) fn balancing_moves(scene: &Scene<'_>, shards: &[Shard], room: &mut Room) -> Vec<Move> {
    let mut moves = Vec::new();
    for meta in [true, false] {
        for shift in shifts(&mut scene.board(meta), scene, room) {
            let shard = shards.iter().find(|shard| shard.id == shift.shard());
            let held = shard.and_then(|shard| shard.held.iter().find(|held| held.node == shift.from()));
            moves.extend(held.map(|held| Move {
                shard: shift.shard(),
                from: held.replica,
                from_node: held.node,
                to: shift.to(),
                why: if shift.zone_gain > 0 { Why::Zones } else { Why::Balance },
            }));
        }
    }
    moves
}

/// Takes the most worthwhile shifts towards the even placement, at most one for a shard.
fn shifts(board: &mut Board<'_>, scene: &Scene<'_>, room: &mut Room) -> Vec<Shift> {
    let mut even = board.clone();
    even.balance();
    let leads_there = |shift: &Shift| {
        let holders = &even.holders()[&shift.shard()];
        !holders.contains(&shift.from()) && holders.contains(&shift.to())
    };
    let mut taken: Vec<Shift> = Vec::new();
    loop {
        let accept = |shift: &Shift| {
            leads_there(shift)
                && taken.iter().all(|earlier| earlier.shard() != shift.shard())
                && room.allows(scene, shift.from(), shift.to())
        };
        let Some(shift) = board.best_shift(accept) else { return taken };
        board.take_shift(&shift);
        room.take(scene, shift.from(), shift.to());
        taken.push(shift);
    }
}
