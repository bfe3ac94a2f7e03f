use std::sync::Mutex;

use kv_proto::disk::v1 as disk;
use proptest::prelude::*;
use tokio::sync::Notify;

use super::*;
use crate::meta::world::World;

mod bad_days;

/// What the clock of the model shows, always.
const UNIX_MS: u64 = 1_700_000_000_000;

/// The world behind unreliable calls.
struct Model {
    world: Mutex<World>,
    /// For each coming call: lost before it acts, lost after it acted, or not at all. Then all succeed.
    faults: Mutex<Vec<Fault>>,
    calls: Mutex<u64>,
    /// The meta group takes no commands.
    refuses: Mutex<bool>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    RequestLost,
    AnswerLost,
    Hangs,
}

impl Model {
    fn new(world: World, faults: Vec<Fault>) -> Arc<Self> {
        let (world, faults) = (Mutex::new(world), Mutex::new(faults));
        let (calls, refuses) = (Mutex::new(0), Mutex::new(false));
        Arc::new(Self { world, faults, calls, refuses, changed: Notify::new() })
    }

    fn lost() -> Refusal {
        Refusal { kind: Kind::OutcomeUnknown.into(), reason: "LOST".to_owned(), ..Refusal::default() }
    }

    async fn call<T>(&self, act: impl FnOnce(&mut World) -> Result<T, Refusal>) -> Result<T, Refusal> {
        *self.calls.lock().unwrap() += 1;
        let fault = self.faults.lock().unwrap().pop().unwrap_or(Fault::None);
        sleep(Duration::from_millis(1)).await;
        match fault {
            Fault::None => act(&mut self.world.lock().unwrap()),
            Fault::RequestLost => Err(Self::lost()),
            Fault::AnswerLost => act(&mut self.world.lock().unwrap()).and(Err(Self::lost())),
            Fault::Hangs => std::future::pending().await,
        }
    }
}

impl Hands for Model {
    fn leads_meta(&self) -> bool {
        self.world.lock().unwrap().leader_node(0).is_some()
    }

    async fn record(&self, _: Instant) -> Result<Arc<MetaRecord>, Refusal> {
        self.call(|world| Ok(Arc::new(world.record.clone()))).await
    }

    async fn propose(&self, command: MetaCommand, _: Instant) -> Result<MetaOutcome, Refusal> {
        assert!(command.actor.starts_with("controller at #"), "{command:?}");
        assert!(!command.reason.is_empty() && command.unix_ms == UNIX_MS, "{command:?}");
        if *self.refuses.lock().unwrap() {
            return Err(Self::lost());
        }
        self.call(|world| world.propose(&command)).await
    }

    async fn control(
        &self,
        node: NodeId,
        request: ControlRequest,
        _: Instant,
    ) -> Result<ControlResponse, Refusal> {
        self.call(|world| world.control(node.0, &request).ok_or_else(Self::lost)).await
    }

    fn heard_recently(&self, node: NodeId) -> bool {
        self.world.lock().unwrap().is_up(node.0)
    }

    fn disk_is_low(&self, node: NodeId) -> bool {
        self.world.lock().unwrap().full.contains(&node.0)
    }

    fn me(&self) -> NodeId {
        NodeId(self.world.lock().unwrap().leader_node(0).unwrap_or(1))
    }

    fn unix_ms(&self) -> u64 {
        UNIX_MS
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Runs a controller for `time`, then drops it as a crash would.
async fn run_for(model: &Arc<Model>, expected_nodes: usize, time: Duration) {
    let controller = Controller::new(Arc::clone(model), Pace::default(), expected_nodes);
    let ended = tokio::time::timeout(time, controller.run()).await;
    assert!(ended.is_err(), "the loop ended by itself");
}

fn voters(model: &Model) -> Vec<usize> {
    let world = model.world.lock().unwrap();
    world
        .groups
        .values()
        .map(|group| crate::meta::view::membership(&group.membership).all_voters().len())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn one_node_serves_and_grows_when_others_join() {
    let model = Model::new(World::founded(8, 3), Vec::new());
    run_for(&model, 1, Duration::from_secs(5)).await;
    assert_eq!(voters(&model), [1; 9]);
    model.world.lock().unwrap().register(2);
    model.world.lock().unwrap().register(3);
    run_for(&model, 1, Duration::from_secs(20)).await;
    assert_eq!(voters(&model), [3; 9]);
}

#[tokio::test(start_paused = true)]
async fn a_change_wakes_it_and_rest_costs_little() {
    let model = Model::new(World::founded(2, 3), Vec::new());
    let controller = Controller::new(Arc::clone(&model), Pace::default(), 1);
    let run = controller.run();
    tokio::pin!(run);
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut run).await.is_err());
    let before = *model.calls.lock().unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut run).await.is_err());
    let calls = *model.calls.lock().unwrap() - before;
    // A record, three groups and one node at each tick of 2 s.
    assert!(calls <= 31 * 5, "{calls} calls in a minute of rest");
    model.world.lock().unwrap().register(2);
    model.world.lock().unwrap().register(3);
    model.changed.notify_waiters();
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut run).await.is_err());
    assert_eq!(voters(&model), [3; 3], "within half a second of the change");
}

