//! A replica of a Raft group: its types, its proposals, its reads, its life.

pub mod type_config;
