//! Crashes at random moments on the simulated device: what is found must be what was promised, or a later state.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use kv_topology::ReplicaId;
use kvnode::log::{PlantedBug, SimulatedDisk};
use openraft::{RaftLogReader, storage::RaftLogStorage};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;

use crate::{
    history::{History, Image},
    support::*,
};

const REPLICAS: u64 = 3;
const LIVES: u64 = 6;
const SEEDS: u64 = 150;

type Shared = Arc<Mutex<History>>;

/// One replica of one life: operations as openraft makes them, one after the other.
struct Life {
    store: Store,
    history: Shared,
    rng: StdRng,
    term: u64,
    watchers: JoinSet<()>,
}

impl Life {
    async fn run(mut self) {
        loop {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..6))).await;
            self.step().await;
            self.check_memory().await;
        }
    }

    async fn step(&mut self) {
        let now = lock(&self.history).now().clone();
        match self.rng.random_range(0..20) {
            0..10 => self.append(&now).await,
            10..12 => self.vote().await,
            12..14 if !now.entries.is_empty() => self.truncate(&now).await,
            14 if !now.entries.is_empty() => self.purge(&now).await,
            15..18 if !now.entries.is_empty() => self.commit(&now).await,
            _ => self.wait_durable(&now),
        }
    }

    async fn append(&mut self, now: &Image) {
        let count = self.rng.random_range(1..8);
        let bytes = if self.rng.random_bool(0.1) { 100_000 } else { self.rng.random_range(0..500) };
        let new = entries(self.term, now.next()..now.next() + count, bytes);
        let number = lock(&self.history).attempt(|image| image.entries.extend(new.clone()));
        let (callback, flushed) = callback();
        self.store.append(new, callback).await.unwrap();
        let history = self.history.clone();
        self.watchers.spawn(async move {
            if let Ok(Ok(())) = flushed.await {
                lock(&history).promise(number);
            }
        });
    }

    async fn vote(&mut self) {
        self.term += 1;
        let vote = vote(self.term);
        let number = lock(&self.history).attempt(|image| image.vote = Some(vote));
        self.store.save_vote(&vote).await.unwrap();
        lock(&self.history).promise(number);
    }

    async fn truncate(&mut self, now: &Image) {
        let keep = self.rng.random_range(0..now.entries.len());
        let last = keep.checked_sub(1).map(|last| now.entries[last].log_id).or(now.purged);
        lock(&self.history).attempt(|image| image.truncate(last.map_or(0, |id| id.index + 1)));
        self.store.truncate_after(last).await.unwrap();
        self.term += 1;
    }

    async fn purge(&mut self, now: &Image) {
        let upto = now.entries[self.rng.random_range(0..now.entries.len())].log_id;
        lock(&self.history).attempt(|image| image.purge(upto));
        self.store.purge(upto).await.unwrap();
    }

    async fn commit(&mut self, now: &Image) {
        let committed = now.entries[self.rng.random_range(0..now.entries.len())].log_id;
        lock(&self.history).commit(committed);
        self.store.save_committed(Some(committed)).await.unwrap();
    }

    /// What apply does: an entry that it may apply must survive.
    fn wait_durable(&mut self, now: &Image) {
        let Some(index) = now.entries.last().map(|entry| entry.log_id.index) else { return };
        let (view, history) = (self.store.view(), self.history.clone());
        let number = lock(&history).last_that_wrote(index);
        self.watchers.spawn(async move {
            if view.wait_durable(index).await.is_ok() {
                lock(&history).promise(number);
            }
        });
    }

    async fn check_memory(&mut self) {
        let expected = lock(&self.history).now().entries.clone();
        assert_eq!(read_all(&mut self.store).await, expected, "readable is what was appended");
    }
}

fn lock(history: &Shared) -> std::sync::MutexGuard<'_, History> {
    history.lock().unwrap()
}

async fn find(store: &mut Store) -> Image {
    Image {
        vote: store.read_vote().await.unwrap(),
        committed: store.read_committed().await.unwrap(),
        purged: store.get_log_state().await.unwrap().last_purged_log_id,
        entries: read_all(store).await,
    }
}

