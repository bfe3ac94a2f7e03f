//! A node: a value that is started from its configuration and its disk, and stopped by dropping its tasks.

pub mod replicas;
pub mod requests;
