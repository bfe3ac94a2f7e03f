//! One seed: a world, clients, trouble, and the verdict.

use std::{
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use kv_history::{Limits, check, check_final};
use kvnode::{log::PlantedBug, runtime::Spawner};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{
    clients::{Book, Client},
    counters::Counter,
    dice::Dice,
    nemesis,
    oracles::{self, Oracles},
    runtime::Life,
    weather::Trace,
    world::World,
};

/// Clients of a run.
const CLIENTS: u32 = 4;
/// After the trouble, for requests to come to their end: longer than a client waits.
const LAST_REQUESTS: Duration = Duration::from_secs(4);
/// Clients that count.
const COUNTERS: u32 = 2;
/// After the trouble, for them to hear of everything that they have sent.
const LAST_COUNTS: Duration = Duration::from_secs(60);
/// A history is checked, and a run that is violated already ends, so often.
const SLICE: Duration = Duration::from_secs(50);

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug)]
pub enum Bug {
    /// With the log, or nothing.
    Log(PlantedBug),
    /// No write is known to be a retry.
    ForgetSessions,
}

impl Bug {
    fn in_log(self) -> PlantedBug {
        match self {
            Self::Log(bug) => bug,
            Self::ForgetSessions => PlantedBug::None,
        }
    }

    /// As `KV_SIM_BUG` has it.
    fn name(self) -> String {
        match self {
            Self::Log(bug) => format!("{bug:?}"),
            Self::ForgetSessions => format!("{self:?}"),
        }
    }
}

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub seconds: u64,
    pub bug: Bug,
}

/// What a run showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub hash: u64,
    pub events: u64,
    pub crashes: u64,
    pub leaders: usize,
    pub applied: usize,
    pub operations: usize,
    pub acknowledged_writes: u64,
    pub increments: u64,
    pub undecided_keys: usize,
    pub violations: Vec<String>,
}

impl Plan {
    /// Every third seed has five replicas.
    fn size(&self) -> u64 {
        if self.seed % 3 == 2 { 5 } else { 3 }
    }

    /// How a person runs this seed again.
    pub fn command(&self) -> String {
        let Self { seed, seconds, bug } = self;
        let bug = bug.name();
        format!(
            "KV_SIM_SEED={seed} KV_SIM_SECONDS={seconds} KV_SIM_BUG={bug} \
             cargo test --release -p kvnode --test simulation one_seed -- --nocapture"
        )
    }

    /// Runs it on this thread, in simulated time.
    pub fn run(self) -> Report {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(self.simulate())
    }

    async fn simulate(self) -> Report {
        let trace = Trace::new(env::var_os("KV_SIM_TRACE").is_some());
        let dice = Dice::new(self.seed);
        let (world, mut aimed) = World::new(dice.clone(), self.size(), self.bug.in_log(), trace);
        world.form().await;
        let (book, oracles) = (Arc::<Mutex<Book>>::default(), Arc::<Mutex<Oracles>>::default());
        let life = Life::new(Dice::new(dice.next()));
        let outside = life.tasks();
        outside.spawner().spawn("oracles", nemesis::watch(world.clone(), oracles.clone()));
        let clients = outside.spawner().scope("clients");
        for id in 1..=CLIENTS {
            let client = Client { id, world: world.clone(), book: book.clone() };
            clients.spawner().spawn("client", client.run());
        }
        let ending = Arc::<AtomicBool>::default();
        let counters: Vec<_> =
            (1..=COUNTERS).map(|id| self.count(id, &world, &outside.spawner(), &ending)).collect();
        let mut left = Duration::from_secs(self.seconds);
        while !left.is_zero() && !world.is_violated() {
            let slice = left.min(SLICE);
            nemesis::rage(&world, &book, &mut aimed, slice).await;
            left -= slice;
        }
        drop(clients);
        ending.store(true, Relaxed);
        let mut increments = 0;
        for counted in counters {
            match timeout(LAST_COUNTS, counted).await {
                Ok(Ok(count)) => increments += count,
                _ if world.is_violated() => {}
                _ => world.violated("a counter does not come to its end in calm".to_owned()),
            }
        }
        sleep(LAST_REQUESTS).await;
        let undecided_keys = judge(&world, &book).await;
        drop(outside);
        world.node_ids().into_iter().for_each(|node| world.crash(node));
        let (book, oracles, trace) =
            (book.lock().unwrap(), oracles.lock().unwrap(), world.trace.lock().unwrap());
        Report {
            hash: trace.hash(),
            events: trace.events,
            crashes: *world.crashes.lock().unwrap(),
            leaders: oracles.leaders(),
            applied: oracles.applied(),
            operations: book.history.len(),
            acknowledged_writes: book.acknowledged_writes,
            increments,
            undecided_keys,
            violations: world.violations.lock().unwrap().clone(),
        }
    }
}

impl Plan {
    /// Starts a client that counts; how often it has incremented in the end.
    fn count(
        &self,
        id: u32,
        world: &Arc<World>,
        spawner: &Spawner,
        ending: &Arc<AtomicBool>,
    ) -> oneshot::Receiver<u64> {
        let forgets_session = matches!(self.bug, Bug::ForgetSessions);
        let counter = Counter { id, world: world.clone(), ending: ending.clone(), forgets_session };
        let (counted, count) = oneshot::channel();
        spawner.spawn("counter", async move {
            counted.send(counter.run().await).ok();
        });
        count
    }
}

/// Judges what clients heard and what is there at the end. Returns the keys whose history was too hard to decide.
async fn judge(world: &Arc<World>, book: &Mutex<Book>) -> usize {
    let found = oracles::agreement(world).await;
    let history = book.lock().unwrap().history.clone();
    if let Some(found) = found
        && let Err(violation) = check_final(&history, &found)
    {
        world.violated(violation.to_string());
    }
    match check(&history, Limits::default()) {
        Ok(report) => report.undecided_keys.len(),
        Err(violation) => {
            world.violated(violation.to_string());
            0
        }
    }
}
