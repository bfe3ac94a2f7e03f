//! Rust client of KvCluster.
