//! Command line of KvCluster.

fn main() {}
