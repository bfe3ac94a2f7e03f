//! What persons and the operator ask of the cluster, at any of its nodes: drain, undrain, remove, permits, hand-over, leader
//! transfers, labels, policy, the journal.
//!
//! The life of an operation: the record of meta is read linearizably ([`Reach`]); the names in the request are looked up in it
//! ([`names`]); what is to be done is decided, purely, from the record and, where that says too little, from what the groups'
//! leaders say at this moment ([`leaders`], [`evidence`]); a command with its actor, reason and time ([`order`]) goes to the
//! meta group, which checks that the decision still holds, or a control request to a node. What is lasting the controller
//! carries out: a drain is only a state of a node. Nothing is remembered here: who loses the answer asks again.

mod drain;
mod evidence;
mod hand_over;
mod journal;
mod leaders;
#[cfg(test)]
mod model;
mod names;
mod order;
mod permits;
mod reach;
mod remove;
mod transfer;
mod wishes;

use kv_proto::{
    admin::v1::{
        DrainNodeRequest, DrainNodeResponse, GetJournalRequest, GetJournalResponse, HandOverRequest,
        HandOverResponse, ReleasePermitRequest, ReleasePermitResponse, RemoveNodeRequest, RemoveNodeResponse,
        RequestPermitRequest, RequestPermitResponse, SetNodeLabelsRequest, SetNodeLabelsResponse,
        SetPolicyRequest, SetPolicyResponse, TransferLeaderRequest, TransferLeaderResponse,
        UndrainNodeRequest, UndrainNodeResponse,
    },
    peer::v1::Refusal,
};
use tokio::time::Instant;

pub use reach::Reach;

use super::core::Core;
use crate::api::admin::Operations;

/// How often a decision is made anew because the record has changed meanwhile.
const ATTEMPTS: usize = 5;

impl Operations for Core {
    async fn drain_node(
        &self,
        request: DrainNodeRequest,
        deadline: Instant,
    ) -> Result<DrainNodeResponse, Refusal> {
        drain::drain(self, request, deadline).await
    }

    async fn undrain_node(
        &self,
        request: UndrainNodeRequest,
        deadline: Instant,
    ) -> Result<UndrainNodeResponse, Refusal> {
        drain::undrain(self, request, deadline).await
    }

    async fn remove_node(
        &self,
        request: RemoveNodeRequest,
        deadline: Instant,
    ) -> Result<RemoveNodeResponse, Refusal> {
        remove::remove(self, request, deadline).await
    }

    async fn transfer_leader(
        &self,
        request: TransferLeaderRequest,
        deadline: Instant,
    ) -> Result<TransferLeaderResponse, Refusal> {
        transfer::transfer(self, request, deadline).await
    }

    async fn request_permit(
        &self,
        request: RequestPermitRequest,
        deadline: Instant,
    ) -> Result<RequestPermitResponse, Refusal> {
        permits::request(self, request, deadline).await
    }

    async fn release_permit(
        &self,
        request: ReleasePermitRequest,
        deadline: Instant,
    ) -> Result<ReleasePermitResponse, Refusal> {
        permits::release(self, request, deadline).await
    }

    async fn hand_over(
        &self,
        request: HandOverRequest,
        deadline: Instant,
    ) -> Result<HandOverResponse, Refusal> {
        hand_over::hand_over(self, request, deadline).await
    }

    async fn set_node_labels(
        &self,
        request: SetNodeLabelsRequest,
        deadline: Instant,
    ) -> Result<SetNodeLabelsResponse, Refusal> {
        wishes::label(self, request, deadline).await
    }

    async fn set_policy(
        &self,
        request: SetPolicyRequest,
        deadline: Instant,
    ) -> Result<SetPolicyResponse, Refusal> {
        wishes::policy(self, request, deadline).await
    }

    async fn get_journal(
        &self,
        request: GetJournalRequest,
        deadline: Instant,
    ) -> Result<GetJournalResponse, Refusal> {
        journal::page(self, request, deadline).await
    }
}
