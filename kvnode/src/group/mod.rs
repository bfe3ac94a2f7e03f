//! A replica of a Raft group: its types, its proposals, its reads, its life.

pub mod batch;
pub mod log_time;
pub mod membership;
pub mod proposer;
pub mod raft_control;
pub mod read_gate;
pub mod replica;
pub mod room;
pub mod settings;
pub mod type_config;
