//! Where modules that do not know of each other meet.

use std::{io, sync::Arc};

use futures::future::{BoxFuture, FutureExt};
use kv_proto::peer::v1::{ReadRequest, ReadResponse, Refusal, read_response::Read};
use kv_topology::ReplicaId;

use super::compaction::Logs;
use crate::{
    group::replica::ReadState,
    log::{LogHub, LogView, extent::LogSize},
    state::hub::{ReplicaReader, StateHub},
    state_machine::raft::Durability,
};

impl Durability for LogView {
    async fn wait_durable(&self, index: u64) -> io::Result<()> {
        Ok(Self::wait_durable(self, index).await?)
    }
}

impl ReadState for ReplicaReader {
    fn read(&self, request: &ReadRequest) -> Result<ReadResponse, Refusal> {
        unless_refused(Self::read(self, request))
    }

    fn answer(&self, request: ReadRequest) -> BoxFuture<'static, Result<ReadResponse, Refusal>> {
        let this = self.clone();
        async move { unless_refused(Self::answer(&this, request).await) }.boxed()
    }

    fn answer_from_memory(&self, requests: &[ReadRequest]) -> Vec<Option<Result<ReadResponse, Refusal>>> {
        let answers = Self::answer_from_memory(self, requests).into_iter();
        answers.map(|answer| answer.map(unless_refused)).collect()
    }

    fn pinned(&self, request: &ReadRequest) -> Option<BoxFuture<'static, Result<ReadResponse, Refusal>>> {
        Some(Self::pinned(self, request)?.map(unless_refused).boxed())
    }

    fn revision(&self) -> u64 {
        Self::revision(self)
    }

    fn log_time_ms(&self) -> u64 {
        Self::log_time_ms(self)
    }

    fn owns_slots(&self) -> bool {
        Self::owns_slots(self)
    }

    fn sessions(&self) -> (usize, usize) {
        Self::sessions(self)
    }

    fn has_uploads(&self) -> BoxFuture<'static, bool> {
        let this = self.clone();
        async move { Self::has_uploads(&this).await }.boxed()
    }

    fn wait_applied(&self, index: u64) -> BoxFuture<'static, ()> {
        Self::wait_applied(self, index).boxed()
    }

    fn wait_revision(&self, revision: u64) -> BoxFuture<'static, ()> {
        Self::wait_revision(self, revision).boxed()
    }
}

fn unless_refused(response: ReadResponse) -> Result<ReadResponse, Refusal> {
    match response.read {
        Some(Read::Refusal(refused)) => Err(refused),
        _ => Ok(response),
    }
}

/// The logs of the node's replicas, and their states.
pub struct NodeLogs(pub LogHub, pub Arc<StateHub>);

impl Logs for NodeLogs {
    fn size(&self, replica: ReplicaId) -> Option<LogSize> {
        Some(self.0.view(replica)?.size())
    }

    fn flush(&self) -> BoxFuture<'static, ()> {
        let state = self.1.clone();
        async move {
            if let Err(error) = state.flush().await {
                tracing::debug!(%error, "the state was not flushed for its logs");
            }
        }
        .boxed()
    }
}
