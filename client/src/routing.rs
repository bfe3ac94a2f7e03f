//! Which node gets the next attempt.
//!
//! Pure choices over what is known: the given addresses, the shard map, the last failure. Advertised addresses are
//! followed only where the client routes directly; behind a port-forward they do not resolve.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kv_proto::kv::v1::{ResponseHeader, ServedBy};
use kv_topology::{NodeId, SLOT_COUNT, ShardId, Slot, map::SlotTable};
use tokio::time::Instant;

use crate::{address::Address, shard_map::ShardMap};

/// How requests find their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// Through one of the given addresses, another one when it fails. The nodes forward. Works behind a
    /// port-forward or a load balancer.
    #[default]
    ThroughOneNode,
    /// To the leader of the key's shard by the shard map. Saves a hop; every node's address must be reachable.
    Direct,
}

/// What an operation concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Any node will do.
    Any,
    /// The leader of this slot's shard.
    Leader(Slot),
    /// Any replica of this slot's shard.
    Replica(Slot),
}

impl Route {
    /// Of the key.
    pub(crate) fn slot(self) -> Option<Slot> {
        match self {
            Self::Any => None,
            Self::Leader(slot) | Self::Replica(slot) => Some(slot),
        }
    }
}

/// A wish for the next attempt that a failure left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wish {
    /// None: by route.
    #[default]
    None,
    /// This node: the hinted leader.
    This(Address),
    /// Not this node: it failed.
    Not(Address),
}

/// A map that turned out old is not asked for again sooner than this: the node asked may know no newer one.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);

/// What is known, changing with every answer.
#[derive(Debug)]
pub(crate) struct Knowledge {
    given: Vec<Address>,
    routing: Routing,
    state: Mutex<State>,
    /// False: it may be time to ask for a newer map. Saves a look at the state for each call.
    is_current: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// Index of the given address in use.
    current: usize,
    /// Spreads reads of any replica.
    turn: usize,
    map: ShardMap,
    /// Addresses of the map's nodes, parsed.
    addresses: HashMap<NodeId, Address>,
    /// The owner of each slot, from the map and from replies; 0: not known.
    owners: Box<[u32]>,
    /// A newer epoch was seen, or a shard refused.
    outdated: bool,
    refreshed_at: Option<Instant>,
    /// A node of the cluster has answered.
    has_met: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            current: 0,
            turn: 0,
            map: ShardMap::default(),
            addresses: HashMap::new(),
            owners: vec![0; usize::from(SLOT_COUNT)].into_boxed_slice(),
            outdated: false,
            refreshed_at: None,
            has_met: false,
        }
    }
}

impl State {
    /// The leader of a slot's shard, when both are known.
    fn leader(&self, slot: Slot) -> Option<&Address> {
        let shard = ShardId(self.owners[usize::from(slot.get())]);
        self.addresses.get(self.map.leaders.get(&shard)?)
    }
}

impl Knowledge {
    pub(crate) fn new(given: Vec<Address>, routing: Routing) -> Self {
        Self { given, routing, state: Mutex::default(), is_current: AtomicBool::new(false) }
    }

    /// The shard that owns a slot; 0: not known.
    pub(crate) fn shard_of(&self, slot: Slot) -> u32 {
        self.state().owners[usize::from(slot.get())]
    }

    /// A reply, or a refusal, told who owns a slot; 0: nobody that is known.
    pub(crate) fn owns(&self, slot: Slot, shard: u32) {
        self.state().owners[usize::from(slot.get())] = shard;
    }

    /// The epoch of the known map; 0: there is none.
    pub(crate) fn epoch(&self) -> u64 {
        self.state().map.cluster.epoch
    }

