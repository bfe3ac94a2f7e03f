//! Whatever happens, in whatever order, and however often the controller dies: when all who can come back are back, the
//! cluster becomes whole again. What must never happen is checked by the model with every step.

use kv_proto::disk::v1::{
    NodeState, ShardRecord,
    meta_command::{Command, PreferLeaders, PreferredLeader},
};
use kv_topology::quorum::odd_voters;

use super::*;
use crate::meta::view::membership;

/// So short that nodes are lost within the time between two events.
const GRACE_MS: u64 = 10_000;

/// What befalls the cluster. Numbers choose among the nodes or shards that there are.
#[derive(Clone, Debug)]
enum Event {
    Down(usize),
    Up,
    Slow(usize),
    Full(usize),
    Stops(usize),
    Recovers,
    Joins,
    Drains(usize),
    DrainEnds(usize),
    IsRemoved(usize),
    LosesDisk(usize),
    IsDamaged(usize, usize),
    GetsPermit(usize),
    GivesPermitBack,
    Factor(u32),
    Zone(usize, u8),
    StaysJoint,
    LeaderChanges(usize),
    LeaderIsChosen(usize, usize),
}

fn event() -> impl Strategy<Value = Event> {
    let any = 0_usize..16;
    prop_oneof![
        any.clone().prop_map(Event::Down),
        Just(Event::Up),
        any.clone().prop_map(Event::Slow),
        any.clone().prop_map(Event::Full),
        any.clone().prop_map(Event::Stops),
        Just(Event::Recovers),
        Just(Event::Joins),
        any.clone().prop_map(Event::Drains),
        any.clone().prop_map(Event::Drains),
        any.clone().prop_map(Event::DrainEnds),
        any.clone().prop_map(Event::IsRemoved),
        any.clone().prop_map(Event::LosesDisk),
        (any.clone(), any.clone()).prop_map(|(node, shard)| Event::IsDamaged(node, shard)),
        any.clone().prop_map(Event::GetsPermit),
        Just(Event::GivesPermitBack),
        prop::sample::select(vec![1_u32, 3, 5]).prop_map(Event::Factor),
        (any.clone(), 0_u8..3).prop_map(|(node, zone)| Event::Zone(node, zone)),
        Just(Event::StaysJoint),
        any.clone().prop_map(Event::LeaderChanges),
        (any.clone(), any).prop_map(|(shard, replica)| Event::LeaderIsChosen(shard, replica)),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    use Fault::{AnswerLost, Hangs, None, RequestLost};
    prop::sample::select(vec![None, None, None, RequestLost, AnswerLost, Hangs])
}

impl World {
    /// Nodes of the cluster.
    fn nodes(&self) -> Vec<u64> {
        let members = self.record.nodes.iter().filter(|node| node.state() != NodeState::Removed);
        members.map(|node| node.node_id).collect()
    }

    fn join(&mut self) {
        let number = u8::try_from(self.record.next_node_id).unwrap();
        self.register(number);
    }

    /// Whether every group could still decide without these replicas, when all who can come back are back.
    fn survives(&self, lost: &BTreeSet<u64>) -> bool {
        self.groups.values().all(|group| {
            membership(&group.membership).has_quorum(|replica| {
                let host = self.hosted.iter().find(|(_, hosted)| hosted.contains_key(&replica.0));
                host.is_some_and(|(node, _)| !self.dead.contains(node))
                    && !self.damaged.contains(&replica.0)
                    && !lost.contains(&replica.0)
            })
        })
    }

    fn replicas_on(&self, node: u64) -> BTreeSet<u64> {
        self.hosted.get(&node).into_iter().flat_map(|hosted| hosted.keys().copied()).collect()
    }

    /// What cannot happen now does not.
    fn befall(&mut self, event: &Event) {
        let nodes = self.nodes();
        let pick = |number: &usize| nodes[number % nodes.len()];
        match event {
            Event::Down(node) => drop(self.down.insert(pick(node))),
            Event::Up => self.down.clear(),
            Event::Slow(node) => drop(self.slow.insert(pick(node))),
            Event::Full(node) => drop(self.full.insert(pick(node))),
            Event::Stops(node) => drop(self.stopping.insert(pick(node))),
            Event::Recovers => {
                self.slow.clear();
                self.full.clear();
                self.stopping.clear();
            }
            Event::Joins if nodes.len() < 9 => self.join(),
            Event::Joins => {}
            Event::Drains(node) => drop(self.drain(pick(node))),
            Event::DrainEnds(node) => {
                if matches!(self.state(pick(node)), NodeState::Draining | NodeState::Drained) {
                    self.undrain(pick(node)).expect("it drains");
                }
            }
            Event::IsRemoved(node) if self.survives(&self.replicas_on(pick(node))) => {
                drop(self.remove_lost(pick(node)));
            }
            Event::LosesDisk(node) if self.survives(&self.replicas_on(pick(node))) => {
                self.wipe(pick(node));
            }
            Event::IsRemoved(_) | Event::LosesDisk(_) => {}
            Event::IsDamaged(node, shard) => {
                let group = self.record.shards[shard % self.record.shards.len()].group_id;
                let replica = self.replica_on(pick(node), group);
                let replica = replica.filter(|replica| self.survives(&[*replica].into()));
                self.damaged.extend(replica);
            }
            Event::GetsPermit(node) => drop(self.grant(pick(node), 20_000)),
            Event::GivesPermitBack => self.pass(20_000),
            Event::Factor(factor) => drop(self.set_factor(*factor)),
            Event::Zone(node, zone) => self.label(pick(node), &format!("z{zone}")),
            Event::StaysJoint => self.stay_joint = true,
            Event::LeaderChanges(shard) => {
                let group = self.record.shards[shard % self.record.shards.len()].group_id;
                self.give_away(group);
            }
            Event::LeaderIsChosen(shard, replica) => self.choose_leader(*shard, *replica),
        }
    }

    /// A person wants one of the nodes with a replica to lead, be it a voter or not.
    fn choose_leader(&mut self, shard: usize, replica: usize) {
        let shard = &self.record.shards[shard % self.record.shards.len()];
        let placed = shard.replicas.iter().cycle().nth(replica);
        let Some(node_id) = placed.map(|placement| placement.node_id).filter(|_| shard.shard_id != 0) else {
            return;
        };
        let leaders = vec![PreferredLeader { shard_id: shard.shard_id, node_id }];
        let expected_epoch = self.record.epoch;
        let prefer = PreferLeaders { leaders, expected_epoch, chosen: true };
        self.ask(Command::PreferLeaders(prefer), "asked by kvctl").expect("it holds a replica");
    }

    /// All who can come back are back, and there are nodes enough.
    fn heal(&mut self) {
        self.befall(&Event::Up);
        self.befall(&Event::Recovers);
        self.pass(3_600_000);
        self.stay_joint = false;
        let wished = self.record.replication_factor.max(3) as usize;
        // Lost ones become active when they are heard of again.
        let usable =
            |state: NodeState| matches!(state, NodeState::Active | NodeState::Joining | NodeState::Lost);
        while self.record.nodes.iter().filter(|node| usable(node.state())).count() < wished {
            self.join();
        }
    }

    /// What is not as it should be.
    fn flaw(&mut self) -> Option<String> {
        let state = |node: u64, record: &MetaRecord| {
            record.nodes.iter().find(|known| known.node_id == node).map(disk::NodeRecord::state)
        };
        let unsettled = |node: &&disk::NodeRecord| {
            !matches!(node.state(), NodeState::Active | NodeState::Drained | NodeState::Removed)
        };
        if let Some(node) = self.record.nodes.iter().find(unsettled) {
            return Some(format!("#{} is {:?}", node.node_id, node.state()));
        }
        if !self.record.permits.is_empty() {
            return Some("a permit is left".to_owned());
        }
        let active = self.record.nodes.iter().filter(|node| node.state() == NodeState::Active).count();
        for shard in self.record.shards.clone() {
            let factor = self.record.replication_factor as usize;
            let factor = if shard.shard_id == 0 { factor.max(3) } else { factor };
            if shard.replicas.len() != active.min(factor) {
                return Some(format!("s{} has {} replicas", shard.shard_id, shard.replicas.len()));
            }
            if let Some(placement) = shard
                .replicas
                .iter()
                .find(|known| state(known.node_id, &self.record) != Some(NodeState::Active))
            {
                return Some(format!("s{} is on #{}", shard.shard_id, placement.node_id));
            }
            if let Some(flaw) = self.flaw_of(&shard, odd_voters(active, factor)) {
                return Some(format!("s{} {flaw}", shard.shard_id));
            }
        }
        let placed = |replica: &u64| {
            let mut placements = self.record.shards.iter().flat_map(|shard| &shard.replicas);
            placements.any(|placement| placement.replica_id == *replica)
        };
        let living = self.hosted.iter().filter(|(node, _)| !self.dead.contains(node));
        let left = living.flat_map(|(_, hosted)| hosted.keys()).find(|replica| !placed(replica))?;
        Some(format!("r{left} was not deleted"))
    }

    fn flaw_of(&mut self, shard: &ShardRecord, voters: usize) -> Option<String> {
        if shard.r#move.is_some() || shard.change.is_some() {
            return Some("is not at rest".to_owned());
        }
        let group = &self.groups[&shard.group_id];
        let stored = group.membership.membership.clone().unwrap();
        let mut members: Vec<(u64, u64)> =
            stored.members.iter().map(|member| (member.replica_id, member.node_id)).collect();
        let mut placed: Vec<(u64, u64)> =
            shard.replicas.iter().map(|known| (known.replica_id, known.node_id)).collect();
        members.sort_unstable();
        placed.sort_unstable();
        let seen = membership(&group.membership);
        if seen.is_joint() || seen.all_voters().len() != voters || members != placed {
            return Some(format!("is {seen} and placed as {placed:?}"));
        }
        if members.iter().any(|(replica, _)| self.damaged.contains(replica)) {
            return Some(format!("has damaged replicas: {seen}"));
        }
        let leader = self.leader_node(shard.group_id);
        let preferred = Some(shard.preferred_leader_node_id);
        (shard.shard_id != 0 && leader != preferred)
            .then(|| format!("is led by {leader:?}, not {preferred:?}"))
    }
}

