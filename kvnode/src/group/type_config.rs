//! What openraft is told about our types.
//!
//! The configuration is generic over the runtime: tokio in production, a deterministic one in simulation.

use std::{cmp::Ordering, fmt, marker::PhantomData};

use bytes::Bytes;
use kv_proto::peer::v1::Outcome;
use openraft::{OptionalSend, RaftTypeConfig, raft::responder::Responder};
use openraft_rt::AsyncRuntime;

/// The Raft configuration on runtime `RT`.
pub struct TypeConfig<RT>(PhantomData<fn() -> RT>);

/// On tokio.
pub type TokioConfig = TypeConfig<openraft_rt_tokio::TokioRuntime>;

// Derives would ask for the same of `RT`.
impl<RT> fmt::Debug for TypeConfig<RT> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TypeConfig")
    }
}
impl<RT> Clone for TypeConfig<RT> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<RT> Copy for TypeConfig<RT> {}
impl<RT> Default for TypeConfig<RT> {
    fn default() -> Self {
        Self(PhantomData)
    }
}
impl<RT> PartialEq for TypeConfig<RT> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<RT> Eq for TypeConfig<RT> {}
impl<RT> PartialOrd for TypeConfig<RT> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<RT> Ord for TypeConfig<RT> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

/// The payload of an entry: an encoded `disk.v1.Proposal`, which neither log nor transport decodes.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "proposal of {} B", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "proposal of {} B", self.0.len())
    }
}

/// What became of a proposal's operations, in order. Empty for entries that carry none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied(pub Vec<Outcome>);

impl fmt::Display for Applied {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} outcomes", self.0.len())
    }
}

/// Where a replica lives, as its group's membership tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The kvnode process; 0 only in the default value that openraft asks for.
    pub node: u64,
}

impl fmt::Display for Member {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "#{}", self.node)
    }
}

/// Takes the result of a proposal where it is made, without a task or channel of its own.
pub struct Callback<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Callback<T> {
    /// Calls `take` once, with the result. It must not block: it runs in the group's apply loop.
    pub fn new(take: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(take))
    }
}

impl<C: RaftTypeConfig, T: OptionalSend + 'static> Responder<C, T> for Callback<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

impl<RT: AsyncRuntime> RaftTypeConfig for TypeConfig<RT> {
    type D = Proposal;
    type R = Applied;
    /// The replica id.
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Proposal, u64, Member>;
    type Entry = openraft::Entry<openraft::alias::CommittedLeaderIdOf<Self>, Self::Payload>;
    type AsyncRuntime = RT;
    type Responder<T>
        = Callback<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}
