//! Clients: each asks one thing at a time, of any node, and writes down what it heard.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use kv_history::{
    Call, ClientId, FinalState, History, Nanos, Observed, OperationId, Reply, Revision, ValueId,
};
use kv_proto::{
    disk::v1::{self as disk, Operation, operation::Kind},
    kv::v1::{Precondition, key_value::Value, precondition::Condition},
    peer::v1::{
        GetKeys, Outcome, ReadRequest, ReadResponse, Refusal, outcome, read_request::Read, read_response,
    },
};
use kv_topology::NodeId;
use kvnode::{refusal, router::store::Store};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use crate::{
    counters::{LONG_TTL_MS, open},
    world::{SHARD, World},
};

/// Keys that are put and read. Few, so that clients meet.
pub const KEYS: [&str; 4] = ["a", "b", "c", "d"];
/// The key that is also deleted, and written under a condition.
const CONTESTED: u64 = 3;
/// What a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// A value is its number.
const VALUE_BYTES: usize = 8;
/// Values of one client are told from those of others by this.
const VALUES_PER_CLIENT: u64 = 1_000_000_000;

/// What all clients heard. Its clock counts what is written down, so that nothing happens at the same moment.
#[derive(Default)]
pub struct Book {
    pub history: History,
    pub acknowledged_writes: u64,
    moments: u64,
}

impl Book {
    fn now(&mut self) -> Nanos {
        self.moments += 1;
        Nanos(self.moments)
    }
}

/// What became of a request.
pub enum Answer<T> {
    Heard(T),
    Refused(Refusal),
    /// The node died, or time was up.
    Silence,
}

pub struct Client {
    pub id: u32,
    pub world: Arc<World>,
    pub book: Arc<Mutex<Book>>,
}

impl Client {
    /// Asks for ever.
    pub async fn run(self) {
        let (mut written, mut seen) = (0, Revision::ABSENT);
        let mut session = None;
        loop {
            sleep(self.world.dice.millis(20, 200)).await;
            if session.is_none() && self.id.is_multiple_of(2) {
                session = open(&self.world, LONG_TTL_MS).await;
            }
            let node = self.world.any_node();
            let key = self.world.dice.below(KEYS.len() as u64);
            written += 1;
            let value = ValueId(u64::from(self.id) * VALUES_PER_CLIENT + written);
            let call = match self.world.dice.below(100) {
                0..45 => Call::Get,
                45..55 if key == CONTESTED => Call::Delete,
                55..75 if key == CONTESTED => Call::Cas { expected: seen, value },
                _ => Call::Put { value },
            };
            let key = KEYS[usize::try_from(key).unwrap()];
            let stamp = session.filter(|_| !matches!(call, Call::Cas { .. })).map(|id| (id, written));
            if let Some(revision) = self.ask(node, key, call, stamp).await {
                seen = revision;
            }
        }
    }

    /// Asks, writes down, and returns the revision that the contested key was seen at.
    /// `stamp`: session and sequence of a write. The router then sends it again itself, when its fate is unknown.
    async fn ask(
        &self,
        node: NodeId,
        key: &'static str,
        call: Call,
        stamp: Option<(u64, u64)>,
    ) -> Option<Revision> {
        let id = {
            let mut book = self.book.lock().unwrap();
            let now = book.now();
            book.history.invoke(ClientId(self.id), key, call, now)
        };
        self.world.event(format_args!("ask {node} {key} {call:?}"));
        let reply = match call {
            Call::Get => match get(&self.world, node, key).await {
                Answer::Heard(found) => Some(Reply::Got(found)),
                Answer::Refused(_) | Answer::Silence => None,
            },
            Call::Put { .. } | Call::Delete | Call::Cas { .. } => {
                self.write(node, key, call, stamp, id).await
            }
        };
        self.world.event(format_args!("heard {node} {key} {reply:?}"));
        let reply = reply?;
        let mut book = self.book.lock().unwrap();
        let now = book.now();
        book.history.returned(id, reply, now);
        if !matches!(call, Call::Get) {
            book.acknowledged_writes += 1;
        }
        match reply {
            Reply::Got(Some(observed)) if key == KEYS[KEYS.len() - 1] => observed.revision,
            _ => None,
        }
    }

    async fn write(
        &self,
        node: NodeId,
        key: &str,
        call: Call,
        stamp: Option<(u64, u64)>,
        id: OperationId,
    ) -> Option<Reply> {
        let (session_id, sequence) = stamp.unwrap_or_default();
        let operation = Operation {
            session_id,
            sequence,
            lowest_outstanding: sequence,
            fingerprint: sequence,
            ..operation(key, call)
        };
        let answer = request(&self.world, node, |router, deadline| async move {
            router.write(SHARD, vec![operation], deadline).await
        });
        match answer.await {
            Answer::Heard(outcomes) => match (refused_alone(&outcomes), reply(call, outcomes)) {
                (Some(refused), _) => self.refused(&refused, id),
                (None, Ok(reply)) => Some(reply),
                (None, Err(strange)) => {
                    self.world.violated(format!("{call:?} was answered with {strange}"));
                    None
                }
            },
            Answer::Refused(refused) => self.refused(&refused, id),
            Answer::Silence => None,
        }
    }

