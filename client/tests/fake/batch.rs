//! The stream `Batch` of a node of pretence.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use futures::StreamExt as _;
use kv_proto::kv::v1::{self as proto, batch_operation::Operation, batch_result::Result as Answer};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Response, Status, Streaming};

use super::{
    FakeNode,
    kv::Messages,
    script::{Fault, failure_of, is_ours, refusal},
    shard_of,
    small::{key_of, method_of},
};

/// Wishes for streams, and what came on them.
pub struct Streams {
    /// The node knows no streams.
    pub absent: bool,
    /// Operations and bytes.
    pub window: (u32, u64),
    /// Messages that came.
    pub messages: usize,
    /// Operations of the largest message.
    pub largest_message: usize,
    /// Streams that were opened.
    pub opened: usize,
    /// Operations that were refused because the window, or a shard's share of it, was exceeded.
    pub exceeded: usize,
    /// Operations of this shard are held until [`super::FakeCluster::release`].
    pub slow_shard: Option<u32>,
    held: Vec<(FakeNode, Line, proto::BatchOperation)>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            absent: false,
            window: (4096, 8 << 20),
            messages: 0,
            largest_message: 0,
            opened: 0,
            exceeded: 0,
            slow_shard: None,
            held: Vec::new(),
        }
    }
}

/// One stream: where answers go, and what is under way by id: shard and bytes.
#[derive(Clone)]
struct Line {
    answers: mpsc::UnboundedSender<Result<proto::BatchResponse, Status>>,
    under_way: Arc<Mutex<BTreeMap<u64, (u32, u64)>>>,
}

/// What follows from one operation.
enum Follows {
    Answer(Answer),
    Nothing,
    End(Option<Status>),
}

impl super::FakeCluster {
    /// The slow shard is slow no more: what was held is done and answered now.
    pub fn release(&self) {
        let held = {
            let mut state = self.state();
            state.streams.slow_shard = None;
            std::mem::take(&mut state.streams.held)
        };
        for (node, line, operation) in held {
            let result = node.answer(operation.operation.unwrap());
            line.answer(vec![proto::BatchResult { id: operation.id, result: Some(result) }]);
        }
    }

    /// Operations that a slow shard holds.
    pub fn held(&self) -> usize {
        self.state().streams.held.len()
    }
}

impl Line {
    /// False: nobody reads any more.
    fn answer(&self, results: Vec<proto::BatchResult>) -> bool {
        let mut under_way = self.under_way.lock().unwrap();
        for result in &results {
            under_way.remove(&result.id);
        }
        let message = proto::BatchResponse { results, cluster_id: "fake".to_owned(), window: None };
        self.answers.send(Ok(message)).is_ok()
    }

    /// Counts an operation, if the window has room.
    fn begin(&self, (operations_max, bytes_max): (u32, u64), operation: &proto::BatchOperation) -> bool {
        let bytes = operation.encoded_len() as u64;
        let shard = shard_of(&key_of(operation.operation.as_ref().unwrap()));
        let mut under_way = self.under_way.lock().unwrap();
        let of = |shard: Option<u32>| {
            let of = under_way.values().filter(|(of, _)| shard.is_none_or(|shard| shard == *of));
            of.fold((0_u32, 0_u64), |(count, sum), (_, bytes)| (count + 1, sum + bytes))
        };
        let (all, share) = (of(None), of(Some(shard)));
        let fits = all.0 < operations_max
            && all.1 + bytes <= bytes_max
            && share.0 < operations_max.div_ceil(2)
            && (share.0 == 0 || share.1 + bytes <= bytes_max / 2);
        assert!(!under_way.contains_key(&operation.id), "an id is used twice");
        if fits {
            under_way.insert(operation.id, (shard, bytes));
        }
        fits
    }
}

