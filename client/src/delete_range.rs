//! Deletion of a range, step by step. Not atomic: each step is one revision of one shard.

use bytes::Bytes;
use kv_http2::client::Connection;
use kv_proto::kv::v1::{self as proto, kv_client::KvClient};
use tonic::{Response, Status, Streaming};

use crate::{
    client::Client,
    error::Result,
    options::KeyRange,
    pages::{Paged, Pages},
    retry::Kind,
    routing::Route,
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
    steps: Pages<proto::DeleteRangeRequest>,
    deleted: u64,
    done: bool,
}

impl Paged for proto::DeleteRangeRequest {
    type Page = proto::DeleteRangeResponse;

    async fn send(
        mut kv: KvClient<Connection>,
        request: tonic::Request<Self>,
    ) -> std::result::Result<Response<Streaming<Self::Page>>, Status> {
        kv.delete_range(request).await
    }
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
        DeleteRange { steps: Pages::new(call, request), deleted: 0, done: false }
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
        &self.steps.request.page_token
    }

    /// The next step; `None`: done.
    ///
    /// # Errors
    /// When a step failed. Its own outcome may be unknown.
    pub async fn next_step(&mut self) -> Result<Option<DeleteRangeStep>> {
        while !self.done {
            match self.steps.next().await? {
                Some(message) => return Ok(Some(self.took(message))),
                None => self.done = self.page_token().is_empty(),
            }
        }
        Ok(None)
    }

    fn took(&mut self, message: proto::DeleteRangeResponse) -> DeleteRangeStep {
        let step = DeleteRangeStep {
            header: message.header.into(),
            deleted: message.deleted,
            next_page_token: message.next_page_token,
        };
        self.steps.call.client.core().learn(&step.header);
        self.steps.call.progressed();
        self.deleted += step.deleted;
        self.steps.request.page_token = step.next_page_token.clone();
        self.done = step.next_page_token.is_empty();
        step
    }
}
