//! A checked load: concurrent clients that write unique values and record what they hear.
//!
//! A client has one request in flight, at a node chosen at random for each, and follows the rules of the API for
//! what an error means; it never retries, so that each recorded operation is one request. Values carry their id and
//! a filler made from it: a reply whose bytes differ anywhere is a complaint. Requests that concern several keys, and
//! transfers, are in [`crate::many`].

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
use kv_proto::kv::v1::{KeyValue, key_value::Value, precondition::Condition};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{task::JoinSet, time::Instant};
use tonic::Status;

use crate::{
    api::{Api, Fate, Read, fate, name_of},
    many::Kind,
    once::Once,
    plan::LoadPlan,
    value::{decode, encode},
    verdict::{Verdict, judge},
    wait::{DEADLINE, WaitError, wait_until},
};

/// Operations that one load may record: half a gigabyte would be a hundred times as many.
const MAX_OPERATIONS: usize = 300_000;

/// Before the next request of a client whose last one failed: refused connections must not fill the history.
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// The client that reads everything at the end.
const FINAL_READER: ClientId = ClientId(u32::MAX);

/// A running load.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) plan: LoadPlan,
    nodes: Vec<SocketAddr>,
    begin: Instant,
    stopped: AtomicBool,
    next_value: AtomicU64,
    acknowledged_writes: AtomicU64,
    book: Mutex<Book>,
}

/// What all clients write into.
#[derive(Debug, Default)]
pub(crate) struct Book {
    history: History,
    errors: BTreeMap<String, u64>,
    complaints: Vec<String>,
    /// SHA-256 of uploaded values.
    pub(crate) uploaded: BTreeMap<Vec<u8>, ValueId>,
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

    /// How often each error was seen so far, by name.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.shared.book().errors.clone()
    }

    /// How often this error was seen so far, by the name that [`Verdict::errors`] has for it.
    pub fn errors_named(&self, name: &str) -> u64 {
        self.shared.book().errors.get(name).copied().unwrap_or(0)
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
    pub async fn finish(self) -> Verdict {
        let nodes = self.shared.nodes.clone();
        self.finish_through(&nodes).await
    }

    /// The same for a cluster whose nodes are others by now: every key is read from each of `nodes`.
    ///
    /// # Panics
    /// On any violation, or when a key cannot be read.
    pub async fn finish_through(mut self, nodes: &[SocketAddr]) -> Verdict {
        self.shared.stopped.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client.expect("a client does not panic");
        }
        // Those of the clients: what is read from now on is repeated until it succeeds.
        let errors = self.errors();
        let found = self.shared.read_everything(nodes).await;
        let mut book = self.shared.book();
        let book = std::mem::take(&mut *book);
        assert!(book.history.len() < MAX_OPERATIONS, "the load outgrew its history");
        judge(book.history, &found, &book.complaints, self.acknowledged_writes(), errors)
    }
}