#[tokio::test(start_paused = true)]
async fn a_refused_step_that_nobody_needs_any_more_wakes_nobody() {
    let model = Model::new(World::founded(2, 3), Vec::new());
    let controller = Controller::new(Arc::clone(&model), Pace::default(), 1);
    let run = controller.run();
    tokio::pin!(run);
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut run).await.is_err());
    *model.refuses.lock().unwrap() = true;
    model.world.lock().unwrap().register(2);
    model.changed.notify_waiters();
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut run).await.is_err());
    assert_eq!(model.world.lock().unwrap().state(2), disk::NodeState::Joining, "it was refused");
    // Now it is needed no more: the node has gone before it was heard of a second time.
    *model.refuses.lock().unwrap() = false;
    model.world.lock().unwrap().down.insert(2);
    let before = *model.calls.lock().unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut run).await.is_err());
    let calls = *model.calls.lock().unwrap() - before;
    assert!(calls <= 32 * 5, "{calls} calls in a minute of rest");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_does_not_stay_is_not_pushed_without_end() {
    let model = Model::new(World::founded(1, 3), Vec::new());
    for number in 2..=3 {
        model.world.lock().unwrap().register(number);
    }
    run_for(&model, 3, Duration::from_secs(20)).await;
    let controller = Controller::new(Arc::clone(&model), Pace::default(), 3);
    let run = controller.run();
    tokio::pin!(run);
    let before = model.world.lock().unwrap().groups[&1].transfers;
    for _ in 0..300 {
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut run).await.is_err());
        let mut world = model.world.lock().unwrap();
        let preferred = world.record.shards[1].preferred_leader_node_id;
        let other = world.record.shards[1]
            .replicas
            .iter()
            .find(|known| known.node_id != preferred)
            .unwrap()
            .replica_id;
        world.groups.get_mut(&1).unwrap().leader = other;
        model.changed.notify_waiters();
    }
    let transfers = model.world.lock().unwrap().groups[&1].transfers - before;
    assert!((3..=7).contains(&transfers), "{transfers} hand-overs in 30 s");
}

#[tokio::test(start_paused = true)]
async fn data_groups_wait_for_all_only_so_long() {
    let model = Model::new(World::founded(2, 3), Vec::new());
    for number in 2..=4 {
        model.world.lock().unwrap().register(number);
    }
    model.world.lock().unwrap().down.insert(4);
    run_for(&model, 4, Duration::from_secs(5)).await;
    assert_eq!(voters(&model), [3], "meta alone");
    run_for(&model, 4, Duration::from_secs(20)).await;
    assert_eq!(voters(&model), [3; 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn it_gets_there_whatever_is_lost_and_however_often_it_dies(
        nodes in 1_u8..6,
        expected in 1_usize..4,
        faults in proptest::collection::vec(
            prop::sample::select(vec![Fault::None, Fault::None, Fault::RequestLost, Fault::AnswerLost, Fault::Hangs]),
            0..200,
        ),
        lives in proptest::collection::vec((1_u64..4_000, proptest::option::of(2_u64..6)), 0..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let mut world = World::founded(3, 3);
        for number in 2..=nodes {
            world.register(number);
        }
        let expected = expected.min(usize::from(nodes));
        let model = Model::new(world, faults);
        runtime.block_on(async {
            for (millis, down) in lives {
                model.world.lock().unwrap().down = down.into_iter().collect();
                run_for(&model, expected, Duration::from_millis(millis)).await;
            }
            model.world.lock().unwrap().down.clear();
            run_for(&model, expected, Duration::from_secs(600)).await;
        });
        let wished = if nodes < 3 { 1 } else { 3 };
        prop_assert_eq!(voters(&model), vec![wished; 4], "{}", model.world.lock().unwrap().text());
    }
}
