//! Clients that come and go: each of their writes is of a key of its own, so that its version tells how often it was made. That
//! must be once for what was acknowledged, and never more than once for the rest.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kv_client::{Address, Client, GetOptions};
use rand::{RngExt, rngs::SmallRng};
use tokio::{task::JoinSet, time::sleep};

/// Under way when a client ends.
const WRITES: u32 = 8;
/// A client lives no longer, ms.
const LIFE_MAX_MS: u64 = 40;
/// So short that sessions expire while their clients sleep and while nodes are away.
const SESSION_TTL: Duration = Duration::from_secs(1);
/// Longer than that.
const NAP: Duration = Duration::from_millis(1_500);
/// Keys that are read at once at the end.
const READ_AT_ONCE: usize = 500;

/// A write that was begun.
#[derive(Debug)]
pub struct Attempt {
    key: String,
    is_acknowledged: bool,
}

/// Where clients of a run connect, and what they are called.
pub struct Visitor {
    /// Distinguishes its keys from others'.
    pub name: &'static str,
    /// Of nodes or proxies.
    pub addresses: Vec<Address>,
    /// Chooses lives.
    pub random: SmallRng,
    /// Set at the end.
    pub stopped: Arc<AtomicBool>,
}

impl Visitor {
    fn client(&self, streams: bool) -> Client {
        let builder = Client::builder(self.addresses.clone()).session_ttl(SESSION_TTL).streams(streams);
        builder.timeout(Duration::from_secs(20)).build().expect("there are addresses")
    }

    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Starts one client after the other; each is gone while its writes are under way, as after a restart.
    pub async fn restart(mut self) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        while !self.is_over() {
            let streams = self.random.random();
            let client = self.client(streams);
            let mut writes = JoinSet::new();
            for _ in 0..WRITES {
                let (client, attempt) = (client.clone(), attempts.len());
                let key = format!("{}/{attempt}", self.name);
                attempts.push(Attempt { key: key.clone(), is_acknowledged: false });
                writes.spawn(async move { client.put(key, "x").await.is_ok().then_some(attempt) });
            }
            sleep(Duration::from_millis(self.random.random_range(1..LIFE_MAX_MS))).await;
            while let Some(ended) = writes.try_join_next() {
                if let Some(attempt) = ended.expect("a write does not panic") {
                    attempts[attempt].is_acknowledged = true;
                }
            }
        }
        attempts
    }

    /// Writes, and sleeps until its sessions have expired, again and again.
    pub async fn nap(self) -> Vec<Attempt> {
        let client = self.client(true);
        let mut attempts = Vec::new();
        while !self.is_over() {
            for _ in 0..WRITES {
                let key = format!("{}/{}", self.name, attempts.len());
                // A session can expire while a reply is lost: then nobody can know, and that is said.
                let is_acknowledged = client.put(key.as_str(), "x").await.is_ok();
                attempts.push(Attempt { key, is_acknowledged });
            }
            sleep(NAP).await;
        }
        attempts
    }
}

/// Reads what has become of all of them. How many were acknowledged.
pub async fn judge(client: &Client, attempts: &[Attempt]) -> usize {
    for some in attempts.chunks(READ_AT_ONCE) {
        let keys = some.iter().map(|attempt| attempt.key.as_str());
        let replies = client.batch_get(keys, GetOptions::default()).await.expect("all nodes serve");
        for (attempt, reply) in some.iter().zip(replies) {
            let times = reply.kv.map_or(0, |kv| kv.version);
            let is_right = if attempt.is_acknowledged { times == 1 } else { times <= 1 };
            assert!(is_right, "{attempt:?} was made {times} times");
        }
    }
    attempts.iter().filter(|attempt| attempt.is_acknowledged).count()
}
