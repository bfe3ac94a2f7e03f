//! A checked load: concurrent clients that write unique values and record what they hear.
//!
//! A client has one request in flight, at a node chosen at random for each, and follows the rules of the API for
//! what an error means; it never retries, so that each recorded operation is one request. Values carry their id and
//! a filler made from it: a reply whose bytes differ anywhere is a complaint.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kv_history::{
    Call, ClientId, FinalState, History, Nanos, Observed, OperationId, Reply, Revision, ValueId,
};
use kv_proto::kv::v1::{GetResponse, KeyValue, key_value::Value, precondition::Condition};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{task::JoinSet, time::Instant};
use tonic::Status;

use crate::{
    api::{Api, Fate, Read, fate, name_of},
    verdict::{Verdict, judge},
    wait::{DEADLINE, WaitError, wait_until},
};

/// Operations that one load may record: half a gigabyte would be a hundred times as many.
const MAX_OPERATIONS: usize = 300_000;

/// Before the next request of a client whose last one failed: refused connections must not fill the history.
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// The client that reads everything at the end.
const FINAL_READER: ClientId = ClientId(u32::MAX);

/// What the clients do. The shares are relative weights.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Concurrent clients.
    pub clients: u32,
    /// Keys that they share.
    pub keys: u32,
    /// Before each key, so that loads do not meet.
    pub prefix: String,
    /// Size of each value, at least 16.
    pub value_bytes: usize,
    /// Share of reads, wherever they are served.
    pub gets: u32,
    /// Share of linearizable reads from the asked node's own replica.
    pub gets_at_node: u32,
    /// Share of unconditional writes.
    pub puts: u32,
    /// Share of deletes.
    pub deletes: u32,
    /// Share of compare-and-swaps.
    pub swaps: u32,
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self {
            clients: 12,
            keys: 24,
            prefix: "load/".to_owned(),
            value_bytes: 100,
            gets: 4,
            gets_at_node: 2,
            puts: 6,
            deletes: 1,
            swaps: 2,
        }
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    plan: LoadPlan,
    nodes: Vec<SocketAddr>,
    begin: Instant,
    stopped: AtomicBool,
    next_value: AtomicU64,
    acknowledged_writes: AtomicU64,
    book: Mutex<Book>,
}

/// What all clients write into.
#[derive(Debug, Default)]
struct Book {
    history: History,
    errors: BTreeMap<String, u64>,
    complaints: Vec<String>,
}

impl Load {
    /// Starts the clients against `nodes`.
    pub fn start(plan: LoadPlan, nodes: Vec<SocketAddr>, random: &mut SmallRng) -> Self {
        let shared = Arc::new(Shared {
            plan,
            nodes,
            begin: Instant::now(),
            stopped: AtomicBool::new(false),
            next_value: AtomicU64::new(1),
            acknowledged_writes: AtomicU64::new(0),
            book: Mutex::default(),
        });
        let mut clients = JoinSet::new();
        for client in 0..shared.plan.clients {
            let random = SmallRng::seed_from_u64(random.random());
            clients.spawn(Client::new(ClientId(client), Arc::clone(&shared), random).run());
        }
        Self { shared, clients }
    }

    /// Writes and deletes acknowledged so far.
    pub fn acknowledged_writes(&self) -> u64 {
        self.shared.acknowledged_writes.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes have been acknowledged.
    ///
    /// # Errors
    /// When that takes longer than `deadline`.
    pub async fn progress(&self, more: u64, deadline: Duration) -> Result<(), WaitError> {
        let goal = self.acknowledged_writes() + more;
        let what = format!("{more} more acknowledged writes");
        wait_until(what, deadline, || async {
            let now = self.acknowledged_writes();
            if now >= goal { Ok(()) } else { Err(format!("{} are missing", goal - now)) }
        })
        .await
    }

    /// Waits until so many more writes have been acknowledged.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn must_progress(&self, more: u64) {
        if let Err(error) = self.progress(more, DEADLINE).await {
            panic!("{error}; errors so far: {:?}", self.shared.book().errors);
        }
    }

