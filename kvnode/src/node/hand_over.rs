//! Leaderships are given away before a restart on purpose, and taken again when it does not come.
//!
//! Whoever holds the permit of this node asks. Its token is checked against the record as meta has it at that moment; from
//! then on no replica here campaigns or lets itself be made the leader, and the node is not ready. The restart ends that, or
//! else the end of the permit: released or overdue, as the map tells, or by this node's own clock when no map comes.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use kv_proto::{
    disk::v1::{MetaRecord, Permit},
    peer::v1::{Refusal, refusal::Kind},
};
use kv_topology::{NodeId, ShardId};
use tokio::time::timeout;

use super::map_feed::MapFeed;
use crate::{meta::registry::Registry, refusal, runtime::Spawner};

/// So much longer than its time a permit counts here when no map tells of its end: log time goes on by ticks, one a second.
const NO_NEWS: Duration = Duration::from_secs(5);

/// The leaderships of this node's replicas.
pub trait Leads: Send + Sync + 'static {
    /// From now on no replica here campaigns or lets itself be made the leader.
    fn abstain(&self);

    /// The opposite, unless the node is about to stop.
    fn take_part(&self);

    /// Gives all leaderships away. Returns when they are gone, or nobody takes them.
    fn give_away(&self) -> BoxFuture<'static, ()>;

    /// The shards that are still led here although others vote in them too.
    fn led(&self) -> Vec<ShardId>;
}

/// What was handed over here, and until when.
pub struct HandOver {
    me: NodeId,
    leads: Arc<dyn Leads>,
    maps: Arc<MapFeed>,
    spawner: Spawner,
    /// Tokens of the permits that hold. More than one only for the moment in which the end of the last is not known yet.
    held: Arc<Mutex<BTreeSet<String>>>,
}

impl HandOver {
    /// Nothing is handed over.
    pub fn new(me: NodeId, leads: Arc<dyn Leads>, maps: Arc<MapFeed>, spawner: Spawner) -> Self {
        Self { me, leads, maps, spawner, held: Arc::default() }
    }

    /// Gives all leaderships away for as long as the permit with this token is open in `record`, which was just read from
    /// meta. Asked again it tries again.
    ///
    /// # Errors
    /// There is no such permit; or some leaderships stay, since nobody takes them.
    pub async fn begin(&self, record: MetaRecord, token: &str) -> Result<(), Refusal> {
        let time = Duration::from_millis(open_permit(&record, self.me, token)?.ttl_ms);
        // The watch goes out from a map that has the permit.
        self.maps.offer(record);
        self.hold(token.to_owned(), time + NO_NEWS);
        self.leads.give_away().await;
        let led = self.leads.led();
        if led.is_empty() {
            tracing::info!("leaderships are handed over");
            return Ok(());
        }
        let led: Vec<String> = led.iter().map(ToString::to_string).collect();
        let message = format!("node {} still leads {}: nobody takes over", self.me, led.join(", "));
        Err(refusal::not_applied(refusal::TARGET_NOT_READY, message))
    }

    fn hold(&self, token: String, at_most: Duration) {
        let mut held = lock(&self.held);
        self.leads.abstain();
        if !held.insert(token.clone()) {
            return;
        }
        let (me, leads, maps, held) = (self.me, self.leads.clone(), self.maps.clone(), self.held.clone());
        self.spawner.spawn("hand-over", async move {
            // Without news its time is over all the same.
            timeout(at_most, until_over(&maps.registry, me, &token)).await.ok();
            let mut held = lock(&held);
            held.remove(&token);
            if held.is_empty() {
                tracing::info!("the permit is over and the node still runs: it may lead again");
                leads.take_part();
            }
        });
    }
}

/// Returns once a map does not show the permit as open.
async fn until_over(registry: &Registry, me: NodeId, token: &str) {
    let mut view = registry.view();
    while open_permit(&view.record, me, token).is_ok() {
        view = registry.newer_than(view.epoch()).await;
    }
}

/// The open permit of a node that has this token.
fn open_permit<'a>(record: &'a MetaRecord, node: NodeId, token: &str) -> Result<&'a Permit, Refusal> {
    let unknown = |message| refusal::of(Kind::FailedPrecondition, refusal::PERMIT_UNKNOWN, message);
    let known = record.permits.iter().find(|permit| !token.is_empty() && permit.token == token);
    match known {
        Some(permit) if permit.node_id != node.get() => {
            Err(unknown(format!("the permit is of node {}, this is node {node}", permit.node_id)))
        }
        Some(permit) if permit.overdue => Err(unknown("the permit has expired".to_owned())),
        Some(permit) => Ok(permit),
        None => Err(unknown("no permit has this token".to_owned())),
    }
}

