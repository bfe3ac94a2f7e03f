//! Sessions: an exact little model of what a shard keeps of them.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
};

use kv_proto::kv::v1::{
    self as proto, batch_operation::Operation, batch_result::Result as Answer, open_session_request,
};
use prost::Message as _;
use tonic::{Code, Status};

use super::{
    FakeNode,
    script::{bad_field, refusal},
    shard_of,
};

/// What is sent with a write: session, sequence, lowest outstanding.
pub type Stamp = (u64, u64, u64);

#[derive(Default)]
struct Session {
    lowest: u64,
    outcomes: BTreeMap<u64, (u64, Answer)>,
}

/// All sessions.
pub struct Sessions {
    open: BTreeMap<u64, Session>,
    opened: u64,
    /// Sequences from the lowest outstanding one on.
    pub window: u32,
    /// Stamps of writes as they came.
    pub stamps: Vec<Stamp>,
    /// Outcomes that were told again.
    pub replays: usize,
    /// Openings that fail before one succeeds.
    pub refuse_openings: Vec<Status>,
    /// Openings are not answered.
    pub silent: bool,
    /// All sessions expire when so many stamps have come.
    pub expire_after: Option<usize>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            opened: 0,
            window: 4096,
            stamps: Vec::new(),
            replays: 0,
            refuse_openings: Vec::new(),
            silent: false,
            expire_after: None,
        }
    }
}

impl Sessions {
    /// As after the time to live.
    pub fn expire_all(&mut self) {
        self.open.clear();
    }

    pub fn close(&mut self, id: u64) {
        self.open.remove(&id);
    }

    /// Sessions that are open.
    pub fn count(&self) -> usize {
        self.open.len()
    }

    /// The stored outcome of a write that came before; an error: it is refused; none: it is to be run.
    pub fn before(
        &mut self,
        stamp: Stamp,
        shard: u32,
        operation: &Operation,
    ) -> Result<Option<Answer>, Status> {
        let (id, sequence, lowest) = stamp;
        if id == 0 {
            return Ok(None);
        }
        if self.expire_after.take_if(|count| *count == self.stamps.len()).is_some() {
            self.expire_all();
        }
        self.stamps.push(stamp);
        if id >> 48 != u64::from(shard) {
            return Err(bad_field("session_id", "is one of another shard"));
        }
        let refused = |reason| Err(refusal(Code::FailedPrecondition, reason, &[], None));
        let Some(session) = self.open.get_mut(&id) else { return refused("SESSION_EXPIRED") };
        assert!((1..=sequence).contains(&lowest), "{stamp:?}");
        session.lowest = session.lowest.max(lowest);
        session.outcomes = session.outcomes.split_off(&session.lowest);
        if sequence < session.lowest {
            return refused("SEQUENCE_ACKNOWLEDGED");
        }
        if let Some((fingerprint, answer)) = session.outcomes.get(&sequence) {
            if *fingerprint != self::fingerprint(operation) {
                return Err(bad_field("sequence", "was another write"));
            }
            self.replays += 1;
            return Ok(Some(replayed(answer.clone())));
        }
        if sequence >= session.lowest + u64::from(self.window) {
            return Err(refusal(Code::ResourceExhausted, "SESSION_WINDOW_FULL", &[], None));
        }
        Ok(None)
    }

    /// Keeps the outcome of a write that was run.
    pub fn after(&mut self, stamp: Stamp, operation: &Operation, answer: &Answer) {
        if let Some(session) = self.open.get_mut(&stamp.0) {
            session.outcomes.insert(stamp.1, (fingerprint(operation), answer.clone()));
        }
    }
}

impl FakeNode {
    pub async fn open(
        &self,
        request: proto::OpenSessionRequest,
    ) -> Result<proto::OpenSessionResponse, Status> {
        // So that concurrent first writes meet here.
        tokio::task::yield_now().await;
        let key = match request.shard.unwrap() {
            open_session_request::Shard::Key(key) => key,
            open_session_request::Shard::ShardId(_) => panic!("the client opens by key"),
        };
        let header = self.header(&key);
        let silent = self.shared.state().sessions.silent;
        if silent {
            std::future::pending::<()>().await;
        }
        let mut state = self.shared.state();
        state.calls.push((self.id, "OpenSession"));
        if let Some(status) = state.sessions.refuse_openings.pop() {
            return Err(status);
        }
        state.sessions.opened += 1;
        let session_id = u64::from(shard_of(&key)) << 48 | state.sessions.opened;
        state.sessions.open.insert(session_id, Session { lowest: 1, ..Session::default() });
        Ok(proto::OpenSessionResponse {
            header,
            session_id,
            ttl_ms: if request.ttl_ms == 0 { 600_000 } else { request.ttl_ms },
            window: state.sessions.window,
        })
    }
}

/// The stamp and the key of an operation.
pub fn stamp_of(operation: &Operation) -> Stamp {
    match operation {
        Operation::Put(put) => (put.session_id, put.sequence, put.lowest_outstanding),
        Operation::Delete(delete) => (delete.session_id, delete.sequence, delete.lowest_outstanding),
        Operation::Txn(txn) => (txn.session_id, txn.sequence, txn.lowest_outstanding),
        Operation::Get(_) => (0, 0, 0),
    }
}

fn fingerprint(operation: &Operation) -> u64 {
    let mut bare = operation.clone();
    let fields = match &mut bare {
        Operation::Put(put) => Some((&mut put.session_id, &mut put.sequence, &mut put.lowest_outstanding)),
        Operation::Delete(delete) => {
            Some((&mut delete.session_id, &mut delete.sequence, &mut delete.lowest_outstanding))
        }
        Operation::Txn(txn) => Some((&mut txn.session_id, &mut txn.sequence, &mut txn.lowest_outstanding)),
        Operation::Get(_) => None,
    };
    if let Some((id, sequence, lowest)) = fields {
        (*id, *sequence, *lowest) = (0, 0, 0);
    }
    let message = proto::BatchOperation { operation: Some(bare), ..Default::default() };
    let mut hasher = DefaultHasher::new();
    message.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

fn replayed(answer: Answer) -> Answer {
    match answer {
        Answer::Put(put) => Answer::Put(proto::PutResponse { previous: None, replayed: true, ..put }),
        Answer::Delete(delete) => {
            Answer::Delete(proto::DeleteResponse { previous: None, replayed: true, ..delete })
        }
        Answer::Txn(txn) => Answer::Txn(proto::TxnResponse { results: Vec::new(), replayed: true, ..txn }),
        other => other,
    }
}
