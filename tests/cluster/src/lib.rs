//! Clusters of real `kvnode` processes for tests: they are started, killed, paused, cut off from one another and
//! robbed of what they did not sync, while a checked load runs against them.
//!
//! A test starts a [`Cluster`], runs a [`Load`], does its harm, and asks [`Load::finish`] for the verdict: the
//! history of all clients must be linearizable, mod revisions must have grown, and everything acknowledged must be
//! there at the end, byte for byte. Nothing sleeps: every wait is for a condition, has a deadline, and says what it
//! waited for. When a test fails, the nodes' logs are printed and the history is left in a file.
//!
//! The crate links neither kvnode nor RocksDB: it speaks the public protocol to the binaries, which
//! [`binary::find`] looks for. Two clusters run at a time, however many tests there are.

pub mod admin;
pub mod api;
pub mod binary;
pub mod cluster;
mod failpoints;
pub mod journal;
pub mod load;
mod many;
pub mod metrics;
pub mod namespaces;
pub mod network;
pub mod node;
mod once;
pub mod operations;
pub mod patient;
pub mod plan;
pub mod ports;
pub mod process;
pub mod restart;
pub mod seed;
pub mod settled;
pub mod status;
mod value;
pub mod verdict;
pub mod wait;

pub use cluster::{Cluster, Plan};
pub use load::Load;
pub use node::Node;
pub use plan::LoadPlan;
pub use wait::{DEADLINE, wait_until};
