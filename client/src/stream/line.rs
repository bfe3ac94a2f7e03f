//! The line of those that found too much of their shard waiting already, in the order in which they came.
//!
//! The first waits for room, the others for their turn; nobody who comes later passes them, and no shard waits for another
//! one's room. Each keeps its operation itself, and leaves the line when it is dropped. Without such a line, nothing of this
//! is touched.

use std::{collections::HashMap, sync::Arc};

use kv_proto::kv::v1::batch_operation::Operation;
use tokio::{
    sync::{Mutex, Notify},
    time::{Instant, timeout_at},
};

use super::{Ended, NotPushed, Shared, State, Why};

/// The lines of the shards that have one.
#[derive(Debug, Default)]
pub(super) struct Lines(HashMap<u32, Members>);

#[derive(Debug, Default)]
struct Members {
    count: usize,
    line: Arc<Line>,
}

/// The line of one shard.
#[derive(Debug, Default)]
struct Line {
    /// Held by the first. A fair lock: whoever came first is next.
    turn: Mutex<()>,
    /// There may be room. Only the first waits for it.
    room: Notify,
}

/// A place in the line of a shard.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    shard: u32,
    line: Arc<Line>,
}

impl Lines {
    pub(super) fn has(&self, shard: u32) -> bool {
        self.0.contains_key(&shard)
    }
}

impl State {
    /// To be called when something has left the queue. Who is told and finds no room waits on; who finds some lets the next one look.
    pub(super) fn tell_lines(&self) {
        for (shard, members) in &self.lines.0 {
            if !self.queue.is_full(*shard) {
                members.line.room.notify_one();
            }
        }
    }
}

impl Place {
    /// At the end of the line.
    pub(super) fn at_the_end(shared: &Arc<Shared>, shard: u32) -> Self {
        let mut state = shared.state();
        let members = state.lines.0.entry(shard).or_default();
        members.count += 1;
        Self { shared: shared.clone(), shard, line: members.line.clone() }
    }

    /// Queues the operation when there is room, and waits for its answer. Not queued until `limit`, it is late; from then on it
    /// has until what `deadline` says at that moment.
    pub(crate) async fn send(
        self,
        operation: &Operation,
        limit: Instant,
        deadline: impl Fn() -> Instant,
    ) -> Ended {
        let pushing = async {
            let _turn = self.line.turn.lock().await;
            loop {
                match self.shared.push(operation, self.shard, deadline(), true) {
                    Err(NotPushed::Full) => self.line.room.notified().await,
                    pushed => return pushed,
                }
            }
        };
        match timeout_at(limit, pushing).await {
            Ok(Ok(answer)) => {
                drop(self);
                answer.await.unwrap_or(Ended::GONE)
            }
            Ok(Err(NotPushed::Over | NotPushed::Full)) => Ended::Broken { sent: false, why: Why::Over },
            Err(_) => Ended::Late { sent: false },
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let Some(members) = state.lines.0.get_mut(&self.shard) else { return };
        members.count -= 1;
        if members.count == 0 {
            state.lines.0.remove(&self.shard);
        }
    }
}
