//! The meta group: who the nodes are and where the shards live.

pub mod machine;
