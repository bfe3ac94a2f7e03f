//! A node: a value that is started from its configuration and its disk, and stopped by dropping its tasks.

pub mod compaction;
pub mod host;
pub mod peers;
pub mod replicas;
pub mod requests;
mod seams;
pub mod snapshots;
