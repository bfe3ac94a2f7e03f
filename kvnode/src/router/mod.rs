//! From a request to the replica that answers it: key → slot → shard → leader or local replica.

pub mod store;
