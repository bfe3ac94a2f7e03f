//! Clusters of real kvnode processes: what a person may do to them, and what must hold nevertheless.
//!
//! Needs the `kvnode` binary (and `kvctl` for the demonstration); see `kv_cluster_tests::binary`. `KV_SEED` repeats
//! a plan of faults, `KV_ROUNDS` sets the number of rounds of the tests that run in rounds.

mod counters;
mod crash;
mod damage;
mod demonstration;
mod disks;
mod downloads;
mod drains;
mod factor;
mod failover;
mod grpcurl;
mod histories;
mod hostile;
mod membership;
mod metrics;
mod moves;
mod names;
mod namespaces;
mod partition;
mod permits;
mod power;
mod recovery;
mod replace;
mod replication;
mod snapshot;
mod steps;
mod targets;
mod zones;
