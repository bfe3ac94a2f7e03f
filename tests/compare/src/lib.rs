//! What all measurements of whole clusters share: the clusters, what loads them, of what and where they were measured, and
//! what processes take.

pub mod etcd_cluster;
pub mod figures;
pub mod kvctl;
pub mod machine;
pub mod patience;
pub mod record;
pub mod usage;
