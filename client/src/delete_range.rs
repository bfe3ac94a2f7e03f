//! Deletion of a range, step by step. Not atomic: each step is one revision of one shard.

use bytes::Bytes;
use kv_proto::kv::v1 as proto;
use tokio::time::timeout_at;
use tonic::Streaming;

use crate::{
    call::Call, client::Client, error::Result, options::KeyRange, pool::Node, retry::Kind, routing::Route,
    value::Header,
};

/// A step of a deletion: keys of one shard, deleted in one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRangeStep {
    /// Where it was made.
    pub header: Header,
    /// Keys that were there.
    pub deleted: u64,
    /// Goes on after this step; empty: done.
    pub next_page_token: Bytes,
}

/// A deletion under way. Dropping it stops after the step in progress.
#[derive(Debug)]
pub struct DeleteRange {
    call: Call,
    request: proto::DeleteRangeRequest,
    open: Option<(Node, Streaming<proto::DeleteRangeResponse>)>,
    deleted: u64,
    done: bool,
}

impl Client {
    /// Deletes a range of keys; nothing happens before the first step is asked for.
    pub fn delete_range(&self, range: KeyRange) -> DeleteRange {
        self.resume_delete_range(range, Bytes::new())
    }

    /// Goes on with a deletion that ended after the step with this token.
    pub fn resume_delete_range(&self, range: KeyRange, page_token: Bytes) -> DeleteRange {
        let request = proto::DeleteRangeRequest { range: Some(range.into()), page_token };
        let call = self.call("DeleteRange", Kind::Write, Route::Any);
        DeleteRange { call, request, open: None, deleted: 0, done: false }
    }
}

impl DeleteRange {
    /// Runs to the end; the number of keys that were deleted.
    ///
    /// # Errors
    /// See [`crate::Error`]. Steps that were acknowledged stay: see [`Self::deleted`] and [`Self::page_token`].
    pub async fn finish(&mut self) -> Result<u64> {
        while self.next_step().await?.is_some() {}
        Ok(self.deleted)
    }

    /// Keys deleted so far.
    pub fn deleted(&self) -> u64 {
        self.deleted
    }

    /// Goes on after the last acknowledged step.
    pub fn page_token(&self) -> &Bytes {
        &self.request.page_token
    }

    /// The next step; `None`: done.
    ///
    /// # Errors
    /// When a step failed. Its own outcome may be unknown.
    pub async fn next_step(&mut self) -> Result<Option<DeleteRangeStep>> {
        while !self.done {
            let (node, mut stream) = match self.open.take() {
                Some(open) => open,
                None => self.open().await?,
            };
            match timeout_at(self.call.deadline(), stream.message()).await {
                Ok(Ok(Some(message))) => {
                    let step = self.took(message);
                    self.open = Some((node, stream));
                    return Ok(Some(step));
                }
                Ok(Ok(None)) => self.done = self.request.page_token.is_empty(),
                Ok(Err(status)) => self.call.failed_at(&node, &status).await?,
                Err(_) => {
                    let failure = self.call.silence_of(&node);
                    self.call.failed(failure).await?;
                }
            }
        }
        Ok(None)
    }

    async fn open(&mut self) -> Result<(Node, Streaming<proto::DeleteRangeResponse>)> {
        loop {
            let node = self.call.node().await?;
            let mut kv = node.kv();
            match timeout_at(self.call.deadline(), kv.delete_range(self.call.request(self.request.clone())))
                .await
            {
                Ok(Ok(reply)) => return Ok((node, reply.into_inner())),
                Ok(Err(status)) => self.call.failed_at(&node, &status).await?,
                Err(_) => {
                    let failure = self.call.silence_of(&node);
                    self.call.failed(failure).await?;
                }
            }
        }
    }

    fn took(&mut self, message: proto::DeleteRangeResponse) -> DeleteRangeStep {
        let step = DeleteRangeStep {
            header: message.header.into(),
            deleted: message.deleted,
            next_page_token: message.next_page_token,
        };
        self.call.client.core().learn(&step.header);
        self.call.progressed();
        self.deleted += step.deleted;
        self.request.page_token = step.next_page_token.clone();
        self.done = step.next_page_token.is_empty();
        step
    }
}
