//! A node: a value that is started from its configuration and its disk, and stopped by dropping its tasks.

pub mod compaction;
pub mod formation;
pub mod hands;
pub mod host;
pub mod map_feed;
pub mod member;
pub mod peers;
pub mod registration;
pub mod replicas;
pub mod requests;
mod seams;
pub mod snapshots;
pub mod store;
pub mod stores;