    /// Stops the clients, reads every key from every node, and judges the whole. All nodes must serve again.
    ///
    /// # Panics
    /// On any violation, or when a key cannot be read.
    pub async fn finish(mut self) -> Verdict {
        self.shared.stopped.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client.expect("a client does not panic");
        }
        let found = self.shared.read_everything().await;
        let mut book = self.shared.book();
        let book = std::mem::take(&mut *book);
        assert!(book.history.len() < MAX_OPERATIONS, "the load outgrew its history");
        judge(book.history, &found, &book.complaints, self.acknowledged_writes(), book.errors)
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("nobody panics with the lock")
    }

    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.begin.elapsed().as_nanos()).expect("a test takes less than 500 years"))
    }

    fn invoke(&self, client: ClientId, key: &str, call: Call) -> OperationId {
        let mut book = self.book();
        let now = self.now();
        book.history.invoke(client, key, call, now)
    }

    fn complete(&self, id: OperationId, result: Result<Reply, Error>) {
        let mut book = self.book();
        let now = self.now();
        match result {
            Ok(reply) => {
                book.history.returned(id, reply, now);
                if matches!(reply, Reply::Put(_) | Reply::Swapped(_) | Reply::Deleted(true)) {
                    self.acknowledged_writes.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(Error::Status(status)) => {
                *book.errors.entry(name_of(&status)).or_default() += 1;
                match fate(&status) {
                    Fate::NotApplied => book.history.failed(id),
                    Fate::Unknown => book.history.unknown(id),
                }
            }
            Err(Error::Complaint(complaint)) => {
                book.complaints.push(format!("operation #{}: {complaint}", id.0));
            }
        }
    }

    /// Every key that was ever used, read linearizably through every node; recorded like any other reads.
    async fn read_everything(&self) -> FinalState {
        let keys: Vec<String> = self.book().history.by_key().into_keys().map(str::to_owned).collect();
        let mut found = FinalState::new();
        for address in &self.nodes {
            let api = Api::new(*address);
            for key in &keys {
                let read = wait_until(format!("{key} from {address} at the end"), DEADLINE, || {
                    self.read_once(api.clone(), key)
                });
                let observed = read.await.unwrap_or_else(|error| panic!("{error}"));
                found.insert(key.clone(), observed);
            }
        }
        found
    }

    async fn read_once(&self, mut api: Api, key: &str) -> Result<Option<Observed>, Error> {
        let id = self.invoke(FINAL_READER, key, Call::Get);
        let result = match api.get(key, Read::Linearizable).await {
            Ok(response) => observed(response),
            Err(status) => Err(Error::Status(status)),
        };
        self.complete(id, result.clone().map(Reply::Got));
        // Bytes that nobody wrote are complained about already; reading on would only hide them.
        match result {
            Err(Error::Complaint(_)) => Ok(None),
            other => other,
        }
    }
}

/// Why there is no reply.
#[derive(Clone, Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Status(Status),
    /// The reply is nothing that any store may say.
    #[error("{0}")]
    Complaint(String),
}

struct Client {
    id: ClientId,
    shared: Arc<Shared>,
    random: SmallRng,
    nodes: Vec<Api>,
    /// The mod revision of each key when this client last saw it.
    seen: BTreeMap<String, Revision>,
}

impl Client {
    fn new(id: ClientId, shared: Arc<Shared>, random: SmallRng) -> Self {
        let nodes = shared.nodes.iter().map(|address| Api::new(*address)).collect();
        Self { id, shared, random, nodes, seen: BTreeMap::new() }
    }

