//! The calls of `admin.v1.Recovery`, in the words of the wire: for a cluster that has lost a quorum for good.
//!
//! Each is of one node's disk: they are made with [`Client::at`]. What is done already is done, so each may be sent again.

use kv_proto::admin::v1 as admin;

use crate::{client::Client, error::Result, retry::Kind, routing::Route};

impl Client {
    /// What is on the disk of the asked node. The node reads all of its logs first: give it minutes.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn inspect_disk(&self) -> Result<admin::InspectResponse> {
        let call = self.call("Inspect", Kind::Read, Route::Any);
        let asked = call.unary(admin::InspectRequest {}, |node, request| async move {
            node.recovery().inspect(request).await
        });
        asked.await.map(|(reply, _)| reply)
    }

    /// Rewrites replicas on the disk of the asked node, which was started with `--recovery`: all of it or nothing.
    ///
    /// # Errors
    /// See [`crate::Error`]. [`crate::Error::Refused`]: nothing was written.
    pub async fn rewrite_disk(&self, request: admin::RewriteRequest) -> Result<admin::RewriteResponse> {
        let call = self.call("Rewrite", Kind::Idempotent, Route::Any);
        let asked =
            call.unary(request, |node, request| async move { node.recovery().rewrite(request).await });
        asked.await.map(|(reply, _)| reply)
    }

    /// Lets meta decide that a shard goes on in a new group with one survivor.
    ///
    /// # Errors
    /// See [`crate::Error`]. [`crate::Error::Refused`] with `GROUP_IS_ALIVE`: the shard has a leader.
    pub async fn replace_group(
        &self,
        request: admin::ReplaceGroupRequest,
    ) -> Result<admin::ReplaceGroupResponse> {
        let call = self.call("ReplaceGroup", Kind::Idempotent, Route::Any);
        let asked =
            call.unary(request, |node, request| async move { node.recovery().replace_group(request).await });
        asked.await.map(|(reply, _)| reply)
    }
}
