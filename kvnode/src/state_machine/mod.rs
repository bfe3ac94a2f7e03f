//! What committed entries do to a replica's state, and what can be read from it.
//!
//! Apply is pure: an [`overlay`] over the store, an operation, an outcome. It knows no clock but log time, no
//! randomness, no node; the same entries give the same bytes on every replica, in whatever batches they come.
//! [`apply`] dispatches to one file per kind of operation, unless [`sessions`] knows what came of it before. An
//! operation that a replica does not know, or damaged bytes, stop that replica: going on would mean to differ from the
//! others.
//!
//! [`worker`] runs apply for all groups of a node, one write of the store for what several of them have ready.
//! [`raft`] is what openraft sees. [`reads`] answers from one moment of the store.

pub mod apply;
mod delete;
pub mod heads;
pub mod journal;
pub mod limits;
pub mod overlay;
mod precondition;
pub mod progress;
mod put;
pub mod raft;
mod range;
pub mod reads;
pub mod record;
pub mod recovered;
pub(crate) mod refusal;
mod replay;
pub mod replica;
pub mod session;
pub mod session_store;
pub mod sessions;
mod slots;
pub(crate) mod txn;
mod upload;
pub mod validate;
mod value;
pub mod worker;

pub use apply::ApplyError;
pub use replica::{Payload, ReadyEntry, Replica};
pub use validate::validate;
