//! A sharded, replicated, durable key-value server.
//!
//! The path of a write, in one direction: [`api`] decodes and limits; [`router`] finds the shard and the leader;
//! [`group`] batches proposals into Raft entries; [`log`] makes them durable; [`state_machine`] decides what they
//! do; [`state`] keeps it. [`transport`] carries frames between nodes, [`meta`] knows who they are.
//!
//! Types of the Raft library stay inside `group`, `log`, `transport` and `state_machine`.

pub mod api;
pub mod config;
pub mod data_dir;
pub mod group;
pub mod http;
pub mod log;
pub mod meta;
pub mod metrics;
pub mod net;
pub mod node;
pub mod process;
pub mod recovery;
pub mod refusal;
pub mod router;
pub mod runtime;
pub mod state;
pub mod state_machine;
pub mod telemetry;
pub mod transport;