    fn refused(&self, refused: &Refusal, id: OperationId) -> Option<Reply> {
        if refusal::surely_not_applied(refused) {
            self.book.lock().unwrap().history.failed(id);
        }
        None
    }
}

/// Runs a request in the node's life, and waits for its answer.
pub async fn request<T, F>(
    world: &World,
    node: NodeId,
    ask: impl FnOnce(Arc<kvnode::router::Router>, Instant) -> F,
) -> Answer<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Refusal>> + Send + 'static,
{
    let Some(running) = world.running(node) else { return Answer::Silence };
    let (answer, answered) = oneshot::channel();
    let asked = ask(running.router.clone(), Instant::now() + PATIENCE);
    running.tasks.spawner().spawn("request", async move {
        answer.send(asked.await).ok();
    });
    drop(running);
    match timeout(PATIENCE, answered).await {
        Ok(Ok(Ok(heard))) => Answer::Heard(heard),
        Ok(Ok(Err(refused))) => Answer::Refused(refused),
        Ok(Err(_)) | Err(_) => Answer::Silence,
    }
}

async fn get(world: &World, node: NodeId, key: &str) -> Answer<Option<Observed>> {
    let question = question(key);
    let answer =
        request(world, node, |router, deadline| async move { router.read(question, deadline).await });
    match answer.await {
        Answer::Heard(response) => Answer::Heard(observed(response)),
        Answer::Refused(refused) => Answer::Refused(refused),
        Answer::Silence => Answer::Silence,
    }
}

/// A linearizable read of one key.
pub fn question(key: &str) -> ReadRequest {
    let get = GetKeys { keys: vec![Bytes::copy_from_slice(key.as_bytes())], ..GetKeys::default() };
    ReadRequest { shard_id: SHARD.get(), read: Some(Read::Get(get)), ..ReadRequest::default() }
}

/// What a read of one key found.
pub fn observed(response: ReadResponse) -> Option<Observed> {
    let Some(read_response::Read::Get(got)) = response.read else { return None };
    let found = got.results.into_iter().next()?.kv?;
    let Some(Value::Inline(value)) = found.value else { return None };
    let number: [u8; VALUE_BYTES] = value[..].try_into().unwrap();
    let value = ValueId(u64::from_be_bytes(number));
    Some(Observed { value, revision: Some(Revision(found.mod_revision)) })
}

/// Reads all keys at one node. `None`: one of them was not answered.
pub async fn read_all(world: &World, node: NodeId) -> Option<FinalState> {
    let mut found = FinalState::new();
    for key in KEYS {
        match get(world, node, key).await {
            Answer::Heard(observed) => found.insert(key.to_owned(), observed),
            Answer::Refused(_) | Answer::Silence => return None,
        };
    }
    Some(found)
}

fn operation(key: &str, call: Call) -> Operation {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let put = |value: ValueId, condition: Option<Condition>| {
        let value = Bytes::copy_from_slice(&value.0.to_be_bytes());
        let value_crc32c = crc32c::crc32c(&value);
        let precondition = condition.map(|condition| Precondition { condition: Some(condition) });
        Kind::Put(disk::Put { key: key.clone(), value, value_crc32c, precondition, return_previous: false })
    };
    let kind = match call {
        Call::Put { value } => put(value, None),
        Call::Cas { expected: Revision::ABSENT, value } => put(value, Some(Condition::Absent(true))),
        Call::Cas { expected, value } => put(value, Some(Condition::ModRevision(expected.0))),
        Call::Delete => Kind::Delete(disk::Delete { key: key.clone(), ..disk::Delete::default() }),
        Call::Get => unreachable!("a get is no operation"),
    };
    Operation { kind: Some(kind), ..Operation::default() }
}

/// The doubt about a write in a session that the router sent again in vain.
fn refused_alone(outcomes: &[Outcome]) -> Option<Refusal> {
    match outcomes {
        [Outcome { result: Some(outcome::Result::Refusal(refused)), .. }] => Some(refused.clone()),
        _ => None,
    }
}

fn reply(call: Call, outcomes: Vec<Outcome>) -> Result<Reply, String> {
    let result = outcomes.into_iter().next().and_then(|outcome| outcome.result);
    match (call, result) {
        (Call::Put { .. }, Some(outcome::Result::Put(put))) if put.applied => {
            Ok(Reply::Put(Some(Revision(put.mod_revision))))
        }
        (Call::Cas { .. }, Some(outcome::Result::Put(put))) => Ok(if put.applied {
            Reply::Swapped(Some(Revision(put.mod_revision)))
        } else {
            Reply::NotSwapped(put.previous.map(|found| Revision(found.mod_revision)))
        }),
        (Call::Delete, Some(outcome::Result::Delete(delete))) => Ok(Reply::Deleted(delete.applied)),
        (_, other) => Err(format!("{other:?}")),
    }
}