fn lock(held: &Mutex<BTreeSet<String>>) -> MutexGuard<'_, BTreeSet<String>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::{sync::watch, time::Instant};

    use super::*;
    use crate::runtime::Tasks;

    const ME: NodeId = NodeId(2);
    /// Of a permit.
    const TTL: Duration = Duration::from_secs(60);

    fn record(epoch: u64, permits: &[(&str, u64, bool)]) -> MetaRecord {
        let permit = |(token, node_id, overdue): &(&str, u64, bool)| Permit {
            token: (*token).to_owned(),
            node_id: *node_id,
            overdue: *overdue,
            ttl_ms: 60_000,
            ..Permit::default()
        };
        let permits = permits.iter().map(permit).collect();
        MetaRecord { cluster_id: "c".to_owned(), epoch, permits, ..MetaRecord::default() }
    }

    #[test]
    fn only_the_token_of_an_open_permit_of_this_node_is_taken() {
        let record = record(1, &[("mine", 2, false), ("others", 3, false), ("old", 2, true), ("", 2, false)]);
        assert_eq!(open_permit(&record, ME, "mine").expect("open").token, "mine");
        for token in ["others", "old", "", "unheard of"] {
            let refused = open_permit(&record, ME, token).expect_err(token);
            assert_eq!(refused.reason, refusal::PERMIT_UNKNOWN, "{token}");
        }
    }

    /// Whether the node leads, and shards that nobody takes.
    struct Fake {
        takes_part: watch::Sender<bool>,
        stays: Mutex<Vec<ShardId>>,
    }

    impl Leads for Fake {
        fn abstain(&self) {
            self.takes_part.send_replace(false);
        }

        fn take_part(&self) {
            self.takes_part.send_replace(true);
        }

        fn give_away(&self) -> BoxFuture<'static, ()> {
            std::future::ready(()).boxed()
        }

        fn led(&self) -> Vec<ShardId> {
            self.stays.lock().unwrap().clone()
        }
    }

    struct World {
        leads: Arc<Fake>,
        maps: Arc<MapFeed>,
        hand_over: HandOver,
        _tasks: Tasks,
    }

    fn world() -> World {
        let registry = Registry::new(MetaRecord::default(), Box::new(|_| {})).unwrap();
        let (tasks, maps) = (Tasks::new("node"), Arc::new(MapFeed::new(Arc::new(registry))));
        let leads = Arc::new(Fake { takes_part: watch::Sender::new(true), stays: Mutex::default() });
        let hand_over = HandOver::new(ME, leads.clone(), maps.clone(), tasks.spawner());
        World { leads, maps, hand_over, _tasks: tasks }
    }

    impl World {
        fn takes_part(&self) -> bool {
            *self.leads.takes_part.borrow()
        }

        async fn takes_part_again(&self) {
            let mut takes_part = self.leads.takes_part.subscribe();
            let again = timeout(TTL * 2, takes_part.wait_for(|takes_part| *takes_part)).await;
            drop(again.expect("it leads again").expect("the fake lives"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn leaderships_are_taken_again_when_the_permit_is_released_or_overdue() {
        for after in [record(3, &[]), record(3, &[("t", 2, true)])] {
            let world = world();
            let open = record(1, &[("t", 2, false)]);
            world.hand_over.begin(open.clone(), "t").await.expect("handed over");
            world.hand_over.begin(open, "t").await.expect("once more");
            assert!(!world.takes_part());
            world.maps.offer(record(2, &[("t", 2, false), ("other", 3, false)]));
            tokio::time::sleep(TTL / 2).await;
            assert!(!world.takes_part(), "it is open");
            world.maps.offer(after);
            world.takes_part_again().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_news_the_end_of_its_time_ends_a_permit() {
        let (world, began) = (world(), Instant::now());
        world.hand_over.begin(record(1, &[("t", 2, false)]), "t").await.expect("handed over");
        world.takes_part_again().await;
        assert_eq!(began.elapsed(), TTL + NO_NEWS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_permit_holds_when_the_end_of_the_earlier_is_heard_of() {
        let world = world();
        world.hand_over.begin(record(1, &[("one", 2, false)]), "one").await.expect("handed over");
        world.hand_over.begin(record(3, &[("two", 2, false)]), "two").await.expect("handed over");
        tokio::time::sleep(TTL / 2).await;
        assert!(!world.takes_part());
        world.maps.offer(record(4, &[]));
        world.takes_part_again().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_hears_which_shards_nobody_takes_and_none_campaigns_for_others() {
        let world = world();
        *world.leads.stays.lock().unwrap() = vec![ShardId(3)];
        let open = record(1, &[("t", 2, false)]);
        let refused = world.hand_over.begin(open.clone(), "t").await.expect_err("one stays");
        assert_eq!(refused.reason, refusal::TARGET_NOT_READY);
        assert!(!world.takes_part());
        world.leads.stays.lock().unwrap().clear();
        world.hand_over.begin(open, "t").await.expect("now all are gone");
    }
}