    async fn run(mut self) {
        while !self.shared.stopped.load(Ordering::Relaxed)
            && self.shared.book().history.len() < MAX_OPERATIONS - 10_000
        {
            let number = self.random.random_range(0..self.shared.plan.keys);
            let key = format!("{}{number}", self.shared.plan.prefix);
            let (call, read) = self.choose(&key);
            let node = self.random.random_range(0..self.nodes.len());
            let id = self.shared.invoke(self.id, &key, call);
            let result = perform(&mut self.nodes[node], &key, call, read, self.shared.plan.value_bytes).await;
            self.remember(&key, &result);
            let failed = result.is_err();
            self.shared.complete(id, result);
            if failed {
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }

    fn choose(&mut self, key: &str) -> (Call, Read) {
        let plan = &self.shared.plan;
        let weights = [plan.gets, plan.gets_at_node, plan.puts, plan.deletes, plan.swaps];
        let mut pick = self.random.random_range(0..weights.iter().sum());
        let kind = weights
            .iter()
            .position(|weight| {
                let chosen = pick < *weight;
                pick = pick.saturating_sub(*weight);
                chosen
            })
            .unwrap_or(0);
        let value = ValueId(self.shared.next_value.fetch_add(1, Ordering::Relaxed));
        match kind {
            0 => (Call::Get, Read::Linearizable),
            1 => (Call::Get, Read::AtThisNode),
            2 => (Call::Put { value }, Read::Linearizable),
            3 => (Call::Delete, Read::Linearizable),
            _ => {
                let expected = self.seen.get(key).copied().unwrap_or(Revision::ABSENT);
                (Call::Cas { expected, value }, Read::Linearizable)
            }
        }
    }

    fn remember(&mut self, key: &str, result: &Result<Reply, Error>) {
        let seen = match result {
            Ok(Reply::Got(observed)) => observed.and_then(|observed| observed.revision),
            Ok(Reply::Put(revision) | Reply::Swapped(revision) | Reply::NotSwapped(revision)) => *revision,
            Ok(Reply::Deleted(_)) => None,
            Err(_) => return,
        };
        self.seen.insert(key.to_owned(), seen.unwrap_or(Revision::ABSENT));
    }
}

async fn perform(
    api: &mut Api,
    key: &str,
    call: Call,
    read: Read,
    value_bytes: usize,
) -> Result<Reply, Error> {
    match call {
        Call::Get => observed(api.get(key, read).await.map_err(Error::Status)?).map(Reply::Got),
        Call::Delete => Ok(Reply::Deleted(api.delete(key).await.map_err(Error::Status)?.applied)),
        Call::Put { value } => {
            let response = api.put(key, encode(value, value_bytes), None).await.map_err(Error::Status)?;
            if !response.applied {
                return Err(Error::Complaint("an unconditional put was not applied".to_owned()));
            }
            Ok(Reply::Put(Some(Revision(response.mod_revision))))
        }
        Call::Cas { expected, value } => {
            let condition = match expected {
                Revision::ABSENT => Condition::Absent(true),
                Revision(revision) => Condition::ModRevision(revision),
            };
            let value = encode(value, value_bytes);
            let response = api.put(key, value, Some(condition)).await.map_err(Error::Status)?;
            if response.applied {
                return Ok(Reply::Swapped(Some(Revision(response.mod_revision))));
            }
            Ok(Reply::NotSwapped(response.previous.map(|kv| Revision(kv.mod_revision))))
        }
    }
}

fn observed(response: GetResponse) -> Result<Option<Observed>, Error> {
    let Some(KeyValue { mod_revision, value, .. }) = response.kv else { return Ok(None) };
    let Some(Value::Inline(bytes)) = value else {
        return Err(Error::Complaint(format!("read {value:?} where a small value was written")));
    };
    let value = decode(&bytes).map_err(Error::Complaint)?;
    Ok(Some(Observed { value, revision: Some(Revision(mod_revision)) }))
}

/// The bytes of a value: its id in hexadecimal, then a filler that differs from value to value.
fn encode(value: ValueId, length: usize) -> Bytes {
    let mut bytes = format!("{:016x}", value.0).into_bytes();
    bytes.extend((bytes.len()..length).map(|position| filler(value, position)));
    bytes.into()
}

fn filler(value: ValueId, position: usize) -> u8 {
    let mixed = (value.0 ^ position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

fn decode(bytes: &[u8]) -> Result<ValueId, String> {
    let value = bytes
        .get(..16)
        .and_then(|head| std::str::from_utf8(head).ok())
        .and_then(|head| u64::from_str_radix(head, 16).ok())
        .map(ValueId)
        .ok_or_else(|| format!("read {} bytes that no client wrote", bytes.len()))?;
    match (16..bytes.len()).find(|position| bytes[*position] != filler(value, *position)) {
        None => Ok(value),
        Some(position) => Err(format!("byte {position} of v{} differs from what was written", value.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_survives_its_encoding_and_a_flipped_byte_is_noticed() {
        for length in [0, 16, 17, 1_000] {
            let bytes = encode(ValueId(77), length);
            assert_eq!(bytes.len(), length.max(16));
            assert_eq!(decode(&bytes), Ok(ValueId(77)));
        }
        let mut bytes = encode(ValueId(77), 100).to_vec();
        bytes[60] ^= 1;
        assert!(decode(&bytes).is_err());
        assert!(decode(b"short").is_err());
    }
}