/// A cluster at rest.
async fn at_rest(nodes: u8, factor: u32, faults: Vec<Fault>) -> Arc<Model> {
    let mut world = World::founded(3, factor);
    world.set_grace(GRACE_MS);
    for number in 2..=nodes {
        world.register(number);
    }
    let model = Model::new(world, Vec::new());
    run_for(&model, nodes.into(), Duration::from_secs(120)).await;
    *model.faults.lock().unwrap() = faults;
    model
}

/// Runs one controller until the cluster is whole, or for an hour.
async fn becomes_whole(model: &Arc<Model>) -> Option<String> {
    let controller = Controller::new(Arc::clone(model), Pace::default(), 1);
    let run = controller.run();
    tokio::pin!(run);
    let mut flaw = None;
    for _ in 0..60 {
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut run).await.is_err());
        let mut world = model.world.lock().unwrap();
        world.sweep();
        flaw = world.flaw();
        flaw.as_ref()?;
    }
    flaw
}

/// Lets all this happen, each event with the time after it in ms. What is not as it should be in the end.
fn flaw_after(nodes: u8, factor: u32, faults: Vec<Fault>, days: &[(Event, u64)]) -> Option<String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let model = at_rest(nodes, factor, faults).await;
        for (event, millis) in days {
            model.world.lock().unwrap().befall(event);
            model.world.lock().unwrap().pass(*millis);
            run_for(&model, 1, Duration::from_millis(*millis)).await;
        }
        model.world.lock().unwrap().heal();
        let flaw = becomes_whole(&model).await;
        flaw.map(|flaw| format!("{flaw}\n{}", model.world.lock().unwrap().text()))
    })
}

#[test]
fn two_removed_nodes_while_the_factor_shrinks() {
    let days = [
        (Event::IsRemoved(15), 0),
        (Event::Slow(0), 0),
        (Event::Zone(11, 0), 0),
        (Event::Factor(3), 31),
        (Event::IsRemoved(1), 0),
    ];
    assert_eq!(flaw_after(5, 5, Vec::new(), &days), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_cluster_becomes_whole(
        nodes in 3_u8..7,
        factor in prop::sample::select(vec![1_u32, 3, 5]),
        faults in proptest::collection::vec(fault(), 0..300),
        days in proptest::collection::vec((event(), 0_u64..60_000), 0..32),
    ) {
        let flaw = flaw_after(nodes, factor, faults, &days);
        prop_assert!(flaw.is_none(), "{}", flaw.unwrap_or_default());
    }
}