/// Lives and crashes of one disk; the first violation, if any.
async fn lives(seed: u64, bug: PlantedBug) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = SimulatedDisk::new(bug);
    let mut former: Vec<Option<Shared>> = vec![None; REPLICAS as usize];
    for life in 0..LIVES {
        let mut tasks = JoinSet::new();
        let hub = hub_in(&disk, bug, &mut tasks, rng.next_u64());
        for (id, former) in (1..=REPLICAS).zip(&mut former) {
            let mut store: Store = hub.replica(ReplicaId(id)).map_err(|error| error.to_string())?;
            let found = find(&mut store).await;
            if let Some(history) = former {
                lock(history).judge(&found).map_err(|wrong| format!("life {life}, replica {id}: {wrong}"))?;
            }
            let term = 1 + life * 1000;
            let history = Arc::new(Mutex::new(History::new(found)));
            *former = Some(history.clone());
            let rng = StdRng::seed_from_u64(rng.next_u64());
            let watchers = JoinSet::new();
            tasks.spawn(Life { store, history, rng, term, watchers }.run());
        }
        let crash_in = Duration::from_millis(rng.random_range(1..400));
        let broken = tokio::time::timeout(crash_in, tasks.join_next()).await;
        if let Ok(Some(Err(error))) = broken {
            return Err(format!("life {life}: {error}"));
        }
        tasks.shutdown().await;
        disk.crash(&mut rng);
    }
    Ok(())
}

/// A hub whose committer dies with the life.
fn hub_in(disk: &SimulatedDisk, bug: PlantedBug, tasks: &mut JoinSet<()>, seed: u64) -> kvnode::log::LogHub {
    let mut rng = StdRng::seed_from_u64(seed);
    let (sender, receiver) = std::sync::mpsc::channel();
    let driver = kvnode::log::Driver::Task {
        spawn: Box::new(move |task| sender.send(task).expect("the test waits for it")),
        delay: Box::new(move || {
            let time = Duration::from_millis(rng.random_range(1..20));
            Box::pin(tokio::time::sleep(time)) as futures::future::BoxFuture<'static, ()>
        }),
        bug,
    };
    // A budget that is always exceeded: reads go to the device as soon as they may.
    let hub = kvnode::log::LogHub::with_tail_budget(disk.open(), driver, no_fatal(), 2000).expect("hub");
    tasks.spawn(receiver.recv().expect("the committer"));
    hub
}

fn simulate(seed: u64, bug: PlantedBug) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(lives(seed, bug))
}

#[test]
fn what_was_promised_survives_any_crash() {
    for seed in 0..SEEDS {
        if let Err(violation) = simulate(seed, PlantedBug::None) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn planted_bugs_are_found() {
    for bug in [PlantedBug::AcknowledgeBeforeSync, PlantedBug::ForgetVote, PlantedBug::VoteNotSynced] {
        let found = (0..SEEDS).find_map(|seed| simulate(seed, bug).err().map(|violation| (seed, violation)));
        let (seed, violation) = found.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS} seeds"));
        println!("{bug:?}: found at seed {seed}: {violation}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_of_an_earlier_life_can_no_longer_write() {
    let disk = SimulatedDisk::new(PlantedBug::None);
    let hub = task_hub(&disk, PlantedBug::None);
    let mut store: Store = hub.replica(REPLICA).unwrap();
    append_durably(&mut store, entries(1, 0..3, 10)).await;
    let mut late = Vec::new();
    for index in 3..6 {
        late.push(append(&mut store, entries(1, index..index + 1, 10)).await);
    }
    disk.crash(&mut StdRng::seed_from_u64(1));
    let mut store: Store = task_hub(&disk, PlantedBug::None).replica(REPLICA).unwrap();
    for flushed in late {
        assert!(!matches!(flushed.await, Ok(Ok(()))), "acknowledged after the crash");
    }
    assert_eq!(read_all(&mut store).await, entries(1, 0..3, 10));
}