impl FakeNode {
    pub fn stream(
        &self,
        mut requests: Streaming<proto::BatchRequest>,
    ) -> Result<Response<Messages<proto::BatchResponse>>, Status> {
        let window = {
            let mut state = self.shared.state();
            if state.streams.absent {
                return Err(Status::unimplemented("no streams here"));
            }
            state.streams.opened += 1;
            state.streams.window
        };
        let (answers, replies) = mpsc::unbounded_channel();
        let line = Line { answers, under_way: Arc::default() };
        let first = proto::BatchResponse {
            window: Some(proto::BatchWindow { operations: window.0, bytes: window.1 }),
            cluster_id: "fake".to_owned(),
            results: Vec::new(),
        };
        line.answers.send(Ok(first)).unwrap();
        let node = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = requests.message().await {
                if !node.take(&line, window, message) {
                    return;
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(replies).boxed()))
    }

    /// One message. False: the stream ends.
    fn take(&self, line: &Line, window: (u32, u64), message: proto::BatchRequest) -> bool {
        {
            let mut state = self.shared.state();
            state.streams.messages += 1;
            state.streams.largest_message = state.streams.largest_message.max(message.operations.len());
        }
        let mut results = Vec::with_capacity(message.operations.len());
        for operation in message.operations {
            let id = operation.id;
            match self.follow(line, window, operation) {
                Follows::Answer(result) => results.push(proto::BatchResult { id, result: Some(result) }),
                Follows::Nothing => {}
                Follows::End(status) => {
                    line.answer(results);
                    if let Some(status) = status {
                        let _ = line.answers.send(Err(status));
                    }
                    return false;
                }
            }
        }
        results.is_empty() || line.answer(results)
    }

    fn follow(&self, line: &Line, window: (u32, u64), operation: proto::BatchOperation) -> Follows {
        assert!(operation.timeout_ms > 0, "the client always says how long it waits");
        if !line.begin(window, &operation) {
            self.shared.state().streams.exceeded += 1;
            let full = refusal(Code::ResourceExhausted, "BATCH_WINDOW", &[], None);
            return Follows::Answer(Answer::Failure(failure_of(&full)));
        }
        let inner = operation.operation.as_ref().unwrap();
        let key = key_of(inner);
        match self.called(method_of(inner)) {
            None | Some(Fault::None) => {}
            Some(Fault::Refuse(status)) => return Follows::Answer(Answer::Failure(failure_of(&status))),
            Some(Fault::Lose(status)) => {
                let done = self.execute(operation.operation.unwrap());
                assert!(done.is_ok(), "{done:?}");
                let failure = || Follows::Answer(Answer::Failure(failure_of(&status)));
                return if is_ours(&status) { failure() } else { Follows::End(Some(status)) };
            }
            Some(Fault::Hang) => return Follows::Nothing,
            Some(Fault::EndAfter(_)) => return Follows::End(None),
            Some(Fault::BreakAfter(..) | Fault::FlipBit) => panic!("not on a stream"),
        }
        if let Err(status) = self.check_leader(&key) {
            return Follows::Answer(Answer::Failure(failure_of(&status)));
        }
        let mut state = self.shared.state();
        if state.streams.slow_shard == Some(shard_of(&key)) {
            state.streams.held.push((self.clone(), line.clone(), operation));
            return Follows::Nothing;
        }
        drop(state);
        Follows::Answer(self.answer(operation.operation.unwrap()))
    }

    fn answer(&self, operation: Operation) -> Answer {
        match self.execute(operation) {
            Ok(mut answer) => {
                // As the protocol has it, the message names the cluster.
                let header = match &mut answer {
                    Answer::Put(put) => put.header.as_mut(),
                    Answer::Get(get) => get.header.as_mut(),
                    Answer::Delete(delete) => delete.header.as_mut(),
                    Answer::Txn(txn) => txn.header.as_mut(),
                    Answer::Failure(_) => None,
                };
                header.unwrap().cluster_id.clear();
                answer
            }
            Err(status) => Answer::Failure(failure_of(&status)),
        }
    }
}
