//! Where modules that do not know of each other meet.

use std::io;

use futures::future::{BoxFuture, FutureExt};
use kv_proto::peer::v1::{ReadRequest, ReadResponse, Refusal, read_response::Read};
use kv_topology::ReplicaId;

use super::compaction::LogSize;
use crate::{
    group::replica::ReadState,
    log::{LogHub, LogView},
    state::hub::ReplicaReader,
    state_machine::raft::Durability,
};

impl Durability for LogView {
    async fn wait_durable(&self, index: u64) -> io::Result<()> {
        Ok(Self::wait_durable(self, index).await?)
    }
}

impl ReadState for ReplicaReader {
    fn read(&self, request: &ReadRequest) -> Result<ReadResponse, Refusal> {
        match Self::read(self, request) {
            ReadResponse { read: Some(Read::Refusal(refused)), .. } => Err(refused),
            response => Ok(response),
        }
    }

    fn answer(&self, request: ReadRequest) -> BoxFuture<'static, Result<ReadResponse, Refusal>> {
        let this = self.clone();
        let answer = async move {
            match Self::answer(&this, request).await {
                ReadResponse { read: Some(Read::Refusal(refused)), .. } => Err(refused),
                response => Ok(response),
            }
        };
        answer.boxed()
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

/// The logs of the node's replicas.
pub struct Logs(pub LogHub);

impl LogSize for Logs {
    fn log_bytes(&self, replica: ReplicaId) -> Option<u64> {
        Some(self.0.view(replica)?.status().bytes)
    }
}