    pub(crate) fn given(&self) -> &[Address] {
        &self.given
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node for the next attempt.
    pub(crate) fn choose(&self, route: Route, wish: &Wish) -> Address {
        let mut state = self.state();
        if *wish == Wish::None {
            let first = match (self.routing, route) {
                (Routing::ThroughOneNode, _) | (Routing::Direct, Route::Any) => {
                    Some(&self.given[state.current])
                }
                (Routing::Direct, Route::Leader(slot)) => state.leader(slot),
                (Routing::Direct, Route::Replica(_)) => None,
            };
            if let Some(first) = first {
                return first.clone();
            }
        }
        let candidates = match (self.routing, route) {
            (Routing::ThroughOneNode, _) | (Routing::Direct, Route::Any) => self.given_from(state.current),
            (Routing::Direct, Route::Leader(slot)) => {
                self.or_given(state.map.addresses_of(slot), state.current)
            }
            (Routing::Direct, Route::Replica(slot)) => {
                let mut replicas = state.map.addresses_of(slot);
                if !replicas.is_empty() {
                    let turn = state.turn % replicas.len();
                    replicas.rotate_left(turn);
                    state.turn = state.turn.wrapping_add(1);
                }
                self.or_given(replicas, state.current)
            }
        };
        let follow = |address: &Address| self.routing == Routing::Direct || self.given.contains(address);
        match wish {
            Wish::This(address) if follow(address) => address.clone(),
            Wish::Not(address) => {
                let other = candidates.iter().find(|candidate| *candidate != address);
                other.unwrap_or(&candidates[0]).clone()
            }
            Wish::This(_) | Wish::None => candidates[0].clone(),
        }
    }

    /// A connection to `address` failed: when it is the given one in use, the next one is.
    pub(crate) fn failed(&self, address: &Address) {
        let mut state = self.state();
        if self.given[state.current] == *address {
            state.current = (state.current + 1) % self.given.len();
        }
    }

    /// The given addresses, beginning with the one in use. Never empty.
    fn given_from(&self, current: usize) -> Vec<Address> {
        let mut given = self.given.clone();
        given.rotate_left(current);
        given
    }

    fn or_given(&self, mut known: Vec<Address>, current: usize) -> Vec<Address> {
        // The given addresses come last: they help when every replica's own address fails.
        known.extend(self.given_from(current));
        known
    }

    /// Where a node listens, says the map.
    pub(crate) fn address_of(&self, node: NodeId) -> Option<Address> {
        self.state().addresses.get(&node).cloned()
    }

    /// Whether a node of the cluster has answered, whatever it said: somebody is there, or was a moment ago.
    pub(crate) fn has_met(&self) -> bool {
        self.state().has_met
    }

    /// A node of the cluster has answered.
    pub(crate) fn met(&self) {
        self.state().has_met = true;
    }

    /// A node has answered, with this header if it sent one.
    pub(crate) fn answered(&self, slot: Option<Slot>, header: Option<&ResponseHeader>) {
        match header {
            Some(header) => self.learn(slot, header),
            None => self.met(),
        }
    }

    /// Takes in what a reply says of leaders and of the map's age; and of the owner of `slot`, where nobody is known.
    pub(crate) fn learn(&self, slot: Option<Slot>, header: &ResponseHeader) {
        let mut state = self.state();
        state.has_met = true;
        if header.served_by() == ServedBy::Leader && header.shard_id != 0 && header.node_id != 0 {
            let (shard, node) = (ShardId(header.shard_id), NodeId(header.node_id));
            if state.map.leaders.get(&shard) != Some(&node) {
                state.map.leaders.insert(shard, node);
            }
        }
        if let Some(slot) = slot {
            let owner = &mut state.owners[usize::from(slot.get())];
            if *owner == 0 {
                *owner = header.shard_id;
            }
        }
        if header.map_epoch > state.map.cluster.epoch {
            state.outdated = true;
            self.is_current.store(false, Ordering::Relaxed);
        }
    }

    /// A shard refused a key that the map gave it.
    pub(crate) fn outdated(&self) {
        self.state().outdated = true;
        self.is_current.store(false, Ordering::Relaxed);
    }

    /// The epoch to ask a newer map for, when it is time to ask. Takes the turn: others do not ask meanwhile.
    pub(crate) fn refresh_due(&self, now: Instant) -> Option<u64> {
        if self.routing != Routing::Direct || self.is_current.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.state();
        let rested = state.refreshed_at.is_none_or(|at| now.duration_since(at) >= REFRESH_PAUSE);
        if !rested || !(state.outdated || state.map.cluster.epoch == 0) {
            return None;
        }
        state.refreshed_at = Some(now);
        Some(state.map.cluster.epoch)
    }

    /// Takes in a map; an older one than the known one is ignored.
    pub(crate) fn refreshed(&self, map: ShardMap) {
        let mut state = self.state();
        state.has_met = true;
        if map.cluster.epoch > state.map.cluster.epoch {
            let table = SlotTable::of(&map.cluster);
            for slot in (0..SLOT_COUNT).filter_map(Slot::new) {
                if let Some(shard) = table.shard_of(slot) {
                    state.owners[usize::from(slot.get())] = shard.get();
                }
            }
            let nodes = map.cluster.nodes.keys();
            state.addresses = nodes.filter_map(|node| Some((*node, map.address_of(*node)?))).collect();
            state.map = map;
            state.outdated = false;
            self.is_current.store(true, Ordering::Relaxed);
        }
    }

    /// Every address worth asking for a map, the given one in use first.
    pub(crate) fn everybody(&self) -> Vec<Address> {
        let state = self.state();
        let mut all = self.given_from(state.current);
        if self.routing == Routing::ThroughOneNode {
            return all;
        }
        for node in state.map.cluster.nodes.keys() {
            if let Some(address) = state.map.address_of(*node)
                && !all.contains(&address)
            {
                all.push(address);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::admin::v1 as proto;

    use super::*;

    fn address(number: u8) -> Address {
        format!("10.0.0.{number}:1").parse().unwrap()
    }

    fn knowledge(routing: Routing) -> Knowledge {
        Knowledge::new(vec![address(1), address(2)], routing)
    }

    fn slot() -> Slot {
        Slot::new(7).unwrap()
    }

    fn map(epoch: u64, leader: u64) -> ShardMap {
        ShardMap::from_proto(proto::ShardMap {
            epoch,
            nodes: (1..=9)
                .map(|id| proto::NodeInfo {
                    node_id: id,
                    client_address: format!("10.0.0.{id}:1"),
                    ..Default::default()
                })
                .collect(),
            shards: vec![proto::ShardStatus {
                shard_id: 1,
                leader_node_id: leader,
                slots: vec![proto::SlotRange { first: 0, last: 4095 }],
                replicas: [5, 6, 7]
                    .map(|node| proto::ReplicaPlacement { replica_id: node, node_id: node, voter: true })
                    .into(),
                ..Default::default()
            }],
            ..Default::default()
        })
        .unwrap()
    }

    #[test]
    fn through_one_node_ignores_addresses_that_were_not_given() {
        let knowledge = knowledge(Routing::ThroughOneNode);
        let route = Route::Leader(slot());
        assert_eq!(knowledge.choose(route, &Wish::None), address(1));
        assert_eq!(knowledge.choose(route, &Wish::This(address(9))), address(1));
        assert_eq!(knowledge.choose(route, &Wish::This(address(2))), address(2));
        assert_eq!(knowledge.choose(route, &Wish::Not(address(1))), address(2));
        assert_eq!(knowledge.refresh_due(Instant::now()), None);
    }

    #[test]
    fn a_failed_address_gives_way_to_the_next() {
        let knowledge = knowledge(Routing::ThroughOneNode);
        knowledge.failed(&address(2));
        assert_eq!(knowledge.choose(Route::Any, &Wish::None), address(1));
        knowledge.failed(&address(1));
        assert_eq!(knowledge.choose(Route::Any, &Wish::None), address(2));
        knowledge.failed(&address(2));
        assert_eq!(knowledge.choose(Route::Any, &Wish::None), address(1));
    }

    #[test]
    fn direct_follows_map_and_hints() {
        let knowledge = knowledge(Routing::Direct);
        let route = Route::Leader(slot());
        assert_eq!(knowledge.choose(route, &Wish::None), address(1), "no map yet");
        knowledge.refreshed(map(3, 6));
        assert_eq!(knowledge.choose(route, &Wish::None), address(6));
        assert_eq!(knowledge.choose(route, &Wish::Not(address(6))), address(5));
        assert_eq!(knowledge.choose(route, &Wish::This(address(9))), address(9));
        let replicas: Vec<Address> =
            (0..3).map(|_| knowledge.choose(Route::Replica(slot()), &Wish::None)).collect();
        assert_eq!(replicas, [address(6), address(5), address(7)]);
    }

    #[test]
    fn answers_of_leaders_teach_who_leads() {
        let knowledge = knowledge(Routing::Direct);
        knowledge.refreshed(map(3, 6));
        let mut header = ResponseHeader { node_id: 7, shard_id: 1, ..Default::default() };
        knowledge.learn(Some(slot()), &header);
        assert_eq!(knowledge.choose(Route::Leader(slot()), &Wish::None), address(6));
        header.set_served_by(ServedBy::Leader);
        knowledge.learn(Some(slot()), &header);
        assert_eq!(knowledge.choose(Route::Leader(slot()), &Wish::None), address(7));
    }

    #[test]
    fn the_owner_of_a_slot_is_learned_and_the_map_corrects_it() {
        let knowledge = knowledge(Routing::ThroughOneNode);
        assert_eq!(knowledge.shard_of(slot()), 0);
        knowledge.learn(Some(slot()), &ResponseHeader { shard_id: 9, ..Default::default() });
        knowledge.learn(Some(slot()), &ResponseHeader { shard_id: 8, ..Default::default() });
        assert_eq!(knowledge.shard_of(slot()), 9, "a forwarded reply is no reason to change");
        knowledge.refreshed(map(3, 6));
        assert_eq!(knowledge.shard_of(slot()), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_epoch_asks_for_a_map_and_not_too_often() {
        let knowledge = knowledge(Routing::Direct);
        let start = Instant::now();
        assert_eq!(knowledge.refresh_due(start), Some(0));
        assert_eq!(knowledge.refresh_due(start), None);
        knowledge.refreshed(map(3, 6));
        let later = start + REFRESH_PAUSE;
        assert_eq!(knowledge.refresh_due(later), None);
        knowledge.learn(None, &ResponseHeader { map_epoch: 4, ..Default::default() });
        assert_eq!(knowledge.refresh_due(later), Some(3));
        knowledge.refreshed(map(2, 7));
        assert_eq!(
            knowledge.choose(Route::Leader(slot()), &Wish::None),
            address(6),
            "older maps are ignored"
        );
        knowledge.refreshed(map(4, 7));
        assert_eq!(knowledge.refresh_due(later + REFRESH_PAUSE), None);
        assert_eq!(knowledge.choose(Route::Leader(slot()), &Wish::None), address(7));
    }
}