impl Shared {
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("nobody panics with the lock")
    }

    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.begin.elapsed().as_nanos()).expect("a test takes less than 500 years"))
    }

    pub(crate) fn next_value(&self) -> ValueId {
        ValueId(self.next_value.fetch_add(1, Ordering::Relaxed))
    }

    fn invoke(&self, client: ClientId, key: &str, call: Call) -> OperationId {
        let mut book = self.book();
        let now = self.now();
        book.history.invoke(client, key, call, now)
    }

    /// The parts of one request that each of its keys has.
    pub(crate) fn invoke_all(&self, client: ClientId, parts: &[(String, Call)]) -> Vec<OperationId> {
        let mut book = self.book();
        let now = self.now();
        parts.iter().map(|(key, call)| book.history.invoke(client, key, *call, now)).collect()
    }

    fn complete(&self, id: OperationId, result: Result<Reply, Error>) {
        self.complete_all(&[id], result.map(|reply| vec![Ok(reply)]));
    }

    /// What each part heard, in the order of the parts; or that the request failed as a whole.
    pub(crate) fn complete_all(&self, ids: &[OperationId], result: Result<Vec<Result<Reply, Fate>>, Error>) {
        let mut book = self.book();
        let now = self.now();
        let replies = match result {
            Ok(replies) if replies.len() == ids.len() => replies,
            Ok(replies) => {
                book.complaints.push(format!("{} outcomes of {} parts", replies.len(), ids.len()));
                return;
            }
            Err(Error::Status(status)) => {
                *book.errors.entry(name_of(&status)).or_default() += 1;
                vec![Err(fate(&status)); ids.len()]
            }
            Err(Error::Ended { name, fate }) => {
                *book.errors.entry(name).or_default() += 1;
                vec![Err(fate); ids.len()]
            }
            Err(Error::Complaint(complaint)) => {
                book.complaints.push(format!("operation #{}: {complaint}", ids[0].0));
                return;
            }
        };
        for (id, reply) in ids.iter().zip(replies) {
            match reply {
                Ok(reply) => {
                    book.history.returned(*id, reply, now);
                    if matches!(reply, Reply::Put(_) | Reply::Swapped(_) | Reply::Deleted(true)) {
                        self.acknowledged_writes.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(Fate::NotApplied) => book.history.failed(*id),
                Err(Fate::Unknown) => book.history.unknown(*id),
            }
        }
    }

    /// What a reply shows of a key. Uploaded values are known by their hash.
    pub(crate) fn observed(&self, kv: Option<KeyValue>) -> Result<Option<Observed>, Error> {
        let Some(KeyValue { mod_revision, value, .. }) = kv else { return Ok(None) };
        let value = match value {
            Some(Value::Inline(bytes)) => decode(&bytes).map_err(Error::Complaint)?,
            Some(Value::Blob(blob)) => {
                let known = self.book().uploaded.get(&blob.sha256[..]).copied();
                known.ok_or_else(|| Error::Complaint(format!("nobody uploaded {blob:?}")))?
            }
            None => return Err(Error::Complaint("a key without a value".to_owned())),
        };
        Ok(Some(Observed { value, revision: Some(Revision(mod_revision)) }))
    }

    /// Every key that was ever used, read linearizably through each of these nodes; recorded like any other reads.
    async fn read_everything(&self, nodes: &[SocketAddr]) -> FinalState {
        let keys: Vec<String> = self.book().history.by_key().into_keys().map(str::to_owned).collect();
        let mut found = FinalState::new();
        for address in nodes {
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
            Ok(response) => self.observed(response.kv),
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
pub(crate) enum Error {
    #[error("{0}")]
    Status(#[from] Status),
    /// The client library gave up.
    #[error("{name}")]
    Ended { name: String, fate: Fate },
    /// The reply is nothing that any store may say.
    #[error("{0}")]
    Complaint(String),
}

pub(crate) struct Client {
    pub(crate) id: ClientId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) random: SmallRng,
    nodes: Vec<Api>,
    once: Option<Once>,
    /// The mod revision of each key when this client last saw it.
    pub(crate) seen: BTreeMap<String, Revision>,
}

/// What a client does next.
enum Next {
    One(Call, Read),
    Many(Kind),
}

impl Client {
    fn new(id: ClientId, shared: Arc<Shared>, random: SmallRng) -> Self {
        let nodes = shared.nodes.iter().map(|address| Api::new(*address)).collect();
        let once = shared.plan.exactly_once.then(|| Once::new(&shared.nodes, id.0 as usize));
        Self { id, shared, random, nodes, once, seen: BTreeMap::new() }
    }

    async fn run(mut self) {
        while !self.shared.stopped.load(Ordering::Relaxed)
            && self.shared.book().history.len() < MAX_OPERATIONS - 10_000
        {
            let key = self.any_key();
            let node = self.random.random_range(0..self.nodes.len());
            let succeeded = match self.choose(&key) {
                Next::One(call, read) => self.one(node, &key, call, read).await,
                Next::Many(kind) => {
                    let api = self.nodes[node].clone();
                    self.many(api, kind).await
                }
            };
            let pause =
                if succeeded { self.shared.plan.pause } else { self.shared.plan.pause.max(AFTER_ERROR) };
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    pub(crate) fn any_key(&mut self) -> String {
        let number = self.random.random_range(0..self.shared.plan.keys);
        format!("{}{number}", self.shared.plan.prefix)
    }

    /// False: there was no good reply.
    async fn one(&mut self, node: usize, key: &str, call: Call, read: Read) -> bool {
        let id = self.shared.invoke(self.id, key, call);
        let result = match &self.once {
            Some(once) if read != Read::AtThisNode => once.perform(&self.shared, key, call).await,
            Some(_) | None => self.shared.perform(&mut self.nodes[node], key, call, read).await,
        };
        if let Ok(reply) = &result {
            self.remember(key, reply);
        }
        let succeeded = result.is_ok();
        self.shared.complete(id, result);
        succeeded
    }

    fn choose(&mut self, key: &str) -> Next {
        let plan = &self.shared.plan;
        let many = plan.many * u32::try_from(Kind::ALL.len()).expect("a handful");
        let weights = [plan.gets, plan.gets_at_node, plan.puts, plan.deletes, plan.swaps, many];
        let mut pick = self.random.random_range(0..weights.iter().sum());
        let kind = weights
            .iter()
            .position(|weight| {
                let chosen = pick < *weight;
                pick = pick.saturating_sub(*weight);
                chosen
            })
            .unwrap_or(0);
        match kind {
            0 => Next::One(Call::Get, Read::Linearizable),
            1 => Next::One(Call::Get, Read::AtThisNode),
            2 => Next::One(Call::Put { value: self.shared.next_value() }, Read::Linearizable),
            3 => Next::One(Call::Delete, Read::Linearizable),
            4 => {
                let expected = self.seen.get(key).copied().unwrap_or(Revision::ABSENT);
                Next::One(Call::Cas { expected, value: self.shared.next_value() }, Read::Linearizable)
            }
            _ => Next::Many(Kind::ALL[self.random.random_range(0..Kind::ALL.len())]),
        }
    }

    pub(crate) fn remember(&mut self, key: &str, reply: &Reply) {
        let seen = match reply {
            Reply::Got(observed) => observed.and_then(|observed| observed.revision),
            Reply::Put(revision) | Reply::Swapped(revision) | Reply::NotSwapped(revision) => *revision,
            Reply::Deleted(_) | Reply::Cleared => None,
        };
        self.seen.insert(key.to_owned(), seen.unwrap_or(Revision::ABSENT));
    }
}

impl Shared {
    async fn perform(&self, api: &mut Api, key: &str, call: Call, read: Read) -> Result<Reply, Error> {
        match call {
            Call::Get => self.observed(api.get(key, read).await?.kv).map(Reply::Got),
            Call::Delete => Ok(Reply::Deleted(api.delete(key).await?.applied)),
            Call::Put { value } => {
                let response = api.put(key, self.encode(value), None).await?;
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
                let response = api.put(key, self.encode(value), Some(condition)).await?;
                if response.applied {
                    return Ok(Reply::Swapped(Some(Revision(response.mod_revision))));
                }
                Ok(Reply::NotSwapped(response.previous.map(|kv| Revision(kv.mod_revision))))
            }
        }
    }

    /// The bytes of a small value.
    pub(crate) fn encode(&self, value: ValueId) -> Bytes {
        encode(value, self.plan.value_bytes)
    }
}
